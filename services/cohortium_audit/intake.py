"""From the queue into the logs: hundreds of signed events a second, many to a transaction, acknowledged after it.

Events of one delivery order reach the appender in that order: nothing is awaited between the broker's hand and its
queue, but for a key that is not known yet.
"""

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass

import structlog

from cohortium_audit.domain import CLOCK_AHEAD, EmitterRefused, Entry, check_emitter, is_early, leaf_data, log_of
from cohortium_audit.handlers import Directory, Handlers, Outcome, Rejected
from cohortium_audit.proofs import Proofs, is_waited_for
from cohortium_kit.bus import Ack, Bus, Dead, Delivery, Disposition, Requeue
from cohortium_kit.clock import Clock
from cohortium_kit.consumer import FIRST_WAIT_S, LONGEST_WAIT_S
from cohortium_kit.db import Database
from cohortium_kit.envelopes import Sender, open_envelope
from cohortium_kit.errors import DatabaseError, Poison, TryLater
from cohortium_kit.metrics import Outcome as Seen
from cohortium_messages.envelope import KEY_ID_HEADER, SIGNATURE_HEADER
from cohortium_messages.events import AuditEvent
from cohortium_messages.governance import ManifestPublished, SiteRegistered, SiteRevoked
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.topology import uplink_key
from cohortium_platform.faults import may_be_new
from cohortium_platform.reporting import ReportingConsumer

log = structlog.get_logger(__name__)

