"""Exchanges and queues: who publishes where, who consumes what. Services declare from it, contracts are written from
it.

Names here are short (`uplink`, `scheduler.inbox`); the bus adapter puts the federation's namespace in front of them
(`cohortium.uplink`), so that several federations share one broker.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from cohortium_messages.ids import SiteId

STEP_PARTITIONS = 2
"""Intake queues for the steps of strict sessions. Each has one active consumer; a session stays in one queue."""

CHUNK_PARTITIONS = 8
"""Intake queues for chunks of updates. Each has one active consumer, so aggregators share them without talking; of more
aggregators than queues some receive no chunks. Connectors count with this number too: who makes it greater updates
the platform first, for a key without a queue is refused."""
CHUNK_BYTES = 64 << 20
"""What may wait in one of them; the sites keep the rest in their spools. All of them full must not raise the broker's
memory alarm, which would stop control messages too."""


class ExchangeKind(StrEnum):
    DIRECT = "direct"
    TOPIC = "topic"


class QueueKind(StrEnum):
    QUORUM = "quorum"
    """Replicated, counts deliveries, dead-letters after `delivery_limit`: control messages."""
    CLASSIC = "classic"
    """Not replicated: bulk (the sender keeps its spool until the receiver's receipt) and presence."""
    STREAM = "stream"
    """Reading takes nothing away: everybody reads from the offset of their choice, as often as they like. The oldest
    goes when it grows over `max_length_bytes` or `max_age_s`, a segment at a time."""


@dataclass(frozen=True, slots=True)
class Exchange:
    name: str
    kind: ExchangeKind


@dataclass(frozen=True, slots=True)
class Binding:
    exchange: str
    key: str


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue and its rules.

    `delivery_limit` counts redeliveries after the first one; beyond it the broker dead-letters the message to the
    exchange `dead` under `dead_letter_key`. `max_length_bytes` with `reject-publish`: a publisher over the limit gets a
    negative confirm, nothing is dropped; with `keeps_newest` nobody is told no, and the oldest go. Of a stream,
    `max_age_s`, `segment_bytes` and `max_length_bytes` bound what is kept.
    """

    name: str
    kind: QueueKind
    bindings: tuple[Binding, ...] = ()
    delivery_limit: int | None = None
    dead_letter_key: str | None = None
    max_length_bytes: int | None = None
    max_length: int | None = None
    message_ttl_ms: int | None = None
    single_active_consumer: bool = False
    max_age_s: int | None = None
    segment_bytes: int | None = None
    keeps_newest: bool = False

    @property
    def refuses(self) -> bool:
        """Whether a publisher is told no when it is full."""
        return (self.max_length is not None or self.max_length_bytes is not None) and not self.keeps_newest


@dataclass(frozen=True, slots=True)
class Topology:
    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...] = field(default=())


TASKS = Exchange("tasks", ExchangeKind.DIRECT)
"""Platform to one site, control messages. Key: `site.<id>.control`."""
UPLINK = Exchange("uplink", ExchangeKind.TOPIC)
"""Everything a site sends. Key: `site.<id>.<service>`, `site.<id>.chunks.<partition>` or
`site.<id>.steps.<partition>`."""
SERVICES = Exchange("services", ExchangeKind.DIRECT)
"""Commands and answers between services. Key: the receiving service's name."""
EVENTS = Exchange("events", ExchangeKind.TOPIC)
"""Facts, for the audit log and for integrators. Key: `<study or ->.<event type>`."""
BULK = Exchange("bulk", ExchangeKind.DIRECT)
"""Binary frames to one site: chunks of models (`site.<id>.bulk`), results of steps (`site.<id>.results`)."""
DEAD = Exchange("dead", ExchangeKind.TOPIC)
"""What could not be handled. Key: the consumer's name."""
ENTRIES = Exchange("entries", ExchangeKind.DIRECT)
"""What the audit service has recorded, for integrators. Key: `entries.log`."""

EXCHANGES = (TASKS, UPLINK, SERVICES, EVENTS, BULK, DEAD, ENTRIES)

SERVICE_NAMES = ("enrolment", "consent", "scheduler", "aggregator", "audit")
IN_ORDER = frozenset({"scheduler", "aggregator"})
"""Services whose inbox has one active consumer, however many instances run: there one message follows from another (a
grant and its end; a run, its sessions and its end), and two consumers would overtake each other. The others stand by
and take over when it goes. What the other services hear may come in any order."""
DELIVERY_LIMIT = 5
INBOX_BYTES = 256 << 20
"""What may wait for a service. Who publishes more is told no, keeps it in the outbox, and tries again later."""
CONTROL_BYTES = 64 << 20
"""What may wait for one site, which may be away for weeks; what is for others is not held up."""


PARKED_FRAME_BYTES = 256 << 20
"""What is kept of frames that were refused: the newest. A hospital could fill the broker's disk with them, a MiB each;
who sent which is in the log, and the hospital still has what was good in them."""


def inbox(service: str) -> str:
    return f"{service}.inbox"


def dead_letters(consumer: str) -> str:
    return f"{consumer}.dead"


def control_queue(site: SiteId) -> str:
    return f"site.{site}.control"


def bulk_queue(site: SiteId) -> str:
    return f"site.{site}.bulk"


def uplink_key(site: SiteId, service: str) -> str:
    return f"site.{site}.{service}"


def chunk_key(site: SiteId, partition: int) -> str:
    return f"site.{site}.chunks.{partition}"


def chunk_partition(window_id: bytes, chunk: int) -> int:
    """Where a chunk goes: one round's chunks to all queues in turn, and the rounds of short vectors not all to one."""
    return (window_id[0] + chunk) % CHUNK_PARTITIONS


def chunk_queue(partition: int) -> str:
    return f"chunks.{partition}"


def steps_key(site: SiteId, partition: int) -> str:
    return f"site.{site}.steps.{partition}"


def steps_queue(partition: int) -> str:
    return f"steps.{partition}"


def session_partition(window_id: bytes) -> int:
    """The intake queue of a strict session: every site finds the same one."""
    return window_id[0] % STEP_PARTITIONS


def results_queue(site: SiteId) -> str:
    """Where one site hears the results of its strict sessions."""
    return f"site.{site}.results"


PRESENCE_QUEUE = "presence"

ENTRIES_STREAM = "entries.log"
"""The entries of all logs, each log's in its order."""


def _parking(consumer: str) -> Queue:
    return Queue(dead_letters(consumer), QueueKind.QUORUM, (Binding(DEAD.name, consumer),))


def _service_queues(service: str) -> Iterable[Queue]:
    bindings = [Binding(SERVICES.name, service), Binding(UPLINK.name, f"site.*.{service}")]
    if service == "audit":
        bindings.append(Binding(EVENTS.name, "#"))
    yield Queue(
        inbox(service),
        QueueKind.QUORUM,
        tuple(bindings),
        delivery_limit=DELIVERY_LIMIT,
        dead_letter_key=service,
        max_length_bytes=INBOX_BYTES,
        single_active_consumer=service in IN_ORDER,
    )
    yield _parking(service)


def _chunk_intake(partition: int) -> Queue:
    return Queue(
        chunk_queue(partition),
        QueueKind.CLASSIC,
        (Binding(UPLINK.name, f"site.*.chunks.{partition}"),),
        dead_letter_key="chunks",
        max_length_bytes=CHUNK_BYTES,
        single_active_consumer=True,
    )


def _steps_intake(partition: int) -> Queue:
    """Transient: a step that is lost ends its session, which then goes on from the last finished tree."""
    return Queue(
        steps_queue(partition),
        QueueKind.CLASSIC,
        (Binding(UPLINK.name, f"site.*.steps.{partition}"),),
        dead_letter_key="chunks",
        max_length_bytes=256 << 20,
        message_ttl_ms=600_000,
        single_active_consumer=True,
    )


def platform_topology() -> Topology:
    """All that the platform's services share; every service declares the whole of it when it starts."""
    queues = [queue for service in SERVICE_NAMES for queue in _service_queues(service)]
    queues += [_chunk_intake(partition) for partition in range(CHUNK_PARTITIONS)]
    queues += [_steps_intake(partition) for partition in range(STEP_PARTITIONS)]
    queues.append(replace(_parking("chunks"), max_length_bytes=PARKED_FRAME_BYTES, keeps_newest=True))
    queues.append(
        Queue(
            PRESENCE_QUEUE,
            QueueKind.CLASSIC,
            (Binding(UPLINK.name, "site.*.presence"),),
            max_length=10_000,
            message_ttl_ms=30_000,
        )
    )
    queues.append(_parking("sites"))
    queues.append(
        Queue(
            ENTRIES_STREAM,
            QueueKind.STREAM,
            (Binding(ENTRIES.name, ENTRIES_STREAM),),
            max_length_bytes=1 << 30,
            max_age_s=90 * 24 * 3600,
            segment_bytes=32 << 20,
        )
    )
    return Topology(EXCHANGES, tuple(queues))


def site_topology(site: SiteId) -> Topology:
    """The three queues of one site, declared by enrolment: a site itself may declare nothing."""
    return Topology(
        EXCHANGES,
        (
            Queue(
                control_queue(site),
                QueueKind.QUORUM,
                (Binding(TASKS.name, control_queue(site)),),
                delivery_limit=DELIVERY_LIMIT,
                dead_letter_key="sites",
                max_length_bytes=CONTROL_BYTES,
            ),
            Queue(
                bulk_queue(site),
                QueueKind.CLASSIC,
                (Binding(BULK.name, bulk_queue(site)),),
                max_length_bytes=64 << 20,
            ),
            Queue(
                results_queue(site),
                QueueKind.CLASSIC,
                (Binding(BULK.name, results_queue(site)),),
                max_length_bytes=64 << 20,
                message_ttl_ms=600_000,
            ),
        ),
    )
