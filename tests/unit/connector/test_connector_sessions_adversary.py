"""Strict sessions whose scheduler and aggregator are in an attacker's hands, keys and all: every attack ends in
refusal, and never are two vectors masked for one step."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from connector_peers import Peer
from connector_strict import TREES, StrictPlay, TreesWorld, begun, until

from cohortium_connector.domain.window_states import Freed, Spent
from cohortium_connector.steps import FRAME_TYPE
from cohortium_messages.events import FaultSeen, TaskDeclined
from cohortium_messages.runs import TaskRefused
from cohortium_messages.secure_sum import (
    AbortAsked,
    AbortVote,
    EchoCert,
    Ready,
    Receipt,
    SessionKey,
    SessionLeft,
    Survivors,
    UploadHeader,
    Vote,
)
from cohortium_messages.study import Study
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.strict.collector import StepResult
from cohortium_protocol.strict.frames import ResultSealer, seal_session_key
from cohortium_protocol.strict.steps import Kind, join_relay, next_chain, sum_bytes


def faults(world: TreesWorld) -> list[str]:
    return [event.code for event in world.all(FaultSeen)]


def changed(result: StepResult, payload: bytes) -> StepResult:
    """The result as a lying aggregator signs it: right in itself."""
    after = next_chain(result.chain, result.step, result.kind, payload)
    return replace(result, payload=payload, chain_after=after)


async def goes_on(play: StrictPlay) -> None:
    """The session has not been disturbed: its open step is answered, and the next one comes."""
    await play.tell(play.seal(play.results[-1]))
    await play.step()
    assert play.world.all(SessionLeft) == []
    play.one_content_each()


async def ends(play: StrictPlay, code: str) -> None:
    """The site has left, and nothing of it leaves any more."""
    message = await play.world.expect(SessionLeft)
    assert (message.window_id, message.code) == (play.window_id, code)
    assert (await play.world.reaches(play.window_id, "SPENT")).state == Spent(code)
    await play.world.settled()
    step = play.collector.step
    await play.tell(play.result_frames[-1] if play.result_frames else [])
    await asyncio.sleep(0.1)
    assert play.frames(step) == []
    play.one_content_each()


# Results


async def test_a_result_that_the_aggregator_did_not_sign_is_dropped(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.step()
    result = await play.gather()
    forger = ResultSealer(play.view, play.secret, IdentityKey.generate())
    lie = changed(result, sum_bytes(np.zeros(3, dtype=np.int64)))
    for _ in range(3):
        await play.tell(forger.seal(lie.step, lie.kind, lie.chain, lie.payload))
    await until(lambda: faults(trees) == ["BAD_SIGNATURE"])
    await trees.settled()
    assert faults(trees) == ["BAD_SIGNATURE"], "one report, however many come"
    await goes_on(play)


@pytest.mark.parametrize("spoil", ["cut", "flipped", "rubbish", "empty"])
async def test_a_spoilt_result_frame_is_dropped(trees: TreesWorld, spoil: str) -> None:
    play = await begun(trees)
    await play.step()
    result = await play.gather()
    (frame,) = play.sealer.seal(result.step, result.kind, result.chain, result.payload)
    spoilt = {
        "cut": frame[:-1],
        "flipped": frame[:-1] + bytes([frame[-1] ^ 1]),
        "rubbish": b"\xff" * len(frame),
        "empty": b"",
    }
    await play.tell([spoilt[spoil]])
    await asyncio.sleep(0.1)
    await goes_on(play)


async def test_a_result_of_another_session_is_dropped(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.step()
    result = await play.gather()
    other = replace(play.view, window_id=bytes(16))
    frames = ResultSealer(other, play.secret, trees.services["aggregator"]).seal(1, result.kind, result.chain, b"")
    await play.tell(frames)
    await asyncio.sleep(0.1)
    await goes_on(play)


async def test_an_old_result_again_is_dropped(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.steps(2)
    await play.gather()
    await play.tell([*play.result_frames[0], *play.result_frames[1]])
    await goes_on(play)


@pytest.mark.parametrize(
    "words", [np.zeros(2, dtype=np.int64), np.zeros(4, dtype=np.int64), np.zeros(0, dtype=np.int64)]
)
async def test_a_signed_sum_of_another_length_ends_the_session(
    trees: TreesWorld, words: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> None:
    play = await begun(trees)
    await play.step()
    lie = changed(await play.gather(), sum_bytes(words))
    await play.tell(play.sealer.seal(lie.step, lie.kind, lie.chain, lie.payload))
    await ends(play, "RESULT_REFUSED")
    assert faults(trees) == ["RESULT_REFUSED"]
    await until(lambda: trees.play.stopped == ["RESULT_REFUSED"])


async def test_a_result_of_a_step_that_was_not_asked_ends_the_session(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.step()
    await play.gather()
    await play.tell(play.sealer.seal(7, Kind.SUM, play.collector.chain, b"12345678"))
    await ends(play, "RESULT_REFUSED")


async def test_a_result_on_another_chain_ends_the_session(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.step()
    result = await play.gather()
    await play.tell(play.sealer.seal(result.step, result.kind, bytes(32), result.payload))
    await ends(play, "CHAIN_MISMATCH")


async def test_a_relay_in_which_our_own_part_was_changed_ends_the_session(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.steps(2)
    lie = changed(await play.gather(), join_relay([b"another split"] * play.view.n))
    await play.tell(play.sealer.seal(lie.step, lie.kind, lie.chain, lie.payload))
    await ends(play, "RESULT_REFUSED")


async def test_an_agreement_of_the_others_on_other_bytes_ends_the_session(trees: TreesWorld) -> None:
    play = await begun(trees)
    lie = changed(await play.gather(), bytes(32))
    await play.tell(play.sealer.seal(lie.step, lie.kind, lie.chain, lie.payload))
    await ends(play, "RESULT_REFUSED")
    assert trees.play.answers == []


async def test_sites_that_were_shown_different_sums_share_no_mask_any_more(trees: TreesWorld) -> None:
    """A lie that nobody can see by itself: the next sum does not open."""
    play = await begun(trees)
    await play.step()
    result = await play.gather()
    play.seal(result)
    lie = changed(result, sum_bytes(np.array([1, 2, 3], dtype=np.int64)))
    sealer = ResultSealer(play.view, play.secret, trees.services["aggregator"])
    await play.tell(sealer.seal(lie.step, lie.kind, lie.chain, lie.payload))
    await play.until_asked(2)
    with pytest.raises(Exception, match="CHAIN_MISMATCH"):
        await play.gather()


# Rosters


async def other_cohort(trees: TreesWorld, peers: list[Peer]) -> StrictPlay:
    """The run's first session is over; a second one is opened with these other hospitals."""
    first = await begun(trees)
    await first.steps(2)
    await first.close("PAUSED", "SITE_SILENT")
    await trees.reaches(first.window_id, "SPENT")
    again = StrictPlay(trees, trees.training_params(trees.model(0)[0]), trees.manifest())
    await trees.open(again.params)
    await again.fix_roster(peers)
    return again


