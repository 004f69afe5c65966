# ruff: noqa: PT012 - a transaction is a block, and it is the block that fails
"""What the database promises: one suite on SQLite and on PostgreSQL."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    LargeBinary,
    MetaData,
    Table,
    Text,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from structlog.testing import capture_logs

from cohortium_kit import leases
from cohortium_kit import migrate as migrations
from cohortium_kit.clock import SystemClock
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import ConfigurationError, DatabaseUnavailable, MigrationRefused, TransactionConflict
from cohortium_kit.inbox import first_time, prune
from cohortium_kit.migrate import check_schema, drop_schema, migrate
from cohortium_kit.tables import inbox, outbox

from .conftest import database, letter

KIT_MIGRATIONS = [
    f"cohortium_kit/{name}.sql"
    for name in ("0001_pre_outbox", "0002_pre_probe", "0003_pre_event_chain", "0004_pre_mark")
]

SAMPLE = f"{__package__}.sample_service"
metadata = MetaData()
ward = Table(
    "ward",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("name", Text, nullable=False),
    Column("beds", BigInteger, nullable=False),
    Column("load", Float),
    Column("open", Boolean, nullable=False),
    Column("badge", LargeBinary),
    Column("note", Text),
)
NOW = SystemClock().now()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.real)])
async def fresh(request: pytest.FixtureRequest, namespace: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with database(request, namespace, tmp_path) as made:
        yield made


@pytest.fixture
async def wards(db: Database) -> Database:
    await migrate(db, SAMPLE)
    return db


async def add(tx: Tx, name: str, beds: int = 1, **more: Any) -> None:
    await tx.execute(insert(ward).values(name=name, beds=beds, open=True, **more))


async def names(db: Database) -> list[str]:
    async with db.reading("names") as tx:
        return [row.name for row in await tx.rows(select(ward.c.name).order_by(ward.c.id))]


async def test_migrate_twice_is_once(fresh: Database) -> None:
    applied = await migrate(fresh, SAMPLE)
    assert applied == [
        *KIT_MIGRATIONS,
        f"{SAMPLE}/0001_pre_ward.sql",
        f"{SAMPLE}/0002_post_ward_note.sql",
    ]
    assert await migrate(fresh, SAMPLE) == []


async def test_two_migrators_at_once_apply_each_migration_once(fresh: Database) -> None:
    results = await asyncio.gather(migrate(fresh, SAMPLE), migrate(fresh, SAMPLE))
    assert sorted(len(result) for result in results) == [0, len(KIT_MIGRATIONS) + 2]


async def test_migrated_tables_are_the_codes_tables(wards: Database) -> None:
    assert await check_schema(wards, metadata) == []


async def test_differences_between_code_and_tables_are_told(wards: Database) -> None:
    other = MetaData()
    Table("ward", other, Column("id", BigInteger, primary_key=True), Column("beds", Text), Column("extra", Text))
    Table("absent", other, Column("id", BigInteger, primary_key=True))
    told = await check_schema(wards, other)
    assert any(line.startswith("table absent: in the code") for line in told)
    assert any(line.startswith("column ward.beds: code says str null") for line in told)
    assert any(line.startswith("column ward.name: code says none") for line in told)
    assert any(line.startswith("column ward.extra") for line in told)
    assert any(line.startswith("table ward: migrated") for line in await check_schema(wards))


async def test_edited_migration_is_refused(fresh: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await migrate(fresh, SAMPLE)
    genuine = migrations.migrations_of

    def edited(package: str) -> list[migrations.Migration]:
        return [replace(one, sql=one.sql + "-- later thought\n") for one in genuine(package)]

    monkeypatch.setattr(migrations, "migrations_of", edited)
    with pytest.raises(MigrationRefused):
        await migrate(fresh, SAMPLE)


async def test_failing_migration_leaves_nothing_behind(fresh: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = migrations.migrations_of

    def broken(package: str) -> list[migrations.Migration]:
        bad = migrations.Migration(package, "0009_pre_bad.sql", "CREATE TABEL oops (id TEXT);\n")
        return [*genuine(package), bad]

    monkeypatch.setattr(migrations, "migrations_of", broken)
    with pytest.raises(Exception, match="syntax"):
        await migrate(fresh)
    monkeypatch.undo()
    assert await migrate(fresh) == KIT_MIGRATIONS


async def test_dropped_schema_can_be_migrated_again(fresh: Database) -> None:
    await migrate(fresh, SAMPLE)
    await drop_schema(fresh)
    assert len(await migrate(fresh, SAMPLE)) == len(KIT_MIGRATIONS) + 2


async def test_values_come_back_as_they_went(wards: Database) -> None:
    async with wards.transaction("add") as tx:
        await add(tx, "icu", beds=2**53 + 1, load=0.1, badge=b"\x00\xff")
    async with wards.reading("look") as tx:
        row = await tx.row(select(ward))
    assert row is not None
    assert (row.id, row.beds, row.load, row.open, row.badge, row.note) == (1, 2**53 + 1, 0.1, True, b"\x00\xff", None)


async def test_exception_rolls_back_state_and_messages(wards: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with wards.transaction("fail") as tx:
            await add(tx, "icu")
            await tx.send(letter("services", "audit"))
            raise ZeroDivisionError
    async with wards.reading("look") as tx:
        assert await tx.scalar(select(func.count()).select_from(outbox)) == 0
    assert await names(wards) == []
    assert not wards.message_waits.is_set()


async def test_commit_keeps_state_and_messages_and_wakes_the_relay(wards: Database) -> None:
    async with wards.transaction("work") as tx:
        await add(tx, "icu")
        await tx.send(letter("services", "audit"))
        await tx.send(letter("services", "audit"))
    async with wards.reading("look") as tx:
        assert await tx.scalar(select(func.count()).select_from(outbox)) == 2
    assert wards.message_waits.is_set()


async def test_reader_does_not_wait_for_a_writer_and_sees_a_whole_state(wards: Database) -> None:
    async with wards.transaction("write") as tx:
        await add(tx, "icu")
        assert await asyncio.wait_for(names(wards), 5) == []
    assert await names(wards) == ["icu"]


async def test_a_glance_sees_what_is_committed_when_each_statement_runs(wards: Database) -> None:
    async with wards.glance("look") as tx:
        assert await tx.scalar(select(func.count()).select_from(ward)) == 0
    async with wards.transaction("write") as tx:
        await add(tx, "icu")
        async with wards.glance("look") as other:
            assert await other.scalar(select(func.count()).select_from(ward)) == 0
    async with wards.glance("look") as tx:
        assert await tx.scalar(select(ward.c.name)) == "icu"
    # The connection goes back as it came: the next one who gets it has a transaction.
    with contextlib.suppress(ZeroDivisionError):
        async with wards.transaction("fail") as tx:
            await add(tx, "ward 2")
            raise ZeroDivisionError
    assert await names(wards) == ["icu"]


async def test_what_a_reader_writes_is_lost_or_refused(wards: Database) -> None:
    with contextlib.suppress(DBAPIError):
        async with wards.reading("naughty") as tx:
            await add(tx, "icu")
    assert await names(wards) == []


async def test_counter_raised_by_many_at_once_loses_nothing(wards: Database) -> None:
    async with wards.transaction("add") as tx:
        await add(tx, "icu", beds=0)

    async def raise_it(tx: Tx) -> None:
        beds = await tx.scalar(select(ward.c.beds))
        await asyncio.sleep(0)
        await tx.execute(update(ward).values(beds=beds + 1))

    await asyncio.gather(*[wards.run("raise", raise_it) for _ in range(6)])
    async with wards.reading("look") as tx:
        assert await tx.scalar(select(ward.c.beds)) == 6


async def test_busy_file_is_a_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohortium_kit._engine.BUSY_S", 0.1)
    one, other = (Database(f"sqlite:///{tmp_path}/same.db", schema="s") for _ in range(2))
    await migrate(one, SAMPLE)
    async with one.transaction("hold"):
        with pytest.raises(TransactionConflict):
            async with other.transaction("meet"):
                pass
    await one.close()
    await other.close()


async def test_conflict_is_a_retryable_error_and_run_is_bounded(wards: Database) -> None:
    calls = 0

    async def always(tx: Tx) -> None:
        nonlocal calls
        calls += 1
        raise TransactionConflict("again")

    with pytest.raises(TransactionConflict):
        await wards.run("always", always)
    assert 1 < calls <= 10


async def test_broken_rule_of_a_table_passes_as_it_is(wards: Database) -> None:
    with pytest.raises(IntegrityError):
        async with wards.transaction("twice") as tx:
            await add(tx, "icu")
            await add(tx, "icu")


async def test_error_of_the_block_is_not_taken_for_the_databases(wards: Database) -> None:
    with pytest.raises(FileNotFoundError):
        async with wards.transaction("file"):
            raise FileNotFoundError("not the database")


async def test_cancelled_transaction_leaves_nothing(wards: Database) -> None:
    begun = asyncio.Event()

    async def slow() -> None:
        async with wards.transaction("slow") as tx:
            await add(tx, "icu")
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(slow())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await names(wards) == []
    async with wards.transaction("next") as tx:
        await add(tx, "next")


async def test_transaction_inside_another_is_refused(wards: Database) -> None:
    async with wards.transaction("outer") as tx:
        await add(tx, "icu")
        with pytest.raises(RuntimeError, match="pass the Tx on"):
            async with wards.transaction("inner"):
                pass
    assert await names(wards) == ["icu"]


async def test_unreachable_database_is_said_so() -> None:
    db = Database("postgresql://postgres@127.0.0.1:9/postgres", schema="nowhere")
    with pytest.raises(DatabaseUnavailable):
        await db.ping()
    await db.close()


@pytest.mark.real
async def test_a_connection_that_came_back_in_a_transaction_is_not_used_again(
    postgres_url: str, namespace: str
) -> None:
    """Seen where the database stood still on a busy machine: `current transaction is aborted` ended a service."""
    db = Database(postgres_url, schema=namespace)
    await migrate(db, SAMPLE)
    async with db.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        assert raw.driver_connection is not None
        await raw.driver_connection.execute("BEGIN")
    kept = [f"kept-{number}" for number in range(8)]
    for name in kept:  # as often as there are connections: the pool gives them out in turn
        async with db.transaction("use") as tx:
            await add(tx, name)
    assert sorted(await names(db)) == kept
    await drop_schema(db)
    await db.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://host/db"])
def test_unsupported_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Database(url, schema="s")


def test_schema_name_is_plain() -> None:
    with pytest.raises(ConfigurationError):
        Database("sqlite:////tmp/x.db", schema='x"; drop')


async def test_inbox_knows_a_message_only_after_the_commit(db: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db.transaction("fails") as tx:
            assert await first_time(tx, "scheduler", "m1")
            raise ZeroDivisionError
    async with db.transaction("works") as tx:
        assert await first_time(tx, "scheduler", "m1")
        assert not await first_time(tx, "scheduler", "m1")
    async with db.transaction("again") as tx:
        assert not await first_time(tx, "scheduler", "m1")
        assert await first_time(tx, "aggregator", "m1")


async def test_inbox_lets_one_of_two_rivals_through(db: Database) -> None:
    results = await asyncio.gather(*[db.run("rival", lambda tx: first_time(tx, "scheduler", "m1")) for _ in range(4)])
    assert sorted(results) == [False, False, False, True]


async def test_inbox_forgets_only_the_old(db: Database) -> None:
    async with db.transaction("old") as tx:
        await first_time(tx, "scheduler", "old")
        await tx.execute(update(inbox).values(received_at=inbox.c.received_at - 100))
        await first_time(tx, "scheduler", "new")
        assert await prune(tx, keep_s=50) == 1
        assert not await first_time(tx, "scheduler", "new")


async def test_lease_has_one_holder_until_its_end(db: Database) -> None:
    async with db.transaction("lease") as tx:
        mine = await leases.acquire(tx, "tick", "a", NOW, 10)
        assert mine is not None
        assert mine.epoch == 1
        assert await leases.acquire(tx, "tick", "b", NOW + timedelta(seconds=9.9), 10) is None
        taken = await leases.acquire(tx, "tick", "b", NOW + timedelta(seconds=10), 10)
        assert taken is not None
        assert taken.epoch == 2
        assert await leases.renew(tx, mine, NOW, 10) is None


async def test_renewed_lease_lasts_and_released_one_is_free_with_a_new_epoch(db: Database) -> None:
    async with db.transaction("lease") as tx:
        mine = await leases.acquire(tx, "tick", "a", NOW, 10)
        assert mine is not None
        later = await leases.renew(tx, mine, NOW + timedelta(seconds=5), 10)
        assert later is not None
        assert later.expires_at == NOW + timedelta(seconds=15)
        assert await leases.acquire(tx, "tick", "b", NOW + timedelta(seconds=12), 10) is None
        await leases.release(tx, later)
        await leases.release(tx, later)
        other = await leases.acquire(tx, "tick", "b", NOW, 10)
        assert other is not None
        assert other.epoch == 2


async def test_restarted_holder_gets_its_lease_back_in_a_new_epoch(db: Database) -> None:
    async with db.transaction("lease") as tx:
        before = await leases.acquire(tx, "tick", "a", NOW, 10)
        after = await leases.acquire(tx, "tick", "a", NOW, 10)
        assert before is not None
        assert after is not None
        assert (after.epoch, await leases.renew(tx, before, NOW, 10)) == (2, None)


async def test_a_lease_of_a_clock_that_was_an_hour_ahead_holds_nobody_off_and_the_log_says_so(db: Database) -> None:
    with capture_logs() as logs:
        async with db.transaction("lease") as tx:
            wrong = await leases.acquire(tx, "tick", "a", NOW + timedelta(hours=1), 10)
            assert wrong is not None
            right = await leases.acquire(tx, "tick", "b", NOW, 10)
            assert right is not None
            assert (right.epoch, await leases.renew(tx, wrong, NOW, 10)) == (2, None)
    (warned,) = [line for line in logs if line["event"] == "lease_taken_from_clock_ahead"]
    assert (warned["log_level"], warned["lease"], warned["holder"]) == ("warning", "tick", "b")
    assert (warned["taken_from"], warned["ahead_s"]) == ("a", 3600)


async def test_clocks_that_differ_a_little_leave_a_lease_with_its_holder(db: Database) -> None:
    with capture_logs() as logs:
        async with db.transaction("lease") as tx:
            assert await leases.acquire(tx, "tick", "a", NOW + timedelta(seconds=59), 10) is not None
            assert await leases.acquire(tx, "tick", "b", NOW, 10) is None
    assert not [line for line in logs if line["event"] == "lease_taken_from_clock_ahead"]


async def test_of_many_rivals_one_gets_the_lease(db: Database) -> None:
    results = await asyncio.gather(
        *[db.run("rival", lambda tx, who=who: leases.acquire(tx, "tick", who, NOW, 10)) for who in "abcd"]
    )
    assert sum(result is not None for result in results) == 1
