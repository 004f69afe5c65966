"""The scheduler put together: database, bus, handlers, timer, HTTP. The only place that makes adapters."""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import partial

import structlog
from fastapi import FastAPI

from cohortium_kit.bus import Ack, Bus, Dead, Delivery, Disposition
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.consumer import Consumer
from cohortium_kit.db import Database
from cohortium_kit.envelopes import open_envelope
from cohortium_kit.errors import DatabaseError, Poison
from cohortium_kit.http import add_ping
from cohortium_kit.outbox import Relay
from cohortium_kit.presence import MemoryPresence, Presence, RedisPresence, Seen
from cohortium_kit.runtime import ServiceApp
from cohortium_kit.settings import read_secret_file
from cohortium_messages.governance import (
    Authorised,
    GrantEnded,
    GrantRecorded,
    ManifestPublished,
    SiteRegistered,
    SiteRevoked,
)
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.runs import Presence as PresenceMessage
from cohortium_messages.runs import SessionClosed, TaskRefused
from cohortium_messages.secure_sum import Ready
from cohortium_messages.status import RunStatus, RunSummary
from cohortium_messages.study import Study
from cohortium_messages.topology import PRESENCE_QUEUE, inbox, platform_topology
from cohortium_platform.identity import Identity, load_identity
from cohortium_platform.service import offer_http, open_bus, open_database, require_migrated
from cohortium_protocol.signing import site_key_id
from cohortium_scheduler import api, store
from cohortium_scheduler import status as statuses
from cohortium_scheduler.handlers.desk import Desk, Rules
from cohortium_scheduler.handlers.recruiting import Recruiting
from cohortium_scheduler.handlers.windows import Windows
from cohortium_scheduler.settings import SchedulerSettings

log = structlog.get_logger(__name__)
LISTED_RUNS = 100


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
        self._wake = asyncio.Event()
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
        token = read_secret_file(settings.operator_token_file) if settings.operator_token_file else None
        self.http: FastAPI = api.create(_Runs(self), operator_token=token)
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
            presence = (
                RedisPresence(settings.redis_url, settings.namespace, 6 * settings.presence_lapse_s)
                if settings.redis_url
                else MemoryPresence(clock)
            )
        return cls(settings, identity, bus or open_bus(settings, "scheduler"), open_database(settings), clock, presence)

    def present(self, permitted: Iterable[SiteId]) -> frozenset[SiteId]:
        """Which of these sites count as present: heard within the lapse, or not heard yet right after our start."""
        now = self._clock.now()
        young = (now - self._started_at).total_seconds() < self._settings.presence_lapse_s
        return frozenset(site for site in permitted if self._heard(site, now) or (young and site not in self._seen))

    def _heard(self, site: SiteId, now: datetime) -> bool:
        seen = self._seen.get(site)
        return seen is not None and (now - seen.at).total_seconds() < self._settings.presence_lapse_s

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then finish what was begun."""
        await require_migrated(self._db, "scheduler")
        async with self._db.reading("load_site_keys") as tx:
            for site, key in (await store.site_keys(tx)).items():
                self._identity.keyring.add(site_key_id(site), key)
        service = ServiceApp(self._bus, self._db, Relay(self._db, self._bus, self._clock), platform_topology())
        service.consume(self._consumer())
        service.part(self._listen_for_presence)
        service.part(self._tick)
        offer_http(service, self.http, self._settings)
        try:
            await service.run(stop)
        finally:
            await self._presence.close()

    def _consumer(self) -> Consumer:
        consumer = Consumer(
            self._bus, self._db, self._identity.keyring, inbox("scheduler"), "scheduler", clock=self._clock
        )
        windows, recruiting = self._windows, self._recruiting
        consumer.on(ManifestPublished, recruiting.on_manifest)
        consumer.on(SiteRegistered, recruiting.on_site_registered)
        consumer.on(SiteRevoked, recruiting.on_site_revoked)
        consumer.on(GrantRecorded, recruiting.on_grant_recorded)
        consumer.on(GrantEnded, recruiting.on_grant_ended)
        consumer.on(Authorised, windows.on_authorised)
        consumer.on(Ready, windows.on_ready)
        consumer.on(TaskRefused, windows.on_refused)
        consumer.on(SessionClosed, windows.on_session_closed)
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
            return Dead(poison.reason_code)
        if not isinstance(message, PresenceMessage) or key_id != site_key_id(message.site_id):
            return Dead("wrong_sender")
        detail: dict[str, str] = {"state": message.state}
        if message.progress is not None:
            detail["progress"] = f"{message.progress:.3f}"
        # Our own clock decides: a site whose clock is wrong is not therefore gone.
        await self._presence.seen(message.site_id, self._clock.now(), detail)
        return Ack()

    async def _tick(self, stop: asyncio.Event) -> None:
        """What time brings: deadlines, lapsed presence, attempts to repeat."""
        while not stop.is_set():
            try:
                self._seen = await self._presence.last_seen()
                async with self._db.reading("due_runs") as tx:
                    due = await self._recruiting.due(tx)
                for run_id in due:
                    await self._db.run("tick", partial(self._recruiting.tick, run_id=run_id))
            except DatabaseError as error:
                log.warning("tick_failed", error=type(error).__name__)
            await self._clock.sleep(self._settings.tick_s)

    # What the HTTP interface needs

    async def submit(self, study: Study) -> RunSummary:
        return statuses.summary(await self._db.run("submit", lambda tx: self._recruiting.submit(tx, study)), [])

    async def list_runs(self) -> list[RunSummary]:
        async with self._db.reading("list_runs") as tx:
            runs = await store.all_runs(tx, LISTED_RUNS)
            return [statuses.summary(run, await store.windows_of(tx, run.run_id)) for run in runs]

    async def status(self, run_id: RunId) -> RunStatus | None:
        async with self._db.reading("run_status") as tx:
            run = await store.find_run(tx, run_id)
            if run is None:
                return None
            manifest = await store.newest_manifest(tx, run.study_digest)
            members = [member.site_id for member in manifest.members] if manifest else []
            return statuses.status(
                run,
                await store.windows_of(tx, run_id),
                manifest,
                await store.grants(tx, run.study_digest),
                self._seen,
                await store.newest_models(tx, run_id, 1),
                self.present(members),
            )

    async def stop_run(self, run_id: RunId) -> RunSummary | None:
        async with self._db.transaction("stop_run") as tx:
            run = await store.find_run(tx, run_id)
            if run is None:
                return None
            stopped = await self._recruiting.stop(tx, run)
            return statuses.summary(stopped, await store.windows_of(tx, run_id))


class _Runs:
    """The HTTP interface's view of the service."""

    def __init__(self, app: App) -> None:
        self.submit = app.submit
        self.list = app.list_runs
        self.status = app.status
        self.stop = app.stop_run
