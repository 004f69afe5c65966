"""A federation around one real connector: the platform and the other hospitals are played here, with the real protocol.

Everything that the connector publishes is recorded in the order in which it left.
"""

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import numpy as np
import rfc8785
import sqlalchemy as sa
from connector_peers import Peer

from cohortium_connector.app import App
from cohortium_connector.domain.commands import Abandoned
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.store import products, windows
from cohortium_connector.store.site import unsent_messages
from cohortium_connector.store.windows import WindowRecord
from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.jobs import (
    ComputeRefinement,
    ComputeStatistics,
    CountDone,
    CountPatients,
    Evaluate,
    EvaluateDone,
    PrepareDone,
    PrepareTrees,
    PrivateWork,
    StatisticsDone,
    TakeCohort,
    TrainDone,
    TrainTrees,
)
from cohortium_connector.training.jobs import TrainLocally as Train
from cohortium_connector.training.live_wire import ChildBridge
from cohortium_connector.training.patients import take_cohort
from cohortium_connector.training.runner import TrainingRefused
from cohortium_kit.bus import Bus, Outgoing
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender, open_envelope
from cohortium_kit.errors import BrokerUnavailable, Refused
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.tables import inbox as inbox_table
from cohortium_kit.testing.deliveries import delivered
from cohortium_messages.envelope import CHUNK_CONTENT_TYPE
from cohortium_messages.governance import (
    Invitation,
    Manifest,
    Member,
    RegisterSite,
    RegistrationRefused,
    ServiceKeys,
    SiteRegistered,
    TrustDocument,
)
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.registry import Message
from cohortium_messages.runs import ModelOffered, ModelWanted, StudyOffered
from cohortium_messages.secure_sum import (
    ModelRef,
    VectorSpec,
    WindowClosed,
    WindowOpen,
    WindowParams,
)
from cohortium_messages.study import RandomTreesRecipe, Study
from cohortium_messages.topology import (
    BULK,
    CHUNK_PARTITIONS,
    PRESENCE_QUEUE,
    TASKS,
    bulk_queue,
    chunk_queue,
    control_queue,
    dead_letters,
    inbox,
    platform_topology,
    site_topology,
)
from cohortium_privacy.windows import HISTOGRAM_WORDS, formal, private_vector_length
from cohortium_protocol.chunks import (
    ModelKey,
    ModelPlace,
    open_body,
    open_header,
    seal_model_frame,
    wrap_model_key,
)
from cohortium_protocol.codec import integer_spec
from cohortium_protocol.documents import manifest_hash, sign_manifest, sign_trust
from cohortium_protocol.keys import SealKey
from cohortium_protocol.parameters import layout_of, model_hash
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey, Keyring, service_key_id, site_key_id
from cohortium_protocol.statistics import input_count
from cohortium_protocol.trees.vectors import integer_length
from cohortium_protocol.window import sign_window
from task_log import TaskLog

M = TypeVar("M", bound=Message)
ROLES = ("enrolment", "consent", "scheduler", "aggregator", "audit")
NAMESPACE = "test"
PATIENCE_S = 60.0
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
        "rounds": 5,
        "min_sites": 3,
        "deadlines": {"ready_s": 60, "upload_s": 60, "echo_s": 60, "unmask_s": 60, "expire_s": 60},
    },
}


Script = Callable[[TrainTrees, ChildBridge], Any]
"""What a fake trainer does in a strict session, in a thread: it asks, and returns or raises what the runner does."""


