"""The database of one service: PostgreSQL, or an SQLite file, behind the same transactions.

Every transaction sees the world as if it ran alone: PostgreSQL runs it SERIALIZABLE, SQLite has one writer at a time.
So code that loads, decides and saves is right on both, and needs no row locks. The price: a transaction can be told to
run again (`TransactionConflict`); `Database.run` does that.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import structlog
from sqlalchemy import Executable, Row, insert, text

from cohortium_kit._engine import Dialect, Purpose, make_engine, translated
from cohortium_kit._lanes import Letter
from cohortium_kit._lent import Lent, lend
from cohortium_kit._plans import Executed, Parameters, Plans
from cohortium_kit.bus import Outgoing
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.errors import TransactionConflict
from cohortium_kit.metrics import Metrics
from cohortium_kit.tables import outbox

log = structlog.get_logger(__name__)

T = TypeVar("T")

RUN_ATTEMPTS = 8
_POST = insert(outbox).returning(outbox.c.id)
_POST_ALL = insert(outbox).returning(outbox.c.id, sort_by_parameter_order=True)


class Tx:
    """One open transaction. Statements run at once; messages given to `send` leave only if it commits."""

    def __init__(self, name: str, lent: Lent, dialect: Dialect, now: float, plans: Plans) -> None:
        self._lent = lent
        self._plans = plans
        self.name = name
        self._outgoing: list[tuple[str, Outgoing]] = []
        self._letters: list[Letter] = []
        self._afterwards: list[Callable[[Metrics], object]] = []
        self.dialect = dialect
        self.now = now
        """When the transaction began, in unix seconds by the database's clock port."""

    async def execute(self, statement: Executable, parameters: Parameters = None) -> Executed:
        """Run one statement; a list of parameter sets runs it for each.

        A statement that is built once, with `bindparam`s, runs in a fraction of the time of one built at each use.
        """
        plan = self._plans.find(statement, parameters)
        with translated(self.name):
            return await self._lent.execute(statement, parameters, plan)

    async def scalar(self, statement: Executable, parameters: Parameters = None) -> Any:
        """The first column of the first row, or None."""
        return (await self.execute(statement, parameters)).scalar()

    async def rows(self, statement: Executable, parameters: Parameters = None) -> Sequence[Row[Any]]:
        return (await self.execute(statement, parameters)).all()

    async def row(self, statement: Executable, parameters: Parameters = None) -> Row[Any] | None:
        """The first row, or None."""
        return (await self.execute(statement, parameters)).first()

    async def send(self, outgoing: Outgoing, ordering_key: str = "") -> None:
        """Publish this message after the commit, at least once.

        Messages of one `ordering_key` leave in the order in which they were given; those without have no order.
        """
        self._outgoing.append((ordering_key, outgoing))

    def after_commit(self, call: Callable[[Metrics], object]) -> None:
        """Count what happened, or wake who may go on, when the transaction has committed, and not if it is rolled back.

        `call` must not raise, wait or decide anything: after a crash it is not called.
        """
        self._afterwards.append(call)

    def committed(self, metrics: Metrics) -> None:
        """Make the calls given to `after_commit`. The transaction does this."""
        for call in self._afterwards:
            call(metrics)

    async def commit(self) -> None:
        """Make it last. The transaction does this."""
        await self._lent.commit()

    async def flush(self) -> Sequence[Letter]:
        """Write the messages given so far; returns all of the transaction, which does this before it commits."""
        waiting, self._outgoing = self._outgoing, []
        if waiting:
            ids = await self._post([self._row(key, outgoing) for key, outgoing in waiting])
            self._letters += [Letter(number, *given) for number, given in zip(ids, waiting, strict=True)]
        return self._letters

    async def _post(self, rows: Sequence[dict[str, Any]]) -> Sequence[int]:
        # All at once is one question to PostgreSQL; SQLite asks nobody.
        if len(rows) > 1 and self.dialect is Dialect.POSTGRESQL:
            return [row.id for row in await self.rows(_POST_ALL, rows)]
        return [await self.scalar(_POST, row) for row in rows]

    def _row(self, ordering_key: str, outgoing: Outgoing) -> dict[str, Any]:
        return {
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


class Database:
    """One service's records. `schema` names its PostgreSQL schema, and fills `{schema}` in an SQLite path."""

    def __init__(self, url: str, *, schema: str, clock: Clock | None = None, metrics: Metrics | None = None) -> None:
        self.schema = schema
        self.metrics = metrics or Metrics()
        """Of the service whose records these are; its consumers and its relay count here, too."""
        self.clock: Clock = clock or SystemClock()
        self.engine, self.dialect = make_engine(url, schema)
        self._plans = Plans(self.engine.dialect)
        self.message_waits = asyncio.Event()
        """Set at each commit that leaves messages in the outbox which `hand_over` did not take. The relay clears it."""
        self.hand_over: Callable[[Sequence[Letter]], bool] | None = None
        """Called after each commit with its messages; whether somebody in this process sends them now."""
        # SQLite's own wait for a lock polls and is unfair; writers of this process queue here instead.
        sqlite = self.dialect is Dialect.SQLITE
        self._writing: AbstractAsyncContextManager[object] = asyncio.Lock() if sqlite else contextlib.nullcontext()
        self._inside: set[asyncio.Task[Any] | None] = set()

    @contextlib.asynccontextmanager
    async def transaction(self, name: str) -> AsyncIterator[Tx]:
        """One read-write transaction, committed at the end of the block, rolled back by any exception.

        Raises `TransactionConflict` where it met another one, `DatabaseUnavailable` where there is no connection.
        After `DatabaseUnavailable` from the commit itself it may have been committed: be ready to find it done.
        Raises `RuntimeError` inside another transaction of the same task: pass the `Tx` on instead.
        """
        began = time.perf_counter()
        with self._not_nested(name):
            async with self._writing, self._lent(name, Purpose.WRITE) as tx:
                # What the block raises is its own affair; only its statements, and the commit, are the database's.
                yield tx
                letters = await tx.flush()
                with translated(name):
                    await tx.commit()
        if letters and not (self.hand_over and self.hand_over(letters)):
            self.message_waits.set()
        self.metrics.transaction_seconds.labels(name).observe(time.perf_counter() - began)
        tx.committed(self.metrics)

    @contextlib.asynccontextmanager
    async def reading(self, name: str) -> AsyncIterator[Tx]:
        """One consistent view, without waiting for writers. What it writes is lost."""
        async with self._lent(name, Purpose.READ) as tx:
            yield tx

    @contextlib.asynccontextmanager
    async def glance(self, name: str) -> AsyncIterator[Tx]:
        """To read one thing: each statement sees what is committed when it runs. Never write in it.

        PostgreSQL is asked once for each statement; `reading`, whose statements share one view, begins and ends, too.
        """
        async with self._lent(name, Purpose.GLANCE) as tx:
            yield tx

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
                self.metrics.transactions_repeated.labels(name).inc()
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

    @contextlib.asynccontextmanager
    async def _lent(self, name: str, purpose: Purpose) -> AsyncIterator[Tx]:
        with translated(name):
            lent = await lend(self.engine, purpose)
        try:
            yield Tx(name, lent, self.dialect, self.clock.now().timestamp(), self._plans)
        finally:
            await lent.give_back()
