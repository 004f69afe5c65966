"""Strict sessions with real sites around an aggregator: real masks and frames, and trees that a test writes itself."""

import asyncio
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aggregator_world import STUDY, Site, Window, World, integer_spec

from cohortium_kit.bus import Ack, Bus, Delivery, Disposition
from cohortium_kit.memory import MemoryBus
from cohortium_messages.runs import SessionClosed
from cohortium_messages.secure_sum import ModelRef, SessionKey, StrictSpec
from cohortium_messages.study import Study
from cohortium_messages.topology import (
    UPLINK,
    platform_topology,
    results_queue,
    session_partition,
    site_topology,
    steps_key,
    steps_queue,
)
from cohortium_protocol.statistics import Rows
from cohortium_protocol.strict.frames import ResultOpener, StepSealer, open_session_key
from cohortium_protocol.strict.masks import StrictSite
from cohortium_protocol.strict.session import Answer, SiteSession
from cohortium_protocol.strict.steps import START, Kind, limits_of
from cohortium_protocol.trees.grid import tree_statistics_vector
from cohortium_protocol.trees.text import make_header
from cohortium_protocol.trees.vectors import integer_length

ROUNDS = 3
TREES: dict[str, Any] = STUDY | {
    "dataset": {
        "features": [
            {"name": "age", "type": "int", "range": [18, 110]},
            {"name": "pressure", "type": "float", "range": [60, 220], "missing": "native"},
            {"name": "ward", "type": "category", "levels": ["a", "b", "c"]},
        ],
        "label": {"name": "disease", "type": "binary"},
        "split": {"test": 0.3, "seed": 7},
    },
    "recipe": {"trainer": "lightgbm", "rounds": ROUNDS, "params": {"num_leaves": 4, "max_bin": 8}},
    "federation": {
        "min_sites": 3,
        "deadlines": {"ready_s": 30, "upload_s": 40, "echo_s": 15, "unmask_s": 30, "step_s": 20, "expire_s": 300},
    },
}
NAMES = ("age", "pressure", "ward")


def rows(count: int, seed: int) -> Rows:
    """Rows of a hospital that does not exist."""
    draw = np.random.default_rng(seed)
    columns = {
        "age": draw.integers(18, 111, count).astype(np.float64),
        "pressure": draw.uniform(60, 220, count),
        "ward": draw.integers(0, 3, count).astype(np.int32),
    }
    columns["pressure"][::7] = np.nan
    return Rows(columns, (columns["age"] > 64).astype(np.uint8))


def statistics_of(study: Study, index: int) -> np.ndarray:
    return tree_statistics_vector(study, rows(60 + index, index), rows(20, 100 + index))


def header() -> bytes:
    infos = ["[18:110]", "[60:220]", "0:1:2"]
    return make_header(NAMES, infos, objective="binary", classes=1).encode()


def stump(left: float, right: float, threshold: float = 64.5) -> bytes:
    """A tree of one split of the age."""
    fields = {
        "num_leaves": 2,
        "num_cat": 0,
        "split_feature": 0,
        "split_gain": 12.5,
        "threshold": repr(threshold),
        "decision_type": 2,
        "left_child": -1,
        "right_child": -2,
        "leaf_value": f"{left!r} {right!r}",
        "leaf_weight": "10 12",
        "leaf_count": "40 48",
        "internal_value": 0,
        "internal_weight": 22,
        "internal_count": 88,
        "is_linear": 0,
        "shrinkage": 0.1,
    }
    return ("Tree=0\n" + "".join(f"{name}={value}\n" for name, value in fields.items()) + "\n\n").encode()


def tree(number: int) -> bytes:
    return stump(-0.125 * number, 0.25 * number)


def end(best: int, done: int) -> bytes:
    return b"E" + json.dumps({"best_round": best, "rounds": done}).encode()


