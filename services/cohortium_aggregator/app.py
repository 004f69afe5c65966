"""The aggregator put together: the only place that makes adapters."""

import asyncio
from pathlib import Path

import structlog
from fastapi import FastAPI

from cohortium_aggregator import api
from cohortium_aggregator.bundle import Bundler
from cohortium_aggregator.consuming import InboxConsumer
from cohortium_aggregator.context import Context, Post
from cohortium_aggregator.downlink import Downlink
from cohortium_aggregator.files import DataDir
from cohortium_aggregator.handlers.membership import MembershipHandlers
from cohortium_aggregator.handlers.models import ModelHandlers
from cohortium_aggregator.handlers.runs import RunHandlers
from cohortium_aggregator.handlers.sessions import SessionHandlers
from cohortium_aggregator.handlers.windows import WindowHandlers
from cohortium_aggregator.intake import Intake
from cohortium_aggregator.opener import Opener
from cohortium_aggregator.settings import AggregatorSettings
from cohortium_aggregator.store import runs, sites
from cohortium_aggregator.strict.engine import Engine
from cohortium_aggregator.strict.running import Listener
from cohortium_aggregator.ticker import Ticker
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.consumer import Consumer
from cohortium_kit.db import Database
from cohortium_kit.errors import ConfigurationError
from cohortium_kit.http import add_ping
from cohortium_kit.outbox import Relay
from cohortium_kit.presence import Presence
from cohortium_kit.runtime import ServiceApp
from cohortium_kit.settings import read_secret_file
from cohortium_messages.governance import GrantEnded, ManifestPublished, SiteRegistered, SiteRevoked
from cohortium_messages.ids import RunId
from cohortium_messages.runs import ModelWanted, RunEnded, RunStarted, SessionOpened
from cohortium_messages.secure_sum import AbortVote, Echo, ReceiptAsked, SessionLeft, Unmask, UploadHeader
from cohortium_messages.topology import platform_topology
from cohortium_platform.identity import Identity, load_identity
from cohortium_platform.service import offer_http, open_bus, open_database, require_migrated
from cohortium_protocol.keys import SealKey
from cohortium_protocol.signing import site_key_id

log = structlog.get_logger(__name__)


