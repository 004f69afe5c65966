"""The logs: leaves, nodes, checkpoints. One transaction appends a batch; leaves get their places in commit order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from cohortium_audit.domain import Entry, Growth, LogName, LogState
from cohortium_audit.store.tables import checkpoint_table, leaf_table, log_table, node_table
from cohortium_kit.db import Tx
from cohortium_protocol.translog import Node

IN_LIMIT = 400
"""Most values of one IN list: below every database's limit on parameters."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A recorded event and its place."""

    log: LogName
    index: int
    key_id: str
    data: bytes


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint as it was signed."""

    size: int
    root: bytes
    note: str


async def states(tx: Tx) -> list[LogState]:
    """Every log, by name."""
    columns = log_table.c
    rows = await tx.rows(sa.select(columns.name, columns.size, columns.checkpointed).order_by(columns.name))
    return [LogState(LogName(row.name), row.size, row.checkpointed) for row in rows]


async def states_page(tx: Tx, limit: int, *, only: Iterable[str] | None = None, after: str = "") -> list[LogState]:
    """So many logs, of these or of all, by name, behind `after`."""
    columns = log_table.c
    query = sa.select(columns.name, columns.size, columns.checkpointed).where(columns.name > after)
    if only is not None:
        query = query.where(columns.name.in_(list(only)))
    rows = await tx.rows(query.order_by(columns.name).limit(limit))
    return [LogState(LogName(row.name), row.size, row.checkpointed) for row in rows]


async def state(tx: Tx, log: LogName) -> LogState | None:
    """One log, or None if nothing was ever recorded in it."""
    columns = log_table.c
    row = await tx.row(sa.select(columns.name, columns.size, columns.checkpointed).where(columns.name == log))
    return None if row is None else LogState(log, row.size, row.checkpointed)


async def add_log(tx: Tx, log: LogName) -> LogState:
    """Begin a log."""
    values = {"name": log, "size": 0, "checkpointed": 0, "updated_at": tx.now, "updated_by": "add_log"}
    await tx.execute(sa.insert(log_table).values(values))
    return LogState(log, 0, 0)


async def nodes(tx: Tx, log: LogName, wanted: Sequence[Node]) -> dict[Node, bytes]:
    """These stored nodes. Raises `LookupError` if one is missing, which no log that is whole can be."""
    found: dict[Node, bytes] = {}
    place = sa.tuple_(node_table.c.level, node_table.c.idx)
    for part in _parts(sorted({(node.level, node.index) for node in wanted})):
        query = sa.select(node_table.c.level, node_table.c.idx, node_table.c.hash)
        for row in await tx.rows(query.where(node_table.c.log == log, place.in_(part))):
            found[Node(row.level, row.idx)] = row.hash
    missing = set(wanted) - found.keys()
    if missing:
        raise LookupError(f"log {log} lacks {len(missing)} nodes of its tree")
    return found


async def recorded(tx: Tx, events: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Leaf]:
    """Those of these (key id, event id) that are in a log already."""
    found: dict[tuple[str, str], Leaf] = {}
    key = sa.tuple_(leaf_table.c.key_id, leaf_table.c.event_id)
    columns = (leaf_table.c.log, leaf_table.c.idx, leaf_table.c.key_id, leaf_table.c.event_id, leaf_table.c.data)
    for part in _parts(sorted(set(events))):
        for row in await tx.rows(sa.select(*columns).where(key.in_(part))):
            found[row.key_id, row.event_id] = Leaf(LogName(row.log), row.idx, row.key_id, row.data)
    return found


async def leaves_of_event(tx: Tx, event_id: str) -> list[Leaf]:
    """Every recorded event with this id: one for each emitter that used it."""
    columns = (leaf_table.c.log, leaf_table.c.idx, leaf_table.c.key_id, leaf_table.c.data)
    rows = await tx.rows(sa.select(*columns).where(leaf_table.c.event_id == event_id).order_by(leaf_table.c.key_id))
    return [Leaf(LogName(row.log), row.idx, row.key_id, row.data) for row in rows]


async def append(tx: Tx, before: LogState, entries: Sequence[Entry], growth: Growth) -> None:
    """Write a batch: the log's new size, its leaves, the nodes that it completes.

    The size goes first: of two instances that append at once the later one waits at this row, and is told to run again
    before it has used a place that the other one filled.
    """
    statement = sa.update(log_table).where(log_table.c.name == before.log)
    await tx.execute(statement.values(size=growth.size, updated_at=tx.now, updated_by="append"))
    leaves = [
        {
            "log": before.log,
            "idx": growth.first + place,
            "key_id": entry.key_id,
            "event_id": entry.event_id,
            "type": entry.type,
            "data": entry.data,
            "recorded_at": tx.now,
        }
        for place, entry in enumerate(entries)
    ]
    await tx.execute(sa.insert(leaf_table), leaves)
    added = [{"log": before.log, "level": node.level, "idx": node.index, "hash": value} for node, value in growth.nodes]
    await tx.execute(sa.insert(node_table), added)


async def add_checkpoint(tx: Tx, log: LogName, checkpoint: SignedCheckpoint) -> None:
    """Keep a signed checkpoint for good. The log's row goes first, as in `append`."""
    statement = sa.update(log_table).where(log_table.c.name == log)
    await tx.execute(statement.values(checkpointed=checkpoint.size, updated_at=tx.now, updated_by="add_checkpoint"))
    values = {"log": log, "size": checkpoint.size, "root": checkpoint.root, "note": checkpoint.note}
    await tx.execute(sa.insert(checkpoint_table).values(values | {"created_at": tx.now}))