@dataclass(slots=True)
class Training:
    """One strict session, as its sites see it. `deliver` brings a frame to the aggregator; `bus` has the results."""

    window: Window
    bus: Bus
    deliver: Callable[[Delivery], Any]
    sessions: dict[int, SiteSession] = field(default_factory=dict)
    frames: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    mail: dict[tuple[int, bytes], list[bytes]] = field(default_factory=dict)
    """Results that another session's site took from the queue they share: give sessions of one test the same."""

    @property
    def world(self) -> World:
        return self.window.world

    @property
    def indices(self) -> Sequence[int]:
        return self.window.view.indices

    def join(self, site: Site, message: SessionKey) -> None:
        """The roster's key has come: this site can step."""
        view, params = self.window.view, self.window.params
        assert params.strict is not None
        secret = open_session_key(message.sealed, view.window_id, view.roster_hash, site.index, site.keys.seal)
        results = ResultOpener(view, secret, self.world.keys["aggregator"].public)
        masks = StrictSite(view, site.index, site.keys)
        link = StepSealer(view, site.index, site.keys, params.aggregator_seal_pk)
        limits = limits_of(self.world.study)
        self.sessions[site.index] = SiteSession(masks, link, results, params.strict.chain, limits)

    async def join_all(self) -> "Training":
        for site in self.window.sites.values():
            message = await self.world.last_to(site, SessionKey)
            assert message is not None
            assert message.window_id == self.window.params.window_id
            self.join(site, message)
        return self

    def delivery(self, index: int, frame: bytes, key: str | None = None) -> Delivery:
        partition = session_partition(self.window.params.window_id)
        return Delivery(
            body=frame,
            headers={},
            exchange=UPLINK.name,
            routing_key=key or steps_key(self.window.sites[index].site_id, partition),
            message_id=secrets.token_hex(8),
            type="cohortium.strict.step.v1",
            content_type="application/octet-stream",
            redelivered=False,
            delivery_count=0,
            user_id=None,
            queue=steps_queue(partition),
        )

    def ask(self, index: int, kind: Kind, content: Any) -> tuple[bytes, ...]:
        session = self.sessions[index]
        match kind:
            case Kind.SUM:
                self.frames[index] = session.sum(content)
            case Kind.RELAY:
                self.frames[index] = session.relay(content)
            case Kind.AGREE:
                self.frames[index] = session.agree(content)
        return self.frames[index]

    async def send(self, index: int, frames: Iterable[bytes] | None = None) -> list[Disposition]:
        sent = self.frames[index] if frames is None else frames
        return [await self.deliver(self.delivery(index, frame)) for frame in sent]

    async def frame(self, index: int, wait_s: float = 5.0) -> bytes | None:
        """The next frame for this site; None if none comes."""
        queue = results_queue(self.window.sites[index].site_id)
        until = asyncio.get_running_loop().time() + wait_s
        mine = self.mail.setdefault((index, self.window.params.window_id), [])
        while not mine:
            delivery = await self.bus.get(queue)
            if delivery is not None:
                self.mail.setdefault((index, delivery.body[5:21]), []).append(delivery.body)
            elif asyncio.get_running_loop().time() > until:
                return None
            else:
                await asyncio.sleep(0.002)
        return mine.pop(0)

    async def result(self, index: int, wait_s: float = 5.0) -> Answer | None:
        """The answer to what this site asked; None if none comes. Frames of the past are passed over."""
        while (frame := await self.frame(index, wait_s)) is not None:
            if (answer := self.sessions[index].take(frame)) is not None:
                return answer
        return None

    async def step(self, kind: Kind, contents: Callable[[int], Any]) -> dict[int, Answer]:
        """All sites ask, all hear."""
        for index in self.indices:
            self.ask(index, kind, contents(index))
            await self.send(index)
        answers = {}
        for index in self.indices:
            answer = await self.result(index)
            assert answer is not None, f"no answer to site {index}"
            answers[index] = answer
        return answers

    async def agree(self, content: bytes) -> bytes:
        """All sites hold this; returns the chain after it."""
        chains = {answer.chain for answer in (await self.step(Kind.AGREE, lambda _: content)).values()}
        assert len(chains) == 1
        return chains.pop()

    async def sum(self, length: int = 5) -> None:
        """One sum, which must be right at every site."""
        answers = await self.step(Kind.SUM, lambda index: np.arange(length, dtype=np.int64) - 3**index)
        wanted = sum(np.arange(length, dtype=np.int64) - 3**index for index in self.indices)
        assert all(np.array_equal(answer.values(), wanted) for answer in answers.values())

    async def grow(self, numbers: Iterable[int]) -> bytes:
        """Rounds with a sum, a relay and their tree each; returns the chain after the last."""
        chain = START
        for number in numbers:
            await self.sum()
            relayed = await self.step(Kind.RELAY, lambda index: bytes([index]) * index)
            assert len({answer.payload for answer in relayed.values()}) == 1
            chain = await self.agree(b"T" + tree(number))
        return chain


async def stepping(world: World) -> Training:
    """A session whose sites have agreed on the header."""
    training = await open_session(world, await tree_model(world))
    await training.agree(b"H" + header())
    return training


async def ended(world: World, training: Training) -> SessionClosed:
    """What is being written is written, the model is made, and the end is told."""
    await world.app.engine.settle()
    await world.app.opener.open(training.window.params.window_id)
    found: SessionClosed = (await world.heard(SessionClosed))[-1]
    assert found.window_id == training.window.params.window_id
    return found


async def frames_for(training: Training, kind: Kind, contents: dict[int, Any]) -> None:
    """These sites ask; nobody looks for an answer."""
    for index, content in contents.items():
        training.ask(index, kind, content)
        await training.send(index)


async def declare(world: World, bus: Bus) -> None:
    await bus.connect()
    await bus.declare(platform_topology())
    for site in world.identities:
        await bus.declare(site_topology(site))


async def tree_model(world: World) -> ModelRef:
    """The bins of the study, refined where they must be; returns the version that training starts from."""
    window = await world.open(world.params("statistics", integer_spec(integer_length(world.study, "statistics"))))
    await world.release(window, {index: statistics_of(world.study, index) for index in window.view.indices})
    return (await world.newest()).ref


def spec_of(world: World, done: int = 0, chain: bytes = START, **changes: Any) -> StrictSpec:
    values = {
        "step_s": world.study.federation.deadlines.step_s,
        "rounds": world.study.boosting_rounds,
        "trees_done": done,
        "chain": chain,
        "total_rows": 1000,
    }
    return StrictSpec.model_validate(values | changes)


def session_window(world: World, base: ModelRef, spec: StrictSpec, **changes: Any) -> Window:
    """A session that is not opened yet. `among`: its sites."""
    among = changes.pop("among", None)
    params = world.params("training", integer_spec(1), (base,), kind="strict", round=1, strict=spec, **changes)
    return world.prepare(params, among)


async def open_session(world: World, base: ModelRef, spec: StrictSpec | None = None, **changes: Any) -> Training:
    """A session whose sites have their keys."""
    window = session_window(world, base, spec or spec_of(world), **changes)
    assert await world.say("scheduler", window.opened) == Ack()
    bus = MemoryBus(world.broker, "test")
    await declare(world, bus)
    return await Training(window, bus, lambda delivery: world.app.engine.handle(delivery)).join_all()
