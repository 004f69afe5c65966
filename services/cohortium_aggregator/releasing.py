"""A new model version, an evaluation: put on record with the events that tell of them, in one transaction."""

from dataclasses import replace

from cohortium_aggregator.context import Context, message_id
from cohortium_aggregator.handlers.course import Result
from cohortium_aggregator.making import Evaluation, NewVersion
from cohortium_aggregator.modelling import MadeModel
from cohortium_aggregator.store import runs
from cohortium_aggregator.store.runs import Evaluated, ModelVersion, Rules
from cohortium_aggregator.store.windows import Session
from cohortium_kit.db import Tx
from cohortium_messages.events import ModelEvaluated, ModelReleased
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


async def release_evaluation(ctx: Context, tx: Tx, session: Session, made: Evaluation) -> Result:
    """The metrics of one version."""
    evaluated = Evaluated(session.params.round, made.result)
    await runs.save_evaluation(tx, session.run_id, session.window_id, evaluated)
    event = ModelEvaluated(run_id=session.run_id, window_id=session.window_id, result=made.result)
    unique = message_id(session.window_id, event.type_name)
    await ctx.post.record(tx, event, study=session.study_id, unique=unique)
    return Result(model=made.result.model, evaluation=made.result, saturated_sites=made.saturated)
