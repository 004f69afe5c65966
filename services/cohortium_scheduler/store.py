"""The scheduler's tables, and one function per thing that is read or written. Rows go in and out as domain objects."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache

import sqlalchemy as sa
from pydantic import TypeAdapter

from cohortium_kit.db import Tx
from cohortium_kit.paging import behind
from cohortium_kit.site_keys import SiteKeys
from cohortium_messages.governance import Manifest
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.runs import RunState
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.study import Study
from cohortium_scheduler.domain.course import NO_TRAINING, Training
from cohortium_scheduler.domain.pace import Pace
from cohortium_scheduler.domain.selection import Choice, Standing
from cohortium_scheduler.domain.windows import ANYONE, AwaitingLog, Cohort, Phase, State, Window
from cohortium_scheduler.domain.withdrawals import Made, Retraining

metadata = sa.MetaData()

run_table = sa.Table(
    "run",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("study_digest", sa.LargeBinary, nullable=False),
    sa.Column("study_json", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("parameters", sa.BigInteger),
    sa.Column("training_rows", sa.BigInteger),
    sa.Column("training_json", sa.Text),
    sa.Column("standings_json", sa.Text),
    sa.Column("retraining_json", sa.Text),
    sa.Column("enough_grants_since", sa.Double),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)
window_table = sa.Table(
    "run_window",
    metadata,
    sa.Column("window_id", sa.LargeBinary, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("round", sa.BigInteger, nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("state_json", sa.Text, nullable=False),
    sa.Column("cohort_json", sa.Text),
    sa.Column("choices_json", sa.Text),
    sa.Column("pace_json", sa.Text),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)
model_table = sa.Table(
    "model_version",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("model_hash", sa.LargeBinary, nullable=False),
    sa.Column("window_id", sa.LargeBinary, nullable=False),
)
manifest_table = sa.Table(
    "manifest",
    metadata,
    sa.Column("study_id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("study_digest", sa.LargeBinary, nullable=False),
    sa.Column("manifest_json", sa.Text, nullable=False),
)
grant_table = sa.Table(
    "site_grant",
    metadata,
    sa.Column("study_digest", sa.LargeBinary, primary_key=True),
    sa.Column("site_id", sa.Text, primary_key=True),
    sa.Column("grant_digest", sa.LargeBinary, nullable=False),
    sa.Column("not_after", sa.Double, nullable=False),
    sa.Column("ended_reason", sa.Text),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)
site_keys = SiteKeys(metadata)

capacity_table = sa.Table(
    "site_capacity",
    metadata,
    sa.Column("site_id", sa.Text, primary_key=True),
    sa.Column("made_at", sa.Double, nullable=False),
    sa.Column("capacity_json", sa.Text, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)

FINAL_STATES = ("FINISHED", "FAILED", "STOPPED")
_STATE: TypeAdapter[State] = TypeAdapter(State)
_COHORT: TypeAdapter[Cohort] = TypeAdapter(Cohort)
_TRAINING: TypeAdapter[Training] = TypeAdapter(Training)
_STANDINGS: TypeAdapter[dict[SiteId, Standing]] = TypeAdapter(dict[SiteId, Standing])
_RETRAINING: TypeAdapter[Retraining] = TypeAdapter(Retraining)
_CHOICES: TypeAdapter[tuple[Choice, ...]] = TypeAdapter(tuple[Choice, ...])
_PACE: TypeAdapter[Pace] = TypeAdapter(Pace)


_RUN_COLUMNS = [column.name for column in run_table.columns]
_WINDOW_COLUMNS = [column.name for column in window_table.columns]

# Statements of every message and every look of the timer, built once.
_FIND_RUN = sa.select(run_table).where(run_table.c.run_id == sa.bindparam("of_run"))
_SAVE_RUN = (
    sa.update(run_table)
    .where(run_table.c.run_id == sa.bindparam("of_run"))
    .values({name: sa.bindparam(name) for name in _RUN_COLUMNS})
)
_UNFINISHED = (
    sa.select(run_table.c.run_id, run_table.c.state)
    .where(run_table.c.state.not_in([sa.literal_column(f"'{state}'") for state in FINAL_STATES]))
    .order_by(run_table.c.created_at)
)
_FIND_WINDOW = sa.select(window_table).where(window_table.c.window_id == sa.bindparam("of_window"))
_NEWEST_WINDOW = (
    sa.select(window_table)
    .where(window_table.c.run_id == sa.bindparam("of_run"))
    .order_by(window_table.c.sequence.desc())
    .limit(1)
)
_SAVE_WINDOW = (
    sa.update(window_table)
    .where(window_table.c.window_id == sa.bindparam("of_window"))
    .values({name: sa.bindparam(name) for name in _WINDOW_COLUMNS})
)
_NEWEST_MODELS = (
    sa.select(model_table)
    .where(model_table.c.run_id == sa.bindparam("of_run"))
    .order_by(model_table.c.version.desc())
    .limit(sa.bindparam("most"))
)
_MODELS = sa.select(model_table).where(model_table.c.run_id == sa.bindparam("of_run")).order_by(model_table.c.version)
_NEWEST_MANIFEST = (
    sa.select(manifest_table.c.manifest_json)
    .where(manifest_table.c.study_digest == sa.bindparam("of_digest"))
    .order_by(manifest_table.c.version.desc())
    .limit(1)
)
_GRANTS = sa.select(grant_table).where(grant_table.c.study_digest == sa.bindparam("of_digest"))
_GRANT_ENDED = sa.select(grant_table.c.ended_reason).where(
    grant_table.c.study_digest == sa.bindparam("of_digest"), grant_table.c.site_id == sa.bindparam("of_site")
)


@lru_cache(maxsize=16)
def _study(text: str) -> Study:
    return Study.model_validate_json(text)


@lru_cache(maxsize=16)
def _manifest(text: str) -> Manifest:
    return Manifest.model_validate_json(text)


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a study version. `parameters` and `training_rows` are known after the statistics sum;
    `training` says what strict sessions have come to, where the trainer has such; `standings` what is known of the
    sites from the rounds so far."""

    run_id: RunId
    study: Study
    study_digest: bytes
    state: RunState
    reason: str
    created_at: datetime
    ended_at: datetime | None = None
    parameters: int | None = None
    training_rows: int | None = None
    enough_grants_since: datetime | None = None
    training: Training = NO_TRAINING
    standings: Mapping[SiteId, Standing] = field(default_factory=dict)
    retraining: Retraining | None = None
    """Of a run that takes another's place after a withdrawal."""

    @property
    def study_id(self) -> StudyId:
        return StudyId(self.study.name)


