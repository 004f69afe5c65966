"""SQLite within the event loop: statements run where they are, only a commit that wrote goes to a thread.

A statement on a file of ours takes some ten microseconds; handing it to a thread and back, as aiosqlite does, takes
ten times as long, and waits for the interpreter's lock behind every computation. What may take long is not the
statement but the disk at the commit, and another process that is writing: the one is waited for in a thread, the other
is asked again.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import URL
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool
from sqlalchemy.util import await_

BLOCKED_S = 0.01
"""How long a statement may hold up the loop for another process' lock, before it is put off."""
AGAIN_S = 0.01
"""Between two attempts to begin."""


class LoopCursor(sqlite3.Cursor):
    """A cursor whose rows are read at once: no statement stays open when its transaction ends."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self._rows: deque[Any] = deque()

    def execute(self, *args: Any) -> "LoopCursor":
        # SQLAlchemy checks that an asynchronous driver awaits something at each statement.
        await_(_nothing())
        super().execute(*args)
        self._rows = deque(super().fetchall() if self.description else ())
        return self

    def executemany(self, *args: Any) -> "LoopCursor":
        await_(_nothing())
        super().executemany(*args)
        return self

    def fetchone(self) -> Any:
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = 1) -> list[Any]:
        return [self._rows.popleft() for _ in range(min(size or 1, len(self._rows)))]

    def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, deque()
        return list(rows)

    async def _async_soft_close(self) -> None:
        """SQLAlchemy asks each asynchronous cursor for it."""


async def _nothing() -> None:
    """Over at once: the loop does not turn."""


async def _to_its_end(work: Callable[[], None]) -> None:
    """Run in a thread. Who is cancelled meanwhile still waits: nobody else may use the connection before."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise


class LoopConnection(sqlite3.Connection):
    """A connection that is used by one task after the other, on the loop's thread."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._changes = 0

    def cursor(self, factory: Any = LoopCursor) -> Any:
        return super().cursor(factory)

    def ask(self, text: str, arguments: Any, *, many: bool) -> tuple[list[Any], int]:
        """Run one statement, outside SQLAlchemy's greenlet; its rows, and how many it wrote."""
        cursor = super().cursor()
        if many:
            cursor.executemany(text, arguments)
        else:
            cursor.execute(text, arguments)
        rows = cursor.fetchall()
        return rows, cursor.rowcount

    def commit(self) -> None:
        """Commit. Called by SQLAlchemy within its greenlet, so that it can wait here."""
        changes, self._changes = self._changes, self.total_changes
        if self.total_changes == changes:
            super().commit()
        else:
            await_(_to_its_end(self._save))

    def _save(self) -> None:
        super().commit()

    def rollback(self) -> None:
        self._changes = self.total_changes
        super().rollback()


class LoopDialect(SQLiteDialect_pysqlite):
    """The standard library's driver, for an asynchronous engine."""

    driver = "loop"
    is_async = True
    has_terminate = True
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> ModuleType:
        return sqlite3

    @classmethod
    def get_pool_class(cls, url: URL) -> type[Pool]:  # noqa: ARG003 - SQLAlchemy's signature
        return AsyncAdaptedQueuePool

    def connect(self, *args: Any, **options: Any) -> Any:
        options |= {"timeout": BLOCKED_S, "factory": LoopConnection}
        return sqlite3.connect(*args, **options)

    def do_terminate(self, dbapi_connection: Any) -> None:
        dbapi_connection.close()

    def get_driver_connection(self, connection: Any) -> Any:
        return connection


async def begin(raw: LoopConnection, statement: str, patience_s: float) -> None:
    """Begin a transaction; while another process writes, ask again for so long. Raises what SQLite raises."""
    until: float | None = None
    while True:
        try:
            raw.ask(statement, (), many=False)
        except sqlite3.OperationalError as error:
            now = asyncio.get_running_loop().time()
            until = until or now + patience_s
            busy = (error.sqlite_errorcode & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or now >= until:
                raise
        else:
            return
        await asyncio.sleep(AGAIN_S)


def begin_within(connection: Connection, statement: str, patience_s: float) -> None:
    """The same for a connection of SQLAlchemy, in its greenlet, unless a transaction is begun on it already. Raises
    what SQLAlchemy raises."""
    raw = connection.connection.dbapi_connection
    if not isinstance(raw, LoopConnection):
        raise TypeError(f"{type(raw).__name__} is no connection of this dialect")
    if raw.in_transaction:
        return
    try:
        await_(begin(raw, statement, patience_s))
    except sqlite3.OperationalError:
        connection.exec_driver_sql(statement)


registry.register("sqlite.loop", __name__, LoopDialect.__name__)
