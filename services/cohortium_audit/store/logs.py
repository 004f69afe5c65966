"""The logs: leaves, nodes, checkpoints. One transaction appends a batch; leaves get their places in commit order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from cohortium_audit.domain import Entry, Growth, LogName, LogState
from cohortium_audit.store.tables import checkpoint_table, leaf_table, log_table, node_table
from cohortium_kit.db import Tx
from cohortium_protocol.translog import Node

IN_LIMIT = 400
"""Most values of one IN list: below every database's limit on parameters."""


def _signed(*where: sa.ColumnElement[bool]) -> sa.Select[Any]:
    columns = checkpoint_table.c
    return sa.select(columns.size, columns.root, columns.note).where(columns.log == sa.bindparam("of_log"), *where)


# Statements of every batch and every cosignature, built once.
_STATES = sa.select(log_table.c.name, log_table.c.size, log_table.c.checkpointed).order_by(log_table.c.name)
_STATE = sa.select(log_table.c.size, log_table.c.checkpointed).where(log_table.c.name == sa.bindparam("of_log"))
_NODES = sa.select(node_table.c.level, node_table.c.idx, node_table.c.hash).where(
    node_table.c.log == sa.bindparam("of_log"),
    sa.tuple_(node_table.c.level, node_table.c.idx).in_(sa.bindparam("places", expanding=True)),
)
_RECORDED = sa.select(
    leaf_table.c.log, leaf_table.c.idx, leaf_table.c.key_id, leaf_table.c.event_id, leaf_table.c.data
).where(sa.tuple_(leaf_table.c.key_id, leaf_table.c.event_id).in_(sa.bindparam("events", expanding=True)))
_GROWN, _CHECKPOINTED = (
    sa.update(log_table)
    .where(log_table.c.name == sa.bindparam("of_log"))
    .values({name: sa.bindparam(name) for name in (changed, "updated_at", "updated_by")})
    for changed in ("size", "checkpointed")
)
_ADD_LEAVES, _ADD_NODES, _ADD_CHECKPOINT = sa.insert(leaf_table), sa.insert(node_table), sa.insert(checkpoint_table)
_SIGNED_AT = sa.select(checkpoint_table.c.created_at).where(
    checkpoint_table.c.log == sa.bindparam("of_log"), checkpoint_table.c.size == sa.bindparam("of_size")
)
_CHECKPOINT = _signed(checkpoint_table.c.size == sa.bindparam("of_size"))
_LATEST = _signed().order_by(checkpoint_table.c.size.desc()).limit(1)
_NEWEST_SIZES = (
    sa.select(checkpoint_table.c.size)
    .where(checkpoint_table.c.log == sa.bindparam("of_log"), checkpoint_table.c.size < sa.bindparam("below"))
    .order_by(checkpoint_table.c.size.desc())
    .limit(sa.bindparam("most"))
)
_ENTRIES = (
    sa.select(leaf_table.c.data)
    .where(
        leaf_table.c.log == sa.bindparam("of_log"),
        leaf_table.c.idx >= sa.bindparam("start"),
        leaf_table.c.idx < sa.bindparam("end"),
    )
    .order_by(leaf_table.c.idx)
)


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
    return [LogState(LogName(row.name), row.size, row.checkpointed) for row in await tx.rows(_STATES)]


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
    row = await tx.row(_STATE, {"of_log": log})
    return None if row is None else LogState(log, row.size, row.checkpointed)


async def add_log(tx: Tx, log: LogName) -> LogState:
    """Begin a log."""
    values = {"name": log, "size": 0, "checkpointed": 0, "updated_at": tx.now, "updated_by": "add_log"}
    await tx.execute(sa.insert(log_table).values(values))
    return LogState(log, 0, 0)


async def nodes(tx: Tx, log: LogName, wanted: Sequence[Node]) -> dict[Node, bytes]:
    """These stored nodes. Raises `LookupError` if one is missing, which no log that is whole can be."""
    found: dict[Node, bytes] = {}
    for part in _parts(sorted({(node.level, node.index) for node in wanted})):
        for row in await tx.rows(_NODES, {"of_log": log, "places": part}):
            found[Node(row.level, row.idx)] = row.hash
    missing = set(wanted) - found.keys()
    if missing:
        raise LookupError(f"log {log} lacks {len(missing)} nodes of its tree")
    return found


async def recorded(tx: Tx, events: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Leaf]:
    """Those of these (key id, event id) that are in a log already."""
    found: dict[tuple[str, str], Leaf] = {}
    for part in _parts(sorted(set(events))):
        for row in await tx.rows(_RECORDED, {"events": part}):
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
    changed = {"size": growth.size, "updated_at": tx.now, "updated_by": "append"}
    await tx.execute(_GROWN, {"of_log": before.log, **changed})
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
    await tx.execute(_ADD_LEAVES, leaves)
    added = [{"log": before.log, "level": node.level, "idx": node.index, "hash": value} for node, value in growth.nodes]
    await tx.execute(_ADD_NODES, added)


async def add_checkpoint(tx: Tx, log: LogName, checkpoint: SignedCheckpoint) -> None:
    """Keep a signed checkpoint for good. The log's row goes first, as in `append`."""
    changed = {"checkpointed": checkpoint.size, "updated_at": tx.now, "updated_by": "add_checkpoint"}
    await tx.execute(_CHECKPOINTED, {"of_log": log, **changed})
    values = {"log": log, "size": checkpoint.size, "root": checkpoint.root, "note": checkpoint.note}
    await tx.execute(_ADD_CHECKPOINT, values | {"created_at": tx.now})


async def checkpointed_since(tx: Tx, state: LogState, since: float) -> bool:
    """Whether the newest checkpoint of this log was signed after `since`, in unix seconds."""
    at = await tx.scalar(_SIGNED_AT, {"of_log": state.log, "of_size": state.checkpointed})
    return at is not None and at > since


async def checkpoints(tx: Tx, log: LogName, up_to: int) -> list[SignedCheckpoint]:
    """Every checkpoint of a log of at most `up_to` leaves, the smallest first."""
    columns = checkpoint_table.c
    query = sa.select(columns.size, columns.root, columns.note).where(columns.log == log, columns.size <= up_to)
    return [SignedCheckpoint(row.size, row.root, row.note) for row in await tx.rows(query.order_by(columns.size))]


async def checkpoint(tx: Tx, log: LogName, size: int) -> SignedCheckpoint | None:
    """The checkpoint of exactly `size` leaves."""
    row = await tx.row(_CHECKPOINT, {"of_log": log, "of_size": size})
    return None if row is None else SignedCheckpoint(row.size, row.root, row.note)


async def newest_sizes(tx: Tx, log: LogName, below: int, most: int) -> list[int]:
    """The sizes of the newest checkpoints of fewer than `below` leaves."""
    return [row.size for row in await tx.rows(_NEWEST_SIZES, {"of_log": log, "below": below, "most": most})]


async def latest_checkpoint(tx: Tx, log: LogName) -> SignedCheckpoint | None:
    """The largest checkpoint of a log."""
    row = await tx.row(_LATEST, {"of_log": log})
    return None if row is None else SignedCheckpoint(row.size, row.root, row.note)


async def entries(tx: Tx, log: LogName, start: int, end: int) -> list[bytes]:
    """The leaves' data from `start` on, up to but without `end`, in the log's order."""
    return [row.data for row in await tx.rows(_ENTRIES, {"of_log": log, "start": start, "end": end})]


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