@dataclass(frozen=True, slots=True)
class Grant:
    site_id: SiteId
    grant_digest: bytes
    not_after: datetime
    ended_reason: str | None


def _at(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _seconds(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()


# Runs


async def save_run(tx: Tx, run: Run, now: datetime) -> None:
    """Insert or replace a run."""
    row = {
        "run_id": run.run_id,
        "study_id": run.study_id,
        "study_digest": run.study_digest,
        "study_json": run.study.model_dump_json(),
        "state": run.state,
        "reason": run.reason,
        "parameters": run.parameters,
        "training_rows": run.training_rows,
        "training_json": _TRAINING.dump_json(run.training).decode(),
        "standings_json": _STANDINGS.dump_json(dict(run.standings)).decode() if run.standings else None,
        "retraining_json": None if run.retraining is None else _RETRAINING.dump_json(run.retraining).decode(),
        "enough_grants_since": _seconds(run.enough_grants_since),
        "created_at": run.created_at.timestamp(),
        "ended_at": _seconds(run.ended_at),
        "updated_at": now.timestamp(),
        "updated_by": tx.name,
    }
    done = await tx.execute(_SAVE_RUN, {"of_run": run.run_id, **row})
    if done.rowcount == 0:
        await tx.execute(sa.insert(run_table).values(row))


def _run(row: sa.Row[tuple[object, ...]]) -> Run:
    values = row._mapping
    return Run(
        run_id=RunId(values["run_id"]),
        study=_study(values["study_json"]),
        study_digest=bytes(values["study_digest"]),
        state=values["state"],
        reason=values["reason"],
        created_at=datetime.fromtimestamp(values["created_at"], UTC),
        ended_at=_at(values["ended_at"]),
        parameters=values["parameters"],
        training_rows=values["training_rows"],
        enough_grants_since=_at(values["enough_grants_since"]),
        training=NO_TRAINING if values["training_json"] is None else _TRAINING.validate_json(values["training_json"]),
        retraining=None if values["retraining_json"] is None else _RETRAINING.validate_json(values["retraining_json"]),
        standings={} if values["standings_json"] is None else _STANDINGS.validate_json(values["standings_json"]),
    )


async def find_run(tx: Tx, run_id: RunId) -> Run | None:
    """The run, or None."""
    rows = await tx.rows(_FIND_RUN, {"of_run": run_id})
    return _run(rows[0]) if rows else None


async def runs_with_digest(tx: Tx, study_digest: bytes) -> list[Run]:
    """Unfinished runs of one study version, oldest first."""
    query = sa.select(run_table).where(run_table.c.study_digest == study_digest, run_table.c.state.not_in(FINAL_STATES))
    return [_run(row) for row in await tx.rows(query.order_by(run_table.c.created_at))]


async def runs_page(
    tx: Tx, limit: int, *, within: tuple[Iterable[StudyId], Iterable[SiteId]] | None = None, after: RunId | None = None
) -> list[Run]:
    """So many runs, the newest first, behind the one `after`; with `within`, only runs of these studies and those that
    these sites take part in. Raises `CursorUnknown`."""
    known = run_table.c
    query = sa.select(run_table).order_by(known.created_at.desc(), known.run_id.desc()).limit(limit)
    if within is not None:
        studies, sites = within
        joined = sa.select(grant_table.c.study_digest).where(grant_table.c.site_id.in_(list(sites)))
        query = query.where(sa.or_(known.study_id.in_(list(studies)), known.study_digest.in_(joined)))
    if after is not None:
        query = query.where(await behind(tx, known.created_at, known.run_id, after, newest_first=True))
    return [_run(row) for row in await tx.rows(query)]


async def taking_part(tx: Tx, run_id: RunId, sites: Iterable[SiteId]) -> frozenset[SiteId]:
    """Those of these sites that take part in a run: they granted its study version, though the grant may be over."""
    version = sa.select(run_table.c.study_digest).where(run_table.c.run_id == run_id).scalar_subquery()
    query = sa.select(grant_table.c.site_id).where(grant_table.c.study_digest == version)
    rows = await tx.rows(query.where(grant_table.c.site_id.in_(list(sites))))
    return frozenset(SiteId(row.site_id) for row in rows)


async def runs_of_version(tx: Tx, study_digest: bytes) -> list[Run]:
    """All runs of one study version, oldest first."""
    query = sa.select(run_table).where(run_table.c.study_digest == study_digest).order_by(run_table.c.created_at)
    return [_run(row) for row in await tx.rows(query)]


async def newest_run(tx: Tx, study_id: StudyId) -> Run | None:
    """The study's run that began last, of whichever version."""
    query = sa.select(run_table).where(run_table.c.study_id == study_id).order_by(run_table.c.created_at.desc())
    row = await tx.row(query.limit(1))
    return None if row is None else _run(row)


async def unfinished_runs(tx: Tx) -> list[tuple[RunId, RunState]]:
    """Runs that the timer must look at, with their states."""
    return [(RunId(row.run_id), row.state) for row in await tx.rows(_UNFINISHED)]


# Windows


async def save_window(tx: Tx, window: Window, now: datetime) -> None:
    """Insert or replace a window with its state."""
    row = {
        "window_id": window.window_id,
        "run_id": window.run_id,
        "sequence": window.sequence,
        "purpose": window.purpose,
        "round": window.round,
        "attempt": window.attempt,
        "phase": window.state.phase.value,
        "state_json": _STATE.dump_json(window.state).decode(),
        "cohort_json": _COHORT.dump_json(window.cohort).decode(),
        "choices_json": _CHOICES.dump_json(window.choices).decode() if window.choices else None,
        "pace_json": None if window.pace is None else _PACE.dump_json(window.pace).decode(),
        "updated_at": now.timestamp(),
        "updated_by": tx.name,
    }
    if (await tx.execute(_SAVE_WINDOW, {"of_window": window.window_id, **row})).rowcount == 0:
        await tx.execute(sa.insert(window_table).values(row))


def _window(row: sa.Row[tuple[object, ...]]) -> Window:
    values = row._mapping
    return Window(
        window_id=bytes(values["window_id"]),
        run_id=RunId(values["run_id"]),
        sequence=values["sequence"],
        purpose=values["purpose"],
        round=values["round"],
        attempt=values["attempt"],
        state=_STATE.validate_json(values["state_json"]),
        cohort=ANYONE if values["cohort_json"] is None else _COHORT.validate_json(values["cohort_json"]),
        choices=() if values["choices_json"] is None else _CHOICES.validate_json(values["choices_json"]),
        pace=None if values["pace_json"] is None else _PACE.validate_json(values["pace_json"]),
    )


async def find_window(tx: Tx, window_id: bytes) -> Window | None:
    """The window, or None."""
    rows = await tx.rows(_FIND_WINDOW, {"of_window": window_id})
    return _window(rows[0]) if rows else None


async def newest_window(tx: Tx, run_id: RunId) -> Window | None:
    """The run's window with the greatest sequence, or None."""
    rows = await tx.rows(_NEWEST_WINDOW, {"of_run": run_id})
    return _window(rows[0]) if rows else None


async def windows_of(tx: Tx, run_id: RunId) -> list[Window]:
    """All windows of a run in order."""
    query = sa.select(window_table).where(window_table.c.run_id == run_id).order_by(window_table.c.sequence)
    return [_window(row) for row in await tx.rows(query)]


async def windows_in(tx: Tx, phases: Sequence[Phase]) -> list[bytes]:
    """Ids of windows in these phases, for the timer."""
    query = sa.select(window_table.c.window_id).where(window_table.c.phase.in_([phase.value for phase in phases]))
    return [bytes(row[0]) for row in await tx.rows(query)]


async def waiting_for_log(tx: Tx) -> list[float]:
    """Since when, in unix seconds, each authorised window waits for the log's proof."""
    query = sa.select(window_table.c.state_json).where(window_table.c.phase == Phase.AUTHORISED.value)
    states = [_STATE.validate_json(row.state_json) for row in await tx.rows(query)]
    return [(state.since or state.asked_at).timestamp() for state in states if isinstance(state, AwaitingLog)]


# Models


async def add_model(tx: Tx, run_id: RunId, model: ModelRef, window_id: bytes) -> None:
    """Record a model version; the same version twice is once."""
    query = sa.select(model_table.c.version).where(
        model_table.c.run_id == run_id, model_table.c.version == model.version
    )
    if not await tx.rows(query):
        row = {"run_id": run_id, "version": model.version, "model_hash": model.model_hash, "window_id": window_id}
        await tx.execute(sa.insert(model_table).values(row))


async def models_of(tx: Tx, run_id: RunId) -> list[Made]:
    """All versions of a run, oldest first."""
    return [
        Made(ModelRef(version=row.version, model_hash=bytes(row.model_hash)), bytes(row.window_id) or None)
        for row in await tx.rows(_MODELS, {"of_run": run_id})
    ]


async def newest_models(tx: Tx, run_id: RunId, limit: int) -> list[ModelRef]:
    """The newest versions, oldest of them first."""
    newest = await tx.rows(_NEWEST_MODELS, {"of_run": run_id, "most": limit})
    return [ModelRef(version=row.version, model_hash=bytes(row.model_hash)) for row in reversed(newest)]


# Manifests, grants, keys


async def add_manifest(tx: Tx, manifest: Manifest) -> None:
    """Record a manifest version; the same version twice is once."""
    query = sa.select(manifest_table.c.version).where(
        manifest_table.c.study_id == manifest.study_id, manifest_table.c.version == manifest.version
    )
    if not await tx.rows(query):
        row = {
            "study_id": manifest.study_id,
            "version": manifest.version,
            "study_digest": manifest.study_digest,
            "manifest_json": json.dumps(manifest.model_dump(mode="json")),
        }
        await tx.execute(sa.insert(manifest_table).values(row))


async def newest_manifest(tx: Tx, study_digest: bytes) -> Manifest | None:
    """The newest manifest for this study version, or None."""
    text = await tx.scalar(_NEWEST_MANIFEST, {"of_digest": study_digest})
    return None if text is None else _manifest(text)


async def save_grant(tx: Tx, study_digest: bytes, grant: Grant, now: datetime) -> None:
    """Insert or replace one site's grant for a study version."""
    row = {
        "study_digest": study_digest,
        "site_id": grant.site_id,
        "grant_digest": grant.grant_digest,
        "not_after": grant.not_after.timestamp(),
        "ended_reason": grant.ended_reason,
        "updated_at": now.timestamp(),
        "updated_by": tx.name,
    }
    found = sa.and_(grant_table.c.study_digest == study_digest, grant_table.c.site_id == grant.site_id)
    if (await tx.execute(sa.update(grant_table).where(found).values(row))).rowcount == 0:
        await tx.execute(sa.insert(grant_table).values(row))


async def grants(tx: Tx, study_digest: bytes) -> list[Grant]:
    """All grants for a study version, ended ones too."""
    return [
        Grant(
            SiteId(row.site_id), bytes(row.grant_digest), datetime.fromtimestamp(row.not_after, UTC), row.ended_reason
        )
        for row in await tx.rows(_GRANTS, {"of_digest": study_digest})
    ]


async def grant_ended(tx: Tx, study_digest: bytes, site_id: SiteId) -> bool:
    """Whether the site's grant for a study version is known and over."""
    return await tx.scalar(_GRANT_ENDED, {"of_digest": study_digest, "of_site": site_id}) is not None


async def end_grants_of(tx: Tx, site_id: SiteId, reason: str, now: datetime) -> list[bytes]:
    """End every grant of a site; the digests of the study versions that lost one."""
    live = sa.and_(grant_table.c.site_id == site_id, grant_table.c.ended_reason.is_(None))
    digests = [bytes(row[0]) for row in await tx.rows(sa.select(grant_table.c.study_digest).where(live))]
    values = {"ended_reason": reason, "updated_at": now.timestamp(), "updated_by": tx.name}
    await tx.execute(sa.update(grant_table).where(live).values(values))
    return digests
