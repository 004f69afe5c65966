"""Numbered migrations, and the check that they and the code mean the same tables.

A migration is `migrations/0001_pre_name.sql` in a package: `pre` may run while the version before still serves,
`post` only after it is gone. One text serves both databases: `{{identity}}` is a key that counts itself, and a
statement that begins with `{{postgresql}}` or `{{sqlite}}` is for that one alone. A statement ends with `;` at the end
of a line. Applied text never changes: its SHA-256 is kept, and an edited file is refused.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import structlog
from sqlalchemy import Column, Connection, Float, LargeBinary, MetaData, Table, Text, insert, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from cohortium_kit._engine import Dialect, translated
from cohortium_kit.db import Database
from cohortium_kit.errors import ConfigurationError, MigrationRefused
from cohortium_kit.tables import kit_metadata

log = structlog.get_logger(__name__)

_NAME = re.compile(r"^(\d{4})_(pre|post)_[a-z0-9_]+\.sql$")
_ONLY = re.compile(r"^\{\{(postgresql|sqlite)\}\}\s*")
_STATEMENT_END = re.compile(r";[ \t]*(?:--[^\n]*)?$", re.MULTILINE)

migration_metadata = MetaData()
schema_migration = Table(
    "schema_migration",
    migration_metadata,
    Column("package", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("sha256", Text, nullable=False),
    Column("applied_at", Float, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Migration:
    package: str
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    def statements(self, dialect: Dialect) -> list[str]:
        """The single statements, for a driver that takes one at a time."""
        whole = self.sql.replace("{{identity}}", dialect.identity)
        lines = [line for line in whole.splitlines() if not line.lstrip().startswith("--")]
        parts = (part.strip() for part in _STATEMENT_END.split("\n".join(lines)))
        return [_ONLY.sub("", part) for part in parts if part and _is_for(part, dialect)]


def _is_for(statement: str, dialect: Dialect) -> bool:
    only = _ONLY.match(statement)
    return only is None or only[1] == dialect.value


def migrations_of(package: str) -> list[Migration]:
    """The package's migrations in their order; raises `ConfigurationError` for a bad name or a number used twice."""
    folder = resources.files(package) / "migrations"
    files = sorted(_sql_files(folder), key=lambda item: item.name)
    bad = [item.name for item in files if not _NAME.match(item.name)]
    numbers = [item.name[:4] for item in files]
    if bad or len(set(numbers)) != len(numbers):
        named = ", ".join(bad) or ", ".join(sorted({n for n in numbers if numbers.count(n) > 1}))
        raise ConfigurationError(f"{package}: migrations {named}: name them 0001_pre_name.sql, each number once")
    return [Migration(package, item.name, item.read_text("utf-8")) for item in files]


async def migrate(db: Database, *packages: str) -> list[str]:
    """Apply what is missing, the kit's own first, all of it in one transaction; returns what was applied.

    Safe to run from several processes at once, and twice is once. Raises `MigrationRefused` for an edited migration.
    """
    wanted = [item for package in ("cohortium_kit", *packages) for item in migrations_of(package)]
    with translated("migrate"):
        async with db.engine.connect() as connection:
            # A lock, not a snapshot, orders concurrent migrators; a serializable one would fail behind the other.
            if db.dialect is Dialect.POSTGRESQL:
                await connection.execution_options(isolation_level="READ COMMITTED")
            await connection.begin()
            await _prepare(connection, db)
            applied = await _apply(connection, db, wanted)
            await connection.commit()
    for name in applied:
        log.info("migration_applied", schema=db.schema, name=name)
    return applied


async def _prepare(connection: AsyncConnection, db: Database) -> None:
    if db.dialect is Dialect.POSTGRESQL:
        await connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"cohortium:{db.schema}"}
        )
        await connection.exec_driver_sql(f'CREATE SCHEMA IF NOT EXISTS "{db.schema}"')
    await connection.run_sync(migration_metadata.create_all)