async def test_another_cohort_than_the_first_is_refused(trees: TreesWorld) -> None:
    play = await other_cohort(trees, trees.peers[:2])
    assert (await trees.expect(SessionLeft)).code == "SITES_CHANGED"
    assert (await trees.expect(TaskRefused)).code == "SITES_CHANGED"
    assert (await trees.reaches(play.window_id, "FREED")).state == Freed("SITES_CHANGED")
    assert [event.code for event in trees.all(TaskDeclined)] == ["SITES_CHANGED"]
    assert play.frames(0) == []


async def changing(tmp_path: Path, **policy: object) -> TreesWorld:
    world = TreesWorld(tmp_path, peers=4)
    world.study = Study.model_validate({**TREES, "federation": {**TREES["federation"], "allow_cohort_change": True}})
    await world.declare()
    approved = {"approvals": "listed", "approved_studies": [world.study.digest().hex()]}
    await world.start(policy={**approved, **policy})
    await world.join()
    return world


async def test_a_hospital_may_refuse_a_change_that_shows_one_site_even_where_the_study_allows_it(
    tmp_path: Path,
) -> None:
    """R9, where the hospital insists: the first session's sums and the second's would differ by one hospital's part."""
    world = await changing(tmp_path, refuse_cohort_differing_by_one=True)
    play = await other_cohort(world, world.peers[:3])
    assert (await world.expect(SessionLeft)).code == "COHORT_DIFFERS_BY_ONE"
    assert play.frames(0) == []
    await world.crash()


