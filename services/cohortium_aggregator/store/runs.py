"""Runs, their model versions and the metrics of those."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final, Literal

import sqlalchemy as sa
from pydantic import Field, TypeAdapter

from cohortium_aggregator.store.tables import evaluation, model_version, run
from cohortium_kit.db import Tx
from cohortium_messages.ids import RunId, StudyId
from cohortium_messages.runs import EvaluationResult
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.study import Study
from cohortium_protocol.chunks import ModelKey
from cohortium_protocol.statistics import Preprocessing
from cohortium_protocol.trees.binning import Binning

Rules = Preprocessing | Binning
"""How a row becomes the inputs of a model: scales of inputs, or the bins of trees. Published with the model."""

_RULES: Final[TypeAdapter[Rules]] = TypeAdapter(Annotated[Rules, Field(discriminator="version")])

RunState = Literal["RUNNING", "FINISHED", "FAILED", "STOPPED"]


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a study version.

    `last_version`: what the scheduler named as the run's result. `attestation_sha256` is there once the bundle is.
    """

    run_id: RunId
    study: Study
    state: RunState
    reason: str
    last_version: int | None
    attestation_sha256: bytes | None

    @property
    def study_id(self) -> StudyId:
        return StudyId(self.study.name)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A published version. `stored`: its parameters are still on disk.

    `parameters`: numbers in the model, for trees the values of its leaves; `file_bytes`: the size of their file.
    `trees`: boosting rounds in the model, None for a model that has no trees.
    """

    run_id: RunId
    version: int
    model_hash: bytes
    window_id: bytes
    parameters_sha256: bytes
    parameters: int
    preprocessing: Rules
    key: ModelKey
    stored: bool
    made_at: float
    file_bytes: int
    trees: int | None = None
    retired_by: bytes | None = None
    """The withdrawal for which officers retired it."""

    @property
    def ref(self) -> ModelRef:
        return ModelRef(version=self.version, model_hash=self.model_hash)


# Statements of every window, built once.
_FIND_RUN = sa.select(run).where(run.c.run_id == sa.bindparam("of_run"))
_FIND_VERSION = sa.select(model_version).where(
    model_version.c.run_id == sa.bindparam("of_run"), model_version.c.version == sa.bindparam("of_version")
)
_NEWEST_VERSION = (
    sa.select(model_version)
    .where(model_version.c.run_id == sa.bindparam("of_run"))
    .order_by(model_version.c.version.desc())
    .limit(1)
)
_COUNT_DOWN = (
    sa.update(run)
    .where(run.c.run_id == sa.bindparam("of_run"))
    .values(
        unreported_bytes_down=run.c.unreported_bytes_down + sa.bindparam("count", type_=sa.BigInteger),
        updated_at=sa.bindparam("updated_at"),
        updated_by=sa.bindparam("updated_by"),
    )
)


@lru_cache(maxsize=16)
def _study(text: str) -> Study:
    return Study.model_validate_json(text)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The metrics of one version, and in which round they were taken."""

    round: int
    result: EvaluationResult


def _run(row: sa.Row[tuple[object, ...]]) -> Run:
    found = row._mapping
    digest = found["attestation_sha256"]
    return Run(
        run_id=RunId(found["run_id"]),
        study=_study(found["study_json"]),
        state=found["state"],
        reason=found["reason"],
        last_version=found["last_version"],
        attestation_sha256=None if digest is None else bytes(digest),
    )


async def insert_run(tx: Tx, run_id: RunId, study: Study) -> None:
    """A run begins. Twice is once."""
    if await find_run(tx, run_id) is not None:
        return
    row = {
        "run_id": run_id,
        "study_id": study.name,
        "study_json": study.model_dump_json(),
        "state": "RUNNING",
        "reason": "",
        "unreported_bytes_down": 0,
        "updated_at": tx.now,
        "updated_by": tx.name,
    }
    await tx.execute(sa.insert(run).values(row))


async def find_run(tx: Tx, run_id: RunId) -> Run | None:
    rows = await tx.rows(_FIND_RUN, {"of_run": run_id})
    return _run(rows[0]) if rows else None


async def runs_in_state(tx: Tx, state: RunState) -> list[Run]:
    return [_run(row) for row in await tx.rows(sa.select(run).where(run.c.state == state))]


async def end_run(tx: Tx, run_id: RunId, state: RunState, reason: str, last: ModelRef | None) -> None:
    """The run is over; a run that is over stays as it is."""
    version = None if last is None else last.version
    changed = {"state": state, "reason": reason, "last_version": version, "updated_at": tx.now, "updated_by": tx.name}
    await tx.execute(sa.update(run).where(run.c.run_id == run_id, run.c.state == "RUNNING").values(changed))


async def save_attestation(tx: Tx, run_id: RunId, digest: bytes) -> None:
    """The run's bundle is complete, under this attestation."""
    changed = {"attestation_sha256": digest, "updated_at": tx.now, "updated_by": tx.name}
    await tx.execute(sa.update(run).where(run.c.run_id == run_id).values(changed))


