"""SQLite as the services have it, with points where a process may die, and connections that a dead one does not hold.

A commit that wrote something is such a point, before and after. When a process dies, its connections are closed, and
SQLite rolls back what was not committed.
"""

import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import LRUCache, await_

from cohortium_kit import _engine, _sqlite, db
from cohortium_kit._plans import Plans
from cohortium_kit._sqlite import LoopConnection, LoopDialect
from cohortium_sim.storm.loop import Life, current_life
from cohortium_sim.storm.replacing import replaced

Reached = Callable[[str], Coroutine[Any, Any, object]]
"""Called at a point of a process, by name; may never return."""

_MOST_STATEMENTS = 5000
_compiled: "LRUCache[Any, Any]" = LRUCache(_MOST_STATEMENTS)
"""Compiled statements of all engines: each federation makes new ones, and compiling takes longer than running."""
_plans = Plans(LoopDialect(paramstyle="qmark"))
"""The plans of all engines, for the same reason."""


class Store:
    """All open connections, by the process that opened them."""

    def __init__(self, reached: Reached) -> None:
        self.reached = reached
        self._open: dict[Life | None, list[sqlite3.Connection]] = {}

    def opened(self, life: Life | None, raw: sqlite3.Connection) -> None:
        self._open.setdefault(life, []).append(raw)

    def lose(self, life: Life | None) -> None:
        """The process is gone: what it had not committed never was."""
        for raw in self._open.pop(life, ()):
            raw.close()

    def close(self) -> None:
        for life in list(self._open):
            self.lose(life)


@contextmanager
def sqlite_of_lives(store: Store) -> Iterator[None]:
    """Connections opened inside belong to the process that opens them, and engines share what they compiled."""
    connect, create = LoopDialect.connect, create_async_engine

    def connect_for_life(self: LoopDialect, *args: Any, **options: Any) -> Any:
        raw = connect(self, *args, **options)
        store.opened(current_life(), raw)
        return raw

    def commit_with_points(self: LoopConnection) -> None:
        changes, self._changes = self._changes, self.total_changes
        if self.total_changes == changes:
            sqlite3.Connection.commit(self)
            return
        await_(store.reached("commit"))
        sqlite3.Connection.commit(self)
        await_(store.reached("committed"))

    def create_sharing(*args: Any, **options: Any) -> AsyncEngine:
        engine = create(*args, **options)
        engine.sync_engine._compiled_cache = _compiled
        return engine

    def is_dialect(_: Any, other: object) -> bool:
        return isinstance(other, LoopDialect)

    try:
        with (
            # The cache's keys hold the dialect; all of ours are alike.
            replaced(LoopDialect, connect=connect_for_life, __hash__=lambda _: hash(LoopDialect), __eq__=is_dialect),
            replaced(LoopConnection, commit=commit_with_points),
            replaced(_engine, create_async_engine=create_sharing),
            replaced(db, Plans=lambda _: _plans),
            # Whoever holds a lock runs in this very thread: waiting for it would be waiting for ever.
            replaced(_sqlite, BLOCKED_S=0.0),
        ):
            yield
    finally:
        store.close()
