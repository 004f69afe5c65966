"""The audit service's wiring: the only place where its parts are put together."""

import asyncio

import structlog
from fastapi import FastAPI

from cohortium_audit.api import create_api
from cohortium_audit.handlers import Directory, Handlers
from cohortium_audit.intake import Intake
from cohortium_audit.settings import AuditSettings
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock, SystemClock, pause
from cohortium_kit.db import Database
from cohortium_kit.errors import DatabaseError
from cohortium_kit.outbox import Relay
from cohortium_kit.presence import Presence
from cohortium_kit.runtime import ServiceApp
from cohortium_kit.settings import read_secret_file
from cohortium_messages.topology import inbox, platform_topology
from cohortium_platform.identity import Identity, load_identity
from cohortium_platform.service import offer_http, open_bus, open_database, require_migrated

log = structlog.get_logger(__name__)

ROLE = "audit"


class App:
    """One instance of the audit service. `http` is there whether or not a port is served."""

    def __init__(self, settings: AuditSettings, identity: Identity, bus: Bus, db: Database, clock: Clock) -> None:
        self.db = db
        self._settings = settings
        self._bus = bus
        self._clock = clock
        self.directory = Directory(identity.keyring)
        self.handlers = Handlers(
            directory=self.directory,
            governance=identity.governance,
            key=identity.key,
            federation=identity.trust.federation,
        )
        token = read_secret_file(settings.operator_token_file) if settings.operator_token_file else None
        self.http: FastAPI = create_api(
            handlers=self.handlers, db=db, bus=bus, trust=identity.trust, operator_token=token
        )
        self.consumer = Intake(
            bus,
            db,
            self.directory,
            self.handlers,
            identity.sender,
            inbox(ROLE),
            clock=clock,
            prefetch=settings.prefetch,
            batch=settings.append_batch,
        )
        self._service = ServiceApp(bus, db, Relay(db, bus, clock), platform_topology())
        self._service.consume(self.consumer)
        self._service.part(self._checkpoints)
        offer_http(self._service, self.http, settings)

    @classmethod
    async def build(
        cls,
        settings: AuditSettings,
        *,
        bus: Bus | None = None,
        database: Database | None = None,
        clock: Clock | None = None,
        presence: Presence | None = None,  # noqa: ARG003 - every service is built alike
    ) -> "App":
        """The service, from its settings; nothing is dialled yet. Raises `ConfigurationError`."""
        clock = clock or SystemClock()
        identity = load_identity(settings, ROLE, clock)
        return cls(settings, identity, bus or open_bus(settings, ROLE), database or open_database(settings), clock)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set. Raises `ConfigurationError` if a migration is missing."""
        await require_migrated(self.db, ROLE)
        async with self.db.reading("load_directory") as tx:
            await self.directory.reload(tx)
        await self._service.run(stop)

    async def _checkpoints(self, stop: asyncio.Event) -> None:
        """Sign what grew, every `checkpoint_s`, and once more at the end."""
        while True:
            await pause(self._clock, self._settings.checkpoint_s, stop)
            try:
                signed = await self.db.run("checkpoint_all", self.handlers.checkpoint_all)
            except DatabaseError as error:
                log.warning("checkpoint_postponed", error=type(error).__name__)
            else:
                if signed:
                    log.info("checkpoints_signed", count=signed)
            if stop.is_set():
                return
