"""The cohort of a run's first strict session, and what this site's training rows were in it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from cohortium_connector.store.tables import run_cohort
from cohortium_kit.db import Tx
from cohortium_messages.ids import RunId, SiteId


@dataclass(frozen=True, slots=True)
class RunCohort:
    """`data_digest` is what `PrepareTrees` said of this site's own training rows."""

    members: frozenset[SiteId]
    data_digest: bytes


async def cohort_of_run(tx: Tx, run_id: RunId) -> RunCohort | None:
    """None before the run's first strict session."""
    row = await tx.row(
        sa.select(run_cohort.c.members_json, run_cohort.c.data_digest).where(run_cohort.c.run_id == run_id)
    )
    if row is None:
        return None
    return RunCohort(frozenset(SiteId(member) for member in json.loads(row.members_json)), row.data_digest)


async def remember_cohort(tx: Tx, run_id: RunId, members: Iterable[SiteId], data_digest: bytes, *, by: str) -> None:
    """Write down the first one; a later one changes nothing."""
    if await cohort_of_run(tx, run_id) is None:
        row = {"run_id": run_id, "members_json": json.dumps(sorted(members)), "data_digest": data_digest}
        await tx.execute(sa.insert(run_cohort).values(**row, updated_at=tx.now, updated_by=by))


async def forget_cohort(tx: Tx, run_id: RunId) -> None:
    """The run is over: no sum will be asked for in it any more."""
    await tx.execute(sa.delete(run_cohort).where(run_cohort.c.run_id == run_id))
