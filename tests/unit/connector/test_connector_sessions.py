"""Strict sessions of a real connector, played to their ends: honest ones, interrupted ones, several at once."""

import asyncio
import threading
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import sqlalchemy as sa
from connector_strict import COURSE, OTHERS_RELAY, TREES, Script, StrictPlay, TreesWorld, begun, until, words
from connector_world import PATIENCE_S, AheadClock

from cohortium_connector.commands import LocalSite
from cohortium_connector.domain.window_states import Done, Spent
from cohortium_connector.steps import FRAME_TYPE
from cohortium_connector.store.tables import site_grant
from cohortium_connector.training.jobs import ComputeRefinement, PrepareTrees, TrainTrees
from cohortium_connector.training.live_wire import AGREE, SUM, relay_parts
from cohortium_connector.training.runner import TrainerCrashed, TrainingRefused
from cohortium_kit.bus import Outgoing
from cohortium_kit.db import Tx
from cohortium_messages.events import FaultSeen, TaskDeclined
from cohortium_messages.governance import GrantGiven, SiteGrant
from cohortium_messages.ids import RunId
from cohortium_messages.runs import ModelWanted, RunEnded, TaskRefused
from cohortium_messages.secure_sum import Ready, SessionLeft
from cohortium_messages.study import Study
from cohortium_protocol.trees.vectors import integer_length


def held(world: TreesWorld, place: int) -> threading.Event:
    """The trainer stands before this question until the event is set."""
    gate = threading.Event()
    world.play.held, world.play.gate = place, gate.wait
    return gate


async def left(world: TreesWorld) -> SessionLeft:
    return await world.expect(SessionLeft)


def passes(world: TreesWorld, *, till: datetime) -> None:
    """The time between now and then is over."""
    assert isinstance(world.clock, AheadClock)
    world.clock.ahead_s += max(0.0, (till - world.clock.now()).total_seconds())


# The good course


