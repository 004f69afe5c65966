"""How messages come in: the control queue with its consumer, and the queues of models' and results' frames.

The queues are the platform's: a site declares nothing. So the connector waits for them, for as long as it takes.
"""

import asyncio

import structlog

from cohortium_connector.desk import BrokenProtocol, Desk
from cohortium_connector.downloads import Downloads
from cohortium_connector.sessions import Sessions
from cohortium_connector.store import site
from cohortium_connector.waiting import Bell, backoff_s
from cohortium_kit.bus import Bus, Delivery, Disposition, Handler, Requeue, Subscription
from cohortium_kit.clock import pause
from cohortium_kit.consumer import Consumer
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import BusError, ConfigurationError, QueueMissing
from cohortium_kit.metrics import Outcome
from cohortium_messages.governance import RegistrationRefused, SiteRegistered
from cohortium_messages.secure_sum import EchoCert, Survivors
from cohortium_messages.topology import bulk_queue, control_queue, results_queue
from cohortium_messages.witness import CheckpointOffered, EventsIncluded

log = structlog.get_logger(__name__)
CONTROL_PREFETCH = 32
UNANSWERED_PREFETCH = 65_535
"""Until enrolment has answered, everything else is held: its answer may lie behind a long queue."""
BULK_PREFETCH = 8
RESULTS_PREFETCH = 64
"""A result has up to 33 frames of 1 MiB, and several sessions may wait for theirs."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
NO_QUEUE = (
    "the broker has no such queue: is `namespace` in connector.yaml the one that the operator names? If it is, the "
    "operator restarts enrolment, which declares this site's queues"
)
GIVE_BACK_S = 0.5
"""What is held goes back a little after we have left the queue: given back before, it would come to us again, and each
time counts towards the queue's delivery limit."""
ANSWERS = frozenset(one.type_name for one in (SiteRegistered, RegistrationRefused))


QUIET = frozenset(one.type_name for one in (Survivors, EchoCert, CheckpointOffered, EventsIncluded))
"""Messages that are answered where they are handled: no other part has anything to do after them."""


class ControlConsumer(Consumer):
    """Consumes the control queue. After each message, when its transaction is over: faults are recorded, the count of
    saved promises is written beside the database, and the other parts are woken.

    Until enrolment has answered, whatever else comes is held: a connector that is refused, for somebody else has the
    invitation's site, gives it back, and takes nothing from the one that is the site. `answered` is set when this is
    known, or does not matter any more; `registered` says which.
    """

    def __init__(self, desk: Desk, bus: Bus, db: Database, bell: Bell) -> None:
        queue = control_queue(desk.identity.site_id)
        super().__init__(bus, db, desk.identity.keyring, queue, "connector", clock=desk.clock)
        self._desk = desk
        self._spool_db = db
        self._bell = bell
        self._faults: list[BrokenProtocol] = []
        self.answered = asyncio.Event()
        self.registered = False

    def fault(self, broken: BrokenProtocol) -> None:
        """Remember a fault until the transaction that met it is rolled back."""
        self._faults.append(broken)

    async def look(self) -> None:
        """Read from the spool whether enrolment has answered."""
        async with self._spool_db.reading("registration_answer") as tx:
            record = await site.find_site(tx)
        self.registered = record is not None and record.registered
        if self.registered or (record is not None and record.refused):
            self.answered.set()

    async def until_registered(self, stop: asyncio.Event) -> bool:
        """Wait for enrolment's answer, or for the end; returns whether this connector is the site."""
        while not (stop.is_set() or self.answered.is_set()):
            await pause(self._desk.clock, LONGEST_WAIT_S, stop, self.answered)
        return self.registered

    async def take(self, delivery: Delivery, seen: Outcome) -> Disposition:
        if not self.registered and delivery.type not in ANSWERS:
            await self.answered.wait()
            if not self.registered:
                await self._desk.clock.sleep(GIVE_BACK_S)
                return Requeue()
        disposition = await super().take(delivery, seen)
        if not self.registered and delivery.type in ANSWERS:
            await self.look()
        await self._record_faults()
        await self._desk.note_promises(self._spool_db)
        if delivery.type not in QUIET:
            self._bell.ring()
        return disposition

    async def _record_faults(self) -> None:
        faults, self._faults = self._faults, []
        if not faults:
            return

        async def record(tx: Tx) -> None:
            for fault in faults:
                await self._desk.record(tx, fault.event, fault.study)

        await self._spool_db.run("record_faults", record)


class Intake:
    """Keeps the site's queues consumed until the service stops."""

    def __init__(
        self, desk: Desk, bus: Bus, consumer: ControlConsumer, downloads: Downloads, sessions: Sessions
    ) -> None:
        self._desk = desk
        self._bus = bus
        self._consumer = consumer
        self._downloads = downloads
        self._sessions = sessions

    async def control(self, stop: asyncio.Event) -> None:
        queue, consumer = control_queue(self._desk.identity.site_id), self._consumer
        await consumer.look()
        if not consumer.registered:
            asking = await self._subscribe(queue, consumer.handle, UNANSWERED_PREFETCH, stop)
            try:
                await consumer.until_registered(stop)
            finally:
                consumer.answered.set()  # what is held goes back
                if asking is not None:
                    await asking.cancel()
        if consumer.registered:
            await self._consume(queue, consumer.handle, CONTROL_PREFETCH, stop)
        else:
            await stop.wait()  # refused: the queues are somebody else's

    async def bulk(self, stop: asyncio.Event) -> None:
        if await self._consumer.until_registered(stop):
            queue = bulk_queue(self._desk.identity.site_id)
            await self._consume(queue, self._downloads.on_frame, BULK_PREFETCH, stop)
        else:
            await stop.wait()

    async def results(self, stop: asyncio.Event) -> None:
        if await self._consumer.until_registered(stop):
            queue = results_queue(self._desk.identity.site_id)
            await self._consume(queue, self._sessions.on_frame, RESULTS_PREFETCH, stop)
        else:
            await stop.wait()

    async def _consume(self, queue: str, handler: Handler, prefetch: int, stop: asyncio.Event) -> None:
        subscription = await self._subscribe(queue, handler, prefetch, stop)
        if subscription is not None:
            try:
                await stop.wait()
            finally:
                await subscription.cancel()

    async def _subscribe(self, queue: str, handler: Handler, prefetch: int, stop: asyncio.Event) -> Subscription | None:
        """A subscription, however long it takes until the platform has declared the queue and lets us read it."""
        attempt = 0
        while not stop.is_set():
            try:
                await self._bus.check_queue(queue)
                return await self._bus.consume(queue, handler, prefetch=prefetch)
            except (BusError, ConfigurationError) as error:
                wait_s = backoff_s(attempt, FIRST_WAIT_S, LONGEST_WAIT_S)
                log.warning(
                    "queue_awaited",
                    queue=queue,
                    error=type(error).__name__,
                    attempt=attempt + 1,
                    seconds=round(wait_s, 1),
                    reason=NO_QUEUE if isinstance(error, QueueMissing) else str(error),
                )
                attempt += 1
                await pause(self._desk.clock, wait_s, stop)
        return None
