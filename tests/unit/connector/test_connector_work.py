"""What is worked on, from which model, and what is said when it cannot be done."""

import asyncio
from pathlib import Path

from connector_session import Session
from connector_world import STUDY, World

from cohortium_connector.training.jobs import ComputeStatistics, Evaluate, TrainLocally
from cohortium_connector.training.runner import TrainerCrashed, TrainingFailed, TrainingRefused
from cohortium_messages.events import TaskDeclined, TaskTaken
from cohortium_messages.governance import GrantGiven
from cohortium_messages.runs import Presence, RunEnded, TaskRefused
from cohortium_messages.secure_sum import ModelRef, Ready, UploadHeader, WindowParams
from cohortium_messages.study import Study


def buffered(world: World, *bases: ModelRef) -> WindowParams:
    return world.update_params(bases[0], bases=bases, kind="buffered", max_staleness=len(bases) - 1)


async def join_buffered(world: World) -> None:
    federation = {**STUDY["federation"], "mode": "buffered", "max_staleness": 3}
    world.study = Study.model_validate({**STUDY, "federation": federation})
    await world.enrol()
    await world.offer()
    await world.expect(GrantGiven)


async def until_training(world: World, count: int) -> None:
    while len([job for job in world.runners[0].jobs if isinstance(job, TrainLocally)]) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_an_update_that_finished_between_windows_is_ready_at_once(world: World) -> None:
    """Buffered: the window that asked is gone when a slow site has trained; the next one takes its update, staler."""
    base, newer = world.model(4)[0], world.model(5)[0]
    world.study = Study.model_validate(
        {**STUDY, "federation": {**STUDY["federation"], "mode": "buffered", "max_staleness": 3}}
    )
    async with world.running():
        await join_buffered(world)
        world.runners[0].hold.clear()
        await world.open(buffered(world, base))
        await world.give_model(4)
        await until_training(world, 1)
        later = buffered(world, base, newer)
        await world.open(later)
        await world.settled()
        world.runners[0].hold.set()
        ready = await world.expect(Ready)
        assert (ready.window_id, ready.base_model_hash) == (later.window_id, base.model_hash)
        assert len(world.runners[0].jobs) == 1


async def test_an_update_too_old_for_the_window_is_made_again_from_the_newest(world: World) -> None:
    base, newer = world.model(4)[0], world.model(9)[0]
    world.study = Study.model_validate(
        {**STUDY, "federation": {**STUDY["federation"], "mode": "buffered", "max_staleness": 3}}
    )
    async with world.running():
        await join_buffered(world)
        await world.open(buffered(world, base))
        await world.give_model(4)
        await world.expect(Ready)
        later = buffered(world, newer)
        await world.open(later)
        await world.give_model(9)
        ready = await world.expect(Ready)
        assert (ready.window_id, ready.base_model_hash) == (later.window_id, newer.model_hash)
        await world.app._upkeep.tidy()
        assert len(list(world.app.desk.spool.products.iterdir())) == 1


async def test_a_slow_training_does_not_hold_up_an_evaluation(joined: World) -> None:
    base = joined.model(1)[0]
    joined.runners[0].hold.clear()
    await joined.open(joined.update_params(base))
    await joined.give_model(1)
    await until_training(joined, 1)
    evaluation = joined.params(purpose="evaluation", round=1, bases=(base,), vector=joined.integer_vector(303))
    await joined.open(evaluation)
    ready = await joined.expect(Ready)
    assert ready.window_id == evaluation.window_id
    assert [type(job) for job in joined.runners[1].jobs] == [Evaluate]
    assert [type(job) for job in joined.runners[0].jobs] == [TrainLocally]
    presence = await joined.app._presences.message()
    assert presence.state == "training"


async def test_a_training_whose_model_nobody_takes_any_more_is_ended(joined: World) -> None:
    old, new = joined.model(1)[0], joined.model(2)[0]
    joined.runners[0].hold.clear()
    await joined.open(joined.update_params(old))
    await joined.give_model(1)
    await until_training(joined, 1)
    await joined.open(joined.update_params(new, round=2))
    await joined.give_model(2)
    await until_training(joined, 2)
    joined.runners[0].hold.set()
    assert (await joined.expect(Ready)).base_model_hash == new.model_hash