@dataclass
class FakeRunner:
    """Stands in for the training process. Vectors are made of `value`; `hold` keeps a training busy."""

    work_dir: Path
    value: int = 7
    rows: int = 100
    blocks: dict[str, int] | None = None
    digest: bytes = bytes([3]) * 32
    script: Script | None = None
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    fails_with: Exception | None = None
    jobs: list[Any] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self.hold.set()

    async def run(self, job: Any, *, timeout_s: float = 60.0, bridge: socket.socket | None = None) -> Any:
        self.jobs.append(job)
        if self.fails_with is not None:
            raise self.fails_with
        match job:
            case TakeCohort():
                try:
                    return take_cohort(job, 1.0)
                except SiteRefusal as refusal:
                    raise TrainingRefused(refusal.code, refusal.column, refusal.count) from None
            case CountPatients():
                return CountDone(patients=self.rows, blocks=self.blocks or {"all": self.rows}, seconds=0, peak_mb=1)
            case _ if (vector := self._private(job)) is not None:
                await self.hold.wait()
                return vector
            case ComputeStatistics():
                _write(job.vector_path, np.full(integer_length(job.study, "statistics"), self.value, dtype="<i8"))
                return StatisticsDone(train_rows=self.rows, test_rows=9, seconds=0, peak_mb=1)
            case Train():
                await self.hold.wait()
                if isinstance(job.study.recipe, RandomTreesRecipe):
                    size = integer_length(job.study, "update")
                    _write(job.update_path, np.full(size, self.value, dtype="<i8"))
                else:
                    size = layout_of(job.study.recipe, input_count(job.study)).size
                    _write(job.update_path, np.full(size, self.value / 100, dtype="<f4"))
                return TrainDone(rows=self.rows, parameters=size, norm_l2=1, loss=None, seconds=0, peak_mb=1)
            case Evaluate():
                _write(job.vector_path, np.full(integer_length(job.study, "evaluation"), self.value, dtype="<i8"))
                return EvaluateDone(rows=9, seconds=0, peak_mb=1)
            case ComputeRefinement():
                _write(job.vector_path, np.full(integer_length(job.study, "refinement"), self.value, dtype="<i8"))
                return StatisticsDone(train_rows=self.rows, test_rows=9, seconds=0, peak_mb=1)
            case PrepareTrees():
                return PrepareDone(rows=self.rows, data_digest=self.digest, seconds=0, peak_mb=1)
            case TrainTrees():
                return await self._play(job, bridge)
        raise AssertionError(job)

    def _private(self, job: Any) -> Any:
        """The integers of a private study's windows: made of its seed, where there is noise. None for other jobs."""
        match job:
            case ComputeStatistics() if formal(job.study) is not None:
                _write(job.vector_path, np.zeros(1, dtype="<i8"))
                return StatisticsDone(train_rows=0, test_rows=0, seconds=0, peak_mb=1)
            case Evaluate(private=PrivateWork() as private):
                _write(job.vector_path, np.full(HISTOGRAM_WORDS, private.seed[0], dtype="<i8"))
                return EvaluateDone(rows=1, seconds=0, peak_mb=1)
            case Train(private=PrivateWork() as private):
                size = private_vector_length(job.study, "update")
                local = layout_of(job.study.recipe, input_count(job.study)).size if size is None else 0
                _write(job.update_path, np.full(size or local, private.seed[0], dtype="<f4" if local else "<i8"))
                return TrainDone(rows=1, parameters=size or local, norm_l2=None, loss=None, seconds=0, peak_mb=1)
        return None

    async def _play(self, job: TrainTrees, bridge: socket.socket | None) -> Any:
        assert bridge is not None
        assert self.script is not None
        line = ChildBridge(bridge, timeout_s=PATIENCE_S)
        try:
            return await asyncio.to_thread(self.script, job, line)
        finally:
            line.close()

    async def aclose(self) -> None:
        self.closed = True


