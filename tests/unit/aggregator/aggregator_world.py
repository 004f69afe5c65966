"""An aggregator with everybody around it played by the test: real keys, real protocol, no network.

Messages are handed to the service by hand, each of them twice; what it sends is read from its outbox.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from cohortium_aggregator.app import App
from cohortium_aggregator.intake import Arrived
from cohortium_aggregator.settings import AggregatorSettings
from cohortium_aggregator.store import runs, windows
from cohortium_kit.bus import Ack, Bus, Delivery, Disposition, Outgoing
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database
from cohortium_kit.envelopes import Sender
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.migrate import migrate
from cohortium_kit.outbox import outbox
from cohortium_kit.testing.clock import ManualClock
from cohortium_kit.testing.deliveries import delivered
from cohortium_messages.envelope import CHUNK_CONTENT_TYPE
from cohortium_messages.governance import (
    Manifest,
    ManifestPublished,
    Member,
    ServiceKeys,
    SiteRegistered,
    TrustDocument,
)
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.registry import MESSAGE_TYPES, Message
from cohortium_messages.runs import RunStarted, SessionOpened
from cohortium_messages.secure_sum import (
    AbortAsked,
    AbortVote,
    Echo,
    EchoCert,
    ModelRef,
    Purpose,
    Survivors,
    Unmask,
    UploadHeader,
    VectorSpec,
    WindowParams,
)
from cohortium_messages.study import Deadlines, Study
from cohortium_messages.topology import SERVICES, UPLINK, chunk_key, control_queue, uplink_key
from cohortium_protocol.chunks import ChunkPlace, seal_frame
from cohortium_protocol.codec import GridCodec, IntegerCodec, codec_for
from cohortium_protocol.codec import integer_spec as spec_of_integers
from cohortium_protocol.documents import FIRST, default_collusion, manifest_hash, sign_manifest, sign_trust
from cohortium_protocol.encoding import site_bytes
from cohortium_protocol.keys import SealKey, WindowKeys
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey, service_key_id, site_key_id
from cohortium_protocol.survivors import (
    OwnUpload,
    build_abort_vote,
    build_echo,
    build_unmask,
    check_survivors,
)
from cohortium_protocol.upload import PreparedUpload, SiteMasker, prepare_upload, sign_upload
from cohortium_protocol.window import NO_BASE, RosterView, make_ready, make_roster, sign_window, view_roster

M = TypeVar("M", bound=Message)
ROLES = ("enrolment", "consent", "scheduler", "aggregator", "audit")
STUDY: dict[str, Any] = {
    "apiVersion": "cohortium/study/1",
    "governance": "trial",
    "name": "heart",
    "purpose": "test",
    "dataset": {
        "features": [{"name": "age", "type": "float", "range": [18, 110]}],
        "label": {"name": "disease", "type": "binary"},
        "split": {"test": 0.3, "seed": 7},
    },
    "recipe": {"trainer": "torch.logistic"},
    "federation": {
        "rounds": 2,
        "min_sites": 3,
        "deadlines": {"ready_s": 30, "upload_s": 30, "echo_s": 15, "unmask_s": 30, "expire_s": 300},
    },
}
STEP = 0


def integer_spec(dimension: int, chunk_bytes: int = 2048) -> VectorSpec:
    return spec_of_integers(dimension, 64, chunk_bytes=chunk_bytes)


def grid_spec(dimension: int, **changes: Any) -> VectorSpec:
    values = {
        "encoding": "grid",
        "dimension": dimension,
        "ring_bits": 16,
        "rotate": True,
        "rotation_seed": bytes([1]) * 32,
        "keep": 1.0,
        "keep_seed": bytes([2]) * 32,
        "clip_norm_l2": 1.0,
        "range_factor": 6.0,
        "weight_cap": 100,
        "chunk_bytes": 8192,
    }
    return VectorSpec.model_validate(values | changes)


def _write_secret(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


@dataclass(frozen=True, slots=True)
class Sent:
    """One message from the aggregator's outbox."""

    exchange: str
    routing_key: str
    message_id: str
    message: Message


