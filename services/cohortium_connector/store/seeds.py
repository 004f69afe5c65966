"""Secret seeds of the noise in private work that is not finished yet: whoever knows one can take the noise off."""

import sqlalchemy as sa

from cohortium_connector.store.tables import noise_seed
from cohortium_kit.db import Tx
from cohortium_messages.ids import RunId
from cohortium_messages.secure_sum import Purpose


async def seed_for(tx: Tx, run_id: RunId, purpose: Purpose, task: bytes, fresh: bytes, *, by: str) -> bytes:
    """The seed of this very task if it was begun before, else `fresh`, which is kept for it. `task` is its digest.

    There is one unfinished task of a purpose in a run, so another one's seed is forgotten.
    """
    place = (noise_seed.c.run_id == run_id, noise_seed.c.purpose == purpose)
    known = await tx.row(sa.select(noise_seed.c.task, noise_seed.c.seed).where(*place))
    if known is not None and known.task == task:
        return bytes(known.seed)
    await forget_seed(tx, run_id, purpose)
    row = {"run_id": run_id, "purpose": purpose, "task": task, "seed": fresh}
    await tx.execute(sa.insert(noise_seed).values(**row, updated_at=tx.now, updated_by=by))
    return fresh


async def forget_seed(tx: Tx, run_id: RunId, purpose: Purpose) -> None:
    """The vector is kept, so nothing has to be made again: whatever comes later has other noise."""
    await tx.execute(sa.delete(noise_seed).where(noise_seed.c.run_id == run_id, noise_seed.c.purpose == purpose))


async def forget_seeds(tx: Tx, run_id: RunId) -> None:
    """Nothing more is made for the run."""
    await tx.execute(sa.delete(noise_seed).where(noise_seed.c.run_id == run_id))