async def checkpoints(tx: Tx, log: LogName, up_to: int) -> list[SignedCheckpoint]:
    """Every checkpoint of a log of at most `up_to` leaves, the smallest first."""
    columns = checkpoint_table.c
    query = sa.select(columns.size, columns.root, columns.note).where(columns.log == log, columns.size <= up_to)
    return [SignedCheckpoint(row.size, row.root, row.note) for row in await tx.rows(query.order_by(columns.size))]


async def checkpoint(tx: Tx, log: LogName, size: int) -> SignedCheckpoint | None:
    """The checkpoint of exactly `size` leaves."""
    columns = checkpoint_table.c
    query = sa.select(columns.size, columns.root, columns.note).where(columns.log == log, columns.size == size)
    row = await tx.row(query)
    return None if row is None else SignedCheckpoint(row.size, row.root, row.note)


async def newest_sizes(tx: Tx, log: LogName, below: int, most: int) -> list[int]:
    """The sizes of the newest checkpoints of fewer than `below` leaves."""
    columns = checkpoint_table.c
    query = sa.select(columns.size).where(columns.log == log, columns.size < below)
    return [row.size for row in await tx.rows(query.order_by(columns.size.desc()).limit(most))]


async def latest_checkpoint(tx: Tx, log: LogName) -> SignedCheckpoint | None:
    """The largest checkpoint of a log."""
    columns = checkpoint_table.c
    query = sa.select(columns.size, columns.root, columns.note).where(columns.log == log)
    row = await tx.row(query.order_by(columns.size.desc()).limit(1))
    return None if row is None else SignedCheckpoint(row.size, row.root, row.note)


async def entries(tx: Tx, log: LogName, start: int, end: int) -> list[bytes]:
    """The leaves' data from `start` on, up to but without `end`, in the log's order."""
    columns = leaf_table.c
    query = sa.select(columns.data).where(columns.log == log, columns.idx >= start, columns.idx < end)
    return [row.data for row in await tx.rows(query.order_by(columns.idx))]


async def indices_of_types(tx: Tx, log: LogName, types: Iterable[str], end: int) -> list[int]:
    """The places of all events of these types before `end`."""
    columns = leaf_table.c
    query = sa.select(columns.idx).where(columns.log == log, columns.type.in_(list(types)), columns.idx < end)
    return [row.idx for row in await tx.rows(query.order_by(columns.idx))]


async def newest_of_type(tx: Tx, log: LogName, kind: str, end: int, most: int) -> list[Leaf]:
    """The newest `most` events of this type before `end`, the newest first."""
    columns = leaf_table.c
    query = sa.select(columns.idx, columns.key_id, columns.data)
    query = query.where(columns.log == log, columns.type == kind, columns.idx < end).order_by(columns.idx.desc())
    return [Leaf(log, row.idx, row.key_id, row.data) for row in await tx.rows(query.limit(most))]


def _parts(values: Sequence[tuple[object, ...]]) -> Iterable[list[tuple[object, ...]]]:
    for first in range(0, len(values), IN_LIMIT):
        yield list(values[first : first + IN_LIMIT])
