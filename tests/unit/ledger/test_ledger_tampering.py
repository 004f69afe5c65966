"""How changed, missing and restored rows are found, and what a ledger does that was rolled back or has a neighbour."""

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from ledger_stage import (
    ORDER,
    Q1,
    Q2,
    Hospital,
    commit,
    part_of,
    plan_of,
    reserve,
    run_id,
    window,
)

from cohortium_connector.ledger.errors import LedgerBroken
from cohortium_connector.ledger.service import Committed, Reserved
from cohortium_connector.ledger.tables import ledger_row
from cohortium_kit.db import Tx
from cohortium_privacy.filter import budget
from cohortium_privacy.ledger_plan import Exhausted

B = budget(3.0, 1e-5, ORDER)


async def with_rows(hospital: Hospital) -> None:
    await reserve(hospital, plan_of(1, part_of(0.1, 5)))
    for number in (1, 2, 3):
        await commit(hospital, 1, window(number))
    await hospital.ledger.note_head(hospital.db)


def tamper(file: Path, *statements_: str) -> None:
    """As somebody with the database file would: without the triggers."""
    with sqlite3.connect(file) as connection:
        for trigger in ("ledger_row_is_final", "ledger_row_stays"):
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        for statement in statements_:
            assert connection.execute(statement).rowcount != 0
    connection.close()


CHANGES = {
    "a price": "UPDATE ledger_row SET entry = CAST(replace(entry, '0.1', '0.0') AS BLOB) WHERE sequence = 4",
    "the kind of a value": "UPDATE ledger_row SET entry = CAST(entry AS TEXT) WHERE sequence = 4",
    "a signature": "UPDATE ledger_row SET sig = zeroblob(64) WHERE sequence = 3",
    "a hash": "UPDATE ledger_row SET entry_hash = zeroblob(32) WHERE sequence = 3",
    "a column beside": "UPDATE ledger_row SET first_step = 9 WHERE sequence = 4",
    "the state beside": "UPDATE ledger_row SET state = 'RELEASED_BACK' WHERE sequence = 4",
    "a row in the middle": "DELETE FROM ledger_row WHERE sequence = 3",
    "the first row": "DELETE FROM ledger_row WHERE sequence = 1",
    "the last row": "DELETE FROM ledger_row WHERE sequence = 5",
    "every row": "DELETE FROM ledger_row",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_changed_ledger_stops_at_the_start(hospital: Hospital, change: str) -> None:
    await with_rows(hospital)
    await hospital.stop()
    tamper(hospital.file, CHANGES[change])
    await hospital.connect()
    with pytest.raises(LedgerBroken, match=r"privacy ledger (was changed|ends at)"):
        await hospital.ledger.open(hospital.db)
    with pytest.raises(LedgerBroken):
        await reserve(hospital, plan_of(2, part_of(0.1, 1)))
    with pytest.raises(LedgerBroken):
        await commit(hospital, 1, window(9))


async def test_the_database_itself_keeps_rows_as_they_are(hospital: Hospital) -> None:
    await with_rows(hospital)

    async def change(tx: Tx) -> None:
        await tx.execute(sa.update(ledger_row).values(steps=1))

    async def delete(tx: Tx) -> None:
        await tx.execute(sa.delete(ledger_row))

    for work in (change, delete):
        with pytest.raises(sa.exc.IntegrityError, match="append-only"):
            await hospital.db.run("forbidden", work)


async def test_the_database_itself_refuses_a_second_row_for_the_same_steps(hospital: Hospital) -> None:
    await with_rows(hospital)
    columns = [column.name for column in ledger_row.columns]

    async def double(tx: Tx) -> None:
        row = await tx.row(sa.select(ledger_row).where(ledger_row.c.sequence == 4))
        assert row is not None
        values = {**dict(zip(columns, row, strict=True)), "sequence": 6, "entry_hash": bytes(32)}
        await tx.execute(sa.insert(ledger_row).values(values))

    with pytest.raises(sa.exc.IntegrityError, match="UNIQUE"):
        await hospital.db.run("double", double)


async def test_a_restored_copy_is_not_believed_until_it_is_written_off(hospital: Hospital) -> None:
    await reserve(hospital, plan_of(1, part_of(0.1, 5)))
    await hospital.ledger.note_head(hospital.db)
    await hospital.stop()
    with sqlite3.connect(hospital.file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    copy = hospital.file.read_bytes()
    await hospital.start()
    await commit(hospital, 1, window(1))
    await reserve(hospital, plan_of(2, part_of(0.5, 1)))
    await hospital.ledger.note_head(hospital.db)
    await hospital.stop()
    for file in hospital.folder.glob("spool.db*"):
        file.unlink()
    hospital.file.write_bytes(copy)
    await hospital.connect()
    with pytest.raises(LedgerBroken, match="older copy"):
        await hospital.ledger.open(hospital.db)
    await hospital.ledger.write_off(hospital.db, Q1)
    again = await hospital.restart()
    refused = await reserve(again, plan_of(3, part_of(0.1, 1)))
    assert isinstance(refused, Exhausted)
    assert refused.code == "LEDGER_FROZEN"
    assert isinstance(await reserve(again, plan_of(3, part_of(0.1, 1), blocks=(Q2,))), Reserved)
    await again.stop()


async def test_a_damaged_anchor_stops_the_ledger(hospital: Hospital) -> None:
    await with_rows(hospital)
    (hospital.folder / "ledger.head").write_text("{")
    await hospital.stop()
    await hospital.connect()
    with pytest.raises(LedgerBroken, match="damaged"):
        await hospital.ledger.open(hospital.db)


async def test_rows_that_were_rolled_back_leave_no_trace(hospital: Hospital) -> None:
    await reserve(hospital, plan_of(1, part_of(0.1, 5)))

    async def fails(tx: Tx) -> None:
        await hospital.ledger.commit(tx, run_id(1), "training", window(1))
        await hospital.ledger.commit(tx, run_id(1), "training", window(2))
        raise RuntimeError("after the ledger, before the commit")

    before = await hospital.state()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            await hospital.db.run("fails", fails)
        assert await hospital.state() == before
    assert await commit(hospital, 1, window(3)) == Committed(run_id(1), "training", 4)


async def test_two_processes_on_one_spool_see_each_others_rows(hospital: Hospital) -> None:
    other = Hospital(hospital.folder)
    await other.start()
    await reserve(hospital, plan_of(1, part_of(0.6 * B, 1)))
    assert isinstance(await reserve(other, plan_of(2, part_of(0.6 * B, 1))), Exhausted)
    await reserve(other, plan_of(3, part_of(0.4 * B, 1)))
    assert isinstance(await reserve(hospital, plan_of(4, part_of(0.1 * B, 1))), Exhausted)
    await other.stop()
