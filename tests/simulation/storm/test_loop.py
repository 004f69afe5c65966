"""The ground under a storm: time that jumps, deaths that run no further line, records that keep what was committed."""

import asyncio
import gc
import sqlite3
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from cohortium_kit.db import Database
from cohortium_sim.storm.flocks import locks_of_the_living
from cohortium_sim.storm.loop import Life, Stuck, buried, never, virtual_loop
from cohortium_sim.storm.sqlite import Store, sqlite_of_lives


async def no_point(_: str) -> None:
    return


def test_a_year_takes_no_time() -> None:
    begun = time.perf_counter()
    with virtual_loop(no_point) as loop:
        loop.run_until_complete(asyncio.sleep(365 * 86400))
        assert loop.time() == 365 * 86400
    assert time.perf_counter() - begun < 60


def test_timers_go_off_in_their_order() -> None:
    heard: list[str] = []

    async def say(after_s: float, word: str) -> None:
        await asyncio.sleep(after_s)
        heard.append(word)

    async def all_of_them() -> None:
        await asyncio.gather(say(3, "c"), say(1, "a"), say(2, "b"))

    with virtual_loop(no_point) as loop:
        loop.run_until_complete(all_of_them())
    assert heard == ["a", "b", "c"]


def test_waiting_for_nothing_is_an_error() -> None:
    with buried(), virtual_loop(no_point) as loop, pytest.raises(Stuck):
        loop.run_until_complete(never())


def test_a_death_runs_no_finally() -> None:
    ran: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(1)
            ran.append("work")
        finally:
            ran.append("finally")

    async def course() -> None:
        life = Life("part")
        life.spawn(work())
        life.spawn(work())
        await asyncio.sleep(0.5)
        life.end()
        await asyncio.sleep(10)

    with buried(), virtual_loop(no_point) as loop:
        loop.run_until_complete(course())
        assert ran == []


def test_a_death_runs_no_finally_when_the_collector_comes_by() -> None:
    """Seed 1052: nothing knew of a life whose part had begun another one."""
    ran: list[str] = []

    async def work() -> None:
        try:
            await never()
        finally:
            ran.append("finally")

    async def course() -> None:
        life = Life("part")
        life.spawn(work())
        await asyncio.sleep(0.5)
        life.end()
        del life
        gc.collect()
        await asyncio.sleep(10)

    with buried(), virtual_loop(no_point) as loop:
        loop.run_until_complete(course())
        assert (ran, loop.unhandled) == ([], [])


def test_what_a_task_begins_dies_with_it() -> None:
    ran: list[str] = []

    async def child() -> None:
        await asyncio.sleep(1)
        ran.append("child")

    async def parent() -> None:
        await asyncio.gather(child(), asyncio.to_thread(lambda: None))
        ran.append("parent")

    async def course() -> None:
        life = Life("part")
        life.spawn(parent())
        await asyncio.sleep(0.5)
        life.end()
        await asyncio.sleep(10)

    with buried(), virtual_loop(no_point) as loop:
        loop.run_until_complete(course())
    assert ran == []


@pytest.mark.parametrize(("point", "kept"), [("commit", 0), ("committed", 1)])
def test_a_death_at_the_commit_keeps_what_was_committed(tmp_path: Path, point: str, kept: int) -> None:
    life: Life

    async def reached(passed: str) -> None:
        if passed == point:
            life.end()
            store.lose(life)
            await never()

    async def write(db: Database) -> None:
        async with db.transaction("write") as tx:
            await tx.execute(text("INSERT INTO note VALUES (1)"))

    async def course() -> None:
        nonlocal life
        life = Life("part")
        life.spawn(write(Database(f"sqlite:///{tmp_path}/part.db", schema="part")))
        await asyncio.sleep(5)

    with sqlite3.connect(tmp_path / "part.db") as raw:
        raw.execute("CREATE TABLE note (value INTEGER)")
    raw.close()
    store = Store(reached)
    with buried(), virtual_loop(reached) as loop, sqlite_of_lives(store):
        loop.run_until_complete(course())
        assert life.dead
    raw = sqlite3.connect(tmp_path / "part.db")
    assert raw.execute("SELECT count(*) FROM note").fetchone() == (kept,)
    raw.close()


def test_a_dead_part_holds_no_lock(tmp_path: Path) -> None:
    import fcntl

    async def hold() -> None:
        with (tmp_path / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            await asyncio.sleep(100)

    async def course() -> None:
        life = Life("first")
        life.spawn(hold())
        await asyncio.sleep(1)
        with (tmp_path / "lock").open("w") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        life.end()
        with (tmp_path / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with buried(), virtual_loop(no_point) as loop, locks_of_the_living():
        loop.run_until_complete(course())
