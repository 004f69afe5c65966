"""SQLite within the loop: who waits for the disk or for another process does not hold up the others."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from cohortium_kit._sqlite import LoopConnection
from cohortium_kit.db import Database


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(f"sqlite:///{tmp_path}/spool.db", schema="spool")
    async with made.transaction("make") as tx:
        await tx.execute(text("CREATE TABLE bed (number INTEGER PRIMARY KEY, ward TEXT)"))
    yield made
    await made.close()


async def beds(db: Database) -> list[tuple[int, str]]:
    async with db.reading("look") as tx:
        return [(row.number, row.ward) for row in await tx.rows(text("SELECT number, ward FROM bed ORDER BY number"))]


async def test_loop_turns_while_another_process_writes(db: Database, tmp_path: Path) -> None:
    with sqlite3.connect(f"{tmp_path}/spool.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO bed VALUES (1, 'other')")

        async def write() -> None:
            async with db.transaction("write") as tx:
                await tx.execute(text("INSERT INTO bed VALUES (2, 'ours')"))

        writing = asyncio.create_task(write())
        turns = 0
        for _ in range(20):
            await asyncio.sleep(0.005)
            turns += 1
        assert not writing.done()
        other.execute("COMMIT")
    await asyncio.wait_for(writing, 5)
    assert turns == 20
    assert await beds(db) == [(1, "other"), (2, "ours")]


async def test_commit_waits_for_the_disk_in_a_thread(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    held, threads = threading.Event(), []
    real = sqlite3.Connection.commit

    async with db.transaction("write") as tx:
        await tx.execute(text("INSERT INTO bed VALUES (1, 'a')"))
        raw = tx._lent.raw
        assert isinstance(raw, LoopConnection)

        def slow() -> None:
            threads.append(threading.current_thread())
            assert held.wait(10)
            real(raw)

        monkeypatch.setattr("cohortium_kit._sqlite.LoopConnection._save", lambda _: slow())
        asyncio.get_running_loop().call_later(0.05, held.set)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
    assert await beds(db) == [(1, "a")]


async def test_who_is_cancelled_at_the_commit_leaves_a_whole_connection(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(self: LoopConnection) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(10)
        sqlite3.Connection.commit(self)

    async def write(number: int) -> None:
        async with db.transaction("write") as tx:
            await tx.execute(text(f"INSERT INTO bed VALUES ({number}, 'a')"))  # noqa: S608 - a number

    with monkeypatch.context() as patched:
        patched.setattr(LoopConnection, "_save", slow)
        writing = asyncio.create_task(write(1))
        await begun.wait()
        writing.cancel()
        await asyncio.sleep(0.02)
        assert not writing.done()  # the commit is under way: nobody else may have the connection
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await writing
    await asyncio.wait_for(write(2), 5)
    assert await beds(db) == [(1, "a"), (2, "a")]


async def test_reading_and_empty_transactions_use_no_thread(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: LoopConnection) -> None:
        raise AssertionError("a thread for nothing")

    monkeypatch.setattr(LoopConnection, "_save", never)
    assert await beds(db) == []
    async with db.transaction("nothing to write") as tx:
        assert await tx.scalar(text("SELECT count(*) FROM bed")) == 0
