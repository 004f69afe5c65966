"""The audit service's wiring: the only place where its parts are put together."""

import asyncio
import contextlib
from functools import partial

import structlog
from fastapi import FastAPI

from cohortium_audit.api import create_api
from cohortium_audit.feed import Feed
from cohortium_audit.handlers import Directory, Handlers
from cohortium_audit.inclusions import Inclusions
from cohortium_audit.intake import Intake
from cohortium_audit.measures import add_samples
from cohortium_audit.platform_log import PlatformLog
from cohortium_audit.proofs import Proofs
from cohortium_audit.settings import AuditSettings
from cohortium_audit.store.tables import manifest_table
from cohortium_audit.witnessing import Witnessing
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock, SystemClock, pause
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import DatabaseError
from cohortium_kit.manifests import studies_of
from cohortium_kit.outbox import Relay
from cohortium_kit.presence import Presence
from cohortium_kit.runtime import ServiceApp
from cohortium_messages.topology import inbox, platform_topology
from cohortium_messages.witness import CheckpointCosigned, CheckpointElsewhere, InclusionAsked, ProofAsked
from cohortium_platform.configuration import note_configuration
from cohortium_platform.following import Turn
from cohortium_platform.identity import Identity, load_identity
from cohortium_platform.people.guard import guard_of
from cohortium_platform.service import offer_http, open_bus, open_database, require_migrated

log = structlog.get_logger(__name__)

ROLE = "audit"


class App:
    """One instance of the audit service. `http` is there whether or not a port is served."""

    def __init__(self, settings: AuditSettings, identity: Identity, bus: Bus, db: Database, clock: Clock) -> None:
        self.db = db
        self._settings = settings
        self._identity = identity
        self._bus = bus
        self._clock = clock
        self._turn = Turn(db, clock, "checkpoints")
        self.directory = Directory(identity.keyring)
        self.handlers = Handlers(
            directory=self.directory,
            governance=identity.governance,
            key=identity.key,
            federation=identity.trust.federation,
        )
        self.witnessing = Witnessing(identity.sender, identity.trust.federation)
        self.platform_log = PlatformLog(self.handlers, identity.sender, clock, settings.platform_s)
        self.proofs = Proofs(self.handlers, self.witnessing, self.platform_log, identity.sender)
        self.http: FastAPI = create_api(
            handlers=self.handlers,
            witnessing=self.witnessing,
            db=db,
            bus=bus,
            clock=clock,
            trust=identity.trust,
            guard=guard_of(settings, ROLE, identity.trust, clock, studies_of=partial(studies_of, db, manifest_table)),
            sender=identity.sender,
        )
        self.consumer = Intake(
            bus,
            db,
            self.directory,
            self.handlers,
            self.proofs,
            identity.sender,
            inbox(ROLE),
            clock=clock,
            prefetch=settings.prefetch,
            batch=settings.append_batch,
            gather_s=settings.append_gather_s,
        )
        self.consumer.on(CheckpointCosigned, self.witnessing.on_cosigned)
        self.consumer.on(CheckpointElsewhere, self.witnessing.on_elsewhere)
        self.consumer.on(ProofAsked, self.proofs.on_asked)
        self.consumer.on(InclusionAsked, Inclusions(identity.sender, self.witnessing).on_asked)
        self._service = ServiceApp(bus, db, Relay(db, bus, clock), platform_topology())
        self._service.consume(self.consumer)
        self._service.part(self._checkpoints)
        self._service.part(Feed(bus, db, clock, self.consumer.appender.grown).run)
        add_samples(offer_http(self._service, self.http, settings, ROLE), db.metrics)

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
        await note_configuration(self.db, self._identity.sender, self._identity.trust, self._settings)
        async with self.db.reading("load_directory") as tx:
            await self.directory.reload(tx)
        await self._service.run(stop)

    async def _sign_and_ask(self, tx: Tx) -> int:
        signed = await self.handlers.checkpoint_all(tx, self._settings.checkpoint_s)
        await self.witnessing.ask_all(tx)
        await self.platform_log.note_due(tx)
        return signed

    async def _checkpoints(self, stop: asyncio.Event) -> None:
        """Sign what grew, every `checkpoint_s`, and once more at the end. Of several instances one does it."""
        while True:
            await pause(self._clock, self._settings.checkpoint_s, stop)
            try:
                ours = await self._turn.ours()
                signed = await self.db.run("checkpoint_all", self._sign_and_ask) if ours else 0
            except DatabaseError as error:
                log.warning("checkpoint_postponed", error=type(error).__name__)
            else:
                if signed:
                    log.info("checkpoints_signed", count=signed)
            if stop.is_set():
                with contextlib.suppress(DatabaseError):
                    await self._turn.give_up()
                return
