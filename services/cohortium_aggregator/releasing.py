"""A new model version, an evaluation: put on record with the events that tell of them, in one transaction."""

import asyncio
from dataclasses import replace

from cohortium_aggregator.context import Context, message_id
from cohortium_aggregator.files import link_model
from cohortium_aggregator.handlers.course import Result
from cohortium_aggregator.making import Evaluation, NewVersion
from cohortium_aggregator.modelling import MadeModel
from cohortium_aggregator.store import runs
from cohortium_aggregator.store.runs import Evaluated, ModelVersion, Rules
from cohortium_aggregator.store.windows import Session
from cohortium_kit.db import Tx
from cohortium_messages.events import ModelEvaluated, ModelReleased
from cohortium_messages.ids import StudyId
from cohortium_messages.runs import RunStart, RunStarted
from cohortium_messages.withdrawals import ModelCarried, RunPrepared
from cohortium_protocol.chunks import ModelKey


async def release_sum(ctx: Context, tx: Tx, session: Session, made: NewVersion) -> Result:
    """The version that came of an opened sum."""
    result = await release_version(ctx, tx, session, made.parent, made.rules, made.model)
    return replace(result, training_rows=made.training_rows, saturated_sites=made.saturated, refine=made.refine)


async def release_version(
    ctx: Context, tx: Tx, session: Session, parent: ModelVersion | None, rules: Rules, made: MadeModel
) -> Result:
    """The version after `parent` (None: version 0); its files are complete."""
    version = ModelVersion(
        run_id=session.run_id,
        version=0 if parent is None else parent.version + 1,
        model_hash=made.model_hash,
        window_id=session.window_id,
        parameters_sha256=made.parameters_sha256,
        parameters=made.parameters,
        preprocessing=rules,
        key=ModelKey.generate(),
        stored=True,
        made_at=tx.now,
        file_bytes=made.file_bytes,
        trees=made.trees,
    )
    await runs.insert_version(tx, version)
    event = ModelReleased(
        run_id=session.run_id,
        model=version.ref,
        parent=None if parent is None else parent.ref,
        window_id=session.window_id,
    )
    unique = message_id(session.window_id, event.type_name)
    await ctx.post.record(tx, event, study=session.study_id, unique=unique)
    return Result(model=version.ref, parameters=made.parameters)


async def begin_with(ctx: Context, tx: Tx, started: RunStarted, start: RunStart) -> None:
    """A run begins with a model of another: same number, same digest, files shared with it. `RunPrepared` tells the
    scheduler whether it is still kept."""
    source = await runs.find_version(tx, start.run_id, start.model.version)
    kept = source is not None and source.model_hash == start.model.model_hash
    if source is not None and kept and source.stored and source.retired_by is None:
        place = ctx.data.model_file(start.run_id, source.version, source.trees)
        target = ctx.data.model_dir(started.run_id, source.version)
        await asyncio.to_thread(link_model, place, target)
        carried = replace(source, run_id=started.run_id, key=ModelKey.generate(), made_at=tx.now)
        await runs.insert_version(tx, carried)
        event = ModelCarried(run_id=started.run_id, model=source.ref, from_run=start.run_id)
        study = StudyId(started.study.name)
        await ctx.post.record(tx, event, study=study, unique=message_id(started.run_id, event.type_name))
        answer = RunPrepared(run_id=started.run_id, model=source.ref)
    else:
        answer = RunPrepared(run_id=started.run_id, model=None)
    await ctx.post.to_scheduler(tx, answer, study=StudyId(started.study.name))


async def release_evaluation(ctx: Context, tx: Tx, session: Session, made: Evaluation) -> Result:
    """The metrics of one version."""
    evaluated = Evaluated(session.params.round, made.result)
    await runs.save_evaluation(tx, session.run_id, session.window_id, evaluated)
    event = ModelEvaluated(run_id=session.run_id, window_id=session.window_id, result=made.result)
    unique = message_id(session.window_id, event.type_name)
    await ctx.post.record(tx, event, study=session.study_id, unique=unique)
    return Result(model=made.result.model, evaluation=made.result, saturated_sites=made.saturated)
