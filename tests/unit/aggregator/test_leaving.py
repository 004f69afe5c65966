"""Sites that leave: no window begins with one that has left, and nothing comes of a session that one leaves in time."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from aggregator_world import STUDY, Window, World, integer_spec
from strict_world import TREES, end, ended, open_session, session_window, spec_of, stepping, tree_model

from cohortium_aggregator.assembler import Assembler, Assembly
from cohortium_aggregator.domain.states import Collecting, Ended
from cohortium_aggregator.domain.strict_states import Assembling, Stepping
from cohortium_aggregator.store import rounds, sites
from cohortium_kit.bus import Ack
from cohortium_messages import events
from cohortium_messages.governance import GrantEnded, GrantRecorded
from cohortium_messages.ids import StudyId
from cohortium_messages.runs import SessionClosed
from cohortium_messages.secure_sum import Roster
from cohortium_messages.withdrawals import SumSetAside


@pytest.fixture
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made = await World.of(tmp_path, study=getattr(request, "param", TREES))
    yield made
    await made.app.engine.close()
    await made.close()


def left(world: World, window: Window, index: int) -> GrantEnded:
    return GrantEnded(
        study_id=StudyId(world.study.name),
        study_digest=world.study.digest(),
        site_id=window.sites[index].site_id,
        reason="GRANT_WITHDRAWN",
    )


def back(world: World, window: Window, index: int) -> GrantRecorded:
    return GrantRecorded(
        study_id=StudyId(world.study.name),
        study_digest=world.study.digest(),
        site_id=window.sites[index].site_id,
        grant_digest=bytes(32),
        not_after=world.clock.now() + timedelta(days=1),
    )


async def test_a_session_does_not_begin_with_a_site_that_left_before_it_came(world: World) -> None:
    base = await tree_model(world)
    rosters = len(await world.heard(Roster))
    window = session_window(world, base, spec_of(world))
    await world.say("consent", left(world, window, 2))
    assert await world.say("scheduler", window.opened) == Ack()
    assert isinstance(await world.state(window), Ended)
    closed = (await world.heard(SessionClosed))[-1]
    assert (closed.state, closed.reason, closed.steps) == ("CANCELLED", "SITE_LEFT", 0)
    assert len(await world.heard(Roster)) == rosters, "no site was shown this roster"

    await world.pass_time(1)
    await world.say("consent", back(world, window, 2))
    again = await open_session(world, base)
    assert isinstance(await world.state(again.window), Stepping)


@pytest.mark.parametrize("world", [STUDY], indirect=True)
async def test_a_sum_does_not_begin_with_a_site_that_left_before_it_came(world: World) -> None:
    window = world.prepare(world.params("statistics", integer_spec(7)))
    await world.say("consent", left(world, window, 2))
    gone, digest = window.sites[2].site_id, world.study.digest()
    before = world.clock.now().timestamp() - 5
    # An older word that comes late undoes nothing.
    await world.app.ctx.db.run("late_word", lambda tx: sites.hear_of_grant(tx, digest, gone, before, ended=False))
    await world.say("scheduler", window.opened)
    closed = (await world.heard(SessionClosed))[-1]
    assert (closed.state, closed.reason) == ("CANCELLED", "SITE_LEFT")
    others = [site for site in world.identities if site != gone]
    without = world.prepare(world.params("statistics", integer_spec(7)), others)
    await world.say("scheduler", without.opened)
    assert isinstance(await world.state(without), Collecting)


async def test_trees_of_a_session_are_thrown_away_where_a_site_leaves_while_it_steps(world: World) -> None:
    training = await stepping(world)
    await training.grow((1, 2))
    await world.app.engine.settle()
    await world.say("consent", left(world, training.window, 3))
    over = await ended(world, training)
    assert (over.state, over.reason, over.model) == ("PAUSED", "SITE_LEFT", None)
    assert over.dropped == (training.window.sites[3].site_id,)
    (aside,) = await world.heard(SumSetAside)
    assert (aside.sites, aside.opened) == (over.dropped, True)
    assert [one.model.version for one in await world.heard(events.ModelReleased)] == [0]
    async with world.app.ctx.db.reading("left") as tx:
        assert await rounds.round_count(tx, world.run_id) == 0


async def test_no_model_comes_of_a_session_whose_model_is_being_written_when_a_site_leaves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = await stepping(world)
    await training.grow((1, 2, 3))
    await training.agree(end(3, 3))
    await world.app.engine.settle()
    assert isinstance(await world.state(training.window), Assembling)
    made = world.app.opener._assembler
    job = await made._load(training.window.params.window_id)
    assert job is not None

    async def loaded(*_: object) -> Assembly | None:
        return job

    monkeypatch.setattr(Assembler, "_load", loaded)  # what it had in hand when the site left
    await world.say("consent", left(world, training.window, 2))
    await made.assemble(training.window.params.window_id)
    monkeypatch.undo()
    over = await ended(world, training)
    assert (over.state, over.reason, over.model) == ("PAUSED", "SITE_LEFT", None)
    assert [one.model.version for one in await world.heard(events.ModelReleased)] == [0]
    assert not world.app.ctx.data.model_dir(world.run_id, 1).exists()
    assert len(await world.heard(SumSetAside)) == 1
