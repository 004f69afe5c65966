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
from cohortium_aggregator.files import DataDir, Seat
from cohortium_aggregator.handlers.membership import MembershipHandlers
from cohortium_aggregator.handlers.models import ModelHandlers
from cohortium_aggregator.handlers.runs import RunHandlers
from cohortium_aggregator.handlers.sessions import SessionHandlers
from cohortium_aggregator.handlers.windows import WindowHandlers
from cohortium_aggregator.intake import Intake
from cohortium_aggregator.measures import add_samples
from cohortium_aggregator.opener import Opener
from cohortium_aggregator.settings import AggregatorSettings
from cohortium_aggregator.signed_release import AlreadyReleased, NoCandidate, ReleaseRefused, Releases
from cohortium_aggregator.store import runs
from cohortium_aggregator.store.releases import release_of, waiting_for_log
from cohortium_aggregator.store.runs import Run
from cohortium_aggregator.store.tables import site_keys
from cohortium_aggregator.strict.engine import Engine
from cohortium_aggregator.strict.running import Listener
from cohortium_aggregator.ticker import Ticker
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.consumer import Consumer
from cohortium_kit.db import Database
from cohortium_kit.errors import ConfigurationError
from cohortium_kit.http import HttpProblem, add_ping
from cohortium_kit.outbox import Relay
from cohortium_kit.presence import Presence
from cohortium_kit.runtime import ServiceApp
from cohortium_kit.settings import read_secret_file
from cohortium_messages.governance import GrantEnded, GrantRecorded, ManifestPublished, SiteRegistered, SiteRevoked
from cohortium_messages.ids import RunId
from cohortium_messages.runs import ModelWanted, RunEnded, RunStarted, SessionOpened
from cohortium_messages.secure_sum import AbortVote, Echo, ReceiptAsked, SessionLeft, Unmask, UploadHeader
from cohortium_messages.topology import platform_topology
from cohortium_messages.withdrawals import RetireModels
from cohortium_messages.witness import EventProven
from cohortium_platform.configuration import note_configuration
from cohortium_platform.following import KeyFollower
from cohortium_platform.identity import Identity, load_identity
from cohortium_platform.log_wait import tell_of_waiting
from cohortium_platform.people.guard import guard_of
from cohortium_platform.service import offer_http, open_bus, open_database, require_migrated
from cohortium_protocol.keys import SealKey

log = structlog.get_logger(__name__)


