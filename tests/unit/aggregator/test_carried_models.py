"""A run that takes another's place begins with a model of it: the same number, digest and file, and nothing else."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from aggregator_world import World, grid_spec

from cohortium_aggregator.store import runs
from cohortium_kit.bus import Ack
from cohortium_messages import events
from cohortium_messages.ids import RunId, StudyId
from cohortium_messages.runs import RunStart, RunStarted, SessionClosed
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.withdrawals import ModelCarried, RetireModels, RunPrepared

AGAIN = RunId("00000000-0000-4000-8000-0000000000bb")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.of(tmp_path)
    yield made
    await made.close()


async def updated(world: World, base: ModelRef) -> ModelRef:
    window = await world.open(world.params("update", grid_spec(2), (base,), round=base.version + 1))
    await world.release(window, dict.fromkeys(window.view.indices, np.full(2, 0.1, dtype=np.float32)))
    ref: ModelRef = (await world.newest()).ref
    return ref


def begins(world: World, model: ModelRef, source: RunId | None = None) -> RunStarted:
    start = RunStart(run_id=source or world.run_id, model=model)
    digest = world.study.digest()
    return RunStarted(run_id=AGAIN, study=world.study, study_digest=digest, manifest=world.manifest, start=start)


async def test_the_new_run_goes_on_from_the_linked_model_after_the_old_one_is_retired(world: World) -> None:
    first = await updated(world, await world.first_model())
    second = await updated(world, first)
    old = world.run_id
    assert await world.say("scheduler", begins(world, first)) == Ack()  # said twice, as everything
    assert [one.model for one in await world.heard(RunPrepared)] == [first]
    (carried,) = await world.heard(ModelCarried)
    assert (carried.run_id, carried.model, carried.from_run) == (AGAIN, first, old)
    data = world.app.ctx.data
    mine, theirs = data.model_file(AGAIN, 1, None), data.model_file(old, 1, None)
    assert mine.samefile(theirs)
    assert [file.name for file in data.model_dir(AGAIN, 1).iterdir()] == [mine.name], "no state of the optimiser"

    retired = tuple(ModelRef(version=version, model_hash=second.model_hash) for version in (0, 2))
    retire = RetireModels(withdrawal=b"w" * 32, study_id=StudyId(world.study.name), run_id=old, models=retired)
    await world.say("scheduler", retire)
    data.drop_files(old, 1)
    world.run_id = AGAIN
    third = await updated(world, first)
    assert third.version == 2
    released = (await world.heard(events.ModelReleased))[-1]
    assert (released.run_id, released.model, released.parent) == (AGAIN, third, first)
    async with world.app.ctx.db.reading("carried") as tx:
        version = await runs.find_version(tx, AGAIN, 1)
    assert version is not None
    assert hashlib.sha256(mine.read_bytes()).digest() == version.parameters_sha256


async def test_a_model_that_is_not_kept_or_not_the_same_or_retired_is_not_carried(world: World) -> None:
    first = await updated(world, await world.first_model())
    other = first.model_copy(update={"model_hash": bytes(32)})
    await world.say("scheduler", begins(world, other))
    assert [one.model for one in await world.heard(RunPrepared)] == [None]
    retire = RetireModels(
        withdrawal=b"w" * 32, study_id=StudyId(world.study.name), run_id=world.run_id, models=(first,)
    )
    await world.say("scheduler", retire)
    again = begins(world, first).model_copy(update={"run_id": RunId("00000000-0000-4000-8000-0000000000cc")})
    await world.say("scheduler", again)
    assert [one.model for one in await world.heard(RunPrepared)] == [None, None]
    assert await world.heard(ModelCarried) == []
    window = await world.open(world.params("update", grid_spec(2), (first,), round=2))
    closed = (await world.heard(SessionClosed))[-1]
    assert (closed.window_id, closed.state, closed.reason) == (window.params.window_id, "CANCELLED", "MODEL_RETIRED")
