"""The loop under every handler: open, remember, handle, commit, acknowledge; each exactly once and in this order."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, final

import structlog
from structlog.contextvars import bound_contextvars

from cohortium_kit import probe, telemetry
from cohortium_kit.bus import Ack, Bus, Dead, Delivery, Disposition, Requeue, Subscription
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Verifier, open_envelope
from cohortium_kit.errors import DatabaseError, DatabaseUnavailable, Poison, TransactionConflict, TryLater
from cohortium_kit.inbox import first_time
from cohortium_kit.metrics import Outcome, reason_label
from cohortium_kit.penalties import Penalties, Verdict, site_to_blame
from cohortium_messages.envelope import Envelope
from cohortium_messages.registry import Message

log = structlog.get_logger(__name__)

M_co = TypeVar("M_co", bound=Message, covariant=True)
M = TypeVar("M", bound=Message)

SERVICE, SITE = "service:", "site:"
"""How key ids of services and of sites begin."""
DATABASE_PATIENCE_S = 600.0
"""How long a message is held while the database is away: well under the broker's acknowledgement timeout of 30 min."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 8.0


@dataclass(frozen=True, slots=True)
class Received(Generic[M_co]):
    """A message whose signature and schema are good. Whether its signer may say this is for the handler to check."""

    envelope: Envelope
    message: M_co
    key_id: str
    routing_key: str
    delivery: Delivery


Work = Callable[[Tx, Received[M]], Awaitable[None]]


