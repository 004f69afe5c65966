"""The bus port: what every service may ask of the broker, and the rules both adapters keep.

Adapters: `cohortium_kit.memory.MemoryBus` and `cohortium_kit.amqp.RabbitBus`; `tests/contract/test_bus.py` runs on
both. Names are short, as in `cohortium_messages.topology`; the adapter adds the federation's namespace.

Delivery is at least once. Whoever sends keeps the message until `publish` returns; whoever receives makes a second
delivery harmless (`cohortium_kit.inbox`).
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from cohortium_messages.envelope import CONTENT_TYPE
from cohortium_messages.topology import Topology

ORIGINAL_EXCHANGE_HEADER = "cohortium-original-exchange"
"""On a dead letter: the exchange it was first published to, for `cohortium dead-letters redrive`."""
ORIGINAL_KEY_HEADER = "cohortium-original-key"
ORIGINAL_QUEUE_HEADER = "cohortium-original-queue"
PARKED_AT_HEADER = "cohortium-parked-at"
"""On a dead letter: when it was parked, RFC 3339, by the clock of who parked it."""

REASON_DELIVERY_LIMIT = "delivery_limit"
REASON_EXPIRED = "expired"
REASON_HANDLER_ERROR = "handler_error"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to publish; always mandatory, always confirmed.

    `message_id` is the idempotency key: publishing the same `Outgoing` twice is one message to the receiver's inbox.
    `persistent=False` is for what its sender can make again (chunks, interactive steps, presence).
    """

    exchange: str
    routing_key: str
    body: bytes
    message_id: str
    type: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = CONTENT_TYPE
    persistent: bool = True
    ttl_ms: int | None = None
    correlation_id: str | None = None

    def __post_init__(self) -> None:
        """Raises `TypeError` for what cannot be carried: found here, before an outbox tries it for ever."""
        for name, value in self.headers.items():
            if not isinstance(value, str):
                raise TypeError(f"header {name} of {self.type} is {type(value).__name__}: headers are text")
        if not isinstance(self.body, bytes):
            raise TypeError(f"the body of {self.type} is {type(self.body).__name__}: bodies are bytes")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as the broker handed it over.

    `delivery_count` is how often it was handed over before: exact on quorum queues; on classic queues, which do not
    count, 1 if `redelivered`, else 0. `user_id` is the sender's login, certified by the broker, where it was set.
    """

    body: bytes
    headers: Mapping[str, str]
    exchange: str
    routing_key: str
    message_id: str
    type: str
    content_type: str
    redelivered: bool
    delivery_count: int
    user_id: str | None
    queue: str
    correlation_id: str | None = None
    offset: int | None = None
    """Its place in a stream; None from a queue."""


Start = Literal["first", "last", "next"] | int | datetime
"""Where to begin in a stream: what it has first, its last chunk, what comes next, an offset, or what came at that time.
RabbitMQ keeps messages in chunks: after `last` and after a time a few older ones may come before."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Done: what the message asked for is committed."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """Not now: hand it over again. Counts towards the queue's delivery limit.

    Its place in the queue is not promised: RabbitMQ puts it to the front or the back, by kind, limit and version.
    """


@dataclass(frozen=True, slots=True)
class Dead:
    """Never: park it with the dead letters of this queue, under this reason code.

    The queue must have a `dead_letter_key`; without one the message is logged and dropped.
    """

    reason: str


Disposition = Ack | Requeue | Dead
Handler = Callable[[Delivery], Awaitable[Disposition]]


class Subscription(Protocol):
    """A running consumer."""

    @property
    def active(self) -> bool:
        """Whether the broker has us as a consumer of this queue at this moment."""
        ...

    async def cancel(self) -> None:
        """Take no more messages, let handlers in flight finish and answer, then return. Twice is once."""
        ...


class Bus(Protocol):
    """A connection to one federation's exchanges and queues."""

    @property
    def connected(self) -> bool:
        """Whether a publish would find an open connection now. For readiness only: it may be false a moment later."""
        ...

    async def connect(self) -> None:
        """Dial the broker and return when it answers; after that the bus reconnects by itself.

        Raises `AccessRefused` or `BrokerUnavailable` if the first dial fails within its time; the bus then goes on
        trying in the background, so a caller may log it and carry on.
        """
        ...

    async def close(self) -> None:
        """Cancel every subscription (draining handlers), then hang up. Twice is once."""
        ...

    async def publish(self, outgoing: Outgoing, *, timeout_s: float = 10.0) -> None:
        """Hand a message over; returns only after the broker's confirm.

        Raises `Unroutable`, `Refused`, `AccessRefused` or `BrokerUnavailable`; after the last one the message may have
        arrived. Raises `TypeError` for a message that AMQP cannot encode, which no repetition cures. Never takes
        longer than `timeout_s`; raises `CancelledError` only if the caller itself was cancelled.
        """
        ...

    async def declare(self, topology: Topology, *, timeout_s: float = 30.0) -> None:
        """Make every exchange, queue and binding of the topology exist. Twice is once; a changed rule is an error.
        A queue that exists with other bounds keeps them, and the log says which."""
        ...

    async def check_queue(self, name: str, *, timeout_s: float = 10.0) -> None:
        """Return if the queue exists and we may read it; raises `QueueMissing` or `AccessRefused` otherwise."""
        ...

    async def consume(self, queue: str, handler: Handler, *, prefetch: int, start: Start | None = None) -> Subscription:
        """Hand each message of the queue to `handler`, up to `prefetch` at a time, and answer with what it returns.

        The subscription survives reconnects. Handlers start in the queue's order. An exception that escapes a handler
        is logged and becomes `Dead("handler_error:<name>")`. `Dead` publishes a copy to the exchange `dead`, waits for
        its confirm, then acknowledges the original; if that fails the original goes back to the queue. A handler
        that is cancelled puts its message back. Raises `QueueMissing` or `AccessRefused` if the broker says so now.

        From a stream, and only there, it begins at `start`, and after a reconnect at the first message that is not
        answered. Nothing is taken from a stream: every answer means the next one, and nothing is parked.
        """
        ...

    async def queue_depth(self, name: str, *, timeout_s: float = 10.0) -> int:
        """How many messages wait in the queue, without those in handlers' hands. Of a stream it says nothing."""
        ...

    async def get(self, queue: str, *, timeout_s: float = 10.0) -> Delivery | None:
        """Take one message off the queue for good, or None if it is empty: dead-letter listing and tests."""
        ...

    async def delete(self, topology: Topology, *, timeout_s: float = 30.0) -> None:
        """Delete every queue and exchange of the topology with what is in them; missing ones are no error."""
        ...
