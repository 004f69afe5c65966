"""The database of one service: PostgreSQL, or an SQLite file, behind the same transactions.

Every transaction sees the world as if it ran alone: PostgreSQL runs it SERIALIZABLE, SQLite has one writer at a time.
So code that loads, decides and saves is right on both, and needs no row locks. The price: a transaction can be told to
run again (`TransactionConflict`); `Database.run` does that.
"""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import structlog
from sqlalchemy import Executable, Row, insert, text
from sqlalchemy.engine import CursorResult
from sqlalchemy.ext.asyncio import AsyncConnection

from cohortium_kit._engine import Dialect, make_engine, translated
from cohortium_kit.bus import Outgoing
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.errors import TransactionConflict
from cohortium_kit.tables import outbox

log = structlog.get_logger(__name__)

T = TypeVar("T")

RUN_ATTEMPTS = 8


class Tx:
    """One open transaction. Statements run at once; messages given to `send` leave only if it commits."""

    def __init__(self, name: str, connection: AsyncConnection, dialect: Dialect, now: float) -> None:
        self._connection = connection
        self.name = name
        self._outgoing: list[dict[str, Any]] = []
        self.dialect = dialect
        self.now = now
        """When the transaction began, in unix seconds by the database's clock port."""

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Run one statement; a list of parameter sets runs it for each."""
        with translated(self.name):
            return await self._connection.execute(statement, parameters)

    async def scalar(self, statement: Executable) -> Any:
        """The first column of the first row, or None."""
        return (await self.execute(statement)).scalar()

    async def rows(self, statement: Executable) -> Sequence[Row[Any]]:
        return (await self.execute(statement)).all()

    async def row(self, statement: Executable) -> Row[Any] | None:
        """The first row, or None."""
        return (await self.execute(statement)).first()

    async def send(self, outgoing: Outgoing, ordering_key: str = "") -> None:
        """Publish this message after the commit, at least once.

        Messages of one `ordering_key` leave in the order in which they were given; those without have no order.
        """
        self._outgoing.append(
            {
                "ordering_key": ordering_key,
                "exchange": outgoing.exchange,
                "routing_key": outgoing.routing_key,
                "message_id": outgoing.message_id,
                "type": outgoing.type,
                "content_type": outgoing.content_type,
                "headers": json.dumps(dict(outgoing.headers)),
                "body": outgoing.body,
                "persistent": outgoing.persistent,
                "ttl_ms": outgoing.ttl_ms,
                "correlation_id": outgoing.correlation_id,
                "created_at": self.now,
            }
        )

    async def flush(self) -> int:
        """Write the messages given so far; returns how many. The transaction does this before it commits."""
        waiting, self._outgoing = self._outgoing, []
        if waiting:
            await self.execute(insert(outbox), waiting)
        return len(waiting)


class Database:
    """One service's records. `schema` names its PostgreSQL schema, and fills `{schema}` in an SQLite path."""

    def __init__(self, url: str, *, schema: str, clock: Clock | None = None) -> None:
        self.schema = schema
        self.clock: Clock = clock or SystemClock()
        self.engine, self.dialect = make_engine(url, schema)
        self.message_waits = asyncio.Event()
        """Set at each commit that leaves messages in the outbox. The relay clears it."""
        # SQLite's own wait for a lock polls and is unfair; writers of this process queue here instead.
        self._writing = asyncio.Lock()
        self._inside: set[asyncio.Task[Any] | None] = set()

    @contextlib.asynccontextmanager
    async def transaction(self, name: str) -> AsyncIterator[Tx]:
        """One read-write transaction, committed at the end of the block, rolled back by any exception.

        Raises `TransactionConflict` where it met another one, `DatabaseUnavailable` where there is no connection.
        After `DatabaseUnavailable` from the commit itself it may have been committed: be ready to find it done.
        Raises `RuntimeError` inside another transaction of the same task: pass the `Tx` on instead.
        """
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._not_nested(name))
            if self.dialect is Dialect.SQLITE:
                await stack.enter_async_context(self._writing)
            connection = self.engine.connect()
            with translated(name):
                await stack.enter_async_context(connection)
                await connection.begin()
            # What the block raises is its own affair; only its statements, and the commit, are the database's.
            tx = self._tx(name, connection)
            yield tx
            sent = await tx.flush()
            with translated(name):
                await connection.commit()
        if sent:
            self.message_waits.set()

    @contextlib.asynccontextmanager
    async def reading(self, name: str) -> AsyncIterator[Tx]:
        """One consistent view, without waiting for writers. What it writes is lost."""
        async with contextlib.AsyncExitStack() as stack:
            connection = self.engine.connect()
            with translated(name):
                await stack.enter_async_context(connection)
                await connection.execution_options(**self.dialect.reading_options)
                await connection.begin()
            yield self._tx(name, connection)
            with translated(name):
                await connection.rollback()

    async def run(self, name: str, work: Callable[[Tx], Awaitable[T]]) -> T:
        """`work` in a transaction, again from the start where it met another one; raises after a few attempts.

        `work` may run several times: it must not change anything outside the transaction.
        """
        for attempt in range(1, RUN_ATTEMPTS + 1):
            try:
                async with self.transaction(name) as tx:
                    return await work(tx)
            except TransactionConflict:
                log.info("transaction_repeated", name=name, attempt=attempt)
                if attempt == RUN_ATTEMPTS:
                    raise
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311 - spreads load, no secret
        raise AssertionError("unreachable")

    async def ping(self) -> None:
        """Return if the database answers; raises `DatabaseUnavailable`."""
        async with self.reading("ping") as tx:
            await tx.scalar(text("SELECT 1"))

    async def close(self) -> None:
        await self.engine.dispose()

    @contextlib.contextmanager
    def _not_nested(self, name: str) -> Iterator[None]:
        # On SQLite the inner one would wait for the outer one for ever; on PostgreSQL it would not see its work.
        task = asyncio.current_task()
        if task in self._inside:
            raise RuntimeError(f"transaction {name} is inside another one of this task: pass the Tx on")
        self._inside.add(task)
        try:
            yield
        finally:
            self._inside.discard(task)

    def _tx(self, name: str, connection: AsyncConnection) -> Tx:
        return Tx(name, connection, self.dialect, self.clock.now().timestamp())