@dataclass(slots=True)
class Site:
    """A hospital in one window. `index` is its place in the roster."""

    site_id: SiteId
    identity: IdentityKey
    keys: WindowKeys = field(default_factory=WindowKeys.generate)
    index: int = 0
    prepared: PreparedUpload | None = None
    header: UploadHeader | None = None
    chunks: list[bytes] = field(default_factory=list)
    survivors: Survivors | None = None


@dataclass(slots=True)
class Window:
    """One window as its sites see it."""

    world: "World"
    params: WindowParams
    view: RosterView
    sites: dict[int, Site]
    opened: SessionOpened

    @property
    def codec(self) -> GridCodec | IntegerCodec:
        return codec_for(self.params.vector, self.view.n)

    @property
    def plan(self) -> Any:
        return self.codec.plan

    def mask(self, index: int, values: npt.NDArray[Any]) -> UploadHeader:
        """Encode and mask a vector; nothing is sent yet."""
        site, codec = self.sites[index], self.codec
        site.prepared = prepare_upload(self.view, STEP, index, site.keys)
        masker = SiteMasker(codec.plan, site.prepared.masks)
        if isinstance(codec, IntegerCodec):
            words = [codec.encode_chunk(values, k) for k in range(codec.plan.chunk_count)]
        else:
            half = lambda start, count: np.full(count, 0.5, dtype=np.float32)  # noqa: E731
            encoder = codec.encoder(values, staleness=0, rows=100, uniforms=half)
            words = [encoder.chunk(k) for k in range(codec.plan.chunk_count)]
        site.chunks = [masker.mask_chunk(k, part) for k, part in enumerate(words)]
        site.header = sign_upload(site.prepared, masker.vec_root(), codec.plan.vec_len, site.identity)
        return site.header

    def frame(self, index: int, chunk: int) -> bytes:
        site = self.sites[index]
        place = ChunkPlace(self.params.window_id, STEP, index, chunk, len(site.chunks))
        return seal_frame(place, site.chunks[chunk], site.identity, self.params.aggregator_seal_pk)

    def frame_delivery(self, index: int, chunk: int, frame: bytes | None = None) -> Delivery:
        key = chunk_key(self.sites[index].site_id, chunk % 2)
        body = self.frame(index, chunk) if frame is None else frame
        return delivery_of(
            Outgoing(
                UPLINK.name,
                key,
                body,
                secrets.token_hex(16),
                "cohortium.window.chunk.v1",
                content_type=CHUNK_CONTENT_TYPE,
            ),
            f"chunks.{chunk % 2}",
        )

    async def send_header(self, index: int, times: int = 2) -> Disposition:
        header = self.sites[index].header
        assert header is not None
        return await self.world.site_says(self.sites[index], header, times=times)

    async def send_chunks(self, index: int, chunks: Iterable[int] | None = None) -> list[Disposition]:
        """Each of them twice."""
        found = []
        for chunk in range(len(self.sites[index].chunks)) if chunks is None else chunks:
            found += await self.world.take_frames([self.frame_delivery(index, chunk)] * 2)
        return found

    async def upload(self, index: int, values: npt.NDArray[Any]) -> None:
        self.mask(index, values)
        await self.send_header(index)
        await self.send_chunks(index)

    def checked(self, index: int, shown: Survivors) -> Any:
        site = self.sites[index]
        own = OwnUpload(site.header, site.prepared.own_box) if site.header and site.prepared else None
        return check_survivors(self.view, shown, index, own, site.keys.seal)

    def echo(self, index: int, shown: Survivors) -> Echo:
        self.sites[index].survivors = shown
        return build_echo(self.view, self.checked(index, shown), self.sites[index].identity)

    def unmask(self, index: int, cert: EchoCert) -> Unmask:
        site = self.sites[index]
        assert site.survivors is not None
        checked = self.checked(index, site.survivors)
        return build_unmask(self.view, checked, cert, site.identity, self.params.aggregator_seal_pk)

    def vote(self, index: int) -> AbortVote:
        return build_abort_vote(self.view, STEP, index, self.sites[index].identity)

    async def say(self, index: int, message: Message, times: int = 2) -> Disposition:
        return await self.world.site_says(self.sites[index], message, times=times)

    async def echo_and_unmask(self, indices: Sequence[int] | None = None) -> None:
        """The sites answer what they were shown."""
        for index in indices or self.view.indices:
            shown = await self.world.last_to(self.sites[index], Survivors)
            if shown is not None:
                await self.say(index, self.echo(index, shown))
        for index in indices or self.view.indices:
            cert = await self.world.last_to(self.sites[index], EchoCert)
            if cert is not None and self.sites[index].survivors is not None:
                await self.say(index, self.unmask(index, cert))

    async def vote_abort(self, indices: Sequence[int]) -> None:
        for index in indices:
            if await self.world.last_to(self.sites[index], AbortAsked) is not None:
                await self.say(index, self.vote(index))