async def test_data_that_does_not_fit_is_told_by_code_and_column_only(joined: World) -> None:
    joined.runners[0].fails_with = TrainingRefused("VALUE_OUT_OF_RANGE", "age", 17)
    params = joined.params()
    await joined.open(params)
    refused = await joined.expect(TaskRefused)
    assert (refused.window_id, refused.code, refused.column) == (params.window_id, "VALUE_OUT_OF_RANGE", "age")
    assert "17" not in refused.model_dump_json(include={"code", "column"})
    assert (await joined.expect(TaskDeclined)).code == "VALUE_OUT_OF_RANGE"
    assert (await joined.state(params.window_id)).state.phase == "FREED"
    joined.runners[0].fails_with = None
    await joined.open(joined.params())
    await joined.expect(Ready)


async def test_a_training_process_that_crashes_is_tried_again_and_then_given_up(joined: World) -> None:
    joined.runners[0].fails_with = TrainerCrashed(-9)
    await joined.open(joined.params())
    assert (await joined.expect(TaskRefused)).code == "TRAINING_FAILED"
    assert len(joined.runners[0].jobs) == 3
    joined.runners[0].fails_with = TrainingFailed("ValueError")
    await joined.open(joined.params())
    assert (await joined.expect(TaskRefused)).code == "TRAINING_FAILED"
    assert len(joined.runners[0].jobs) == 4


async def test_a_model_that_never_fits_its_digest_is_refused(joined: World) -> None:
    base = joined.model(1)[0]
    await joined.open(joined.update_params(base))
    joined.spoil = True
    for _ in range(3):
        await joined.give_model(1)
    assert (await joined.expect(TaskRefused)).code == "BASE_MODEL_UNKNOWN"
    assert joined.runners[0].jobs == []


async def test_the_end_of_a_run_deletes_what_was_kept_for_it(joined: World) -> None:
    base = joined.model(1)[0]
    params = joined.update_params(base)
    await joined.open(params)
    await joined.give_model(1)
    await joined.expect(Ready)
    await joined.say("scheduler", RunEnded(run_id=joined.run_id, study_id=joined.study.name, state="STOPPED"))
    await joined.reaches(params.window_id, "FREED")
    await joined.app._upkeep.tidy()
    spool = joined.app.desk.spool
    assert [*spool.products.iterdir(), *spool.models.rglob("*.model")] == []
    await joined.open(joined.update_params(base))
    assert (await joined.expect(TaskRefused)).code == "STUDY_UNKNOWN"


async def test_old_models_are_deleted_when_no_window_starts_from_them(joined: World) -> None:
    for version in (1, 2):
        await joined.open(joined.update_params(joined.model(version)[0]))
        await joined.give_model(version)
        await joined.expect(Ready)
    await joined.app._upkeep.tidy()
    await joined.app._upkeep.tidy()
    names = {path.name for path in joined.app.desk.spool.models.rglob("*") if path.is_file()}
    assert names == {"2.model", "2.json"}


async def test_the_model_of_a_running_training_stays(joined: World) -> None:
    old, new = joined.model(1)[0], joined.model(2)[0]
    joined.runners[0].hold.clear()
    await joined.open(joined.update_params(old))
    await joined.give_model(1)
    await until_training(joined, 1)
    vector = joined.integer_vector(303)
    await joined.open(joined.params(purpose="evaluation", round=1, bases=(new,), vector=vector))
    await joined.give_model(2)
    await joined.expect(Ready)
    await joined.app._upkeep.tidy()
    await joined.app._upkeep.tidy()
    assert Path(joined.runners[0].jobs[0].model_path).exists()  # noqa: ASYNC240


async def test_a_statistics_job_reads_the_bound_table(joined: World) -> None:
    await joined.open(joined.params())
    await joined.expect(Ready)
    job = joined.runners[0].jobs[0]
    assert isinstance(job, ComputeStatistics)
    assert job.source.path == str(joined.table)
    assert len(joined.all(TaskTaken)) == 1


async def test_presence_says_what_the_site_is_doing(joined: World) -> None:
    await joined.expect(Presence)
    assert (await joined.app._presences.message()).state == "idle"
    session = Session(joined, joined.params(), joined.manifest())
    await joined.open(session.params)
    await joined.reaches(session.params.window_id, "READY_SENT")
    assert (await joined.app._presences.message()).state == "waiting"
    await session.fix_roster()
    await joined.expect(UploadHeader)
    presence = await joined.app._presences.message()
    assert (presence.state, presence.run_id) == ("uploading", joined.run_id)
