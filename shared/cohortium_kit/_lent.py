"""One connection of the pool, for one transaction.

Around each use of a connection SQLAlchemy makes one of its own, with options, events and a transaction object: three
times the work of a small transaction on SQLite. Here the pool lends the driver's connection, with all the checks that
it makes, and the driver begins and ends the transaction. SQLAlchemy's connection is made for a statement that has no
plan, over the same connection and in the same transaction.
"""

from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Executable
from sqlalchemy.engine import Dialect as Speech
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn

from cohortium_kit import _engine, _sqlite
from cohortium_kit._engine import BEGIN, Purpose
from cohortium_kit._plans import Answer, Executed, Parameters, Plan
from cohortium_kit._sqlite import LoopConnection

T = TypeVar("T")


class Lent:
    """A connection from `lend` to `give_back`, for one task. Raises what SQLAlchemy does, `DBAPIError` above all."""

    def __init__(self, engine: AsyncEngine, proxied: PoolProxiedConnection, purpose: Purpose) -> None:
        self._engine = engine.sync_engine
        self._speech = engine.dialect
        self._proxied = proxied
        self._purpose = purpose
        self._full: Connection | None = None

    @property
    def raw(self) -> Any:
        """The driver's connection as SQLAlchemy adapts it. Raises `ConnectionError` once it was lost."""
        raw = self._proxied.dbapi_connection
        if raw is None:
            raise ConnectionError("the connection was lost")
        return raw

    async def begin(self) -> None:
        """On PostgreSQL the driver begins with the first statement; here it is told how."""
        raw = self.raw
        if isinstance(raw, LoopConnection):
            if self._purpose is not Purpose.GLANCE:
                await self._asked("BEGIN", _sqlite.begin(raw, BEGIN[self._purpose], _engine.BUSY_S))
        elif self._purpose is not Purpose.WRITE:
            self._isolate(raw, *_engine.ISOLATION[self._purpose])

    async def execute(self, statement: Executable, parameters: Parameters, plan: Plan | None) -> Executed:
        """Run one statement, by its plan if it has one."""
        if plan is None:
            if self._full is None:
                whole = Connection(self._engine, self._proxied)
                self._full = whole.execution_options(cohortium_begin=BEGIN[self._purpose])
            return await greenlet_spawn(self._full.execute, statement, cast("Any", parameters))
        arguments: Any
        many = not (parameters is None or isinstance(parameters, Mapping))
        if parameters is None or isinstance(parameters, Mapping):
            arguments = plan.arguments(parameters or {})
        else:
            arguments = [plan.arguments(one) for one in parameters]
        rows, count = await self._asked(plan.text, _ask(self.raw, plan.text, arguments, many=many))
        return Answer([plan.row(row) for row in rows] if plan.row is not None else [], count)

    async def commit(self) -> None:
        if self._full is not None and self._full.in_transaction():
            await greenlet_spawn(self._full.commit)
        else:
            await self._asked("COMMIT", greenlet_spawn(self.raw.commit))

    async def give_back(self) -> None:
        """Undo what is not committed, and let the pool have the connection."""
        await greenlet_spawn(self._end)

    def _end(self) -> None:
        raw, full = self._proxied.dbapi_connection, self._full
        try:
            if full is not None and full.in_transaction():
                full.rollback()
            elif raw is not None:
                raw.rollback()
            as_found = self._purpose is Purpose.WRITE or isinstance(raw, LoopConnection)
            if not as_found and self._proxied.is_valid:
                self._isolate(raw, *_engine.ISOLATION[Purpose.WRITE])
            if full is not None:
                full.close()
            elif self._proxied.is_valid:
                self._proxied.close()
        except BaseException as error:
            # What was read or committed before holds; the connection is in an unknown state.
            if self._proxied.is_valid:
                self._proxied.invalidate(error)
            if not isinstance(error, self._speech.loaded_dbapi.Error | DBAPIError | OSError):
                raise

    def _isolate(self, raw: Any, level: Any, readonly: bool) -> None:
        self._speech.set_isolation_level(raw, level)
        cast("Any", self._speech).set_readonly(raw, readonly)

    async def _asked(self, text: str, asking: Awaitable[T]) -> T:
        try:
            return await asking
        except BaseException as error:
            raw = self._proxied.dbapi_connection
            # Who is cancelled does not know what the server is still busy with. SQLite has ended what it began.
            given_up = not isinstance(error, Exception) and not isinstance(raw, LoopConnection)
            known = isinstance(error, self._speech.loaded_dbapi.Error)
            lost = given_up or (known and self._speech.is_disconnect(cast("Any", error), raw, None))
            if lost and self._proxied.is_valid:
                await greenlet_spawn(self._proxied.invalidate, error)
            if not known:
                raise
            raise _as_sqlalchemys(cast("Exception", error), text, self._speech, lost=lost) from error


async def lend(engine: AsyncEngine, purpose: Purpose) -> Lent:
    """Take a connection from the pool, and begin."""
    speech = engine.dialect
    try:
        proxied = await greenlet_spawn(engine.sync_engine.raw_connection)
    except speech.loaded_dbapi.Error as error:
        lost = speech.is_disconnect(cast("Any", error), None, None)
        raise _as_sqlalchemys(error, "connect", speech, lost=lost) from error
    lent = Lent(engine, proxied, purpose)
    try:
        await lent.begin()
    except BaseException:
        await lent.give_back()
        raise
    return lent


async def _ask(raw: Any, text: str, arguments: Any, *, many: bool) -> tuple[list[Any], int]:
    if isinstance(raw, LoopConnection):
        return raw.ask(text, arguments, many=many)
    cursor = raw.cursor()
    # What its `execute` waits for within a greenlet, which is not needed here.
    if many:
        await cursor._executemany(text, arguments)
        return [], cursor.rowcount
    await cursor._prepare_and_execute(text, arguments)
    return (list(cursor.fetchall()) if cursor.description else []), cursor.rowcount


def _as_sqlalchemys(error: Exception, text: str, speech: Speech, *, lost: bool) -> BaseException:
    return DBAPIError.instance(
        text,
        None,
        error,
        speech.loaded_dbapi.Error,
        hide_parameters=True,
        connection_invalidated=lost,
        dialect=speech,
    )