def delivery_of(outgoing: Outgoing, queue: str = "aggregator.inbox") -> Delivery:
    return delivered(outgoing, queue)


@dataclass(slots=True)
class World:
    """The aggregator and everybody around it."""

    settings: AggregatorSettings
    clock: Clock
    app: App
    keys: dict[str, IdentityKey]
    officers: list[IdentityKey]
    seal: SealKey
    study: Study
    run_id: RunId
    manifest: Manifest
    identities: dict[SiteId, IdentityKey]
    broker: MemoryBroker
    make_bus: Callable[[], Bus]
    sent: list[Sent] = field(default_factory=list)
    seated: bool = True

    @classmethod
    async def of(
        cls,
        root: Path,
        n: int = 4,
        *,
        study: dict[str, Any] | None = None,
        clock: Clock | None = None,
        make_bus: Callable[[], Bus] | None = None,
        **more: Any,
    ) -> "World":
        """A world with n enrolled members and one run that has started. By default time stands still."""
        clock = clock or ManualClock()
        keys = {role: IdentityKey.generate() for role in ROLES}
        officers = [IdentityKey.generate() for _ in range(2)]
        seal = SealKey.generate()
        settings = await asyncio.to_thread(_settings, root, clock, keys, officers, seal, more)
        parsed = Study.model_validate(study or STUDY)
        identities = {SiteId(str(uuid4())): IdentityKey.generate() for _ in range(n)}
        manifest = _manifest(parsed, identities, officers)
        broker = MemoryBroker(clock)
        make_bus = make_bus or (lambda: MemoryBus(broker, "test"))
        database = Database(settings.database_url, schema=settings.db_schema, clock=clock)
        await migrate(database, "cohortium_aggregator")
        await database.close()
        app = await _build(settings, clock, make_bus())
        run_id = RunId(str(uuid4()))
        world = cls(settings, clock, app, keys, officers, seal, parsed, run_id, manifest, identities, broker, make_bus)
        await world.enrol()
        return world

    async def enrol(self) -> None:
        for number, (site_id, key) in enumerate(self.identities.items()):
            message = SiteRegistered(site_id=site_id, name=f"Hospital {number}", identity_pk=key.public)
            assert await self.say("enrolment", message) == Ack()
        assert await self.say("enrolment", ManifestPublished(manifest=self.manifest)) == Ack()
        started = RunStarted(
            run_id=self.run_id, study=self.study, study_digest=self.study.digest(), manifest=self.manifest
        )
        assert await self.say("scheduler", started) == Ack()

    async def restart(self) -> None:
        """Forget all that is in memory, as kill -9 does."""
        await self.app.ctx.db.close()
        self.app.seat.leave()
        self.app = await _build(self.settings, self.clock, self.make_bus())

    def leave_seat(self) -> None:
        """The aggregator that runs takes the seat, and this one only prepares and reads."""
        if self.seated:
            self.app.seat.leave()
        self.seated = False

    async def close(self) -> None:
        await self.app.ctx.db.close()
        self.leave_seat()

    # Saying

    async def say(self, role: str, message: Message, times: int = 2) -> Disposition:
        """A service speaks; the same message is delivered `times`."""
        sender = Sender(f"/{role}", EnvelopeSigner(service_key_id(role), self.keys[role]), self.clock)
        return await self._deliver(sender.outgoing(SERVICES.name, "aggregator", message), times)

    async def site_says(
        self,
        site: Site,
        message: Message,
        *,
        times: int = 2,
        key: str | None = None,
        identity: IdentityKey | None = None,
    ) -> Disposition:
        signer = EnvelopeSigner(site_key_id(site.site_id), identity or site.identity)
        outgoing = Sender("/site", signer, self.clock).outgoing(
            UPLINK.name, key or uplink_key(site.site_id, "aggregator"), message
        )
        return await self._deliver(outgoing, times)

    async def _deliver(self, outgoing: Outgoing, times: int) -> Disposition:
        answers = [await self.app.consumer.handle(delivery_of(outgoing)) for _ in range(times)]
        return answers[0]

    async def take_frames(self, deliveries: Sequence[Delivery]) -> list[Disposition]:
        """Give frames to the intake as one batch."""
        loop = asyncio.get_running_loop()
        batch = [Arrived(delivery, loop.create_future()) for delivery in deliveries]
        await self.app.intake.store(batch)
        return [await arrived.answer for arrived in batch]

    # Hearing

    async def hear(self) -> list[Sent]:
        """What the aggregator has sent since the last time; all of it is kept in `sent`."""
        found = []
        async with self.app.ctx.db.transaction("hear") as tx:
            for row in await tx.rows(sa.select(outbox).where(outbox.c.sent_at.is_(None)).order_by(outbox.c.id)):
                data = json.loads(row.body)["data"]
                message = MESSAGE_TYPES[row.type].model_validate(data)
                found.append(Sent(row.exchange, row.routing_key, row.message_id, message))
            await tx.execute(sa.delete(outbox))
        self.sent += found
        return found

    async def heard(self, kind: type[M]) -> list[M]:
        """Every message of a type so far, each id once."""
        await self.hear()
        once = {sent.message_id: sent.message for sent in self.sent if isinstance(sent.message, kind)}
        return list(once.values())  # type: ignore[arg-type]

    async def last_to(self, site: Site, kind: type[M]) -> M | None:
        await self.hear()
        found = [
            sent.message
            for sent in self.sent
            if sent.routing_key == control_queue(site.site_id) and isinstance(sent.message, kind)
        ]
        return found[-1] if found else None

    # Windows

    def params(
        self, purpose: Purpose, spec: VectorSpec, bases: tuple[ModelRef, ...] = (), **changes: Any
    ) -> WindowParams:
        values: dict[str, Any] = {
            "study_id": StudyId(self.study.name),
            "study_digest": self.study.digest(),
            "run_id": self.run_id,
            "window_id": secrets.token_bytes(16),
            "purpose": purpose,
            "kind": "sync",
            "round": 0,
            "manifest_hash": manifest_hash(self.manifest),
            "bases": bases,
            "max_staleness": 0,
            "vector": spec,
            "privacy_mode": "none",
            "target_cohort": len(self.identities),
            "least_cohort": 3,
            "deadlines": self.study.federation.deadlines,
            "aggregator_seal_pk": self.seal.public,
        }
        return WindowParams.model_validate(values | changes)

    def prepare(self, params: WindowParams, among: Sequence[SiteId] | None = None) -> Window:
        """A roster of sites that are ready; nothing is said yet."""
        sites = sorted(among or list(self.identities), key=site_bytes)
        members = [Site(site_id, self.identities[site_id]) for site_id in sites]
        base = params.bases[-1].model_hash if params.bases else NO_BASE
        readies = [make_ready(params, site.site_id, base, site.keys, site.identity) for site in members]
        roster = make_roster(params, self.manifest, readies)
        view = view_roster(roster, params, self.manifest)
        for site in members:
            site.index = view.index_of(site.site_id)
        opened = SessionOpened(open=sign_window(params, self.keys["scheduler"]), roster=roster, manifest=self.manifest)
        return Window(self, params, view, {site.index: site for site in members}, opened)

    async def open(self, params: WindowParams, among: Sequence[SiteId] | None = None) -> Window:
        window = self.prepare(params, among)
        assert await self.say("scheduler", window.opened) == Ack()
        return window

    async def statistics(self) -> Window:
        return await self.open(self.params("statistics", integer_spec(7)))

    async def release(
        self, window: Window, values: dict[int, npt.NDArray[Any]], answering: Sequence[int] | None = None
    ) -> None:
        """All trips of a window, up to its end."""
        for index, vector in values.items():
            await window.upload(index, vector)
        if len(values) < window.view.n:
            await self.pass_time(31)
        await window.echo_and_unmask(answering)
        await self.app.opener.open(window.params.window_id)

    async def first_model(self) -> ModelRef:
        """Version 0, from a statistics window of all sites."""
        window = await self.statistics()
        vector = np.array([10, 300_000, 12_000_000_000, 10, 5, 4, 2], dtype=np.int64)
        await self.release(window, dict.fromkeys(window.view.indices, vector))
        return (await self.newest()).ref

    async def newest(self) -> Any:
        async with self.app.ctx.db.reading("newest") as tx:
            return await runs.newest_version(tx, self.run_id)

    async def closed_bytes(self) -> int:
        """Model bytes that went down and are not reported yet."""
        async with self.app.ctx.db.transaction("bytes") as tx:
            return await runs.take_bytes_down(tx, self.run_id)

    async def state(self, window: Window) -> Any:
        async with self.app.ctx.db.reading("state") as tx:
            found = await windows.find_window(tx, self.app.ctx.sessions, window.params.window_id)
        return None if found is None else found.state

    async def pass_time(self, seconds: float) -> None:
        assert isinstance(self.clock, ManualClock)
        await self.clock.advance(seconds)
        self.app.engine.tick()
        await self.app.engine.settle()
        await self.app.ticker.tick()


