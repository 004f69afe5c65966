"""The scheduler put together: database, bus, handlers, timer, HTTP. The only place that makes adapters."""

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import partial

import structlog
from fastapi import FastAPI

from cohortium_kit.bus import Ack, Bus, Dead, Delivery, Disposition
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.consumer import Consumer
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import open_envelope
from cohortium_kit.errors import DatabaseError, Poison
from cohortium_kit.http import add_ping
from cohortium_kit.outbox import Relay
from cohortium_kit.presence import MemoryPresence, Presence, Seen
from cohortium_kit.runtime import ServiceApp
from cohortium_messages.governance import (
    Authorised,
    GrantEnded,
    GrantRecorded,
    ManifestPublished,
    SiteRegistered,
    SiteRevoked,
)
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.preflight import PreflightReport
from cohortium_messages.runs import Presence as PresenceMessage
from cohortium_messages.runs import SessionClosed, TaskRefused
from cohortium_messages.secure_sum import Ready
from cohortium_messages.status import RunLineage, RunStatus, RunSummary
from cohortium_messages.study import Study
from cohortium_messages.topology import PRESENCE_QUEUE, platform_topology
from cohortium_messages.withdrawals import EffectOrdered, ModelsRetired, RunPrepared, WithdrawalNoticed
from cohortium_messages.witness import EventProven
from cohortium_platform.configuration import note_configuration
from cohortium_platform.following import FollowingConsumer, KeyFollower, Turn
from cohortium_platform.identity import Identity, load_identity
from cohortium_platform.log_wait import tell_of_waiting
from cohortium_platform.people.guard import Reach, guard_of
from cohortium_platform.service import offer_http, open_bus, open_database, require_migrated
from cohortium_protocol.signing import site_key_id
from cohortium_scheduler import api, store
from cohortium_scheduler import status as statuses
from cohortium_scheduler.handlers.capacities import on_preflight
from cohortium_scheduler.handlers.desk import Desk, Rules
from cohortium_scheduler.handlers.leaving import Leavings
from cohortium_scheduler.handlers.recruiting import Recruiting
from cohortium_scheduler.handlers.windows import Windows
from cohortium_scheduler.measures import Measures, add_samples
from cohortium_scheduler.promises import privacy_status
from cohortium_scheduler.settings import SchedulerSettings

log = structlog.get_logger(__name__)


