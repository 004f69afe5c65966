"""Strict sessions: from the first frame to the model, paused and gone on with, several at once."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from aggregator_world import World
from strict_world import ROUNDS, TREES, end, ended, header, open_session, spec_of, tree, tree_model

from cohortium_aggregator.store import rounds
from cohortium_kit.bus import Ack
from cohortium_kit.errors import DatabaseUnavailable
from cohortium_messages import events
from cohortium_messages.ids import RunId
from cohortium_messages.runs import RunStarted, SessionClosed
from cohortium_messages.secure_sum import WindowClosed
from cohortium_protocol.parameters import model_hash
from cohortium_protocol.strict.steps import START, Kind
from cohortium_protocol.trees.text import ModelText, check_model_text


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.of(tmp_path, study=TREES)
    yield made
    await made.app.engine.close()
    await made.close()


async def model_of(world: World) -> ModelText:
    """The newest version's text, which is what its hash says."""
    version = await world.newest()
    text: bytes = (world.app.ctx.data.model_dir(world.run_id, version.version) / "model.txt").read_bytes()
    assert model_hash(hashlib.sha256(text).digest(), version.preprocessing.canonical()) == version.model_hash
    names = ("age", "pressure", "ward")
    return check_model_text(text, features=names, classes=1, max_trees=ROUNDS, max_leaves=4, objective="binary")


def leaves(model: ModelText) -> list[list[float]]:
    return [list(one.leaf_value) for one in model.trees]


def grown(*numbers: int) -> list[list[float]]:
    return [[-0.125 * number, 0.25 * number] for number in numbers]


async def test_a_session_grows_the_model_that_its_sites_agree_to(world: World) -> None:
    base = await tree_model(world)
    training = await open_session(world, base)
    await training.agree(b"H" + header())
    chain = await training.grow(range(1, ROUNDS + 1))
    await training.agree(end(ROUNDS, ROUNDS))
    over = await ended(world, training)
    assert (over.state, over.reason, over.trees, over.steps, over.chain) == ("RELEASED", "", ROUNDS, 11, chain)
    assert (len(over.survivors), over.dropped) == (4, ())
    assert over.bytes_down > over.bytes_up > 0
    version = await world.newest()
    assert version.ref == over.model
    assert (version.version, version.trees, over.parameters) == (base.version + 1, ROUNDS, 2 * ROUNDS)
    assert leaves(await model_of(world)) == grown(1, 2, 3)
    (summed,) = await world.heard(events.StrictSessionSummed)
    assert (summed.steps, summed.sums, summed.trees, summed.chain) == (11, 3, 3, chain)
    assert summed.sites == tuple(entry.site_id for entry in training.window.opened.roster.entries)
    assert {one.state for one in await world.heard(WindowClosed)} == {"RELEASED"}
    assert not await world.heard(events.FaultSeen)


async def test_trees_after_the_best_one_are_cut_off(world: World) -> None:
    training = await open_session(world, await tree_model(world))
    await training.agree(b"H" + header())
    await training.grow((1, 2, 3))
    await training.agree(end(2, 3))
    over = await ended(world, training)
    assert (over.state, over.trees, (await world.newest()).trees) == ("RELEASED", 2, 2)
    assert (await world.heard(events.StrictSessionSummed))[-1].trees == 3  # so many were grown
    assert leaves(await model_of(world)) == grown(1, 2)


async def test_a_silent_site_pauses_the_session_and_another_one_goes_on_from_the_last_tree(world: World) -> None:
    base = await tree_model(world)
    first = await open_session(world, base)
    await first.agree(b"H" + header())
    chain = await first.grow((1, 2))
    await first.sum()
    for index in (1, 2, 4):
        first.ask(index, Kind.RELAY, b"found")
        assert await first.send(index) == [Ack()]
    await world.pass_time(19)
    assert not [one for one in await world.heard(SessionClosed) if one.purpose == "training"]
    await world.pass_time(2)
    paused = await ended(world, first)
    silent = first.window.sites[3].site_id
    assert (paused.state, paused.reason, paused.trees, paused.chain) == ("PAUSED", "SITE_SILENT", 2, chain)
    assert (paused.dropped, len(paused.survivors)) == ((silent,), 3)
    assert leaves(await model_of(world)) == grown(1, 2)
    assert paused.model is not None
    assert (paused.model.version, (await world.newest()).trees) == (base.version + 1, 2)
    assert not await world.heard(events.FaultSeen)  # silence is no fault

    second = await open_session(world, paused.model, spec_of(world, 2, chain))
    await second.agree(b"H" + header())
    await second.grow((3,))
    await second.agree(end(3, 3))
    over = await ended(world, second)
    assert (over.state, over.trees) == ("RELEASED", 3)
    assert leaves(await model_of(world)) == grown(1, 2, 3)
    lineage = [(one.model.version, one.parent) for one in await world.heard(events.ModelReleased)][-2:]
    assert lineage == [(base.version + 1, base), (base.version + 2, paused.model)]
    assert [one.trees for one in await world.heard(events.StrictSessionSummed)] == [2, 3]