async def test_a_session_goes_its_whole_way(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.steps(len(COURSE))
    await until(lambda: len(trees.play.answers) == len(COURSE))
    await play.close()
    assert (await trees.reaches(play.window_id, "DONE")).state == Done("RELEASED")
    opened = np.frombuffer(trees.play.answers[1], dtype="<i8")
    assert opened.tolist() == [600 + 1, 600 - 2, 600 + 3]
    parts = relay_parts(trees.play.answers[2], play.view.n)
    assert parts[play.me - 1] == b"our split"
    assert sum(part.startswith(OTHERS_RELAY) for part in parts) == 3
    assert trees.play.answers[0] == play.results[0].chain_after
    assert trees.play.answers[-1] == play.collector.chain
    play.one_content_each()
    assert trees.all(SessionLeft) == []
    assert trees.all(TaskDeclined) == []
    assert await trees.dead() == []


async def test_the_trainer_is_told_what_the_window_says(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.step()
    job = trees.play.jobs[0]
    assert job.strict == play.params.strict
    assert (job.sites, job.index) == (play.view.n, play.me)
    assert job.data_digest == trees.runners[-1].digest
    assert job.source.path == str(trees.table)
    assert Path(job.preprocessing_path).name == "0.json"
    assert job.base_model_path is None
    assert Path(job.journal_path).parent == trees.app.desk.spool.journals / trees.run_id
    kinds = [type(job) for job in trees.runners[-1].jobs]
    assert kinds == [PrepareTrees, TrainTrees], "one process looks at the table and trains"


async def test_presence_says_how_far_the_trees_are(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.steps(5)
    await play.until_asked(5)
    presence = await trees.app._presences.message()
    assert (presence.state, presence.run_id) == ("training", trees.run_id)
    assert presence.progress == pytest.approx(1 / 3)


async def test_the_key_may_come_before_the_roster(trees: TreesWorld) -> None:
    play = StrictPlay(trees, trees.training_params(trees.model(0)[0]), trees.manifest())
    await trees.open(play.params)
    await trees.give_model(0)
    roster = await play.make_roster()
    await trees.say("aggregator", play.session_key())
    await trees.say("aggregator", roster)
    await play.steps(len(COURSE))
    await play.close()
    await trees.reaches(play.window_id, "DONE")


async def test_every_message_and_every_result_may_come_twice(trees: TreesWorld) -> None:
    trees.repeat = 2
    play = await begun(trees)
    for _ in COURSE:
        frames = play.seal(await play.gather())
        await play.tell([*frames, *frames])
    await play.tell(play.result_frames[2])
    await play.close()
    await trees.reaches(play.window_id, "DONE")
    assert len(trees.play.jobs) == 1
    assert len(trees.all(Ready)) == 1
    assert trees.all(FaultSeen) == []


async def test_a_large_histogram_travels_in_parts(tmp_path: Path) -> None:
    features = [{"name": f"f{number}", "type": "float", "range": [0, 1]} for number in range(1200)]
    dataset = {**TREES["dataset"], "features": features}
    world = TreesWorld(tmp_path)
    world.study = Study.model_validate({**TREES, "dataset": dataset})
    large = words(*range(150_000))
    world.play.questions = [(SUM, large), (SUM, words(4))]
    await world.declare()
    async with world.running():
        await world.join()
        play = await begun(world)
        await play.step()
        assert len(set(play.frames(0))) == 2
        await play.step()
        await until(lambda: len(world.play.answers) == 2)
    opened = np.frombuffer(world.play.answers[0], dtype="<i8")
    assert np.array_equal(opened, np.arange(150_000) + 600)


# What is lost on the way


async def test_a_step_without_an_answer_is_sent_again_as_it_was(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.steps(1)
    await until(lambda: len(play.frames(1)) >= 3)
    assert len(set(play.frames(1))) == 1
    await play.steps(2)
    play.one_content_each()


async def test_a_step_that_the_broker_refuses_is_handed_over_again(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.step()
    refused: list[str] = []

    def full(outgoing: Outgoing) -> bool:
        if outgoing.type == FRAME_TYPE and len(refused) < 3:
            refused.append(outgoing.message_id)
            return True
        return False

    trees.refuse = full
    await play.steps(2)
    assert len(refused) == 3
    play.one_content_each()


async def test_an_outage_of_the_broker_in_the_middle_of_a_step_is_sat_out(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.steps(2)
    await play.until_asked(2)
    result = await play.gather()
    before = len(play.frames(2))
    trees.broker.stop()
    await asyncio.sleep(0.4)
    trees.broker.start()
    await until(lambda: len(play.frames(2)) > before)
    await play.tell(play.seal(result))
    await play.steps(len(COURSE) - 3)
    await play.close()
    await trees.reaches(play.window_id, "DONE")
    play.one_content_each()


# Ends


async def test_a_session_closed_in_the_middle_of_a_step_stops_its_trainer(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.steps(3)
    await play.until_asked(3)
    await play.close("PAUSED", "SITE_SILENT")
    assert (await trees.reaches(play.window_id, "SPENT")).state == Spent("PAUSED")
    await until(lambda: trees.play.stopped == ["SESSION_CLOSED"])
    await trees.settled()
    sent = len(trees.sent)
    await play.tell(play.seal(await play.gather()))
    await asyncio.sleep(0.2)
    assert not any(one.outgoing.type == FRAME_TYPE for one in trees.sent[sent:])
    assert trees.all(SessionLeft) == []


async def test_after_a_pause_the_same_cohort_goes_on_under_new_keys_in_the_same_process(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.steps(5)
    await play.until_asked(5)
    await play.close("PAUSED", "SITE_SILENT")
    await trees.reaches(play.window_id, "SPENT")
    trees.play.questions = [(SUM, words(9)), (AGREE, b"T" + b"the second tree")]
    spec = {"trees_done": 1, "chain": play.results[4].chain_after}
    again = StrictPlay(trees, trees.training_params(trees.model(0)[0], spec), trees.manifest())
    await trees.open(again.params)
    await again.fix_roster()
    await again.steps(2)
    await again.close()
    await trees.reaches(again.window_id, "DONE")
    first, second = trees.all(Ready)
    assert (first.mask_pk, first.seal_pk) != (second.mask_pk, second.seal_pk)
    assert trees.play.jobs[1].strict.trees_done == 1
    assert trees.play.jobs[1].journal_path == trees.play.jobs[0].journal_path
    kinds = [type(job) for job in trees.runners[-1].jobs]
    assert kinds == [PrepareTrees, TrainTrees, PrepareTrees, TrainTrees]


async def test_rows_that_changed_between_two_sessions_are_refused(trees: TreesWorld) -> None:
    """Of two sums over one cohort the difference would be what changed."""
    play = await begun(trees)
    await play.steps(2)
    await play.close("PAUSED", "SITE_SILENT")
    await trees.reaches(play.window_id, "SPENT")
    trees.runners[-1].digest = bytes([4]) * 32
    again = trees.training_params(trees.model(0)[0])
    await trees.open(again)
    refused = await trees.expect(TaskRefused)
    assert (refused.window_id, refused.code) == (again.window_id, "DATA_CHANGED")
    assert len(trees.all(Ready)) == 1
    trees.runners[-1].digest = bytes([3]) * 32
    await trees.open(trees.training_params(trees.model(0)[0]))
    await trees.expect(Ready)
    assert len(trees.all(Ready)) == 2


async def test_before_the_first_session_rows_may_change(trees: TreesWorld) -> None:
    await trees.open(trees.training_params(trees.model(0)[0]))
    await trees.give_model(0)
    await trees.expect(Ready)
    trees.runners[-1].digest = bytes([4]) * 32
    await trees.open(trees.training_params(trees.model(0)[0]))
    await trees.expect(Ready)
    assert trees.all(TaskRefused) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TrainingRefused("OUT_OF_BOUNDS", "", 1), "OUT_OF_BOUNDS"),
        (TrainingRefused("JOURNAL_LOST", "", 1), "JOURNAL_LOST"),
        (TrainerCrashed(-11), "TRAINING_FAILED"),
    ],
)
async def test_a_trainer_that_cannot_go_on_is_told_to_the_others_by_a_code(
    trees: TreesWorld, error: Exception, code: str
) -> None:
    def fails() -> None:
        raise error

    trees.play.held, trees.play.gate = 2, fails
    play = await begun(trees)
    await play.steps(2)
    message = await left(trees)
    assert (message.window_id, message.step, message.code) == (play.window_id, 2, code)
    assert (await trees.reaches(play.window_id, "SPENT")).state == Spent(code)
    assert (await trees.expect(TaskDeclined)).code == code
    await trees.open(trees.training_params(trees.model(0)[0]))
    await trees.expect(Ready)


@pytest.mark.parametrize("question", [(SUM, words(*range(9000))), (SUM, b""), (AGREE, b"T" * (1 << 16))])
async def test_what_no_session_of_the_study_can_ask_never_leaves(
    trees: TreesWorld, question: tuple[int, bytes]
) -> None:
    trees.play.questions = [(SUM, words(1)), question]
    play = await begun(trees)
    await play.step()
    assert (await left(trees)).code == "TRAINING_FAILED"
    assert play.frames(1) == []


async def test_a_withdrawal_in_the_middle_of_a_session_ends_it_at_once(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.steps(3)
    await play.until_asked(3)
    async with LocalSite.open(trees.settings()) as site:
        assert await site.withdraw(trees.study.name) == 1
    assert (await left(trees)).code == "GRANT_WITHDRAWN"
    await until(lambda: trees.play.stopped == ["SESSION_CLOSED"])
    assert not trees.app.desk.spool.journals_of(trees.run_id)
    await until(lambda: not trees.app.busy)


async def test_a_grant_that_ends_in_the_middle_of_a_session_ends_it(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.steps(3)
    await play.until_asked(3)

    async def end(tx: Tx) -> None:
        text = await tx.scalar(sa.select(site_grant.c.grant_json))
        ended = SiteGrant.model_validate_json(text).model_copy(update={"not_after": trees.clock.now()})
        await tx.execute(sa.update(site_grant).values(grant_json=ended.model_dump_json()))

    await trees.app.db.run("test_end_grant", end)
    assert (await left(trees)).code == "GRANT_EXPIRED"
    await until(lambda: trees.play.stopped == ["SESSION_CLOSED"])


async def test_a_session_that_nobody_answers_is_given_up_at_its_time(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.until_asked(0)
    passes(trees, till=(await trees.state(play.window_id)).expires_at)
    assert (await left(trees)).code == "EXPIRED"
    await until(lambda: trees.play.stopped == ["SESSION_CLOSED"])


async def test_results_put_the_expiry_off(trees: TreesWorld) -> None:
    trees.play.questions = [(SUM, words(1))] * 20
    play = await begun(trees)
    silence = timedelta(seconds=trees.study.federation.deadlines.expire_s)
    first = (await trees.state(play.window_id)).expires_at
    while trees.clock.now() < first:
        passes(trees, till=trees.clock.now() + silence / 2)
        await play.step()
        await until_put_off(trees, play, till=trees.clock.now() + silence)
    await play.step()
    await play.close()
    await trees.reaches(play.window_id, "DONE")
    assert trees.all(SessionLeft) == []


async def until_put_off(world: TreesWorld, play: StrictPlay, *, till: datetime) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await world.state(play.window_id)).expires_at < till:  # noqa: ASYNC110 - a row has no bell
            await asyncio.sleep(0.02)


async def test_the_end_of_a_run_deletes_its_journal_and_ends_its_process(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.step()
    journal = Path(trees.play.jobs[0].journal_path)
    await asyncio.to_thread(journal.write_bytes, b"agreed")
    await trees.app._upkeep.tidy()
    assert await asyncio.to_thread(journal.exists)
    await play.close("PAUSED", "SITE_SILENT")
    await trees.say("scheduler", RunEnded(run_id=trees.run_id, study_id=trees.study.name, state="STOPPED"))
    await until(lambda: trees.runners[-1].closed)
    await trees.app._upkeep.tidy()
    assert not await asyncio.to_thread(journal.exists)


async def test_a_window_that_closes_while_its_model_is_awaited_begins_no_session(tmp_path: Path) -> None:
    federation = {**TREES["federation"], "allow_cohort_change": True}
    world = TreesWorld(tmp_path)
    world.study = Study.model_validate({**TREES, "federation": federation})
    await world.declare()
    async with world.running():
        await world.join()
        base, newer = world.model(0)[0], world.model(1)[0]
        params = world.training_params(base, {"trees_done": 1, "from_model": newer.model_dump()})
        play = await StrictPlay(world, params, world.manifest()).begin()
        await world.reaches(play.window_id, "IN_SESSION")
        await world.expect(ModelWanted)
        await play.close("PAUSED", "SITE_SILENT")
        await world.reaches(play.window_id, "SPENT")
        await world.settled()
        assert world.play.jobs == []
        again = StrictPlay(world, world.training_params(base, {"from_model": newer.model_dump()}), world.manifest())
        asked = len(world.all(ModelWanted))
        await world.open(again.params)
        for _ in range(6000):
            if len(world.all(Ready)) == 2 or len(world.all(ModelWanted)) > asked:
                break
            await asyncio.sleep(0.01)
        if len(world.all(ModelWanted)) > asked:  # on a slow machine it was tidied away between the windows
            await world.give_model(0)
        await again.fix_roster()
        await world.give_model(1)
        await again.step()
        assert Path(world.play.jobs[0].base_model_path or "").name == "1.model"
        assert Path(world.play.jobs[0].journal_path).name == "1.journal"


# Restarts


async def test_a_restart_in_mid_session_leaves_it_and_waits_for_the_next(tmp_path: Path) -> None:
    world = TreesWorld(tmp_path)
    await world.declare()
    await world.start()
    await world.join()
    play = await begun(world)
    await play.steps(2)
    await play.until_asked(2)
    await world.crash()
    sent = len(world.sent)
    world.play.questions = [(SUM, words(9))]
    await world.start()
    message = await left(world)
    assert (message.window_id, message.code) == (play.window_id, "RESTARTED")
    assert (await world.reaches(play.window_id, "SPENT")).state == Spent("RESTARTED")
    await play.tell(play.seal(await play.gather()))
    again = StrictPlay(world, world.training_params(world.model(0)[0]), world.manifest())
    await world.open(again.params)
    await again.fix_roster()
    await again.step()
    await again.close()
    await world.reaches(again.window_id, "DONE")
    frames = [one.outgoing.body for one in world.sent[sent:] if one.outgoing.type == FRAME_TYPE]
    assert set(frames) == set(again.frames(0)), "nothing of the old session leaves after the restart"
    await world.crash()


async def test_a_restart_between_ready_and_roster_changes_nothing(tmp_path: Path) -> None:
    world = TreesWorld(tmp_path)
    await world.declare()
    await world.start()
    await world.join()
    play = StrictPlay(world, world.training_params(world.model(0)[0]), world.manifest())
    await world.open(play.params)
    await world.give_model(0)
    await world.reaches(play.window_id, "READY_SENT")
    await world.crash()
    await world.start()
    await play.fix_roster()
    await play.steps(len(COURSE))
    await play.close()
    await world.reaches(play.window_id, "DONE")
    assert len(world.all(Ready)) == 1
    await world.crash()


async def test_an_orderly_end_tells_the_others_at_once(tmp_path: Path) -> None:
    world = TreesWorld(tmp_path)
    await world.declare()
    async with world.running():
        await world.join()
        play = await begun(world)
        await play.steps(3)
        await play.until_asked(3)
    message = await left(world)
    assert (message.window_id, message.step, message.code) == (play.window_id, 3, "RESTARTED")


# Beside other work


async def test_two_sessions_at_once_do_not_wait_for_each_other(trees: TreesWorld) -> None:
    first = await begun(trees)
    await first.steps(2)
    first_script, trees.play = trees.play, Script()
    trees.script = trees.play
    first_study = trees.study
    trees.study = Study.model_validate({**TREES, "name": "trees-too"})
    trees.run_id = RunId(str(uuid4()))
    await trees.say("scheduler", trees.offer_message())
    await trees.settled()
    async with LocalSite.open(trees.settings()) as site:
        assert await site.approve("trees-too", ("Dr Grant",)) is not None
    await trees.expect(GrantGiven)
    second = await begun(trees)
    await second.steps(4)
    assert len(trees.app._sessions.live) == 2
    await first.until_asked(2)
    trees.study = first_study
    await first.steps(len(COURSE) - 2)
    await second.steps(len(COURSE) - 4)
    await first.close()
    await second.close()
    await trees.reaches(first.window_id, "DONE")
    await trees.reaches(second.window_id, "DONE")
    assert len(first_script.answers) == len(trees.play.answers) == len(COURSE)
    first.one_content_each()
    second.one_content_each()


async def test_a_session_holds_up_no_sum_of_another_study(trees: TreesWorld) -> None:
    play = await begun(trees)
    await play.steps(2)
    trees.study = Study.model_validate({**TREES, "name": "trees-too"})
    trees.run_id = RunId(str(uuid4()))
    await trees.say("scheduler", trees.offer_message())
    await trees.settled()
    async with LocalSite.open(trees.settings()) as site:
        await site.approve("trees-too", ("Dr Grant",))
    await trees.expect(GrantGiven)
    await trees.open(trees.params())
    ready = await trees.expect(Ready)
    while ready.window_id == play.window_id:
        ready = await trees.expect(Ready)
    await play.until_asked(2)


async def test_a_refining_sum_is_worked_on_like_the_statistics(trees: TreesWorld) -> None:
    base = trees.model(0)[0]
    vector = trees.integer_vector(integer_length(trees.study, "refinement"))
    await trees.open(trees.params(purpose="refinement", bases=(base,), vector=vector))
    await trees.give_model(0)
    await trees.expect(Ready)
    job = trees.runners[0].jobs[-1]
    assert isinstance(job, ComputeRefinement)
    assert Path(job.preprocessing_path).name == "0.json"


async def test_a_trainer_that_hangs_when_its_session_is_over_is_ended(
    trees: TreesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cohortium_connector.sessions.STOP_GRACE_S", 0.2)
    gate = held(trees, 2)
    play = await begun(trees)
    await play.steps(2)
    await play.close("PAUSED", "SITE_SILENT")
    await until(lambda: not trees.app.busy)
    gate.set()
