"""Which cohort was frozen under each grant, and every cohort since, with the salt that its commitment needs."""

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from cohortium_connector.store.tables import approved_cohort, cohort_snapshot
from cohortium_kit.db import Tx
from cohortium_messages.governance import CohortUnit
from cohortium_messages.ids import RunId, StudyId

APPROVAL: Final = "approval"
"""The purpose of a snapshot that was taken for an approval: no row was read for any work."""


@dataclass(frozen=True, slots=True)
class ApprovedCohort:
    """What was true when the hospital approved, or in a trial when a grant was first used: the query, and how many
    persons it gave (rows, where the table does not name them)."""

    query_digest: bytes
    persons: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One cohort that was approved, or that work was done with. The salt proves who was in it; it never leaves the
    hospital by itself."""

    context: bytes
    study_id: StudyId
    run_id: RunId
    round: int
    purpose: str
    salt: bytes
    root: bytes
    persons: int
    permitted: str
    """The file with their names; empty where nobody has one."""
    taken_at: float
    unit: CohortUnit = "person"


_SNAPSHOT = tuple(cohort_snapshot.c[name] for name in Snapshot.__dataclass_fields__)


async def approved(tx: Tx, grant_digest: bytes) -> ApprovedCohort | None:
    """The cohort that was frozen under a grant, or None where none was yet."""
    columns = approved_cohort.c
    query = sa.select(columns.query_digest, columns.persons, columns.root)
    row = await tx.row(query.where(columns.grant_digest == grant_digest))
    return None if row is None else ApprovedCohort(row.query_digest, row.persons, row.root)


async def freeze(tx: Tx, grant_digest: bytes, cohort: ApprovedCohort) -> None:
    """Write down the cohort that a grant is for."""
    values = {"query_digest": cohort.query_digest, "persons": cohort.persons, "root": cohort.root}
    await tx.execute(sa.insert(approved_cohort).values({"grant_digest": grant_digest, "taken_at": tx.now} | values))


async def add_snapshot(tx: Tx, snapshot: Snapshot) -> None:
    """Keep a cohort that is about to be used."""
    values = {name: getattr(snapshot, name) for name in Snapshot.__dataclass_fields__}
    await tx.execute(sa.insert(cohort_snapshot).values(values))


async def permitted_of(tx: Tx, run_id: RunId, purpose: str) -> str | None:
    """The file with the persons of a run's latest cohort for this purpose, None where that names nobody."""
    columns = cohort_snapshot.c
    query = sa.select(columns.permitted).where(columns.run_id == run_id, columns.purpose == purpose)
    found = await tx.scalar(query.order_by(columns.taken_at.desc()).limit(1))
    return str(found) if found else None


async def snapshots(tx: Tx, study_id: StudyId) -> list[Snapshot]:
    """Every cohort of a study, the oldest first."""
    query = sa.select(*_SNAPSHOT).where(cohort_snapshot.c.study_id == study_id)
    rows = await tx.rows(query.order_by(cohort_snapshot.c.taken_at, cohort_snapshot.c.context))
    return [Snapshot(**row._mapping) for row in rows]