async def _apply(connection: AsyncConnection, db: Database, wanted: Sequence[Migration]) -> list[str]:
    query = select(schema_migration.c.package, schema_migration.c.name, schema_migration.c.sha256)
    done = {(row.package, row.name): row.sha256 for row in await connection.execute(query)}
    applied = []
    for item in wanted:
        known = done.get((item.package, item.name))
        if known is not None and known != item.sha256:
            raise MigrationRefused(f"{item.package}/{item.name} was edited after it ran: restore it, add a new one")
        if known is None:
            for statement in item.statements(db.dialect):
                await connection.exec_driver_sql(statement)
            row = {
                "package": item.package,
                "name": item.name,
                "sha256": item.sha256,
                "applied_at": db.clock.now().timestamp(),
            }
            await connection.execute(insert(schema_migration), row)
            applied.append(f"{item.package}/{item.name}")
    return applied


async def pending(db: Database, *packages: str) -> list[str]:
    """Migrations that `migrate` would apply now, without applying them."""
    wanted = [item for package in ("cohortium_kit", *packages) for item in migrations_of(package)]
    with translated("pending_migrations"):
        async with db.engine.connect() as connection:
            if not await connection.run_sync(lambda sync: inspect(sync).has_table(schema_migration.name)):
                return [f"{item.package}/{item.name}" for item in wanted]
            done = {(row.package, row.name) for row in await connection.execute(select(schema_migration))}
    return [f"{item.package}/{item.name}" for item in wanted if (item.package, item.name) not in done]


async def check_schema(db: Database, *metadatas: MetaData) -> list[str]:
    """Differences between the migrated database and the code's tables, the kit's included; none is an empty list.

    Compares both ways: tables, columns, kinds of type, nullability, primary keys.
    """
    async with db.engine.connect() as connection:
        return await connection.run_sync(_differences, [kit_metadata, migration_metadata, *metadatas])


async def drop_schema(db: Database) -> None:
    """Delete every table of this service with all that is in it: for tests and simulations."""
    with translated("drop_schema"):
        async with db.engine.begin() as connection:
            if db.dialect is Dialect.POSTGRESQL:
                await connection.exec_driver_sql(f'DROP SCHEMA IF EXISTS "{db.schema}" CASCADE')
                return
            tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
            await connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
            for table in tables:
                await connection.exec_driver_sql(f'DROP TABLE "{table}"')


def _differences(connection: Connection, metadatas: Sequence[MetaData]) -> list[str]:
    inspector = inspect(connection)
    wanted = {table.name: table for metadata in metadatas for table in metadata.tables.values()}
    present = set(inspector.get_table_names())
    found = [f"table {name}: in the code, not migrated" for name in sorted(wanted.keys() - present)]
    found += [f"table {name}: migrated, not in the code" for name in sorted(present - wanted.keys())]
    for name in sorted(wanted.keys() & present):
        keys = set(inspector.get_pk_constraint(name)["constrained_columns"])
        migrated = {column["name"]: _shape(column, keys) for column in inspector.get_columns(name)}
        coded = {column.name: _coded_shape(column) for column in wanted[name].columns}
        found += [
            f"column {name}.{column}: code says {coded.get(column, 'none')}, migrated is {migrated.get(column, 'none')}"
            for column in sorted(coded.keys() | migrated.keys())
            if coded.get(column) != migrated.get(column)
        ]
    return found


def _shape(column: Any, keys: Iterable[str]) -> str:
    # SQLite calls the columns of a primary key nullable unless told otherwise; they are not, by our reading.
    key = column["name"] in keys
    return _describe(column["type"], nullable=column["nullable"] and not key, key=key)


def _coded_shape(column: Column[Any]) -> str:
    return _describe(column.type, nullable=bool(column.nullable), key=column.primary_key)


def _describe(kind: Any, *, nullable: bool, key: bool) -> str:
    # SQLite has no BYTEA and tells of it as NUMERIC, a type that our tables do not use.
    if isinstance(kind, LargeBinary) or str(kind) in ("BYTEA", "NUMERIC"):
        name = "bytes"
    else:
        try:
            name = kind.python_type.__name__
        except NotImplementedError:
            name = str(kind)
    return f"{name}{' null' if nullable else ''}{' key' if key else ''}"


def _sql_files(folder: Traversable) -> list[Traversable]:
    if not folder.is_dir():
        return []
    return [item for item in folder.iterdir() if item.name.endswith(".sql")]