async def test_a_tree_stands_once_all_agreed_even_if_nobody_hears_of_it(world: World) -> None:
    """Each site wrote it down before it asked."""
    base = await tree_model(world)
    first = await open_session(world, base)
    await first.agree(b"H" + header())
    await first.grow((1,))
    chain = await first.grow((2,))
    await world.pass_time(21)
    paused = await ended(world, first)
    assert (paused.trees, paused.chain) == (2, chain)
    assert set(paused.dropped) == {site.site_id for site in first.window.sites.values()}
    assert paused.model is not None
    second = await open_session(world, paused.model, spec_of(world, 2, chain))
    await second.agree(b"H" + header())
    await second.grow((3,))
    await second.agree(end(3, 3))
    assert (await ended(world, second)).state == "RELEASED"
    assert leaves(await model_of(world)) == grown(1, 2, 3)


async def test_sites_that_know_less_go_on_from_an_earlier_tree(world: World) -> None:
    base = await tree_model(world)
    first = await open_session(world, base)
    await first.agree(b"H" + header())
    chain = await first.grow((1,))
    await first.grow((2,))
    await world.pass_time(21)
    assert (await ended(world, first)).trees == 2
    second = await open_session(world, base, spec_of(world, 1, chain))
    await second.agree(b"H" + header())
    await second.grow((2, 3))
    await second.agree(end(3, 3))
    assert (await ended(world, second)).state == "RELEASED"
    assert leaves(await model_of(world)) == grown(1, 2, 3)


async def test_a_training_that_was_done_already_says_the_same_trees_and_chain(world: World) -> None:
    base = await tree_model(world)
    first = await open_session(world, base)
    await first.agree(b"H" + header())
    chain = await first.grow((1, 2, 3))
    await world.pass_time(21)
    model = (await ended(world, first)).model
    second = await open_session(world, base, spec_of(world, 3, chain))
    await second.agree(b"H" + header())
    await second.agree(end(3, 3))
    over = await ended(world, second)
    assert (over.state, over.trees, over.chain, over.model) == ("RELEASED", 3, chain, model)
    assert [(one.trees, one.chain) for one in await world.heard(events.StrictSessionSummed)] == [(3, chain)] * 2


async def test_a_pause_before_the_first_tree_releases_nothing(world: World) -> None:
    base = await tree_model(world)
    training = await open_session(world, base)
    await training.agree(b"H" + header())
    await training.sum()
    await world.pass_time(21)
    paused = await ended(world, training)
    assert (paused.state, paused.trees, paused.chain, paused.model) == ("PAUSED", 0, START, None)
    assert (await world.newest()).ref == base


async def test_a_pause_that_adds_no_tree_names_the_version_that_is_there(world: World) -> None:
    first = await open_session(world, await tree_model(world))
    await first.agree(b"H" + header())
    chain = await first.grow((1,))
    await first.sum()
    await world.pass_time(21)
    model = (await ended(world, first)).model
    assert model is not None
    second = await open_session(world, model, spec_of(world, 1, chain))
    await second.agree(b"H" + header())
    await world.pass_time(21)
    again = await ended(world, second)
    assert (again.state, again.model, again.trees, again.chain) == ("PAUSED", model, 1, chain)
    assert (await world.newest()).ref == model


async def test_nobody_begins(world: World) -> None:
    training = await open_session(world, await tree_model(world))
    await world.pass_time(39)
    assert len(await world.heard(SessionClosed)) == 1
    await world.pass_time(2)
    over = await ended(world, training)
    assert (over.state, over.reason, over.survivors) == ("PAUSED", "SITE_SILENT", ())
    assert len(over.dropped) == 4


async def test_who_does_not_begin_is_named(world: World) -> None:
    training = await open_session(world, await tree_model(world))
    training.ask(2, Kind.AGREE, b"H" + header())
    await training.send(2)
    await world.pass_time(39)  # the first step may take as long as an upload
    assert len(await world.heard(SessionClosed)) == 1
    await world.pass_time(2)
    over = await ended(world, training)
    assert over.reason == "SITE_SILENT"
    assert set(over.dropped) == {training.window.sites[index].site_id for index in (1, 3, 4)}


