"""How messages come in: the control queue with its consumer, and the queues of models' and results' frames.

The queues are the platform's: a site declares nothing. So the connector waits for them, for as long as it takes.
"""

import asyncio

import structlog

from cohortium_connector.desk import BrokenProtocol, Desk
from cohortium_connector.downloads import Downloads
from cohortium_connector.sessions import Sessions
from cohortium_connector.waiting import Bell, backoff_s
from cohortium_kit.bus import Bus, Delivery, Disposition, Handler, Subscription
from cohortium_kit.clock import pause
from cohortium_kit.consumer import Consumer
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import BusError, ConfigurationError
from cohortium_kit.metrics import Outcome
from cohortium_messages.secure_sum import EchoCert, Survivors
from cohortium_messages.topology import bulk_queue, control_queue, results_queue
from cohortium_messages.witness import CheckpointOffered, EventsIncluded

log = structlog.get_logger(__name__)
BULK_PREFETCH = 8
RESULTS_PREFETCH = 64
"""A result has up to 33 frames of 1 MiB, and several sessions may wait for theirs."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0


QUIET = frozenset(one.type_name for one in (Survivors, EchoCert, CheckpointOffered, EventsIncluded))
"""Messages that are answered where they are handled: no other part has anything to do after them."""


class ControlConsumer(Consumer):
    """Consumes the control queue. After each message, when its transaction is over: faults are recorded, the count of
    saved promises is written beside the database, and the other parts are woken."""

    def __init__(self, desk: Desk, bus: Bus, db: Database, bell: Bell) -> None:
        queue = control_queue(desk.identity.site_id)
        super().__init__(bus, db, desk.identity.keyring, queue, "connector", clock=desk.clock)
        self._desk = desk
        self._spool_db = db
        self._bell = bell
        self._faults: list[BrokenProtocol] = []

    def fault(self, broken: BrokenProtocol) -> None:
        """Remember a fault until the transaction that met it is rolled back."""
        self._faults.append(broken)

    async def take(self, delivery: Delivery, seen: Outcome) -> Disposition:
        disposition = await super().take(delivery, seen)
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
        queue = control_queue(self._desk.identity.site_id)
        await self._consume(queue, self._consumer.handle, 32, stop)

    async def bulk(self, stop: asyncio.Event) -> None:
        await self._consume(bulk_queue(self._desk.identity.site_id), self._downloads.on_frame, BULK_PREFETCH, stop)

    async def results(self, stop: asyncio.Event) -> None:
        await self._consume(results_queue(self._desk.identity.site_id), self._sessions.on_frame, RESULTS_PREFETCH, stop)

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
                )
                attempt += 1
                await pause(self._desk.clock, wait_s, stop)
        return None
