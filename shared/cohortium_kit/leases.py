"""Leases: who does a thing that only one may do, until when, and in which epoch.

A lease is a row, kept by its holder's clock. It is a promise about who should act, not mutual exclusion: a holder that
was paused may still believe in it. So what must not happen twice stores the `epoch` beside its state and refuses an
older one (fencing). Each change is one statement, atomic on both databases at every isolation level.

Clocks that are set wrong, and right again: an end too far away to have been written by a right clock holds nobody
off, and a holder believes in its lease by `left_s`, which a clock that is put back does not make longer. Two instances
whose clocks stay more than `CLOCKS_S` apart take a lease from each other in turn: the log says so each time.
"""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import and_, bindparam, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from cohortium_kit._engine import Dialect
from cohortium_kit.clock import Clock
from cohortium_kit.db import Tx
from cohortium_kit.tables import lease as table

log = structlog.get_logger(__name__)

CLOCKS_S = 60.0
"""So far the clocks of two instances of a service may differ before they take each other's leases."""

_FIND = select(table.c.holder, table.c.expires_at).where(table.c.name == bindparam("of_name"))
_RENEW = (
    update(table)
    .where(table.c.name == bindparam("of_name"), table.c.token == bindparam("of_token"))
    .values(expires_at=bindparam("end"))
)


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease we hold. `token` proves it is ours; `epoch` grows with every new holding of this name."""

    name: str
    holder: str
    token: str
    epoch: int
    expires_at: datetime


def left_s(lease: Lease | None, taken_at: float, ttl_s: float, clock: Clock) -> float:
    """For how long its holder may believe in a lease, in seconds; 0 or less for one that is over, or for none.

    `taken_at`: what `clock.monotonic()` said before it was taken or renewed.
    """
    if lease is None:
        return 0.0
    return min((lease.expires_at - clock.now()).total_seconds(), taken_at + ttl_s - clock.monotonic())


async def acquire(tx: Tx, name: str, holder: str, now: datetime, ttl_s: float) -> Lease | None:
    """Take the lease if nobody holds it, its time is over, or this holder held it (a restart); None otherwise.

    An end more than `CLOCKS_S` later than ours would be was written while its holder's clock was wrong: whoever comes
    after that one would wait for as long as the clock was ahead. That is warned of, by
    `lease_taken_from_clock_ahead` with both holders: people must set their clocks right.
    """
    token = secrets.token_hex(16)
    end = now.timestamp() + ttl_s
    before = await tx.row(_FIND, {"of_name": name})
    epoch = await tx.scalar(_take(tx.dialect, name, holder, now, token, end))
    if epoch is None:
        return None
    if before is not None and before.holder != holder and before.expires_at > end + CLOCKS_S:
        taken_from, ahead_s = before.holder, round(before.expires_at - end)
        tx.after_commit(
            lambda _: log.warning(
                "lease_taken_from_clock_ahead",
                lease=name,
                holder=holder,
                taken_from=taken_from,
                ahead_s=ahead_s,
                most_s=CLOCKS_S,
            )
        )
    return Lease(name, holder, token, epoch, datetime.fromtimestamp(end, UTC))


async def renew(tx: Tx, lease: Lease, now: datetime, ttl_s: float) -> Lease | None:
    """The same lease with a later end, or None if somebody else has taken it since."""
    end = now + timedelta(seconds=ttl_s)
    kept = await tx.execute(_RENEW, {"of_name": lease.name, "of_token": lease.token, "end": end.timestamp()})
    return Lease(lease.name, lease.holder, lease.token, lease.epoch, end) if kept.rowcount else None


async def release(tx: Tx, lease: Lease) -> None:
    """Let others have it at once. Does nothing if it is not ours any more. Its epoch is not used again."""
    await tx.execute(update(table).where(_is(lease)).values(expires_at=0.0, holder="", token=""))


async def forget(tx: Tx, name: str) -> None:
    """Delete the lease with its epoch, for a name that never comes back."""
    await tx.execute(delete(table).where(table.c.name == name))


def _is(lease: Lease) -> Any:
    return and_(table.c.name == lease.name, table.c.token == lease.token)


def _take(dialect: Dialect, name: str, holder: str, now: datetime, token: str, end: float) -> Any:
    values = {"name": name, "holder": holder, "token": token, "epoch": 1, "expires_at": end}
    over = or_(table.c.expires_at <= now.timestamp(), table.c.expires_at > end + CLOCKS_S)
    free = or_(over, table.c.holder == holder)
    changed = {"holder": holder, "token": token, "epoch": table.c.epoch + 1, "expires_at": end}
    if dialect is Dialect.POSTGRESQL:
        statement = postgresql.insert(table).values(values)
        return statement.on_conflict_do_update(index_elements=["name"], set_=changed, where=free).returning(
            table.c.epoch
        )
    lite = sqlite.insert(table).values(values)
    return lite.on_conflict_do_update(index_elements=["name"], set_=changed, where=free).returning(table.c.epoch)