class App:
    """The aggregator service. `http` is its operator interface, served on a port or called in process."""

    def __init__(self, ctx: Context, bus: Bus) -> None:
        self.ctx = ctx
        self._bus = bus
        self.intake = Intake(ctx)
        self.opener = Opener(ctx)
        self.ticker = Ticker(ctx)
        self.bundler = Bundler(ctx)
        self.downlink = Downlink(ctx, bus)
        self.engine = Engine(ctx, bus)
        self.listener = Listener(ctx, bus, self.engine)
        self.consumer = self._consumer()
        settings = ctx.settings
        token = read_secret_file(settings.operator_token_file) if settings.operator_token_file else None
        self.http: FastAPI = api.create(_Models(ctx), operator_token=token)
        add_ping(self.http, "database", ctx.db.ping)

    @classmethod
    async def build(
        cls,
        settings: AggregatorSettings,
        *,
        bus: Bus | None = None,
        database: Database | None = None,
        clock: Clock | None = None,
        presence: Presence | None = None,  # noqa: ARG003 - every service takes the same arguments
    ) -> "App":
        """Read the files that settings name and make the parts; nothing is dialled before `run`."""
        clock = clock or SystemClock()
        identity = load_identity(settings, "aggregator", clock)
        db = database or open_database(settings)
        ctx = _context(settings, identity, clock, db)
        return cls(ctx, bus or open_bus(settings, "aggregator"))

    async def load(self) -> None:
        """Make the directories and learn the sites' keys."""
        await asyncio.to_thread(self.ctx.data.prepare)
        await self.engine.load()
        async with self.ctx.db.reading("load_site_keys") as tx:
            for site, key in (await sites.good_keys(tx)).items():
                self.ctx.keyring.add(site_key_id(site), key)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then finish what was begun."""
        await require_migrated(self.ctx.db, "aggregator")
        await self.load()
        relay = Relay(self.ctx.db, self._bus, self.ctx.clock)
        service = ServiceApp(self._bus, self.ctx.db, relay, platform_topology())
        service.consume(self.consumer)
        service.part(self._take_chunks)
        for part in (self.listener, self.opener, self.ticker, self.bundler, self.downlink):
            service.part(part.run)
        offer_http(service, self.http, self.ctx.settings)
        await service.run(stop)

    async def _take_chunks(self, stop: asyncio.Event) -> None:
        await self.intake.run(stop, self._bus)

    def _consumer(self) -> Consumer:
        consumer = InboxConsumer(self.ctx, self._bus)
        membership, running = MembershipHandlers(self.ctx), RunHandlers(self.ctx)
        summing, models = WindowHandlers(self.ctx), ModelHandlers(self.ctx, self.downlink.want)
        consumer.on(SiteRegistered, membership.on_site_registered)
        consumer.on(SiteRevoked, membership.on_site_revoked)
        consumer.on(ManifestPublished, membership.on_manifest)
        consumer.on(GrantEnded, membership.on_grant_ended)
        consumer.on(RunStarted, running.on_run_started)
        consumer.on(SessionOpened, running.on_session_opened)
        consumer.on(RunEnded, running.on_run_ended)
        consumer.on(UploadHeader, summing.on_header)
        consumer.on(ReceiptAsked, summing.on_receipt_asked)
        consumer.on(Echo, summing.on_echo)
        consumer.on(Unmask, summing.on_unmask)
        consumer.on(AbortVote, summing.on_abort_vote)
        consumer.on(SessionLeft, SessionHandlers(self.ctx).on_session_left)
        consumer.on(ModelWanted, models.on_model_wanted)
        return consumer


def _context(settings: AggregatorSettings, identity: Identity, clock: Clock, db: Database) -> Context:
    seal_key = read_seal_key(settings.seal_key_file)
    if seal_key.public != identity.trust.services.aggregator_seal:
        raise ConfigurationError(
            f"seal_key_file {settings.seal_key_file} is not the aggregator_seal key of the trust document; "
            "use the key that the officers signed, or have them sign a new document"
        )
    return Context(
        settings=settings,
        trust=identity.trust,
        governance=identity.governance,
        key=identity.key,
        seal_key=seal_key,
        keyring=identity.keyring,
        clock=clock,
        db=db,
        data=DataDir(settings.data_dir),
        post=Post(identity.sender),
    )


def read_seal_key(path: Path) -> SealKey:
    """The X25519 key in a file of 64 hexadecimal digits; raises `ConfigurationError`."""
    try:
        return SealKey.from_bytes(bytes.fromhex(read_secret_file(path)))
    except ValueError:
        raise ConfigurationError(f"secret file {path} must hold a 32-byte key as 64 hexadecimal digits") from None


class _Models:
    """The HTTP interface's view of the service."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def models(self, run_id: RunId) -> api.RunModels | None:
        async with self._ctx.db.reading("run_models") as tx:
            run = await runs.find_run(tx, run_id)
            if run is None:
                return None
            versions = await runs.versions_of(tx, run_id)
            results = {one.result.model.version: one.result for one in await runs.evaluations_of(tx, run_id)}
        listed = [
            api.ModelVersionInfo(
                version=version.version,
                model_hash=version.model_hash.hex(),
                parameters=version.parameters,
                trees=version.trees,
                stored=version.stored,
                made_at=version.made_at,
                evaluation=results.get(version.version),
            )
            for version in versions
        ]
        bundled = run.attestation_sha256 is not None
        return api.RunModels(run_id=run_id, state=run.state, bundled=bundled, versions=listed)

    def archive(self, run_id: RunId) -> Path:
        return self._ctx.data.bundle_zip(run_id)
