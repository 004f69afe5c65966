"""How far each log is in the stream that integrators read."""

import sqlalchemy as sa

from cohortium_audit.domain import LogName
from cohortium_audit.store.tables import log_table, streamed_table
from cohortium_kit.db import Tx

_DONE = sa.func.coalesce(streamed_table.c.size, 0)
_BEHIND = (
    sa.select(log_table.c.name, _DONE.label("done"), log_table.c.size)
    .select_from(log_table.outerjoin(streamed_table, streamed_table.c.log == log_table.c.name))
    .where(log_table.c.size > _DONE)
    .order_by(log_table.c.name)
)


async def behind(tx: Tx) -> list[tuple[LogName, int, int]]:
    """Every log that is longer than what is in the stream: its name, how far the stream is, how long it is."""
    return [(LogName(row.name), row.done, row.size) for row in await tx.rows(_BEHIND)]


async def save(tx: Tx, log: LogName, size: int) -> None:
    """The stream holds so many entries of this log. It never goes back, though two should write at once."""
    columns = streamed_table.c
    values = {"size": size, "updated_at": tx.now, "updated_by": "feed"}
    known = await tx.scalar(sa.select(columns.size).where(columns.log == log))
    if known is None:
        await tx.execute(sa.insert(streamed_table).values({"log": log} | values))
    elif known < size:
        await tx.execute(sa.update(streamed_table).where(columns.log == log).values(values))
