"""What is recorded for good, the databases themselves refuse to change: one suite on SQLite and on PostgreSQL."""

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from cohortium_audit.store import tables as audit
from cohortium_consent import store as consent
from cohortium_enrolment import store as enrolment
from cohortium_kit._engine import Dialect
from cohortium_kit.db import Database, Tx
from cohortium_kit.migrate import drop_schema, migrate

TABLES: dict[str, tuple[sa.Table, ...]] = {
    "cohortium_audit": (
        audit.leaf_table,
        audit.node_table,
        audit.checkpoint_table,
        audit.cosignature_table,
        audit.manifest_table,
    ),
    "cohortium_consent": (
        consent.manifest_table,
        consent.statement_table,
        consent.price_table,
        consent.metadata.tables["consent_record"],
        consent.metadata.tables["consent_act"],
    ),
    "cohortium_enrolment": (enrolment.manifest_table,),
}
VALUES: dict[type, Any] = {str: "x", int: 1, float: 1.0, bytes: b"x"}


def row_of(table: sa.Table) -> dict[str, Any]:
    return {column.name: VALUES[column.type.python_type] for column in table.columns}


async def fill(tx: Tx, package: str) -> None:
    for table in TABLES[package]:
        await tx.execute(sa.insert(table).values(row_of(table)))


@pytest.mark.parametrize("package", TABLES)
@pytest.mark.parametrize("server", ["sqlite", pytest.param("postgresql", marks=pytest.mark.real)])
async def test_a_recorded_row_is_neither_changed_nor_deleted(
    request: pytest.FixtureRequest, package: str, server: str, namespace: str, tmp_path: Path
) -> None:
    url = request.getfixturevalue("postgres_url") if server == "postgresql" else f"sqlite:///{tmp_path}/{{schema}}.db"
    records = Database(url, schema=namespace)
    try:
        await migrate(records, package)
        await records.run("fill", lambda tx: fill(tx, package))
        for table in TABLES[package]:
            await refuses_changes(records, table)
    finally:
        await drop_schema(records)
        await records.close()


async def refuses_changes(records: Database, table: sa.Table) -> None:
    last = table.columns.values()[-1].name
    tried: list[sa.Executable] = [sa.update(table).values({last: row_of(table)[last]}), sa.delete(table)]
    if records.dialect is Dialect.POSTGRESQL:
        tried.append(sa.text(f"TRUNCATE {table.name}"))
    for statement in tried:
        with pytest.raises(DBAPIError, match=f"{table.name} is append-only"):
            await records.run("tamper", lambda tx, statement=statement: tx.execute(statement))
    async with records.reading("look") as tx:
        assert [dict(row._mapping) for row in await tx.rows(sa.select(table))] == [row_of(table)]


@pytest.mark.real
async def test_a_dump_is_put_back_over_what_is_there(postgres_url: str, namespace: str, tmp_path: Path) -> None:
    """As the backup's runbook does it; what was put back is as final as before."""
    if shutil.which("pg_dump") is None or shutil.which("pg_restore") is None:
        pytest.skip("pg_dump and pg_restore are not installed; they come with postgresql-client")
    dump, records = tmp_path / "dump", Database(postgres_url, schema=namespace)
    try:
        await migrate(records, "cohortium_audit")
        await records.run("fill", lambda tx: fill(tx, "cohortium_audit"))
        for command in (
            ("pg_dump", "--format", "custom", "--schema", namespace, "--file", str(dump), postgres_url),
            ("pg_restore", "--clean", "--if-exists", "--dbname", postgres_url, str(dump)),
        ):
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
        with pytest.raises(DBAPIError, match="leaf is append-only"):
            await records.run("tamper", lambda tx: tx.execute(sa.delete(audit.leaf_table)))
        async with records.reading("look") as tx:
            assert await tx.scalar(sa.select(audit.checkpoint_table.c.note)) == "x"
    finally:
        await drop_schema(records)
        await records.close()


async def test_a_schema_that_was_dropped_can_be_made_again(tmp_path: Path) -> None:
    records = Database(f"sqlite:///{tmp_path}/{{schema}}.db", schema="again")
    await migrate(records, "cohortium_audit")
    await records.run("fill", lambda tx: fill(tx, "cohortium_audit"))
    await drop_schema(records)
    assert "cohortium_audit/0004_pre_append_only.sql" in await migrate(records, "cohortium_audit")
    await records.close()
