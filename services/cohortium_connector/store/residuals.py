"""Which residual goes with a run's next update (`feedback.py`). The numbers are in files, named after their window."""

from dataclasses import dataclass

import sqlalchemy as sa

from cohortium_connector.store.tables import residual
from cohortium_kit.db import Tx
from cohortium_messages.ids import RunId

_EVERY = sa.select(residual)


@dataclass(frozen=True, slots=True)
class Residual:
    """`made_by`: the window whose upload left it over; None before the first. `taken_by`: the window whose upload it is
    in now."""

    run_id: RunId
    made_by: bytes | None
    taken_by: bytes | None


async def find(tx: Tx, run_id: RunId) -> Residual | None:
    row = await tx.row(sa.select(residual).where(residual.c.run_id == run_id))
    return None if row is None else Residual(run_id, row.made_by, row.taken_by)


async def every(tx: Tx) -> tuple[Residual, ...]:
    rows = await tx.rows(_EVERY)
    return tuple(Residual(RunId(row.run_id), row.made_by, row.taken_by) for row in rows)


async def take(tx: Tx, run_id: RunId, window_id: bytes, *, by: str) -> Residual | None:
    """The residual for this window's upload, which no other one may have until the window has ended. None while another
    window has it: its update then goes without, and leaves nothing over. Twice is once."""
    known = await find(tx, run_id)
    if known is not None and known.taken_by not in (None, window_id):
        return None
    taken = Residual(run_id, None if known is None else known.made_by, window_id)
    await _save(tx, taken, by)
    return taken


async def settle(tx: Tx, run_id: RunId, window_id: bytes, *, released: bool, freed: bool, by: str) -> None:
    """The window has ended. Released: what its upload left over is the residual now. Freed, with proof that no sum
    holds the upload: as before. Else the upload may be in a sum that nobody released, so nothing of it goes again."""
    known = await find(tx, run_id)
    if known is None or known.taken_by != window_id:
        return
    made_by = window_id if released else known.made_by if freed else None
    await _save(tx, Residual(run_id, made_by, None), by)


async def forget(tx: Tx, run_id: RunId) -> None:
    """The run is over; the file is deleted after the commit."""
    await tx.execute(sa.delete(residual).where(residual.c.run_id == run_id))


async def forget_all(tx: Tx) -> None:
    await tx.execute(sa.delete(residual))


async def _save(tx: Tx, known: Residual, by: str) -> None:
    values = {"made_by": known.made_by, "taken_by": known.taken_by, "updated_at": tx.now, "updated_by": by}
    done = await tx.execute(sa.update(residual).where(residual.c.run_id == known.run_id).values(values))
    if done.rowcount == 0:
        await tx.execute(sa.insert(residual).values({"run_id": known.run_id} | values))
