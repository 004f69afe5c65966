"""An aggregator that dies or loses its servers in a session, and a scheduler that asks for what cannot be."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aggregator_world import World, grid_spec, integer_spec
from strict_world import (
    TREES,
    end,
    ended,
    frames_for,
    header,
    open_session,
    session_window,
    spec_of,
    stepping,
    tree,
    tree_model,
)

from cohortium_aggregator.app import App
from cohortium_aggregator.domain.states import Ended
from cohortium_aggregator.domain.strict_states import Stepping
from cohortium_aggregator.store import rounds
from cohortium_kit.bus import Ack, Dead
from cohortium_kit.db import Database
from cohortium_kit.errors import DatabaseUnavailable
from cohortium_messages.runs import SessionClosed
from cohortium_messages.secure_sum import Roster, SessionKey
from cohortium_protocol.strict.steps import Kind


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.of(tmp_path, study=TREES)
    yield made
    await made.app.engine.close()
    await made.close()


# An aggregator that dies


async def test_a_restart_in_the_middle_pauses_the_session_at_what_stands(world: World) -> None:
    training = await stepping(world)
    chain = await training.grow((1,))
    await training.step(Kind.RELAY, lambda _: b"of the next tree")
    await world.restart()
    assert await world.app.engine.ledger.end_earlier_lives() == 1
    assert await world.app.engine.ledger.end_earlier_lives() == 0
    over = await ended(world, training)
    assert (over.state, over.reason, over.trees, over.chain) == ("PAUSED", "SESSION_LOST", 1, chain)
    assert (await world.newest()).trees == 1
    training.ask(1, Kind.RELAY, b"late")
    assert await training.send(1) == [Ack()]
    assert over.model is not None
    second = await open_session(world, over.model, spec_of(world, 1, chain))
    await second.agree(b"H" + header())
    await second.grow((2, 3))
    await second.agree(end(3, 3))
    assert (await ended(world, second)).state == "RELEASED"


async def test_frames_alone_tell_that_the_memory_is_gone(world: World) -> None:
    training = await stepping(world)
    await training.sum()
    await world.restart()
    training.ask(1, Kind.RELAY, b"one")
    assert await training.send(1) == [Ack()]
    assert (await ended(world, training)).reason == "SESSION_LOST"


async def test_a_session_nobody_holds_any_more_is_lost_in_time(world: World) -> None:
    training = await stepping(world)
    await world.restart()
    world.app.engine.load("elsewhere.0")  # another place: it cannot know whose session it was
    assert await world.app.engine.ledger.end_earlier_lives() == 0
    await world.pass_time(9)
    assert isinstance(await world.state(training.window), Stepping)
    await world.pass_time(2)
    assert (await ended(world, training)).reason == "SESSION_LOST"


async def test_another_aggregator_that_is_given_the_steps_ends_the_session(world: World, tmp_path: Path) -> None:
    training = await stepping(world)
    settings = world.settings.model_copy(update={"data_dir": tmp_path / "elsewhere"})
    database = Database(settings.database_url, schema=settings.db_schema, clock=world.clock)
    other = await App.build(settings, bus=world.make_bus(), database=database, clock=world.clock)
    await other.load()
    training.ask(1, Kind.AGREE, b"T" + tree(1))
    frame = training.frames[1][0]
    assert await other.engine.handle(training.delivery(1, frame)) == Ack()
    assert not other.ctx.held
    state = await world.state(training.window)
    assert isinstance(state, Ended)
    assert (state.outcome, state.reason) == ("PAUSED", "SESSION_LOST")
    # The first one does not know yet; what it is about to write down is refused, and no site hears of it.
    await training.send(1)
    await frames_for(training, Kind.AGREE, dict.fromkeys((2, 3, 4), b"T" + tree(1)))
    await world.app.engine.settle()
    assert not world.app.ctx.held
    assert await training.result(1, wait_s=0.02) is None
    async with world.app.ctx.db.reading("rounds") as tx:
        assert await rounds.round_count(tx, world.run_id) == 0
    await other.ctx.db.close()


async def test_told_to_stop_it_says_how_far_every_session_has_come(world: World) -> None:
    training = await stepping(world)
    chain = await training.grow((1,))
    await training.sum()
    await world.app.engine.close()
    over = await ended(world, training)
    assert (over.state, over.reason, over.trees, over.chain, over.steps) == ("PAUSED", "SESSION_LOST", 1, chain, 5)


async def test_while_the_broker_is_away_no_site_is_late(world: World) -> None:
    training = await stepping(world)
    for _ in range(5):
        await world.clock.advance(8)  # type: ignore[attr-defined]
        world.app.engine.tick(listening=False)
        await world.app.engine.settle()
    await training.sum()


async def test_a_session_whose_database_is_away_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    training = await stepping(world)
    ledger = world.app.engine.ledger

    async def away(*_: object) -> None:
        raise DatabaseUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "renew", away)
        await world.clock.advance(15)  # type: ignore[attr-defined]
        world.app.engine.tick()
        await world.app.engine.settle()
        await world.app.ticker.tick()
    await training.sum()
    assert isinstance(await world.state(training.window), Stepping)


async def test_the_database_away_at_the_first_frame_puts_it_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohortium_aggregator.strict.engine.PAUSE_S", 0.01)
    training = await open_session(world, await tree_model(world))
    ledger = world.app.engine.ledger

    async def away(*_: object) -> None:
        raise DatabaseUnavailable("away")

    training.ask(1, Kind.AGREE, b"H" + header())
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "take", away)
        (answer,) = await training.send(1)
        assert type(answer).__name__ == "Requeue"
    assert await training.send(1) == [Ack()]


# A scheduler that asks for what cannot be


async def refused(world: World, window: Any) -> str:
    assert await world.say("scheduler", window.opened) == Ack()
    state = await world.state(window)
    assert isinstance(state, Ended)
    assert state.outcome == "CANCELLED"
    for kind in (Roster, SessionKey):
        assert not [one for one in await world.heard(kind) if one.window_id == window.params.window_id]
    return state.reason


async def test_a_session_goes_on_from_what_stands_and_from_nothing_else(world: World) -> None:
    first = await stepping(world)
    chain = await first.grow((1,))
    await first.sum()
    assert await refused(world, session_window(world, (await world.newest()).ref, spec_of(world))) == "SUPERSEDED"
    await world.pass_time(21)
    model = (await ended(world, first)).model
    assert model is not None
    for spec in (
        spec_of(world, 2, chain),
        spec_of(world, 1, bytes(32)),
        spec_of(world, 0, chain),
        spec_of(world, 1, chain, from_model=first.window.params.bases[0]),
        spec_of(world, 1, chain, from_model=model.model_copy(update={"model_hash": bytes(32)})),
        spec_of(world, 2, chain, from_model=model),
    ):
        assert await refused(world, session_window(world, model, spec)) == "SUPERSEDED"
    again = await open_session(world, model, spec_of(world, 1, chain))
    await again.agree(b"H" + header())


async def test_a_session_that_starts_anew_forgets_rounds_that_stood(world: World) -> None:
    first = await stepping(world)
    await first.grow((1,))
    await first.sum()
    await world.pass_time(21)
    model = (await ended(world, first)).model
    assert model is not None
    await open_session(world, model, spec_of(world))
    async with world.app.ctx.db.reading("rounds") as tx:
        assert await rounds.round_count(tx, world.run_id) == 0


async def test_only_training_of_lightgbm_is_a_session(world: World) -> None:
    base = await tree_model(world)
    spec = integer_spec(1)
    strict = spec_of(world)
    for params in (
        world.params("training", spec, (base,), round=1),
        world.params("training", spec, (base,), kind="strict", round=1),
        world.params("training", spec, (base,), strict=strict, round=1),
        world.params("update", spec, (base,), kind="strict", strict=strict, round=1),
    ):
        assert await world.say("scheduler", world.prepare(params).opened) == Dead("not_a_session")
    longer = spec_of(world, rounds=4)
    assert await world.say("scheduler", session_window(world, base, longer).opened) == Dead("study_differs")


async def test_a_study_without_trees_has_no_sessions(tmp_path: Path) -> None:
    world = await World.of(tmp_path)
    base = await world.first_model()
    window = session_window(world, base, spec_of(world, rounds=1))
    assert await world.say("scheduler", window.opened) == Dead("study_differs")
    await world.close()


async def test_an_update_of_numbers_does_not_move_a_model_of_trees(world: World) -> None:
    base = await tree_model(world)
    window = await world.open(world.params("update", grid_spec(2), (base,)))
    await world.release(window, dict.fromkeys(window.view.indices, np.zeros(2, dtype=np.float32)))
    over = (await world.heard(SessionClosed))[-1]
    assert (over.state, over.reason) == ("FAILED", "MODEL_REFUSED")
