"""What a service remembers of itself from one start to the next: a value by name, such as up to when it has looked."""

from sqlalchemy import Executable, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from cohortium_kit._engine import Dialect
from cohortium_kit.db import Tx
from cohortium_kit.tables import mark

__all__ = ["mark", "marked", "set_mark"]

_FIND = select(mark.c.value).where(mark.c.name == bindparam("of_name"))


def _set(insert: type[postgresql.Insert] | type[sqlite.Insert]) -> Executable:
    given = insert(mark)
    return given.on_conflict_do_update(
        index_elements=[mark.c.name], set_={"value": given.excluded.value, "updated_at": given.excluded.updated_at}
    )


_SET: dict[Dialect, Executable] = {
    Dialect.POSTGRESQL: _set(postgresql.Insert),
    Dialect.SQLITE: _set(sqlite.Insert),
}


async def marked(tx: Tx, name: str) -> str | None:
    """The value of this name; None if none was set."""
    found = await tx.scalar(_FIND, {"of_name": name})
    return None if found is None else str(found)


async def set_mark(tx: Tx, name: str, value: str) -> None:
    """Set it, in place of an earlier one. Instances that read and set the same name one after another: one of two at a
    time is played again."""
    await tx.execute(_SET[tx.dialect], {"name": name, "value": value, "updated_at": tx.now})