async def test_a_held_session_is_alive_on_record_as_long_as_it_is_held(world: World) -> None:
    """Its lease is shorter than a step may take."""
    training = await open_session(world, await tree_model(world))
    await training.agree(b"H" + header())
    for _ in range(6):
        await world.pass_time(3)
    await training.sum()
    for _ in range(6):
        await world.pass_time(3)
    await training.sum()
    state = await world.state(training.window)
    assert state.progress.steps == 2
    assert state.owner == world.app.engine.ledger.owner


async def test_a_site_that_repeats_its_step_is_shown_the_result_again(world: World) -> None:
    training = await open_session(world, await tree_model(world))
    await training.agree(b"H" + header())
    frames = {}
    for index in training.indices:
        frames[index] = training.ask(index, Kind.RELAY, bytes([index]))
        assert await training.send(index) == [Ack()]
        assert await training.send(index) == [Ack()]
    while await training.frame(2, wait_s=0.1) is not None:
        pass  # all that was on its way to this site is lost
    assert await training.send(2, frames[2]) == [Ack()]
    for index in training.indices:
        assert await training.result(index) is not None
    await training.grow((1,))


async def test_two_sessions_step_side_by_side(world: World) -> None:
    first = await open_session(world, await tree_model(world))
    one = world.run_id
    world.run_id = RunId(str(uuid4()))
    started = RunStarted(
        run_id=world.run_id, study=world.study, study_digest=world.study.digest(), manifest=world.manifest
    )
    await world.say("scheduler", started)
    second = await open_session(world, await tree_model(world))
    second.mail = first.mail
    for training in (first, second):
        await training.agree(b"H" + header())
    for number in (1, 2, 3):
        await asyncio.gather(first.grow((number,)), second.grow((number,)))
    for _ in range(3):
        await asyncio.gather(second.sum(), first.sum())
    await second.agree(end(3, 3))
    await first.agree(end(1, 3))
    over = [await ended(world, training) for training in (second, first)]
    assert [(session.run_id, session.trees, session.steps) for session in over] == [
        (world.run_id, 3, 14),
        (one, 1, 14),
    ]
    assert (await world.newest()).trees == 3
    world.run_id = one
    assert (await world.newest()).trees == 1


async def test_a_round_is_on_record_before_any_site_hears_that_all_agreed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = await open_session(world, await tree_model(world))
    await training.agree(b"H" + header())
    ledger, known = world.app.engine.ledger, []
    keep = ledger.keep

    async def watched(*arguments: object) -> None:
        known.append([await training.result(index, wait_s=0.01) for index in training.indices])
        if len(known) == 1:
            raise DatabaseUnavailable("away")
        await keep(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ledger, "keep", watched)
    monkeypatch.setattr("cohortium_aggregator.strict.engine.PAUSE_S", 0.01)
    for index in training.indices:
        training.ask(index, Kind.AGREE, b"T" + tree(1))
        await training.send(index)
    await world.app.engine.settle()
    assert known == [[None] * 4] * 2
    for index in training.indices:
        assert await training.result(index) is not None
    async with world.app.ctx.db.reading("rounds") as tx:
        assert await rounds.round_count(tx, world.run_id) == 1


async def test_sites_of_a_new_cohort_go_on_from_the_published_trees(world: World) -> None:
    first = await open_session(world, await tree_model(world))
    await first.agree(b"H" + header())
    chain = await first.grow((1,))
    await first.sum()
    await world.pass_time(21)
    model = (await ended(world, first)).model
    assert model is not None
    others = [site for site in world.identities if site != first.window.sites[2].site_id]
    second = await open_session(world, model, spec_of(world, 1, chain, from_model=model), among=others)
    assert second.window.view.n == 3
    await second.agree(b"H" + header())
    await second.grow((2, 3))
    await second.agree(end(3, 3))
    assert (await ended(world, second)).state == "RELEASED"
    assert leaves(await model_of(world)) == grown(1, 2, 3)


async def test_a_step_takes_the_aggregator_less_than_a_millisecond_and_a_half(world: World) -> None:
    """Of four sites with 5,000 words each: open, add, encrypt and sign. The least of many, as machines are busy."""
    training = await open_session(world, await tree_model(world))
    await training.agree(b"H" + header())
    taken = []
    for _ in range(25):
        deliveries = []
        for index in training.indices:
            frames = training.ask(index, Kind.SUM, np.arange(5000, dtype=np.int64))
            deliveries += [training.delivery(index, frame) for frame in frames]
        began = time.perf_counter()
        for delivery in deliveries:
            assert await training.deliver(delivery) == Ack()
        taken.append(time.perf_counter() - began)
        assert all([await training.result(index) for index in training.indices])
    assert min(taken) < 0.0015
