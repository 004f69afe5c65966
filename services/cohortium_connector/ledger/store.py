"""The ledger's rows. They are only ever added, and read from one on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from cohortium_connector.ledger.tables import ledger_row
from cohortium_kit.db import Tx
from cohortium_messages.ledger import LedgerEntry, PlanClosed, PlanReserved, StepsMoved
from cohortium_privacy.chain import SealedEntry

_BESIDE = ("site_id", "kind", "block", "run_id", "part", "first_step", "steps", "state", "attempt", "window_id")


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row as it was read; nothing of it is believed yet. `beside`: the columns that repeat what the entry says."""

    sequence: int
    text: bytes
    sig: bytes
    entry_hash: bytes
    beside: tuple[Any, ...]


def beside(entry: LedgerEntry) -> dict[str, Any]:
    """What the columns beside an entry hold."""
    fact = entry.fact
    columns: dict[str, Any] = dict.fromkeys(_BESIDE, "")
    columns |= {"site_id": entry.site_id, "kind": fact.kind, "first_step": 0, "steps": 0, "attempt": 0}
    match fact:
        case PlanReserved() | StepsMoved():
            window = fact.window_id if isinstance(fact, StepsMoved) else None
            columns |= {"first_step": fact.first_step, "steps": fact.steps, "attempt": fact.attempt}
            columns |= {"block": fact.block, "run_id": fact.run_id, "part": fact.part, "state": fact.state}
            columns["window_id"] = "" if window is None else window.hex()
        case PlanClosed():
            columns |= {"block": fact.block, "run_id": fact.run_id, "part": fact.part}
        case _:
            columns["block"] = getattr(fact, "block", "")
    return columns


def repeats(row: StoredRow, entry: LedgerEntry) -> bool:
    """Whether the columns beside the entry say what it says."""
    return row.beside == tuple(beside(entry).values())


async def rows_from(tx: Tx, sequence: int, most: int) -> tuple[StoredRow, ...]:
    """At most so many rows, from this number on, in their order."""
    columns = (ledger_row.c.sequence, ledger_row.c.entry, ledger_row.c.sig, ledger_row.c.entry_hash)
    query = sa.select(*columns, *(ledger_row.c[name] for name in _BESIDE)).where(ledger_row.c.sequence >= sequence)
    found = await tx.rows(query.order_by(ledger_row.c.sequence).limit(most))
    return tuple(
        StoredRow(row.sequence, _bytes(row.entry), _bytes(row.sig), _bytes(row.entry_hash), tuple(row)[4:])
        for row in found
    )


def _bytes(value: Any) -> bytes:
    """SQLite lets a column hold anything. What is not bytes was not written here, and no signature fits nothing."""
    return value if isinstance(value, bytes) else b""


async def append(tx: Tx, rows: Sequence[SealedEntry], *, by: str) -> None:
    """Add rows behind the newest. Two writers of one place cannot both commit: a place is taken once."""
    values = [
        {
            **beside(row.entry),
            "sequence": row.entry.sequence,
            "entry": row.text,
            "sig": row.sig,
            "entry_hash": row.entry_hash,
            "recorded_by": by,
        }
        for row in rows
    ]
    await tx.execute(sa.insert(ledger_row), values)