def _write(path: str, vector: np.ndarray[Any, Any]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(vector.tobytes())


@dataclass(frozen=True)
class Sent:
    """One message as it left the connector; a chunk has no message."""

    outgoing: Outgoing
    message: Message | None


class RecordingBus:
    """The connector's bus, with every message written down when the broker has taken it."""

    def __init__(self, bus: MemoryBus | Bus, world: "World") -> None:
        self._bus = bus
        self._world = world
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish(self, outgoing: Outgoing, *, timeout_s: float = 10.0) -> None:
        if self.dead:
            raise BrokerUnavailable("crashed")
        if self._world.refuse is not None and self._world.refuse(outgoing):
            raise Refused("the test says no")
        await self._bus.publish(outgoing, timeout_s=timeout_s)
        self._world.note(outgoing)


class AheadClock(SystemClock):
    """The machine's clock, and as far ahead of it as a test says: hours pass in no time."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.ahead_s)

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


class World:
    """The platform of a test, with the right keys in its hands: it can be honest or not."""

    def __init__(self, folder: Path, clock: Clock | None = None, peers: int = 3) -> None:
        self.folder = folder
        self.table = folder / "rows.csv"
        self.clock = clock or AheadClock()
        self.broker = MemoryBroker(self.clock)
        self.bus: Bus = MemoryBus(self.broker, NAMESPACE)
        self.make_bus = lambda: MemoryBus(self.broker, NAMESPACE)
        self.officers = [IdentityKey.generate() for _ in range(2)]
        self.services = {role: IdentityKey.generate() for role in ROLES}
        keys = self.services["audit"], self.services["scheduler"]
        self.log = TaskLog("test-federation", STUDY["name"], *keys)
        self.seal = SealKey.generate()
        self.peers = [Peer(number) for number in range(peers)]
        self.site_id = SiteId("55555555-5555-4555-8555-555555555555")
        self.site_pk = b""
        self.study = Study.model_validate(STUDY)
        self.run_id = RunId(str(uuid4()))
        self.sent: list[Sent] = []
        self.refuse: Any = None
        self.spoil = False
        """Whether models are sent with wrong content."""
        self.keyring = Keyring()
        self.runners: list[FakeRunner] = []
        self.script: Script | None = None
        """What fake trainers that are made from now on do in a strict session."""
        self.app: App
        self.model_key = ModelKey.generate()
        self.repeat = 1
        """How often the broker hands over each message: every handler must bear two."""
        self._waits: asyncio.Event = asyncio.Event()
        self._taken: set[int] = set()

    # Files

    def trust(self) -> TrustDocument:
        document = TrustDocument(
            federation="test-federation",
            version=1,
            issued_at=self.clock.now(),
            services=ServiceKeys(
                **{role: key.public for role, key in self.services.items()}, aggregator_seal=self.seal.public
            ),
            governance_keys=tuple(officer.public for officer in self.officers),
            threshold=2,
        )
        for officer in self.officers:
            document = sign_trust(document, officer)
        return document

    def settings(self, **changes: Any) -> ConnectorSettings:
        invitation = Invitation(
            site_id=self.site_id,
            name="Hospital",
            token="t" * 43,
            expires_at=self.clock.now() + timedelta(days=1),
            trust=self.trust(),
        )
        if not self.table.exists():
            self.table.write_text("age,disease\n" + "".join(f"{40 + row},{row % 2}\n" for row in range(40)))
        path = self.folder / "invitation.json"
        if not path.exists():
            path.write_text(invitation.model_dump_json())
        values: dict[str, Any] = {
            "amqp_url": "memory://",
            "broker_check": "trial",
            "spool_dir": str(self.folder / "spool"),
            "invitation_file": str(path),
            "governance_keys": [officer.public.hex() for officer in self.officers],
            "governance_threshold": 2,
            "datasets": {"*": {"path": str(self.table)}},
            "policy": {"approvals": "listed", "approved_studies": [self.study.digest().hex()]},
            "presence_s": 0.2,
            "poll_s": 0.05,
            "receipt_silence_s": 0.5,
            "model_silence_s": 0.5,
            "step_silence_s": 0.5,
        }
        return ConnectorSettings.model_validate({**values, **changes})

    def make_runner(self, work_dir: Path) -> FakeRunner:
        runner = FakeRunner(work_dir, script=self.script)
        self.runners.append(runner)
        return runner

    # The connector's life

    async def declare(self) -> None:
        await self.bus.connect()
        await self.bus.declare(platform_topology())
        await self.bus.declare(site_topology(self.site_id))

    async def build(self, **changes: Any) -> App:
        self.link = RecordingBus(self.make_bus(), self)
        self.app = await App.build(
            self.settings(**changes),
            bus=self.link,  # type: ignore[arg-type]
            clock=self.clock,
            make_runner=self.make_runner,
        )
        self.site_pk = self.app.desk.identity.key.public
        self.keyring.add(site_key_id(self.site_id), self.site_pk)
        return self.app

    @contextlib.asynccontextmanager
    async def running(self, **changes: Any) -> AsyncIterator["World"]:
        """The connector runs in this block, and is ended in order after it."""
        app, stop = await self.build(**changes), asyncio.Event()
        task = asyncio.create_task(app.run(stop))
        try:
            yield self
        finally:
            stop.set()
            await asyncio.wait_for(task, PATIENCE_S)

    async def start(self, **changes: Any) -> None:
        """Start a connector that a test will crash."""
        app = await self.build(**changes)
        self.task = asyncio.create_task(app.run(asyncio.Event()))

    async def crash(self) -> None:
        """End the connector where it is: nothing more leaves, what was in its hands returns to the queues."""
        self.link.dead = True
        await self.link.abort()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    # Messages from the platform

    async def say(self, role: str, message: Message, *, key: IdentityKey | None = None, times: int = 1) -> str:
        """A message to the site, signed as the role (or with another key under the role's name); returns its id."""
        signer = EnvelopeSigner(service_key_id(role), key or self.services[role])
        outgoing = Sender(f"/{role}", signer, self.clock).outgoing(TASKS.name, control_queue(self.site_id), message)
        for _ in range(self.repeat * times):
            await self.bus.publish(outgoing)
        return outgoing.message_id

    async def enrol(self) -> None:
        await self.expect(RegisterSite)
        await self.say("enrolment", SiteRegistered(site_id=self.site_id, name="Hospital", identity_pk=self.site_pk))

    def manifest(self, *, version: int = 1, previous: Manifest | None = None, **changes: Any) -> Manifest:
        members = [
            Member(site_id=peer.site_id, name=f"Peer {n}", identity_pk=peer.key.public)
            for n, peer in enumerate(self.peers)
        ]
        members.append(Member(site_id=self.site_id, name="Hospital", identity_pk=self.site_pk))
        values: dict[str, Any] = {
            "study_id": self.study.name,
            "version": version,
            "prev_hash": manifest_hash(previous) if previous else bytes(32),
            "study_digest": self.study.digest(),
            "members": tuple(sorted(members, key=lambda member: UUID(member.site_id).bytes)),
            "collusion": 1,
            "k_min_floor": 0,
        }
        manifest = Manifest(**{**values, **changes})
        for officer in self.officers:
            manifest = sign_manifest(manifest, officer)
        return manifest

    async def offer(self) -> Manifest:
        message = self.offer_message()
        await self.say("scheduler", message)
        return message.manifest

    def offer_message(self) -> StudyOffered:
        digest = self.study.digest()
        return StudyOffered(study=self.study, study_digest=digest, run_id=self.run_id, manifest=self.manifest())

    def params(self, **changes: Any) -> WindowParams:
        """A statistics window, or what the changes make of it."""
        values: dict[str, Any] = {
            "study_id": StudyId(self.study.name),
            "study_digest": self.study.digest(),
            "run_id": self.run_id,
            "window_id": uuid4().bytes,
            "purpose": "statistics",
            "kind": "sync",
            "round": 0,
            "manifest_hash": manifest_hash(self.manifest()),
            "bases": (),
            "max_staleness": 0,
            "vector": self.integer_vector(integer_length(self.study, "statistics")),
            "privacy_mode": "none",
            "target_cohort": 4,
            "least_cohort": 3,
            "deadlines": self.study.federation.deadlines,
            "aggregator_seal_pk": self.seal.public,
        }
        return WindowParams(**{**values, **changes})

    def update_params(self, base: ModelRef, **changes: Any) -> WindowParams:
        compression = self.study.federation.compression
        vector = VectorSpec(
            encoding="grid",
            dimension=layout_of(self.study.recipe, input_count(self.study)).size,
            ring_bits=compression.ring_bits,
            rotate=compression.rotate,
            rotation_seed=bytes(32),
            keep=1.0,
            keep_seed=bytes(32),
            clip_norm_l2=compression.clip_norm_l2,
            range_factor=6.0,
            weight_cap=1000,
            chunk_bytes=2048,
        )
        return self.params(**{"purpose": "update", "round": 1, "bases": (base,), "vector": vector, **changes})

    def integer_vector(self, length: int) -> VectorSpec:
        return integer_spec(length, 64, chunk_bytes=2048)

    def sign_task(self, params: WindowParams) -> WindowOpen:
        """The task of a window, whose authorisation is in the log."""
        self.log.study = self.study.name
        signed = sign_window(params, self.services["scheduler"])
        return signed.model_copy(update={"logged": self.log.authorise(params, [self.site_id])})

    async def open(self, params: WindowParams) -> WindowOpen:
        message = self.sign_task(params)
        await self.say("scheduler", message)
        return message

    # Models

    def model(self, version: int) -> tuple[ModelRef, bytes, dict[str, Any]]:
        """A model version of this study: its reference, its bytes, its preprocessing."""
        size = layout_of(self.study.recipe, input_count(self.study)).size
        parameters = np.full(size, version, dtype="<f4").tobytes()
        preprocessing = {"version": "test", "number": version}
        digest = model_hash(hashlib.sha256(parameters).digest(), rfc8785.dumps(preprocessing))
        return ModelRef(version=version, model_hash=digest), parameters, preprocessing

    async def give_model(self, version: int, *, chunk_bytes: int = 8, only: Sequence[int] | None = None) -> ModelWanted:
        """Answer the connector's question for a version; `only` sends some of the chunks."""
        wanted = await self.expect(ModelWanted)
        ref, parameters, preprocessing = self.model(version)
        chunks = -(-len(parameters) // chunk_bytes)
        await self.say(
            "aggregator",
            ModelOffered(
                run_id=self.run_id,
                version=version,
                model_hash=ref.model_hash,
                parameters_sha256=hashlib.sha256(parameters).digest(),
                size=len(parameters),
                chunk_bytes=chunk_bytes,
                chunks=chunks,
                preprocessing=preprocessing,
                wrapped_key=wrap_model_key(self.model_key, self.run_id, version, wanted.seal_pk),
            ),
        )
        have = wanted.have or b""
        for chunk in range(chunks) if only is None else only:
            if chunk // 8 < len(have) and have[chunk // 8] >> (chunk % 8) & 1:
                continue
            place = ModelPlace(self.run_id, version, chunk, chunks)
            content = parameters[chunk * chunk_bytes : (chunk + 1) * chunk_bytes]
            content = bytes(len(content)) if self.spoil else content
            frame = seal_model_frame(place, content, self.model_key, self.services["aggregator"])
            await self.bus.publish(
                Outgoing(
                    exchange=BULK.name,
                    routing_key=bulk_queue(self.site_id),
                    body=frame,
                    message_id=f"{version}-{chunk}-{uuid4()}",
                    type="frame",
                    content_type=CHUNK_CONTENT_TYPE,
                    persistent=False,
                )
            )
        return wanted

    # What the connector said

    def note(self, outgoing: Outgoing) -> None:
        """Write down one message that left."""
        message = None
        if outgoing.content_type != CHUNK_CONTENT_TYPE:
            delivery = delivered(outgoing, "")
            _, message, key_id = open_envelope(delivery, self.keyring)
            assert key_id == site_key_id(self.site_id)
            assert outgoing.routing_key.split(".")[1] == self.site_id
        self.sent.append(Sent(outgoing, message))
        self._waits.set()

    def all(self, kind: type[M]) -> list[M]:
        """Every message of this type that left, in order."""
        return [sent.message for sent in self.sent if isinstance(sent.message, kind)]

    async def expect(self, kind: type[M], *, within_s: float = PATIENCE_S) -> M:
        """The next message of this type that no `expect` has had yet."""
        async with asyncio.timeout(within_s):
            while True:
                self._waits.clear()
                for place, sent in enumerate(self.sent):
                    if place not in self._taken and isinstance(sent.message, kind):
                        self._taken.add(place)
                        return sent.message
                await self._waits.wait()

    async def none_of(self, kind: type[Message], seconds: float = 0.3) -> None:
        """Nothing of this type leaves in the next moments that `expect` has not had."""
        try:
            found = await self.expect(kind, within_s=seconds)
        except TimeoutError:
            return
        raise AssertionError(f"the connector sent {found!r}")

    def chunks(self, window_id: bytes) -> dict[int, bytes]:
        """The masked chunks that left for a window, as the aggregator opens them; each only ever with one content."""
        found: dict[int, bytes] = {}
        for sent in self.sent:
            if sent.outgoing.content_type != CHUNK_CONTENT_TYPE:
                continue
            header = open_header(sent.outgoing.body, self.site_pk)
            if header.place.window_id == window_id:
                body = open_body(sent.outgoing.body, header, self.seal)
                assert found.setdefault(header.place.chunk, body) == body, "two contents for one chunk"
        return found

    async def state(self, window_id: bytes) -> WindowRecord:
        async with self.app.db.reading("test_state") as tx:
            record = await windows.find_window(tx, window_id)
        assert record is not None
        return record

    async def reaches(self, window_id: bytes, *phases: str) -> WindowRecord:
        """Wait until the window is in one of these phases."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                async with self.app.db.reading("test_reaches") as tx:
                    record = await windows.find_window(tx, window_id)
                if record is not None and record.state.phase.value in phases:
                    return record
                await asyncio.sleep(0.02)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that the connector sends makes this true."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._waits.clear()
                await self._waits.wait()

    async def until_busy(self) -> None:
        """A job is being worked on."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if any(runner.jobs for runner in self.runners):
                    return
                await asyncio.sleep(0.01)

    async def until_idle(self) -> None:
        """No job is being worked on."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if not self.app.busy:
                    return
                await asyncio.sleep(0.01)

    async def forget_products(self) -> None:
        """Windows and vectors so far are over, as after a round: the next window needs work of its own."""
        await self.until_idle()

        async def forget(tx: Tx) -> None:
            for window in await windows.open_windows(tx):
                await self.app.desk.step(tx, window, Abandoned(), by="test")
            for product_id in await products.all_product_ids(tx):
                await products.delete_product(tx, product_id)

        await self.app.db.run("forget_products", forget)

    async def settled(self, *, registered: bool = True) -> None:
        """Every message to the site so far was handled: a harmless last one is through. A connector that is not
        `registered` takes enrolment's answers alone."""
        if registered:
            name = await self.say("scheduler", WindowClosed(window_id=bytes(16), step=0, state="CANCELLED", reason=""))
            name = f"service:scheduler/{name}"
        else:
            theirs = RegistrationRefused(site_id=self.site_id, reason="TOKEN_SPENT", identity_pk=bytes(32))
            name = f"service:enrolment/{await self.say('enrolment', theirs)}"
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await asyncio.sleep(0.02)
                async with self.app.db.reading("test_settled") as tx:
                    done = await tx.row(sa.select(inbox_table).where(inbox_table.c.message_id == name))
                    if done and await unsent_messages(tx) == 0:
                        break
        await asyncio.sleep(0.05)

    async def dead(self) -> list[str]:
        """Reasons of what was parked from the site's queues."""
        found = []
        while (delivery := await self.bus.get(dead_letters("sites"))) is not None:
            found.append(delivery.headers["cohortium-reason"])
        return found

    async def drain(self) -> None:
        """Empty the platform's queues, as its services would."""
        queues = [inbox(role) for role in ROLES] + [chunk_queue(p) for p in range(CHUNK_PARTITIONS)]
        for queue in (*queues, PRESENCE_QUEUE):
            while await self.bus.get(queue) is not None:
                pass