EVENT_PREFIX = "cohortium.audit."
MOST_POSTPONED = 128
"""Events of one sender that wait for word of enrolment at a time; more are parked, and can be sent again from there."""
RELOAD_S = 0.5
"""A name that is not known makes us look at the tables, at most so often."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    entry: Entry
    outcome: asyncio.Future[Outcome]


class Appender:
    """Collects entries and records them in batches: a transaction costs nearly as much for one event as for many.

    Nobody waits for most events, so a batch gathers for `gather_s`. One that its emitter waits for takes those that
    came before it along at once.
    """

    def __init__(self, proofs: Proofs, db: Database, clock: Clock, batch: int, gather_s: float) -> None:
        self._proofs = proofs
        self._db = db
        self._clock = clock
        self._batch = batch
        self._gather_s = gather_s
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._urgent = asyncio.Event()
        self.grown = asyncio.Event()
        """Set after every commit."""

    async def append(self, entry: Entry) -> Outcome:
        """Record one entry; returns after the commit."""
        waiting = _Waiting(entry, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        if self._queue.qsize() >= self._batch or is_waited_for(entry):
            self._urgent.set()
        return await waiting.outcome

    async def run(self, stop: asyncio.Event) -> None:
        """Record until `stop` is set and nothing waits. Holds what it has while the database is away."""
        stopping = asyncio.ensure_future(stop.wait())
        stopping.add_done_callback(lambda _: self._urgent.set())
        try:
            while not stop.is_set() or not self._queue.empty():
                taking = asyncio.ensure_future(self._queue.get())
                await asyncio.wait({taking, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not taking.done():
                    taking.cancel()
                    continue
                await self._record(await self._gather(taking.result()))
        finally:
            stopping.cancel()

    async def _gather(self, first: _Waiting) -> list[_Waiting]:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._urgent.wait(), self._gather_s)
        batch = [first]
        while len(batch) < self._batch and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        if self._queue.empty():
            self._urgent.clear()
        return batch

    async def _record(self, batch: list[_Waiting]) -> None:
        try:
            outcomes = await self._commit([waiting.entry for waiting in batch])
        except Exception as error:  # noqa: BLE001 - one bad entry must not take the others of its batch with it
            if len(batch) == 1:
                _settle(batch[0].outcome, error)
                return
            log.warning("batch_taken_apart", error=type(error).__name__, count=len(batch))
            for waiting in batch:
                await self._record([waiting])
            return
        self.grown.set()
        for waiting, outcome in zip(batch, outcomes, strict=True):
            _settle(waiting.outcome, outcome)

    async def _commit(self, entries: list[Entry]) -> list[Outcome]:
        wait_s = FIRST_WAIT_S
        while True:
            try:
                return await self._db.run("append_events", lambda tx: self._proofs.append(tx, entries))
            except DatabaseError as error:
                log.warning("database_waited_for", error=type(error).__name__, count=len(entries))
                await self._clock.sleep(wait_s)
                wait_s = min(LONGEST_WAIT_S, 2 * wait_s)


def _settle(future: asyncio.Future[Outcome], result: Outcome | Exception) -> None:
    if future.done():
        return  # its handler was cancelled; the broker hands the event over again
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


class Intake(ReportingConsumer):
    """The audit service's consumer: events go to the appender, what enrolment says to the handlers."""

    def __init__(
        self,
        bus: Bus,
        db: Database,
        directory: Directory,
        handlers: Handlers,
        proofs: Proofs,
        sender: Sender,
        queue: str,
        *,
        clock: Clock,
        prefetch: int,
        batch: int,
        gather_s: float,
    ) -> None:
        super().__init__(bus, db, directory.keyring, sender, queue, "audit", prefetch, clock=clock)
        self.on(SiteRegistered, handlers.on_site_registered)
        self.on(SiteRevoked, handlers.on_site_revoked)
        self.on(ManifestPublished, handlers.on_manifest)
        self.appender = Appender(proofs, db, clock, batch, gather_s)
        self._directory = directory
        self._records = db
        self._time = clock
        self._postponed: Counter[str] = Counter()
        self._reloaded_at = -RELOAD_S

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set; what was taken by then is recorded and answered before this returns."""
        drained = asyncio.Event()
        recording = asyncio.create_task(self.appender.run(drained), name="appender")
        recording.add_done_callback(lambda _: stop.set())
        try:
            await super().run(stop)
        finally:
            drained.set()
            await recording

    async def take(self, delivery: Delivery, seen: Seen) -> Disposition:
        """Handle one delivery and say how to answer it."""
        try:
            if may_be_new(delivery, self._directory.keyring, "audit"):
                await self._reload()
            if not delivery.type.startswith(EVENT_PREFIX):
                return await super().take(delivery, seen)
            disposition = await self._event(delivery)
        except DatabaseError as error:
            log.warning("database_waited_for", error=type(error).__name__)
            await self._time.sleep(FIRST_WAIT_S)
            seen.name = "held"
            return Requeue()
        match disposition:
            case Ack():
                seen.name = "handled"
            case Requeue():
                seen.name = "postponed"
        return disposition

    async def record_fault(self, delivery: Delivery, reason: str) -> None:
        """As the kit's consumer: what proven senders did. What is good of one that goes on is recorded all the same."""
        await self.record_proven_fault(delivery, reason)

    async def _event(self, delivery: Delivery) -> Disposition:
        try:
            entry = await self._entry(delivery)
        except Poison as poison:
            if not self.is_silenced(delivery):
                log.warning("event_poisonous", reason=poison.reason_code, message_id=delivery.message_id)
            return Dead(poison.reason_code)
        except TryLater as later:
            return await self._later(delivery, later)
        outcome = await self.appender.append(entry)
        if isinstance(outcome, Rejected):
            if not self.is_silenced(delivery):
                log.warning("event_rejected", code=outcome.code, message_id=delivery.message_id)
            return Dead(outcome.code.lower())
        if is_early(entry.time, self._time.now()):
            # It is recorded, with our own time beside it: a wrong clock must not cost anybody's evidence.
            log.warning("emitters_clock_ahead", key_id=entry.key_id, message_id=delivery.message_id)
            await self.count_fault(delivery, CLOCK_AHEAD)
        return Ack()

    async def _later(self, delivery: Delivery, later: TryLater) -> Disposition:
        """Put back after a wait, a few of one sender at a time: each that waits takes a place from all others."""
        sender = delivery.routing_key
        if self._postponed[sender] >= MOST_POSTPONED:
            if not self.is_silenced(delivery):
                log.warning("event_not_waited_for", reason=later.reason, message_id=delivery.message_id)
            return Dead(later.reason)
        log.info("event_postponed", reason=later.reason, delivery_count=delivery.delivery_count)
        self._postponed[sender] += 1
        try:
            await self._time.sleep(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**delivery.delivery_count))
        finally:
            self._postponed[sender] -= 1
            if not self._postponed[sender]:
                del self._postponed[sender]
        return Requeue()

    async def _entry(self, delivery: Delivery) -> Entry:
        """The checked entry. Raises `Poison`, or `TryLater` where enrolment's word may still be on its way."""
        key_id = delivery.headers.get(KEY_ID_HEADER, "")
        is_site = key_id.startswith("site:")
        if may_be_new(delivery, self._directory.keyring, "audit") and not await self._is_revoked(key_id):
            raise TryLater("key_unknown")
        envelope, message, _ = open_envelope(delivery, self._directory.keyring)
        if not isinstance(message, AuditEvent):
            raise Poison("not_an_event", envelope.type)
        site_id = SiteId(key_id.partition(":")[2])
        if is_site and delivery.routing_key != uplink_key(site_id, "audit"):
            raise Poison("site_mismatch", "the routing key is another's")
        members = await self._members(envelope.study, site_id) if is_site and envelope.study else frozenset()
        try:
            check_emitter(key_id, message, envelope, members)
            data = leaf_data(delivery.body, key_id, bytes.fromhex(delivery.headers[SIGNATURE_HEADER]))
        except EmitterRefused as refused:
            raise Poison(refused.code.lower(), envelope.type) from refused
        return Entry(log_of(envelope), envelope.id, key_id, envelope.type, envelope.time, data)

    async def _members(self, study: StudyId, site_id: SiteId) -> frozenset[SiteId]:
        """All that were ever members of the study; looked up again before a site is said not to be one."""
        if site_id not in self._directory.members.get(study, frozenset()):
            await self._reload(at_once=study in self._directory.members)
        if study not in self._directory.members:
            raise TryLater("manifest_unknown")
        return self._directory.members[study]

    async def _reload(self, *, at_once: bool = False) -> None:
        """Follow the tables: `at_once` where the answer decides, now and then where who asks may come again."""
        now = self._time.monotonic()
        if now - self._reloaded_at < RELOAD_S and not at_once:
            return
        self._reloaded_at = now
        async with self._records.reading("reload_directory") as tx:
            await self._directory.reload(tx)

    async def _is_revoked(self, key_id: str) -> bool:
        async with self._records.reading("is_revoked") as tx:
            return await self._directory.is_revoked(tx, key_id)
