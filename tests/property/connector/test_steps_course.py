"""Whatever is lost, repeated or refused on the way: a session's answers are right, and each step leaves in one form."""

import asyncio
from collections import deque
from typing import Any, Literal

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strict_stage import Stage

from cohortium_connector.steps import StepPlace, Steps
from cohortium_connector.training.live_wire import AGREE, RELAY, SUM
from cohortium_kit.bus import Outgoing
from cohortium_kit.errors import BrokerUnavailable, Refused
from cohortium_kit.testing.clock import ManualClock, settle
from cohortium_protocol.strict.collector import StepResult, Taken
from cohortium_protocol.strict.frames import peek_step
from cohortium_protocol.strict.steps import Kind, split_relay

Up = Literal["ok", "refused", "away", "lost", "twice"]
Down = Literal["ok", "lost", "twice"]
N = 3
PATIENCE = 200
UPS = st.lists(st.sampled_from(("ok", "refused", "away", "lost", "twice")), max_size=25)
DOWNS = st.lists(st.sampled_from(("ok", "lost", "twice")), max_size=25)
KINDS = st.lists(st.sampled_from((SUM, RELAY, AGREE)), min_size=1, max_size=5)


class TroubledWire:
    """The bus of one site and the aggregator at its other end; what happens to each message is drawn beforehand."""

    def __init__(self, ups: list[Up], downs: list[Down]) -> None:
        self.stage = Stage(N)
        self.ups, self.downs = deque(ups), deque(downs)
        self.left: dict[tuple[int, int], bytes] = {}
        self.steps: Steps

    async def publish(self, outgoing: Outgoing, *, timeout_s: float = 10.0) -> None:
        assert timeout_s > 0
        header = peek_step(outgoing.body)
        place = (header.step, header.part)
        assert self.left.setdefault(place, outgoing.body) == outgoing.body, "rule R1: one content for one step"
        await asyncio.sleep(0)
        fate = self.ups.popleft() if self.ups else "ok"
        if fate == "refused":
            raise Refused("drawn")
        if fate == "away":
            raise BrokerUnavailable("drawn")
        for _ in range({"lost": 0, "twice": 2}.get(fate, 1)):
            self._arrive(outgoing.body)

    def _arrive(self, frame: bytes) -> None:
        taken = self.stage.collector.take(self.stage.opener.open(frame))
        if isinstance(taken, StepResult):
            for site in self.stage.sites[1:]:
                for sealed in self.stage.seal(taken):
                    site.take(sealed)
        if isinstance(taken, StepResult) or taken is Taken.BEHIND:
            assert self.stage.collector.last is not None
            self._answer(self.stage.seal(self.stage.collector.last))

    def _answer(self, frames: tuple[bytes, ...]) -> None:
        fate = self.downs.popleft() if self.downs else "ok"
        for _ in range({"lost": 0, "twice": 2}.get(fate, 1)):
            for frame in frames:
                self.steps.take(frame)


async def play(kinds: list[int], ups: list[Up], downs: list[Down], connected: list[bool]) -> list[bytes]:
    """A session of these steps at site 1; the others send at once and lose nothing."""
    wire, clock = TroubledWire(ups, downs), ManualClock()
    site = wire.stage.sites[0]
    place = StepPlace(wire.stage.view.window_id, wire.stage.view.entry(1).site_id)
    bus: Any = wire
    wire.steps = steps = Steps(site, place, bus, clock, silence_s=2.0)
    links, answers = deque(connected), []
    for number, kind in enumerate(kinds):
        for other in wire.stage.sites[1:]:
            for frame in ask(other, kind, number):
                wire.stage.collector.take(wire.stage.opener.open(frame))
        asking = asyncio.create_task(steps.ask(kind, payload(kind, number)))
        for _ in range(PATIENCE):
            await settle()
            if asking.done():
                break
            await clock.advance(1.0)
            steps.look_after(connected=links.popleft() if links else True)
        assert asking.done(), f"step {number} was never answered"
        answers.append(asking.result())
    await steps.aclose()
    assert steps.step == len(kinds)
    return answers


def payload(kind: int, number: int) -> bytes:
    return np.array([number, -number, 7], dtype="<i8").tobytes() if kind == SUM else b"what all hold"


def ask(site: Any, kind: int, number: int) -> tuple[bytes, ...]:
    match Kind(kind):
        case Kind.SUM:
            frames = site.sum(np.array([number, -number, 7], dtype=np.int64))
        case Kind.RELAY:
            frames = site.relay(b"of another site")
        case Kind.AGREE:
            frames = site.agree(b"what all hold")
    assert isinstance(frames, tuple)
    return frames


@given(KINDS, UPS, DOWNS, st.lists(st.booleans(), max_size=20))
def test_every_step_is_answered_rightly_whatever_happens_on_the_way(
    kinds: list[int], ups: list[Up], downs: list[Down], connected: list[bool]
) -> None:
    answers = asyncio.run(play(kinds, ups, downs, connected))
    for number, (kind, answer) in enumerate(zip(kinds, answers, strict=True)):
        if kind == SUM:
            assert np.frombuffer(answer, dtype="<i8").tolist() == [N * number, -N * number, 7 * N]
        elif kind == RELAY:
            assert split_relay(answer, N) == (b"what all hold", b"of another site", b"of another site")
        else:
            assert len(answer) == 32
