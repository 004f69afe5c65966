"""What people signed of a run's release, until it is complete and after."""

from dataclasses import dataclass

import sqlalchemy as sa

from cohortium_aggregator.store.tables import signed_release
from cohortium_kit.db import Tx
from cohortium_messages.ids import RunId


@dataclass(frozen=True, slots=True)
class StoredRelease:
    """The envelope with the signatures that are there; one that is `complete` does not change any more. `proof`: of its
    event, by the log; the model is released when it is there."""

    envelope: bytes
    complete: bool
    proof: str | None = None

    @property
    def released(self) -> bool:
        return self.complete and self.proof is not None


async def release_of(tx: Tx, run_id: RunId) -> StoredRelease | None:
    columns = signed_release.c
    query = sa.select(columns.envelope, columns.complete, columns.proof).where(columns.run_id == run_id)
    row = await tx.row(query)
    return None if row is None else StoredRelease(bytes(row.envelope), bool(row.complete), row.proof)


async def save_proof(tx: Tx, run_id: RunId, proof: str) -> None:
    """Keep the log's proof of a complete release; the first one stays."""
    values = {"proof": proof, "updated_at": tx.now, "updated_by": tx.name}
    waiting = (signed_release.c.run_id == run_id, signed_release.c.complete, signed_release.c.proof.is_(None))
    await tx.execute(sa.update(signed_release).where(*waiting).values(values))


async def save_release(tx: Tx, run_id: RunId, release: StoredRelease) -> None:
    """Keep these signatures. A release that is complete stays as it is."""
    values = {"envelope": release.envelope, "complete": release.complete}
    values |= {"updated_at": tx.now, "updated_by": tx.name}
    incomplete = (signed_release.c.run_id == run_id, signed_release.c.complete.is_(sa.false()))
    if await release_of(tx, run_id) is None:
        await tx.execute(sa.insert(signed_release).values({"run_id": run_id, **values}))
    else:
        await tx.execute(sa.update(signed_release).where(*incomplete).values(values))


async def waiting_for_log(tx: Tx) -> list[float]:
    """Since when, in unix seconds, each complete release waits for the log's proof of it."""
    columns = signed_release.c
    rows = await tx.rows(sa.select(columns.updated_at).where(columns.complete, columns.proof.is_(None)))
    return [row.updated_at for row in rows]