class App:
    """The aggregator service. `http` is its operator interface, served on a port or called in process."""

    def __init__(self, ctx: Context, bus: Bus) -> None:
        self.ctx = ctx
        self._bus = bus
        self.seat: Seat
        self.intake = Intake(ctx)
        self.opener = Opener(ctx)
        self.ticker = Ticker(ctx)
        self.bundler = Bundler(ctx)
        self.downlink = Downlink(ctx, bus)
        self.engine = Engine(ctx, bus)
        self.listener = Listener(ctx, bus, self.engine)
        self.consumer = self._consumer()
        settings = ctx.settings
        self.http: FastAPI = api.create(_Models(ctx), guard=guard_of(settings, "aggregator", ctx.trust, ctx.clock))
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
        """Make the directories, take a seat in them, and learn the sites' keys."""
        await asyncio.to_thread(self.ctx.data.prepare)
        self.seat = await asyncio.to_thread(self.ctx.data.join)
        self.engine.load(self.seat.place)
        await self.ctx.keys.reload()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then finish what was begun."""
        await require_migrated(self.ctx.db, "aggregator")
        await note_configuration(self.ctx.db, self.ctx.post.sender, self.ctx.trust, self.ctx.settings)
        await self.load()
        relay = Relay(self.ctx.db, self._bus, self.ctx.clock)
        service = ServiceApp(self._bus, self.ctx.db, relay, platform_topology())
        service.consume(self.consumer)
        service.part(self._take_chunks)
        service.part(self.ctx.keys.run)
        for part in (self.listener, self.opener, self.ticker, self.bundler, self.downlink):
            service.part(part.run)
        sampler = offer_http(service, self.http, self.ctx.settings, "aggregator")
        add_samples(sampler, self.ctx.db.metrics, lambda: len(self.ctx.held), lambda: self.intake.queues)
        tell_of_waiting(self.http, sampler, self.ctx.db, waiting_for_log, "releases")
        try:
            await service.run(stop)
        finally:
            self.seat.leave()

    async def _take_chunks(self, stop: asyncio.Event) -> None:
        await self.intake.run(stop, self._bus, self.seat)

    def _consumer(self) -> Consumer:
        consumer = InboxConsumer(self.ctx, self._bus)
        membership, running = MembershipHandlers(self.ctx), RunHandlers(self.ctx)
        summing, models = WindowHandlers(self.ctx), ModelHandlers(self.ctx, self.downlink.want)
        consumer.on(SiteRegistered, membership.on_site_registered)
        consumer.on(SiteRevoked, membership.on_site_revoked)
        consumer.on(ManifestPublished, membership.on_manifest)
        consumer.on(GrantRecorded, membership.on_grant_recorded)
        consumer.on(GrantEnded, membership.on_grant_ended)
        consumer.on(RunStarted, running.on_run_started)
        consumer.on(SessionOpened, running.on_session_opened)
        consumer.on(RunEnded, running.on_run_ended)
        consumer.on(RetireModels, running.on_retire)
        consumer.on(UploadHeader, summing.on_header)
        consumer.on(ReceiptAsked, summing.on_receipt_asked)
        consumer.on(Echo, summing.on_echo)
        consumer.on(Unmask, summing.on_unmask)
        consumer.on(AbortVote, summing.on_abort_vote)
        consumer.on(SessionLeft, SessionHandlers(self.ctx).on_session_left)
        consumer.on(EventProven, Releases(self.ctx).on_proven)
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
        keys=KeyFollower(identity.keyring, db, site_keys.good, clock),
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


LOG_PROOF = "the audit log's proof of it"


class _Models:
    """The HTTP interface's view of the service."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._releases = Releases(ctx)

    async def models(self, run_id: RunId) -> api.RunModels | None:
        async with self._ctx.db.reading("run_models") as tx:
            run = await runs.find_run(tx, run_id)
            if run is None:
                return None
            versions = await runs.versions_of(tx, run_id)
            release = await release_of(tx, run_id)
            results = {one.result.model.version: one.result for one in await runs.evaluations_of(tx, run_id)}
        listed = [
            api.ModelVersionInfo(
                version=version.version,
                model_hash=version.model_hash.hex(),
                parameters=version.parameters,
                trees=version.trees,
                stored=version.stored,
                made_at=version.made_at,
                retired=version.retired_by is not None,
                evaluation=results.get(version.version),
            )
            for version in versions
        ]
        bundled = run.attestation_sha256 is not None
        released = release is not None and release.released
        return api.RunModels(run_id=run_id, state=run.state, bundled=bundled, released=released, versions=listed)

    async def archive(self, run_id: RunId) -> Path:
        await self._releases.complete_bundle(run_id)
        return self._ctx.data.bundle_zip(run_id)

    async def release(self, run_id: RunId) -> api.ReleaseView | None:
        run = await self._run(run_id)
        return None if run is None else await self._view(run)

    async def sign_release(self, run_id: RunId, envelope: bytes) -> api.ReleaseView | None:
        run = await self._run(run_id)
        if run is None:
            return None
        try:
            await self._releases.offer(run, envelope)
        except NoCandidate as error:
            raise HttpProblem(409, "MODEL_NOT_READY", str(error), state=run.state) from None
        except AlreadyReleased as error:
            raise HttpProblem(409, "MODEL_RELEASED", str(error)) from None
        except ReleaseRefused as error:
            raise HttpProblem(422, "RELEASE_REFUSED", str(error)) from None
        return await self._view(run)

    async def _run(self, run_id: RunId) -> Run | None:
        async with self._ctx.db.reading("run_of_release") as tx:
            return await runs.find_run(tx, run_id)

    async def _view(self, run: Run) -> api.ReleaseView:
        found = await self._releases.found(run)
        if found is None:
            return api.ReleaseView(run_id=run.run_id, state="candidate", missing=["a governance officer"])
        stored, signed = found
        missing = [LOG_PROOF] if stored.complete else list(signed.missing(run.study.release_sites))
        return api.ReleaseView(
            run_id=run.run_id,
            state="released" if stored.released else "waiting",
            missing=[] if stored.released else missing,
            officers=[key.hex() for key in signed.officers],
            sites=list(signed.sites),
            envelope=api.DsseEnvelope.model_validate_json(stored.envelope),
        )
