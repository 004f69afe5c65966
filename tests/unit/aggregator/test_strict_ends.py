"""Sites that lie or leave, and frames that are nobody's: what ends a strict session, and what does not."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from aggregator_world import World
from strict_world import (
    TREES,
    Training,
    end,
    ended,
    frames_for,
    header,
    open_session,
    session_window,
    spec_of,
    statistics_of,
    stepping,
    stump,
    tree,
    tree_model,
)

from cohortium_aggregator.domain.strict_states import Stepping
from cohortium_aggregator.store import rounds
from cohortium_aggregator.strict.agreements import agreement
from cohortium_kit.bus import Ack, Dead
from cohortium_messages import events
from cohortium_messages.governance import SiteRevoked
from cohortium_messages.runs import RunEnded, SessionClosed
from cohortium_messages.secure_sum import SessionLeft, WindowClosed
from cohortium_messages.study import Study
from cohortium_messages.topology import steps_key
from cohortium_protocol.errors import RemoteFault
from cohortium_protocol.strict.frames import StepSealer
from cohortium_protocol.strict.masks import StrictSite
from cohortium_protocol.strict.steps import START, Kind
from cohortium_protocol.trees.binning import binning_from_sums

REFUSED = "MODEL_REFUSED"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.of(tmp_path, study=TREES)
    yield made
    await made.app.engine.close()
    await made.close()


async def blamed(world: World) -> set[tuple[str, str]]:
    return {(fault.key_id, fault.code) for fault in await world.heard(events.FaultSeen)}


def key_id(training: Training, index: int) -> str:
    return f"site:{training.window.sites[index].site_id}"


def forged(training: Training, index: int, kind: Kind, payload: bytes, chain: bytes | None = None) -> bytes:
    """A frame that this site really sealed, with whatever it likes in it."""
    session, view = training.sessions[index], training.window.view
    keys = training.window.sites[index].keys
    link = StepSealer(view, index, keys, training.window.params.aggregator_seal_pk)
    return link.seal(session.step, kind, session.chain if chain is None else chain, payload)[0]


# Sites that lie


async def test_a_wrong_mask_opens_nothing(world: World) -> None:
    training = await stepping(world)
    values = {index: np.arange(9, dtype=np.int64) for index in training.indices}
    await frames_for(training, Kind.SUM, {index: values[index] for index in (1, 2, 4)})
    keys, session = training.window.sites[3].keys, training.sessions[3]
    masked = bytearray(StrictSite(training.window.view, 3, keys).mask(session.step, session.chain, values[3]))
    masked[-1] ^= 1
    assert await training.send(3, [forged(training, 3, Kind.SUM, bytes(masked))]) == [Ack()]
    over = await ended(world, training)
    assert (over.state, over.reason, over.dropped, over.steps) == ("PAUSED", "CANARY_MISMATCH", (), 1)
    assert [await training.result(index, wait_s=0.02) for index in (1, 2, 4)] == [None] * 3
    assert not await blamed(world)  # nobody can tell whose words were wrong
    assert (await world.heard(events.StrictSessionSummed))[-1].sums == 0


@pytest.mark.parametrize(
    ("code", "kind", "payload"),
    [
        ("STEP_REFUSED", Kind.SUM, bytes(8 * 12)),
        ("STEP_REFUSED", Kind.SUM, bytes(8 * 13 + 1)),
        ("STEP_REFUSED", Kind.RELAY, b"found"),
        ("STEP_REFUSED", Kind.AGREE, bytes(1 << 16)),
    ],
)
async def test_a_payload_that_does_not_fit_the_step_ends_it_and_names_the_site(
    world: World, code: str, kind: Kind, payload: bytes
) -> None:
    training = await stepping(world)
    await frames_for(training, Kind.SUM, {index: np.arange(9, dtype=np.int64) for index in (1, 2, 4)})
    assert await training.send(3, [forged(training, 3, kind, payload)]) == [Ack()]
    over = await ended(world, training)
    assert (over.state, over.reason) == ("PAUSED", code)
    assert over.dropped == (training.window.sites[3].site_id,)
    assert await blamed(world) == {(key_id(training, 3), code)}


async def test_a_site_that_stands_on_other_results_ends_the_session(world: World) -> None:
    training = await stepping(world)
    await training.send(1, [forged(training, 1, Kind.RELAY, b"found", chain=bytes(32))])
    over = await ended(world, training)
    assert (over.state, over.reason, len(over.dropped)) == ("PAUSED", "CHAIN_MISMATCH", 1)
    assert await blamed(world) == {(key_id(training, 1), "CHAIN_MISMATCH")}


async def test_two_different_payloads_for_one_step_end_the_session(world: World) -> None:
    training = await stepping(world)
    await training.send(1, [forged(training, 1, Kind.RELAY, b"one")])
    await training.send(1, [forged(training, 1, Kind.RELAY, b"two")])
    assert (await ended(world, training)).reason == "STEP_REFUSED"
    assert await blamed(world) == {(key_id(training, 1), "STEP_REFUSED")}


async def test_what_one_site_alone_holds_is_not_agreed_to(world: World) -> None:
    training = await stepping(world)
    contents = {index: b"T" + tree(1) for index in (1, 2, 4)} | {3: b"T" + tree(2)}
    await frames_for(training, Kind.AGREE, dict(sorted(contents.items())))
    over = await ended(world, training)
    assert (over.state, over.reason, over.trees) == ("PAUSED", "AGREEMENT_FAILED", 0)
    assert over.dropped == (training.window.sites[3].site_id,)
    assert await blamed(world) == {(key_id(training, 3), "AGREEMENT_FAILED")}
    async with world.app.ctx.db.reading("rounds") as tx:
        assert await rounds.round_count(tx, world.run_id) == 0


async def test_nobody_is_blamed_where_half_differ(world: World) -> None:
    training = await stepping(world)
    await frames_for(training, Kind.AGREE, {index: b"T" + tree(index % 2) for index in training.indices})
    over = await ended(world, training)
    assert (over.reason, over.dropped) == ("AGREEMENT_FAILED", ())
    assert not await blamed(world)


NOT_MODELS = {
    "a leaf that is no number": (b"T" + stump(1.0, 2.0).replace(b"leaf_value=1.0 2.0", b"leaf_value=1.0 nan"), REFUSED),
    "two trees in one round": (b"T" + stump(1.0, 2.0) * 2, REFUSED),
    "a split of a feature that is not there": (b"T" + tree(1).replace(b"split_feature=0", b"split_feature=3"), REFUSED),
    "another study's header": (b"H" + header().replace(b"age", b"wage"), REFUSED),
    "no kind": (b"X", "AGREEMENT_REFUSED"),
    "nothing": (b"", "AGREEMENT_REFUSED"),
    "an end without rounds": (b"E{}", "AGREEMENT_REFUSED"),
    "an end that is a list": (b"E[]", "AGREEMENT_REFUSED"),
    "an end at the beginning": (end(0, 0), "AGREEMENT_REFUSED"),
    "a best round after the last": (end(3, 2), "AGREEMENT_REFUSED"),
    "rounds that are no numbers": (b'E{"best_round": true, "rounds": true}', "AGREEMENT_REFUSED"),
    "an end that nests too deep": (b"E" + b"[" * 4000, "AGREEMENT_REFUSED"),
    "an end that is too long": (end(1, 1) + b" " * 5000, "AGREEMENT_REFUSED"),
    "an end that is no text": (b"E\xff", "AGREEMENT_REFUSED"),
}


@pytest.mark.parametrize("name", NOT_MODELS)
def test_what_cannot_be_a_model_is_not_agreed_to(name: str) -> None:
    study = Study.model_validate(TREES)
    sums = sum(statistics_of(study, index) for index in range(1, 5))
    rules = binning_from_sums(study, sums, 4)
    assert agreement(study, rules, b"T" + tree(1)).content == tree(1)
    said, code = NOT_MODELS[name]
    with pytest.raises(RemoteFault) as refused:
        agreement(study, rules, said)
    assert refused.value.code == code


@pytest.mark.parametrize(("said", "code"), [(b"T" + stump(1.0, 2.0) * 2, REFUSED), (end(1, 1), "AGREEMENT_REFUSED")])
async def test_what_cannot_be_a_model_fails_whoever_agrees_to_it(world: World, said: bytes, code: str) -> None:
    training = await stepping(world)
    await frames_for(training, Kind.AGREE, dict.fromkeys(training.indices, said))
    over = await ended(world, training)
    assert (over.state, over.reason) == ("FAILED", code)
    assert await training.result(1, wait_s=0.02) is None


async def test_more_rounds_than_the_study_has_fail(world: World) -> None:
    training = await stepping(world)
    await training.grow((1, 2, 3))
    await frames_for(training, Kind.AGREE, dict.fromkeys(training.indices, b"T" + tree(4)))
    assert (await ended(world, training)).reason == "AGREEMENT_REFUSED"


async def test_a_session_that_never_ends_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohortium_aggregator.strict.session.most_steps", lambda study: 3)
    training = await stepping(world)
    await training.sum()
    await training.sum()
    await frames_for(training, Kind.RELAY, dict.fromkeys(training.indices, b"again"))
    over = await ended(world, training)
    assert (over.state, over.reason) == ("FAILED", "TOO_MANY_STEPS")


# Frames that are nobody's


async def test_frames_that_no_site_sealed_are_parked_and_the_session_goes_on(world: World) -> None:
    training = await stepping(world)
    good = training.ask(1, Kind.RELAY, b"one")[0]
    partition = int(training.delivery(1, good).routing_key[-1])
    strange = steps_key(training.window.sites[2].site_id, partition)
    other = steps_key(training.window.sites[1].site_id, 1 - partition)
    deliveries = {
        "wrong_routing_key": [training.delivery(1, good, strange), training.delivery(1, good, other)],
        "frame_refused": [
            training.delivery(1, good[:-1] + bytes([good[-1] ^ 1])),
            training.delivery(1, good[:-1]),
            training.delivery(1, b"no frame"),
            training.delivery(1, good[:25] + b"\x02\x00" + good[27:], strange),
        ],
        "not_a_member": [training.delivery(1, good[:25] + b"\x09\x00" + good[27:])],
    }
    for code, bad in deliveries.items():
        for delivery in bad:
            assert await training.deliver(delivery) == Dead(code)
    assert {code for _, code in await blamed(world)} == {"WRONG_ROUTING_KEY", "FRAME_REFUSED", "NOT_A_MEMBER"}
    await training.send(1)
    await frames_for(training, Kind.RELAY, dict.fromkeys((2, 3, 4), b"two"))
    assert await training.result(1) is not None


async def test_a_frame_of_an_unknown_window_is_held_a_little_and_then_parked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cohortium_aggregator.strict.engine.HOLD_S", 0.1)
    training = await stepping(world)
    frame = bytearray(training.ask(1, Kind.RELAY, b"one")[0])
    frame[5:21] = bytes(16)
    assert await training.send(1, [bytes(frame)]) == [Dead("unknown_window")]


async def test_frames_that_come_before_the_record_are_not_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohortium_aggregator.strict.engine.HOLD_S", 60)
    base = await tree_model(world)
    window = session_window(world, base, spec_of(world))
    early = Training(window, world.make_bus(), lambda delivery: world.app.engine.handle(delivery))
    keys = window.sites[1].keys
    frame = StepSealer(window.view, 1, keys, world.seal.public).seal(0, Kind.AGREE, START, b"H" + header())[0]
    held = asyncio.create_task(early.send(1, [frame]))
    await asyncio.sleep(0.02)
    assert not held.done()
    assert await world.say("scheduler", window.opened) == Ack()
    assert await held == [Ack()]
    assert world.app.ctx.held[window.params.window_id].progress.bytes_up == len(frame)


async def test_one_sender_cannot_fill_the_waiting_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohortium_aggregator.strict.engine.MOST_HELD_BACK", 2)
    monkeypatch.setattr("cohortium_aggregator.strict.engine.HOLD_S", 60)
    training = await stepping(world)
    good = training.ask(1, Kind.RELAY, b"one")[0]
    unknown = [good[:5] + bytes([number]) * 16 + good[21:] for number in range(6)]
    waiting = {asyncio.create_task(training.send(1, [frame])) for frame in unknown}
    refused = []
    while len(refused) < 4:
        done, waiting = await asyncio.wait(waiting, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        assert done
        refused += [task.result() for task in done]
    assert refused == [[Dead("unknown_window")]] * 4
    assert await training.send(1) == [Ack()]  # what is known does not wait
    for task in waiting:
        task.cancel()
    assert len(await asyncio.gather(*waiting, return_exceptions=True)) == 2


# Sites that leave


@pytest.mark.parametrize(
    ("code", "state", "reason"),
    [
        ("RESTARTED", "PAUSED", "RESTARTED"),
        ("JOURNAL_LOST", "PAUSED", "JOURNAL_LOST"),
        ("DATA_CHANGED", "FAILED", "DATA_CHANGED"),
        ("MODEL_REFUSED", "FAILED", "MODEL_REFUSED"),
        ("UNKNOWN_COLLECTIVE", "FAILED", "UNKNOWN_COLLECTIVE"),
        ("OUT_OF_BOUNDS", "FAILED", "OUT_OF_BOUNDS"),
        ("BINS_REFUSED", "FAILED", "BINS_REFUSED"),
        ("E500", "PAUSED", "E___"),
    ],
)
async def test_a_site_that_leaves_ends_the_session_for_all(world: World, code: str, state: str, reason: str) -> None:
    training = await stepping(world)
    await training.grow((1,))
    await training.sum()
    left = SessionLeft(window_id=training.window.params.window_id, step=4, code=code)
    assert await training.window.say(2, left) == Ack()
    over = await ended(world, training)
    assert (over.state, over.reason, over.trees, over.steps) == (state, reason, 1, 5)
    assert over.dropped == (training.window.sites[2].site_id,)
    assert (over.model is not None) == (state == "PAUSED")
    await frames_for(training, Kind.RELAY, dict.fromkeys(training.indices, b"too late"))
    await world.app.engine.watch()
    assert not world.app.ctx.held
    assert len([one for one in await world.heard(SessionClosed) if one.purpose == "training"]) == 1


async def test_only_a_member_can_leave_and_only_what_is_there(world: World) -> None:
    others = list(world.identities)[:3]
    training = await open_session(world, await tree_model(world), among=others)
    stranger = next(site for site in world.identities if site not in others)
    window = world.prepare(training.window.params)
    outsider = next(site for site in window.sites.values() if site.site_id == stranger)
    left = SessionLeft(window_id=training.window.params.window_id, step=0, code="RESTARTED")
    assert await world.site_says(outsider, left) == Dead("not_a_member")
    unknown = left.model_copy(update={"window_id": bytes(16)})
    assert await training.window.say(1, unknown) == Dead("unknown_window")
    assert isinstance(await world.state(training.window), Stepping)


async def test_no_sum_is_opened_with_a_site_that_was_revoked(world: World) -> None:
    training = await stepping(world)
    await training.grow((1,))
    await training.sum()
    site = training.window.sites[2].site_id
    await frames_for(training, Kind.SUM, {index: np.arange(4, dtype=np.int64) for index in (1, 3, 4)})
    assert await world.say("enrolment", SiteRevoked(site_id=site, reason="SITE_REVOKED")) == Ack()
    training.ask(2, Kind.SUM, np.arange(4, dtype=np.int64))
    assert await training.send(2) == [Dead("site_revoked")]
    over = await ended(world, training)
    assert (over.state, over.reason, over.dropped) == ("PAUSED", "SITE_LEFT", (site,))
    assert await training.result(1, wait_s=0.02) is None


async def test_a_run_that_is_stopped_ends_its_session(world: World) -> None:
    training = await stepping(world)
    await training.grow((1,))
    await world.say("scheduler", RunEnded(run_id=world.run_id, study_id=world.study.name, state="STOPPED"))
    over = await ended(world, training)
    assert (over.state, over.reason) == ("FAILED", "STOPPED_BY_OPERATOR")
    await world.app.engine.watch()
    assert not world.app.ctx.held
    async with world.app.ctx.db.reading("left") as tx:
        assert await rounds.round_count(tx, world.run_id) == 0
        assert await rounds.find_key(tx, training.window.params.window_id) is None
    assert {one.state for one in await world.heard(WindowClosed)} == {"RELEASED", "FAILED"}
