"""Whatever happens to a run's strict sessions, the model is the trees that all sites agreed to, in their order.

Sites are real in all that the protocol says. A course draws what happens next: a site's frame comes, once or again; a
site vanishes or leaves; time passes; the aggregator is killed. After a pause the next session goes on from what the
aggregator said that stands. Not covered: sites that lie (`tests/unit/aggregator/test_strict_ends.py`).
"""

import asyncio
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aggregator_world import World
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from strict_world import ROUNDS, TREES, Training, end, header, open_session, spec_of, tree, tree_model

from cohortium_aggregator.domain.states import Ended
from cohortium_messages import events
from cohortium_messages.runs import SessionClosed
from cohortium_messages.secure_sum import ModelRef, SessionLeft
from cohortium_protocol.strict.steps import START, Kind
from cohortium_protocol.trees.text import check_model_text

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
Ask = tuple[Kind, bytes | int]
Fate = tuple[str, int]
"""What happens to a session, once some site has come to this step."""
FATES = st.tuples(st.sampled_from(("vanishes", "leaves", "killed")), st.integers(0, 3 * ROUNDS + 1))


def script(done: int, cut: int) -> list[Ask]:
    """What every site asks in a session after `done` rounds: SUM of so many words, RELAY and AGREE of these bytes."""
    asked: list[Ask] = [(Kind.AGREE, b"H" + header())]
    for number in range(done + 1, ROUNDS + 1):
        asked += [(Kind.SUM, 3 + number), (Kind.RELAY, b"found"), (Kind.AGREE, b"T" + tree(number))]
    return [*asked, (Kind.AGREE, end(cut, ROUNDS))]


@dataclass
class Course:
    """One session, until its window has ended."""

    world: World
    training: Training
    asked: list[Ask]
    rng: random.Random
    fate: Fate | None
    gone: set[int] = field(default_factory=set)
    places: dict[int, int] = field(default_factory=dict)
    unsent: dict[int, list[bytes]] = field(default_factory=dict)

    def begin(self) -> None:
        for index in self.training.indices:
            self.places[index] = -1
            self.ask_next(index)

    def ask_next(self, index: int) -> None:
        self.places[index] += 1
        if self.places[index] == len(self.asked):
            return
        kind, content = self.asked[self.places[index]]
        if isinstance(content, int):
            self.training.ask(index, kind, np.full(content, 5**index, dtype=np.int64))
        else:
            self.training.ask(index, kind, content)
        self.unsent[index] = list(self.training.frames[index])

    async def listen(self) -> None:
        """Sites that are there take what was sent to them."""
        for index in self.training.indices:
            while (frame := await self.training.frame(index, wait_s=0)) is not None:
                if index in self.gone or (answer := self.training.sessions[index].take(frame)) is None:
                    continue
                if answer.kind is Kind.SUM:
                    wanted = sum(5**one for one in self.training.indices)
                    assert set(answer.values().tolist()) == {wanted}
                self.ask_next(index)

    async def step(self) -> None:
        """One thing happens."""
        there = [index for index in self.training.indices if index not in self.gone]
        fresh = [index for index in there if self.unsent.get(index)]
        index = self.rng.choice(fresh or there or list(self.training.indices))
        chance = self.rng.random()
        if self.fate is not None and max(self.places.values()) >= self.fate[1]:
            await self.harm(index, self.fate[0])
            self.fate = None
        elif fresh:
            await self.training.send(index, [self.unsent[index].pop(0)])
        elif there and chance < 0.7 and self.places[index] < len(self.asked):
            await self.training.send(index)  # once more, since no answer has come
        else:
            await self.world.pass_time(self.rng.choice((1, 8, 21)) if self.gone else 1)
        await asyncio.sleep(0.001)
        await self.listen()

    async def harm(self, index: int, kind: str) -> None:
        match kind:
            case "vanishes":
                self.gone.add(index)
            case "leaves":
                self.gone.add(index)
                left = SessionLeft(window_id=self.training.window.params.window_id, step=0, code="RESTARTED")
                await self.training.window.say(index, left)
            case "killed":
                await self.world.restart()
                await self.world.app.engine.ledger.end_earlier_lives()

    async def run(self) -> SessionClosed:
        self.begin()
        window_id = self.training.window.params.window_id
        for _ in range(1500):
            await self.world.app.engine.settle()
            await self.world.app.opener.open(window_id)
            if isinstance(await self.world.state(self.training.window), Ended):
                return next(one for one in await self.world.heard(SessionClosed) if one.window_id == window_id)
            await self.step()
        raise AssertionError("the session did not end")


async def one_run(rng: random.Random, fates: list[Fate]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        world = await World.of(Path(folder), rng.choice((3, 4)), study=TREES)
        try:
            base, cut = await tree_model(world), rng.randint(1, ROUNDS)
            known, chain = 0, START
            mail: dict[Any, Any] = {}
            for fate in [*fates, None]:
                training = await open_session(world, base, spec_of(world, known, chain))
                training.mail = mail
                over = await Course(world, training, script(known, cut), rng, fate).run()
                assert over.state in ("RELEASED", "PAUSED")
                if over.state == "RELEASED":
                    break
                event(f"{over.reason} after {over.trees} trees")
                assert (over.trees or 0) >= known
                assert (over.model is None) == (over.trees == 0)
                known, chain = over.trees or 0, over.chain or START
                if over.model is not None:
                    await check_model(world, over.model, known)
            assert over.state == "RELEASED"
            assert over.model is not None
            await check_model(world, over.model, cut)
            summed = [one.trees for one in await world.heard(events.StrictSessionSummed)]
            assert summed == sorted(summed)
            assert summed[-1] == ROUNDS
            assert not await world.heard(events.FaultSeen)
        finally:
            await world.app.engine.close()
            await world.close()


async def check_model(world: World, ref: ModelRef, rounds: int) -> None:
    path = world.app.ctx.data.model_dir(world.run_id, ref.version) / "model.txt"
    names = ("age", "pressure", "ward")
    model = check_model_text(
        path.read_bytes(), features=names, classes=1, max_trees=ROUNDS, max_leaves=4, objective="binary"
    )
    assert [list(one.leaf_value) for one in model.trees] == [[-0.125 * k, 0.25 * k] for k in range(1, rounds + 1)]


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(fates=st.lists(FATES, max_size=3), seed=st.integers(0, 2**32))
@pytest.mark.timeout(600)
def test_the_model_is_the_trees_that_all_agreed_to(fates: list[Fate], seed: int) -> None:
    asyncio.run(one_run(random.Random(seed), fates))  # noqa: S311 - a course, no secret