async def add_bytes_down(tx: Tx, run_id: RunId, count: int) -> None:
    """Count model bytes that went to sites; the next window's end reports them."""
    await tx.execute(_COUNT_DOWN, {"of_run": run_id, "count": count, "updated_at": tx.now, "updated_by": tx.name})


async def take_bytes_down(tx: Tx, run_id: RunId) -> int:
    """What was counted since this was last asked."""
    where = run.c.run_id == run_id
    count = int(await tx.scalar(sa.select(run.c.unreported_bytes_down).where(where)) or 0)
    if count:
        changed = {"unreported_bytes_down": 0, "updated_at": tx.now, "updated_by": tx.name}
        await tx.execute(sa.update(run).where(where).values(changed))
    return count


def _version(row: sa.Row[tuple[object, ...]]) -> ModelVersion:
    found = row._mapping
    return ModelVersion(
        run_id=RunId(found["run_id"]),
        version=found["version"],
        model_hash=bytes(found["model_hash"]),
        window_id=bytes(found["window_id"]),
        parameters_sha256=bytes(found["parameters_sha256"]),
        parameters=found["parameters"],
        preprocessing=_RULES.validate_json(found["preprocessing_json"]),
        key=ModelKey(bytes(found["content_key"])),
        stored=bool(found["stored"]),
        made_at=found["made_at"],
        file_bytes=4 * found["parameters"] if found["file_bytes"] is None else found["file_bytes"],
        trees=found["trees"],
        retired_by=None if found["retired_by"] is None else bytes(found["retired_by"]),
    )


async def insert_version(tx: Tx, made: ModelVersion) -> None:
    """Publish a version; its files are complete. A version that is there already is an error."""
    row = {
        "run_id": made.run_id,
        "version": made.version,
        "model_hash": made.model_hash,
        "window_id": made.window_id,
        "parameters_sha256": made.parameters_sha256,
        "parameters": made.parameters,
        "preprocessing_json": made.preprocessing.model_dump_json(),
        "content_key": made.key.secret,
        "stored": True,
        "made_at": made.made_at,
        "file_bytes": made.file_bytes,
        "trees": made.trees,
        "updated_at": tx.now,
        "updated_by": tx.name,
    }
    await tx.execute(sa.insert(model_version).values(row))


async def find_version(tx: Tx, run_id: RunId, version: int) -> ModelVersion | None:
    rows = await tx.rows(_FIND_VERSION, {"of_run": run_id, "of_version": version})
    return _version(rows[0]) if rows else None


async def newest_version(tx: Tx, run_id: RunId) -> ModelVersion | None:
    rows = await tx.rows(_NEWEST_VERSION, {"of_run": run_id})
    return _version(rows[0]) if rows else None


async def versions_of(tx: Tx, run_id: RunId) -> list[ModelVersion]:
    query = sa.select(model_version).where(model_version.c.run_id == run_id).order_by(model_version.c.version)
    return [_version(row) for row in await tx.rows(query)]


async def mark_not_stored(tx: Tx, run_id: RunId, before: int, keep_every: int = 0) -> list[int]:
    """Versions older than `before` whose files may go now, but for version 0 and each `keep_every`-th; they keep their
    records."""
    if keep_every == 1:
        return []
    where = [
        model_version.c.run_id == run_id,
        model_version.c.version > 0,
        model_version.c.version < before,
        model_version.c.stored.is_(sa.true()),
    ]
    if keep_every:
        where.append(model_version.c.version % keep_every != 0)
    rows = await tx.rows(sa.select(model_version.c.version).where(*where))
    if rows:
        changed = {"stored": False, "updated_at": tx.now, "updated_by": tx.name}
        await tx.execute(sa.update(model_version).where(*where).values(changed))
    return [row.version for row in rows]


async def retire_versions(tx: Tx, run_id: RunId, versions: Sequence[int], withdrawal: bytes) -> list[ModelVersion]:
    """These versions are used no more; returns those of them that were used until now."""
    found = [one for one in await versions_of(tx, run_id) if one.version in set(versions) and one.retired_by is None]
    changed = {"retired_by": withdrawal, "updated_at": tx.now, "updated_by": tx.name}
    for one in found:
        where = (model_version.c.run_id == run_id, model_version.c.version == one.version)
        await tx.execute(sa.update(model_version).where(*where).values(changed))
    return found


async def save_evaluation(tx: Tx, run_id: RunId, window_id: bytes, evaluated: Evaluated) -> None:
    row = {
        "run_id": run_id,
        "window_id": window_id,
        "round": evaluated.round,
        "version": evaluated.result.model.version,
        "result_json": evaluated.result.model_dump_json(),
    }
    await tx.execute(sa.insert(evaluation).values(row))


async def evaluations_of(tx: Tx, run_id: RunId) -> list[Evaluated]:
    """All metrics of a run, in order of rounds."""
    query = sa.select(evaluation).where(evaluation.c.run_id == run_id)
    rows = await tx.rows(query.order_by(evaluation.c.round, evaluation.c.version))
    return [Evaluated(row.round, EvaluationResult.model_validate_json(row.result_json)) for row in rows]
