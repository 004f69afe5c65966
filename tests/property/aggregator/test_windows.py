"""Whoever drops out and when, in whatever order messages come, however often, and whenever the aggregator is killed:
the opened sum is the integer sum of the declared survivors, or nothing opens; and every window ends.

Sites are real in all that the protocol says; the network is a bag from which messages are drawn in any order. Not
covered: sites that lie (`tests/unit/aggregator/test_faults.py`).
"""

import asyncio
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aggregator_world import STUDY, Window, World, integer_spec
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from cohortium_aggregator import making
from cohortium_aggregator.domain.states import Ended, Opening
from cohortium_messages.runs import SessionClosed
from cohortium_messages.secure_sum import AbortAsked, EchoCert, Survivors
from cohortium_messages.topology import control_queue

FEATURES = 100
FATES = (*["stays"] * 12, "before_upload", "half_upload", "before_echo", "before_unmask")
WIDE_STUDY: dict[str, Any] = STUDY | {
    "dataset": STUDY["dataset"]
    | {"features": [{"name": f"f{k}", "type": "float", "range": [0, 1]} for k in range(FEATURES)]}
}
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def contribution(index: int, rng: random.Random) -> np.ndarray:
    """Statistics of 4^index rows, so that a site that is missing or counted twice shows."""
    rows = 4**index
    vector = []
    for _ in range(FEATURES):
        count, step = rng.randint(0, rows), rng.randint(0, 65536)
        vector += [count, count * step, count * step * step]
    return np.array([*vector, rows, rng.randint(0, 9), rng.randint(0, rows), 0], dtype=np.int64)


@dataclass
class Course:
    """One window, its sites with their fates, and the bag."""

    world: World
    window: Window
    fates: list[str]
    rng: random.Random
    values: dict[int, np.ndarray] = field(default_factory=dict)
    bag: list[Callable[[], Any]] = field(default_factory=list)
    seen: int = 0
    answered: set[int] = field(default_factory=set)
    promised: set[int] = field(default_factory=set)

    @property
    def unhurried(self) -> bool:
        """Nobody drops out; then time passes only while nothing is under way."""
        return set(self.fates) == {"stays"}

    def fate(self, index: int) -> str:
        return self.fates[index - 1]

    def begin(self) -> None:
        """What each site sends of its upload before its fate meets it."""
        for index in self.window.view.indices:
            self.values[index] = contribution(index, self.rng)
            if self.fate(index) == "before_upload":
                continue
            self.window.mask(index, self.values[index])
            chunks = range(len(self.window.sites[index].chunks))
            assert len(chunks) > 1
            for chunk in chunks[:1] if self.fate(index) == "half_upload" else chunks:
                self.bag.append(lambda i=index, k=chunk: self.window.send_chunks(i, [k]))
            self.bag.append(lambda i=index: self.window.send_header(i))

    async def listen(self) -> None:
        """Sites read what the aggregator sent, and put their answers in the bag."""
        await self.world.hear()
        fresh, self.seen = self.world.sent[self.seen :], len(self.world.sent)
        for sent in fresh:
            for index, site in self.window.sites.items():
                if sent.routing_key == control_queue(site.site_id):
                    self.answer(index, sent.message)

    def answer(self, index: int, message: Any) -> None:
        window, fate = self.window, self.fate(index)
        match message:
            case Survivors() if fate in ("stays", "before_unmask"):
                echo = window.echo(index, message)
                self.bag.append(lambda: window.say(index, echo))
            case EchoCert() if fate == "stays" and window.sites[index].survivors and index not in self.promised:
                if index not in self.answered:
                    self.answered.add(index)
                    answer = window.unmask(index, message)
                    self.bag.append(lambda: window.say(index, answer))
            case AbortAsked() if fate != "before_upload" and index not in self.answered:
                self.promised.add(index)
                self.bag.append(lambda: window.say(index, window.vote(index)))
            case _:
                pass

    async def step(self) -> None:
        """One thing happens: a message arrives (perhaps again), time passes, the aggregator dies, a sum opens."""
        choice = self.rng.random()
        if choice < 0.05:
            await self.world.restart()
        state = await self.world.state(self.window)
        if isinstance(state, Opening) and (choice < 0.5 or not self.bag):
            await self.world.app.opener.open(self.window.params.window_id)
        elif self.bag and (choice < 0.97 or self.unhurried):
            place = self.rng.randrange(len(self.bag))
            act = self.bag[place] if self.rng.random() < 0.1 else self.bag.pop(place)
            await act()
        else:
            await self.world.pass_time(self.rng.choice((1, 16, 31)))
        await self.listen()

    async def run(self) -> Ended:
        self.begin()
        for _ in range(1500):
            state = await self.world.state(self.window)
            if isinstance(state, Ended):
                return state
            await self.step()
        raise AssertionError(f"the window did not end; it is {state}")


async def one_window(fates: list[str], rng: random.Random, opened: list[np.ndarray]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        world = await World.of(Path(folder), len(fates), study=WIDE_STUDY)
        try:
            params = world.params("statistics", integer_spec(3 * FEATURES + 4))
            course = Course(world, await world.open(params), fates, rng)
            end = await course.run()
            (closed,) = await world.heard(SessionClosed)
            assert closed.state == end.outcome
            if end.outcome == "RELEASED":
                assert end.survivors is not None
                members = end.survivors.members
                assert len(members) >= course.window.view.k_min
                wanted = sum(course.values[index] for index in members)
                assert len(opened) == 1
                assert np.array_equal(opened[0], wanted)
                assert closed.training_rows == sum(4**index for index in members)
            else:
                assert not opened
                assert end.outcome in ("ABORTED", "FAILED")
            if course.unhurried:
                assert end.outcome == "RELEASED"
            event(end.outcome)
        finally:
            await world.close()


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    fates=st.lists(st.sampled_from(FATES), min_size=3, max_size=12),
    seed=st.integers(0, 2**32),
)
@pytest.mark.timeout(600)
def test_the_opened_sum_is_that_of_the_survivors_or_nothing_opens(fates: list[str], seed: int) -> None:
    opened: list[np.ndarray] = []
    real = making.open_integers

    def spy(*arguments: Any) -> Any:
        sums = real(*arguments)
        opened.append(sums.values)
        return sums

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "open_integers", spy)
        asyncio.run(one_window(fates, random.Random(seed), opened))  # noqa: S311 - a course, no secret