async def test_a_change_by_two_sites_is_taken_where_the_study_allows_it(tmp_path: Path) -> None:
    world = await changing(tmp_path)
    play = await other_cohort(world, world.peers[:2])
    await play.steps(3)
    assert world.all(SessionLeft) == []
    await world.crash()


@pytest.mark.parametrize("policy", [{}, {"refuse_cohort_differing_by_one": False}], ids=["left out", "never"])
async def test_who_approved_a_study_that_allows_a_change_lets_one_by_one_site_pass(
    tmp_path: Path, policy: dict[str, bool]
) -> None:
    world = await changing(tmp_path, **policy)
    play = await other_cohort(world, world.peers[:3])
    await play.steps(3)
    assert world.all(SessionLeft) == []
    await world.crash()


async def test_a_second_roster_is_reported_and_changes_nothing(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.step()
    mine = next(entry for entry in play.view.entries if entry.site_id == trees.site_id)
    others = [peer.ready(play.params, play.params.bases[-1].model_hash) for peer in trees.peers[:2]]
    await trees.say("aggregator", play.roster_of([mine, *others]))
    await trees.settled()
    assert faults(trees) == ["TWO_ROSTERS"]
    await play.gather()
    await goes_on(play)


async def test_a_restored_spool_never_masks_a_session_s_steps_again(tmp_path: Path) -> None:
    """R8: the copy was made before the roster; with the same roster again, other numbers would get the same masks."""
    world = TreesWorld(tmp_path)
    await world.declare()
    spool, copy = tmp_path / "spool" / "spool.db", tmp_path / "copy.db"
    async with world.running():
        await world.join()
        play = StrictPlay(world, world.training_params(world.model(0)[0]), world.manifest())
        await world.open(play.params)
        await world.give_model(0)
        await world.reaches(play.window_id, "READY_SENT")
    await asyncio.to_thread(shutil.copy, spool, copy)
    async with world.running():
        roster = await play.make_roster()
        await world.say("aggregator", roster)
        await world.say("aggregator", play.session_key())
        await play.until_asked(0)
    before = len(world.sent)
    for name in ("spool.db-wal", "spool.db-shm"):
        (spool.parent / name).unlink(missing_ok=True)
    await asyncio.to_thread(shutil.copy, copy, spool)
    async with world.running():
        assert (await world.reaches(play.window_id, "SPENT")).state == Spent("ABANDONED")
        await world.say("aggregator", roster)
        await world.say("aggregator", play.session_key())
        await world.settled()
    assert not any(sent.outgoing.type == FRAME_TYPE for sent in world.sent[before:])


# Keys and messages


async def test_a_key_that_is_not_for_this_site_is_refused(trees: TreesWorld) -> None:
    play = StrictPlay(trees, trees.training_params(trees.model(0)[0]), trees.manifest())
    await trees.open(play.params)
    await trees.give_model(0)
    await trees.say("aggregator", await play.make_roster())
    await trees.reaches(play.window_id, "IN_SESSION")
    other = play.view.others(play.me)[0]
    seal_pk = play.view.entry(play.me).seal_pk
    sealed = seal_session_key(play.secret, play.window_id, play.view.roster_hash, other, seal_pk)
    await trees.say(
        "aggregator", SessionKey(window_id=play.window_id, roster_hash=play.view.roster_hash, sealed=sealed)
    )
    await trees.settled()
    assert faults(trees) == ["SESSION_KEY_REFUSED"]
    assert await trees.dead() == ["session_key_refused"]
    await trees.say("aggregator", play.session_key())
    await play.steps(2)


async def test_a_bad_key_from_before_the_roster_ends_the_session(trees: TreesWorld) -> None:
    play = StrictPlay(trees, trees.training_params(trees.model(0)[0]), trees.manifest())
    await trees.open(play.params)
    await trees.give_model(0)
    roster = await play.make_roster()
    key = play.session_key()
    await trees.say("aggregator", key.model_copy(update={"sealed": key.sealed[:-1] + b"\0"}))
    await trees.say("aggregator", roster)
    assert (await trees.expect(SessionLeft)).code == "SESSION_KEY_REFUSED"
    assert faults(trees) == ["SESSION_KEY_REFUSED"]
    assert play.frames(0) == []


async def test_a_key_that_nobody_waits_for_is_a_fault(trees: TreesWorld) -> None:
    key = SessionKey(window_id=bytes(16), roster_hash=bytes(32), sealed=bytes(112))
    await trees.say("aggregator", key)
    await trees.open(statistics := trees.params())
    await trees.expect(Ready)
    await trees.say("aggregator", key.model_copy(update={"window_id": statistics.window_id}))
    await trees.settled()
    assert faults(trees) == ["WINDOW_UNKNOWN", "SESSION_KEY_UNASKED"]


async def test_only_the_aggregator_gives_keys(trees: TreesWorld) -> None:
    await trees.say("scheduler", SessionKey(window_id=bytes(16), roster_hash=bytes(32), sealed=bytes(112)))
    await trees.settled()
    assert faults(trees) == ["WRONG_SENDER"]


async def test_in_a_session_nobody_confirms_votes_or_unmasks(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.step()
    window_id = play.window_id
    await trees.say(
        "aggregator", Receipt(window_id=window_id, step=0, header_stored=True, chunks_stored=b"\1", complete=True)
    )
    await trees.say(
        "aggregator",
        Survivors(window_id=window_id, step=0, bitmap=b"\x0f", header_hashes=(bytes(32),) * 4, boxes=()),
    )
    await trees.say(
        "aggregator",
        EchoCert(
            window_id=window_id,
            step=0,
            survivors_hash=bytes(32),
            bitmap=b"\x0f",
            header_hashes=(bytes(32),) * 4,
            echoes=(Vote(index=1, sig=bytes(64)),),
        ),
    )
    await trees.say("aggregator", AbortAsked(window_id=window_id, step=0, reason="NOT_ENOUGH_UPLOADS"))
    await trees.settled()
    assert faults(trees) == ["WRONG_WINDOW"] * 4
    assert trees.all(UploadHeader) == []
    assert trees.all(AbortVote) == []
    await play.gather()
    await goes_on(play)


async def test_a_training_that_the_study_does_not_say_is_refused(trees: TreesWorld) -> None:
    base = trees.model(0)[0]
    good = trees.training_params(base)
    assert good.strict is not None
    wrong = [
        good.model_copy(update={"kind": "sync"}),
        good.model_copy(update={"kind": "sync", "strict": None}),
        good.model_copy(update={"strict": None}),
        good.model_copy(update={"purpose": "update"}),
        good.model_copy(update={"bases": ()}),
        good.model_copy(update={"round": 2}),
        good.model_copy(update={"vector": good.vector.model_copy(update={"ring_bits": 32})}),
        good.model_copy(update={"strict": good.strict.model_copy(update={"rounds": 4})}),
        trees.params(strict=good.strict),
        trees.params(kind="strict", strict=good.strict),
    ]
    for number, params in enumerate(wrong):
        await trees.open(params.model_copy(update={"window_id": bytes([number]) * 16}))
        assert (await trees.expect(TaskRefused)).code == "POLICY_REFUSED", number
    assert not any(runner.jobs for runner in trees.runners)
