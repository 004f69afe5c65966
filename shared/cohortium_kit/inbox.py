"""The inbox: what a consumer has done already, remembered in the transaction that did it."""

from sqlalchemy import Executable, delete
from sqlalchemy.dialects import postgresql, sqlite

from cohortium_kit._engine import Dialect
from cohortium_kit.db import Tx
from cohortium_kit.tables import inbox

__all__ = ["first_time", "inbox", "prune"]

KEEP_S = 14 * 24 * 3600.0
"""How long a repetition is recognised: longer than a broker, an outbox or a site's spool keeps a message."""

_REMEMBER: dict[Dialect, Executable] = {
    Dialect.POSTGRESQL: postgresql.insert(inbox).on_conflict_do_nothing(),
    Dialect.SQLITE: sqlite.insert(inbox).on_conflict_do_nothing(),
}


async def first_time(tx: Tx, consumer: str, message_id: str) -> bool:
    """Whether this consumer sees the message for the first time; from then on, if `tx` commits, it does not."""
    row = {"consumer": consumer, "message_id": message_id, "received_at": tx.now}
    done = await tx.execute(_REMEMBER[tx.dialect], row)
    return done.rowcount == 1


async def prune(tx: Tx, keep_s: float = KEEP_S) -> int:
    """Forget what was received more than `keep_s` ago; returns how many."""
    done = await tx.execute(delete(inbox).where(inbox.c.received_at < tx.now - keep_s))
    return done.rowcount