class App:
    """The scheduler service. `http` is its operator interface, served on a port or called in process."""

    def __init__(
        self, settings: SchedulerSettings, identity: Identity, bus: Bus, db: Database, clock: Clock, presence: Presence
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._bus = bus
        self._db = db
        self._clock = clock
        self._presence = presence
        self._seen: Mapping[SiteId, Seen] = {}
        self._started_at = clock.now()
        self._keys = KeyFollower(identity.keyring, db, store.site_keys.good, clock)
        self._turn = Turn(db, clock, "timer")
        desk = Desk(
            sender=identity.sender,
            key=identity.key,
            keyring=identity.keyring,
            clock=clock,
            rules=Rules(
                governance=identity.governance,
                aggregator_seal_pk=identity.trust.services.aggregator_seal,
                recruiting_grace_s=settings.recruiting_grace_s,
                max_attempts=settings.max_attempts,
                retry_pause_s=settings.retry_pause_s,
            ),
            present=self.present,
        )
        self._windows = Windows(desk)
        self._recruiting = Recruiting(desk, self._windows)
        self._leavings = Leavings(desk, self._windows, self._recruiting)
        self.consumer = self._make_consumer()
        self.http: FastAPI = api.create(_Runs(self), guard=guard_of(settings, "scheduler", identity.trust, clock))
        add_ping(self.http, "database", db.ping)

    @classmethod
    async def build(
        cls,
        settings: SchedulerSettings,
        *,
        bus: Bus | None = None,
        clock: Clock | None = None,
        presence: Presence | None = None,
    ) -> "App":
        """Read the files that settings name and make the parts; nothing is dialled before `run`."""
        clock = clock or SystemClock()
        identity = load_identity(settings, "scheduler", clock)
        if presence is None:
            presence = _presence(settings, clock)
        return cls(settings, identity, bus or open_bus(settings, "scheduler"), open_database(settings), clock, presence)

    def present(self, permitted: Iterable[SiteId]) -> frozenset[SiteId]:
        """Which of these sites count as present: heard within the lapse, or not heard yet right after our start."""
        now = self._clock.now()
        young = (now - self._started_at).total_seconds() < self._settings.presence_lapse_s
        return frozenset(site for site in permitted if self._heard(site, now) or (young and site not in self._seen))

    def _present_now(self) -> int:
        now = self._clock.now()
        return sum(self._heard(site, now) for site in self._seen)

    def _heard(self, site: SiteId, now: datetime) -> bool:
        seen = self._seen.get(site)
        return seen is not None and (now - seen.at).total_seconds() < self._settings.presence_lapse_s

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then finish what was begun."""
        await require_migrated(self._db, "scheduler")
        await note_configuration(self._db, self._identity.sender, self._identity.trust, self._settings)
        await self._keys.reload()
        service = ServiceApp(self._bus, self._db, Relay(self._db, self._bus, self._clock), platform_topology())
        service.consume(self.consumer)
        service.part(self._listen_for_presence)
        service.part(self._keys.run)
        service.part(self._tick)
        sampler = offer_http(service, self.http, self._settings, "scheduler")
        add_samples(sampler, self._db.metrics)
        tell_of_waiting(self.http, sampler, self._db, store.waiting_for_log, "windows")
        self._db.metrics.of(Measures).present.set_function(self._present_now)
        try:
            await service.run(stop)
        finally:
            await self._presence.close()

    def _make_consumer(self) -> Consumer:
        sender = self._identity.sender
        consumer = FollowingConsumer(self._bus, self._db, self._keys, sender, "scheduler", clock=self._clock)
        windows, recruiting = self._windows, self._recruiting
        consumer.on(ManifestPublished, recruiting.on_manifest)
        consumer.on(SiteRegistered, recruiting.on_site_registered)
        consumer.on(SiteRevoked, recruiting.on_site_revoked)
        consumer.on(GrantRecorded, recruiting.on_grant_recorded)
        consumer.on(GrantEnded, recruiting.on_grant_ended)
        consumer.on(Authorised, windows.on_authorised)
        consumer.on(EventProven, windows.on_proven)
        consumer.on(Ready, windows.on_ready)
        consumer.on(TaskRefused, self._leavings.on_refused)
        consumer.on(SessionClosed, self._leavings.on_session_closed)
        consumer.on(WithdrawalNoticed, self._leavings.on_noticed)
        consumer.on(EffectOrdered, self._leavings.on_ordered)
        consumer.on(RunPrepared, self._leavings.on_prepared)
        consumer.on(ModelsRetired, self._leavings.on_retired)
        consumer.on(PreflightReport, on_preflight)
        return consumer

    async def _listen_for_presence(self, stop: asyncio.Event) -> None:
        subscription = await self._bus.consume(PRESENCE_QUEUE, self._on_presence, prefetch=64)
        try:
            await stop.wait()
        finally:
            await subscription.cancel()

    async def _on_presence(self, delivery: Delivery) -> Disposition:
        """A sign of life: no inbox and no database, for the next one follows in seconds."""
        try:
            _, message, key_id = open_envelope(delivery, self._identity.keyring)
        except Poison as poison:
            return await self.consumer.refuse(delivery, Dead(poison.reason_code))
        if not isinstance(message, PresenceMessage) or key_id != site_key_id(message.site_id):
            return await self.consumer.refuse(delivery, Dead("wrong_sender"))
        detail: dict[str, str] = {"state": message.state}
        if message.progress is not None:
            detail["progress"] = f"{message.progress:.3f}"
        # Our own clock decides: a site whose clock is wrong is not therefore gone.
        await self._presence.seen(message.site_id, self._clock.now(), detail)
        return Ack()

    async def _tick(self, stop: asyncio.Event) -> None:
        """What time brings: deadlines, lapsed presence, attempts to repeat. One instance does it for all."""
        while not stop.is_set():
            try:
                self._seen = await self._presence.last_seen()
                if await self._turn.ours():
                    await self._do_due()
            except DatabaseError as error:
                log.warning("tick_failed", error=type(error).__name__)
            await self._clock.sleep(self._settings.tick_s)
        with contextlib.suppress(DatabaseError):
            await self._turn.give_up()

    async def _do_due(self) -> None:
        async with self._db.reading("due_runs") as tx:
            due = await self._recruiting.due(tx)
            leaving = await self._leavings.due(tx)
        for run_id in due:
            await self._db.run("tick", partial(self._recruiting.tick, run_id=run_id))
        for one in leaving:
            await self._db.run("tick_leaving", partial(self._leavings.tick, withdrawal=one.withdrawal))

    # What the HTTP interface needs

    async def submit(self, study: Study) -> RunSummary:
        return statuses.summary(await self._db.run("submit", lambda tx: self._recruiting.submit(tx, study)), [])

    async def list_runs(self, reach: Reach, after: RunId | None, limit: int) -> list[RunSummary]:
        within = None if reach.everywhere else (reach.studies, reach.sites)
        async with self._db.reading("list_runs") as tx:
            runs = await store.runs_page(tx, limit, within=within, after=after)
            return [statuses.summary(run, await store.windows_of(tx, run.run_id)) for run in runs]

    async def taking_part(self, run_id: RunId, sites: frozenset[SiteId]) -> frozenset[SiteId]:
        async with self._db.reading("taking_part") as tx:
            return await store.taking_part(tx, run_id, sites)

    async def status(self, run_id: RunId) -> RunStatus | None:
        async with self._db.reading("run_status") as tx:
            run = await store.find_run(tx, run_id)
            if run is None:
                return None
            manifest = await store.newest_manifest(tx, run.study_digest)
            members = [member.site_id for member in manifest.members] if manifest else []
            windows = await store.windows_of(tx, run_id)
            found = statuses.status(
                run,
                windows,
                manifest,
                await store.grants(tx, run.study_digest),
                self._seen,
                await store.newest_models(tx, run_id, 1),
                self.present(members),
            )
        promise = await asyncio.to_thread(privacy_status, run.study, windows)
        return found.model_copy(update={"privacy": promise})

    async def lineage(self, run_id: RunId, after: int | None, limit: int) -> RunLineage | None:
        async with self._db.reading("run_lineage") as tx:
            run = await store.find_run(tx, run_id)
            if run is None:
                return None
            made = [one for one in await store.models_of(tx, run_id) if after is None or one.model.version > after]
            return statuses.lineage(
                run,
                await store.windows_of(tx, run_id),
                made,
                limit,
                await store.newest_manifest(tx, run.study_digest),
                await self._leavings.flags(tx, run),
            )

    async def stop_run(self, run_id: RunId) -> RunSummary | None:
        async def stop(tx: Tx) -> RunSummary | None:
            run = await store.find_run(tx, run_id)
            if run is None:
                return None
            stopped = await self._recruiting.stop(tx, run)
            return statuses.summary(stopped, await store.windows_of(tx, run_id))

        return await self._db.run("stop_run", stop)


def _presence(settings: SchedulerSettings, clock: Clock) -> Presence:
    if not settings.redis_url:
        return MemoryPresence(clock)
    # Here, and not above: a scheduler without Redis starts without its client.
    from cohortium_kit.redis_presence import RedisPresence

    return RedisPresence(settings.redis_url, settings.namespace, 6 * settings.presence_lapse_s)


class _Runs:
    """The HTTP interface's view of the service."""

    def __init__(self, app: App) -> None:
        self.submit = app.submit
        self.list = app.list_runs
        self.taking_part = app.taking_part
        self.status = app.status
        self.lineage = app.lineage
        self.stop = app.stop_run
