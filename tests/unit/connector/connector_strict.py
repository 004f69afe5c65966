"""Strict sessions around one real connector: aggregator and other sites are played here, with the real protocol.

The training process is a script in a thread, which asks what LightGBM's collectives would ask.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
import rfc8785
from connector_peers import Peer
from connector_world import PATIENCE_S, STUDY, World

from cohortium_connector.steps import FRAME_TYPE
from cohortium_connector.training.jobs import TrainTrees, TreesDone
from cohortium_connector.training.live_wire import AGREE, RELAY, STOP, SUM, ChildBridge
from cohortium_connector.training.runner import TrainingStopped
from cohortium_kit.bus import Outgoing
from cohortium_messages.envelope import CHUNK_CONTENT_TYPE
from cohortium_messages.governance import GrantGiven, Manifest
from cohortium_messages.secure_sum import ModelRef, Ready, Roster, SessionKey, StrictSpec, WindowClosed, WindowParams
from cohortium_messages.study import Study
from cohortium_messages.topology import BULK, results_queue
from cohortium_protocol.parameters import model_hash
from cohortium_protocol.strict.collector import Collector, StepResult
from cohortium_protocol.strict.frames import (
    ResultOpener,
    ResultSealer,
    SessionSecret,
    StepOpener,
    StepSealer,
    peek_step,
    seal_session_key,
)
from cohortium_protocol.strict.masks import StrictSite
from cohortium_protocol.strict.session import SiteSession
from cohortium_protocol.strict.steps import START, Kind, limits_of
from cohortium_protocol.trees.binning import binning_from_sums
from cohortium_protocol.window import RosterView, make_roster, view_roster

ROUNDS = 3
TREES: dict[str, Any] = {
    **STUDY,
    "name": "trees",
    "recipe": {"trainer": "lightgbm", "rounds": ROUNDS, "params": {"num_leaves": 4}},
    "federation": {"min_sites": 3, "deadlines": {**STUDY["federation"]["deadlines"], "step_s": 60}},
}
OTHERS_RELAY = b"a split of another site"
Questions = Sequence[tuple[int, bytes]]


def words(*values: int) -> bytes:
    return np.array(values, dtype="<i8").tobytes()


COURSE: Questions = [
    (AGREE, b"H" + b"header"),
    (SUM, words(1, -2, 3)),
    (RELAY, b"our split"),
    (SUM, words(*range(50))),
    (AGREE, b"T" + b"the first tree"),
    (SUM, words(5)),
    (AGREE, b"T" + b"the second tree"),
    (AGREE, b'E{"best_round":2,"rounds":2}'),
]


@dataclass
class Script:
    """A trainer that asks these questions and keeps the answers. `gate` is waited for before the question `held`."""

    questions: Questions = field(default_factory=lambda: COURSE)
    answers: list[bytes] = field(default_factory=list)
    held: int = -1
    gate: Callable[[], object] = lambda: None
    jobs: list[TrainTrees] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def __call__(self, job: TrainTrees, line: ChildBridge) -> TreesDone:
        self.jobs.append(job)
        rounds = job.strict.trees_done
        for place, (kind, payload) in enumerate(self.questions):
            if place == self.held:
                self.gate()
            answered, answer = line.ask(kind, payload)
            if answered == STOP:
                self.stopped.append(answer.decode())
                raise TrainingStopped(answer.decode(), rounds)
            self.answers.append(answer)
            rounds += kind == AGREE and payload[:1] == b"T"
        return TreesDone(rounds=rounds, best_round=rounds, replayed=0, steps=len(self.questions), seconds=0, peak_mb=1)


class TreesWorld(World):
    """A federation with a study of LightGBM. Model versions are bins with an empty text."""

    def __init__(self, *args: Any, **changes: Any) -> None:
        super().__init__(*args, **changes)
        self.study = Study.model_validate(TREES)
        self.text = b""
        self.play = Script()
        self.script = self.play

    async def join(self) -> None:
        """Registered, and the study is granted."""
        await self.enrol()
        await self.offer()
        await self.expect(GrantGiven)

    def model(self, version: int) -> tuple[ModelRef, bytes, dict[str, Any]]:
        features = len(self.study.dataset.features)
        counts = np.full((features, 1025), 40, dtype=np.int64)
        counts[:, -1] = 0  # nobody misses a value
        rows = int(counts[0].sum())
        sums = np.concatenate([counts.ravel(), np.array([rows, 40, rows // 2, 20])])
        if self.study.recipe.trainer == "lightgbm.random_trees":
            sums = sums[-4:]
        document = json.loads(binning_from_sums(self.study, sums, 3 + version).canonical())
        return self.ref_of(version, self.text, document), self.text, document

    def ref_of(self, version: int, text: bytes, document: dict[str, Any]) -> ModelRef:
        digest = model_hash(hashlib.sha256(text).digest(), rfc8785.dumps(document))
        return ModelRef(version=version, model_hash=digest)

    def training_params(self, base: ModelRef, spec: dict[str, Any] | None = None, **changes: Any) -> WindowParams:
        strict = StrictSpec.model_validate(
            {"step_s": 60.0, "rounds": ROUNDS, "trees_done": 0, "chain": START, "total_rows": 400, **(spec or {})}
        )
        values = {
            "purpose": "training",
            "kind": "strict",
            "round": 1,
            "bases": (base,),
            "vector": self.integer_vector(1),
            "strict": strict,
        }
        return self.params(**{**values, **changes})


class StrictPlay:
    """One strict session: the aggregator and the other hospitals, honest unless the test makes them otherwise."""

    def __init__(self, world: TreesWorld, params: WindowParams, manifest: Manifest) -> None:
        assert params.strict is not None
        self.world = world
        self.params = params
        self.manifest = manifest
        self.chain = params.strict.chain
        self.secret = SessionSecret.generate()
        self.limits = limits_of(world.study)
        self.peers: dict[Peer, SiteSession] = {}
        self.results: list[StepResult] = []
        self.result_frames: list[tuple[bytes, ...]] = []
        self.view: RosterView
        self.collector: Collector
        self.sealer: ResultSealer

    @property
    def window_id(self) -> bytes:
        return bytes(self.params.window_id)

    @property
    def me(self) -> int:
        return self.view.index_of(self.world.site_id)

    async def fix_roster(self, peers: Sequence[Peer] | None = None) -> None:
        """Wait for the connector's `Ready`; show it the roster, and its key."""
        await self.world.say("aggregator", await self.make_roster(peers))
        await self.world.say("aggregator", self.session_key())

    async def make_roster(self, peers: Sequence[Peer] | None = None) -> Roster:
        ready = await self.world.expect(Ready)
        while ready.window_id != self.window_id:
            ready = await self.world.expect(Ready)
        chosen = self.world.peers if peers is None else peers
        readies = [peer.ready(self.params, self.params.bases[-1].model_hash) for peer in chosen]
        roster = self.roster_of([ready, *readies])
        self.view = view_roster(roster, self.params, self.manifest)
        self.peers = {peer: self._peer(peer) for peer in chosen}
        self.collector = Collector(self.view.n, self.chain, self.limits)
        self.sealer = ResultSealer(self.view, self.secret, self.world.services["aggregator"])
        return roster

    def roster_of(self, readies: Sequence[Ready]) -> Roster:
        return make_roster(self.params, self.manifest, readies)

    def session_key(self) -> SessionKey:
        seal_pk = self.view.entry(self.me).seal_pk
        sealed = seal_session_key(self.secret, self.window_id, self.view.roster_hash, self.me, seal_pk)
        return SessionKey(window_id=self.window_id, roster_hash=self.view.roster_hash, sealed=sealed)

    def _peer(self, peer: Peer) -> SiteSession:
        index, keys = self.view.index_of(peer.site_id), peer.keys[self.window_id]
        return SiteSession(
            StrictSite(self.view, index, keys),
            StepSealer(self.view, index, keys, self.world.seal.public),
            ResultOpener(self.view, self.secret, self.world.services["aggregator"].public),
            self.chain,
            self.limits,
        )

    # Steps

    def frames(self, step: int) -> list[bytes]:
        """Every frame of this step that left the connector, in order; repeated ones too."""
        sent = (one.outgoing for one in self.world.sent if one.outgoing.type == FRAME_TYPE)
        headers = ((outgoing.body, peek_step(outgoing.body)) for outgoing in sent)
        return [body for body, header in headers if (header.window_id, header.step) == (self.window_id, step)]

    async def until_asked(self, step: int) -> list[bytes]:
        """The connector's frames of a step, when all its parts are there."""

        def complete() -> bool:
            frames = self.frames(step)
            return bool(frames) and len(set(frames)) == peek_step(frames[0]).parts

        await self.world.until(complete)
        return list(dict.fromkeys(self.frames(step)))

    async def gather(self) -> StepResult:
        """Collect the open step of all sites. The others ask what the connector asks: each adds 100 to a sum."""
        step, opener = self.collector.step, StepOpener(self.view, self.world.seal)
        mine = await self.until_asked(step)
        header = peek_step(mine[0])
        frames = [*mine]
        for number, session in enumerate(self.peers.values()):
            frames += self._asked_by(session, header.kind, header.length, mine, opener, number)
        result: Any = None
        for frame in frames:
            result = self.collector.take(opener.open(frame))
        assert isinstance(result, StepResult)
        self.results.append(result)
        return result

    def _asked_by(
        self, session: SiteSession, kind: Kind, length: int, mine: list[bytes], opener: StepOpener, number: int
    ) -> tuple[bytes, ...]:
        match kind:
            case Kind.SUM:
                return session.sum(np.full(length // 8 - 4, 100 * (number + 1), dtype=np.int64))
            case Kind.RELAY:
                return session.relay(OTHERS_RELAY + str(number).encode())
            case Kind.AGREE:
                return session.agree(b"".join(opener.open(frame).content for frame in mine))

    def seal(self, result: StepResult) -> tuple[bytes, ...]:
        """The result's frames, which the other hospitals hear at once."""
        frames = self.sealer.seal(result.step, result.kind, result.chain, result.payload)
        self.result_frames.append(frames)
        for session in self.peers.values():
            for frame in frames:
                session.take(frame)
        return frames

    async def tell(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            await self.world.bus.publish(
                Outgoing(
                    exchange=BULK.name,
                    routing_key=results_queue(self.world.site_id),
                    body=frame,
                    message_id=str(uuid4()),
                    type="frame",
                    content_type=CHUNK_CONTENT_TYPE,
                    persistent=False,
                )
            )

    async def step(self) -> StepResult:
        """One honest step."""
        result = await self.gather()
        await self.tell(self.seal(result))
        return result

    async def steps(self, count: int) -> None:
        for _ in range(count):
            await self.step()

    async def close(self, state: str = "RELEASED", reason: str = "") -> None:
        closed = WindowClosed(window_id=self.window_id, step=0, state=state, reason=reason)  # type: ignore[arg-type]
        await self.world.say("aggregator", closed)

    # Whole stretches

    async def begin(self, *, version: int = 0) -> "StrictPlay":
        """Opened, model given, ready, roster, key."""
        await self.world.open(self.params)
        await self.world.give_model(version)
        await self.fix_roster()
        return self

    def one_content_each(self) -> None:
        """Rule R1 over everything that left: of each part of each step only ever the same bytes."""
        found: dict[tuple[int, int], bytes] = {}
        for sent in self.world.sent:
            if sent.outgoing.type == FRAME_TYPE:
                header = peek_step(sent.outgoing.body)
                if header.window_id == self.window_id:
                    place = (header.step, header.part)
                    assert found.setdefault(place, sent.outgoing.body) == sent.outgoing.body, f"two contents at {place}"


async def begun(world: TreesWorld) -> StrictPlay:
    """A session with the connector and all other hospitals, up to its first step."""
    return await StrictPlay(world, world.training_params(world.model(0)[0]), world.manifest()).begin()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that leaves no message."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no bell
            await asyncio.sleep(0.01)