class Consumer:
    """Consumes one queue for one service.

    `name` is the consumer's name in the inbox: it must stay the same over restarts and be the same in every instance
    of the service. Handlers run one at a time, in the order of delivery. A handler may run again after a conflict in
    the database, so it changes nothing outside its transaction.

    What becomes of a message: handled or seen before, acknowledged. `Poison`, parked with its reason. `TryLater`, put
    back after a wait that grows with its deliveries. Database away, held and tried again. Any other error, put back,
    so that the delivery limit parks what always fails.

    One site cannot fill the disk with what is parked, nor the log: where too many messages of a site are refused, those
    that follow are forgotten for a while (`cohortium_kit.penalties`). That is decided here, for every service; each
    says in `record_fault` and `record_silence` what of it goes on record.
    """

    def __init__(
        self,
        bus: Bus,
        db: Database,
        verifier: Verifier,
        queue: str,
        name: str,
        prefetch: int = 32,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._bus = bus
        self._db = db
        self._metrics = db.metrics
        self._verifier = verifier
        self._queue = queue
        self._name = name
        self._prefetch = prefetch
        self._clock: Clock = clock or SystemClock()
        self._handlers: dict[str, Work[Any]] = {}
        self._fallback: Work[Any] | None = None
        self._turn = asyncio.Lock()
        self._penalties = Penalties()
        self._subscription: Subscription | None = None

    def on(self, kind: type[M], handler: Work[M]) -> None:
        """Give every message of this type to `handler`. A type has one handler."""
        if kind.type_name in self._handlers:
            raise ValueError(f"{self._name} has two handlers for {kind.type_name}")
        self._handlers[kind.type_name] = handler

    def otherwise(self, handler: Work[Message]) -> None:
        """Give every known type without a handler of its own to `handler`, instead of parking it."""
        self._fallback = handler

    @property
    def active(self) -> bool:
        return self._subscription is not None and self._subscription.active

    async def start(self) -> None:
        self._subscription = await self._bus.consume(self._queue, self.handle, prefetch=self._prefetch)

    async def stop(self) -> None:
        """Take no more; return when what was begun is committed and answered."""
        if self._subscription is not None:
            await self._subscription.cancel()

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set."""
        await self.start()
        try:
            await stop.wait()
        finally:
            await self.stop()

    @final
    async def handle(self, delivery: Delivery) -> Disposition:
        """Handle one delivery and say how to answer it. Tests call it to deliver by hand, and twice."""
        if probe.is_probe(delivery):
            async with self._turn:
                return await probe.answer(self._db, delivery)
        with self._metrics.answering(self._name, delivery.type, redelivered=delivery.redelivered) as seen:
            disposition = await self.take(delivery, seen)
            if isinstance(disposition, Dead):
                seen.name, seen.reason = "parked", disposition.reason
                disposition = await self.refuse(delivery, disposition)
                if isinstance(disposition, Ack):
                    seen.name = "forgotten"
                elif isinstance(disposition, Requeue):
                    seen.name = "held"
        return disposition

    async def take(self, delivery: Delivery, seen: Outcome) -> Disposition:
        """Open and handle one delivery; says in `seen` what became of it. For services that do something around it."""
        with bound_contextvars(consumer=self._name, message_id=delivery.message_id, type=delivery.type):
            with contextlib.ExitStack() as scope:
                answer = await self._answer(delivery, seen, scope)
            if answer is not None:
                return answer
            await self._clock.sleep(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**delivery.delivery_count))
            return Requeue()

    async def refuse(self, delivery: Delivery, dead: Dead) -> Disposition:
        """How to answer what can never be handled: parked and put on record, forgotten if there is too much of it, or
        put back where the database is away."""
        try:
            verdict = await self.count_fault(delivery, dead.reason)
        except DatabaseError as error:
            log.warning("fault_not_recorded", reason=dead.reason, error=type(error).__name__)
            await self._clock.sleep(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**delivery.delivery_count))
            return Requeue()
        return Ack() if verdict is Verdict.FORGET else dead

    async def count_fault(self, delivery: Delivery, reason: str) -> Verdict:
        """Count a fault against the site that sent this, and put it on record as far as that is worth it. Raises
        `DatabaseError`; then it is not counted."""
        sender = site_to_blame(delivery)
        verdict = Verdict.RECORD if sender is None else self._penalties.refused(sender, self._clock.monotonic())
        try:
            if verdict is Verdict.RECORD:
                await self.record_fault(delivery, reason)
            elif verdict is Verdict.RECORD_SILENCE and sender is not None:
                log.warning("sender_silenced", consumer=self._name, sender=sender)
                await self.record_silence(sender)
        except DatabaseError:
            if sender is not None:
                self._penalties.take_back(sender)
            raise
        return verdict

    async def record_fault(self, delivery: Delivery, reason: str) -> None:
        """Tell the log of a fault, in a transaction of its own: the handler's was undone. Here: nothing is told. Raises
        `DatabaseError`."""

    async def record_silence(self, sender: str) -> None:
        """Tell the log that this sender's faults are forgotten for a while. Here: nothing is told. Raises
        `DatabaseError`."""

    def is_silenced(self, delivery: Delivery) -> bool:
        """Whether faults of this message's sender are forgotten now, by the log as well."""
        sender = site_to_blame(delivery)
        return sender is not None and self._penalties.silenced(sender, self._clock.monotonic())

    async def _answer(self, delivery: Delivery, seen: Outcome, scope: contextlib.ExitStack) -> Disposition | None:
        """What to answer, or None: put it back after a wait. The message's span and ids last until `scope` ends."""
        try:
            received, work = self._open(delivery)
            scope.enter_context(self._traced(received))
            disposition, seen.name = await self._in_turn(received, work)
        except Poison as poison:
            if not self.is_silenced(delivery):
                log.warning("message_poisonous", reason=poison.reason_code)
            telemetry.failed(reason_label(poison.reason_code))
            return Dead(poison.reason_code)
        except TryLater as later:
            log.info("message_postponed", reason=later.reason, delivery_count=delivery.delivery_count)
            seen.name = "postponed"
        except Exception as error:
            log.exception("handler_failed", error=type(error).__name__, delivery_count=delivery.delivery_count)
            telemetry.failed(type(error).__name__)
        else:
            return disposition
        return None

    @contextlib.contextmanager
    def _traced(self, received: Received[Message]) -> Iterator[None]:
        """In the message's span, and with its ids on every line of the log."""
        message, delivery = received.message, received.delivery
        span = telemetry.processing(
            message,
            delivery.headers,
            key_id=received.key_id,
            queue=delivery.queue,
            consumer=self._name,
            message_id=delivery.message_id,
        )
        with span, bound_contextvars(**_ids(received)):
            yield

    def _open(self, delivery: Delivery) -> tuple[Received[Message], Work[Any]]:
        envelope, message, key_id = open_envelope(delivery, self._verifier)
        work = self._handlers.get(envelope.type, self._fallback)
        if work is None:
            raise Poison("unhandled_type", envelope.type)
        return Received(envelope, message, key_id, delivery.routing_key, delivery), work

    async def _in_turn(self, received: Received[Message], work: Work[Any]) -> tuple[Disposition, str]:
        """Run the work when it is this message's turn, and keep the turn while the database is away. Returns the
        answer, and what became of the message."""
        kind = received.envelope.type
        name = f"{self._name}:{kind}"
        async with self._turn:
            if received.key_id.startswith(SERVICE):  # a site's clock may be wrong by any amount
                waited = (self._clock.now() - received.envelope.time).total_seconds()
                self._metrics.wait_seconds.labels(self._name).observe(max(0.0, waited))
            with self._metrics.handling(self._name, kind):
                return await self._patiently(name, received, work)

    async def _patiently(self, name: str, received: Received[Message], work: Work[Any]) -> tuple[Disposition, str]:
        deadline = self._clock.monotonic() + DATABASE_PATIENCE_S
        wait_s = FIRST_WAIT_S
        while True:
            try:
                return Ack(), await self._db.run(name, lambda tx: self._once(tx, received, work))
            except (DatabaseUnavailable, TransactionConflict) as error:
                log.warning("database_waited_for", error=type(error).__name__)
                if self._clock.monotonic() + wait_s > deadline:
                    return Requeue(), "held"
                await self._clock.sleep(wait_s)
                wait_s = min(LONGEST_WAIT_S, 2 * wait_s)

    async def _once(self, tx: Tx, received: Received[Message], work: Work[Any]) -> str:
        # The signer is part of the id: one site must not be able to use up the id of another one's message.
        if await first_time(tx, self._name, f"{received.key_id}/{received.envelope.id}"):
            await work(tx, received)
            return "handled"
        log.info("message_repeated", redelivered=received.delivery.redelivered)
        return "repeated"


def _ids(received: Received[Message]) -> dict[str, str]:
    """What ties a handler's log lines to a run, a window, a study and a site."""
    window = telemetry.window_of(received.message)
    run = telemetry.run_of(received.message)
    ids = {
        "window": window.hex() if window else None,
        "run": run,
        "study": received.envelope.study,
        "site": received.key_id.removeprefix(SITE) if received.key_id.startswith(SITE) else None,
    }
    return {name: value for name, value in ids.items() if value is not None} | telemetry.current_ids()