async def _build(settings: AggregatorSettings, clock: Clock, bus: Bus) -> App:
    database = Database(settings.database_url, schema=settings.db_schema, clock=clock)
    app = await App.build(settings, bus=bus, database=database, clock=clock)
    await app.load()
    return app


def _settings(
    root: Path,
    clock: Clock,
    keys: dict[str, IdentityKey],
    officers: list[IdentityKey],
    seal: SealKey,
    more: dict[str, Any],
) -> AggregatorSettings:
    root.mkdir(parents=True, exist_ok=True)
    services = ServiceKeys(**{role: key.public for role, key in keys.items()}, aggregator_seal=seal.public)
    trust = TrustDocument(
        federation="test.example",
        version=1,
        issued_at=clock.now(),
        services=services,
        governance_keys=tuple(key.public for key in officers),
        threshold=2,
    )
    for officer in officers:
        trust = sign_trust(trust, officer)
    (root / "trust.json").write_text(trust.model_dump_json())
    return AggregatorSettings.model_validate(
        {
            "amqp_url": "memory://",
            "broker_check": "trial",
            "database_url": f"sqlite:///{root}/{{schema}}.db",
            "schema": "aggregator",
            "namespace": "test",
            "trust_file": root / "trust.json",
            "governance_keys": [key.public.hex() for key in officers],
            "governance_threshold": 2,
            "signing_key_file": _write_secret(root / "aggregator.key", keys["aggregator"].to_seed().hex()),
            "seal_key_file": _write_secret(root / "seal.key", seal.to_bytes().hex()),
            "data_dir": root / "data",
            **more,
        }
    )


def _manifest(study: Study, identities: dict[SiteId, IdentityKey], officers: list[IdentityKey]) -> Manifest:
    ordered = sorted(identities, key=site_bytes)
    manifest = Manifest(
        study_id=StudyId(study.name),
        version=1,
        prev_hash=FIRST,
        study_digest=study.digest(),
        members=tuple(
            Member(site_id=site, name=f"Hospital {number}", identity_pk=identities[site].public)
            for number, site in enumerate(ordered)
        ),
        collusion=default_collusion(len(ordered)),
        k_min_floor=0,
    )
    for officer in officers:
        manifest = sign_manifest(manifest, officer)
    return manifest


__all__ = ["Deadlines", "Sent", "Site", "Window", "World", "grid_spec", "integer_spec"]
