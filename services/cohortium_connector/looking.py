"""The spool is looked at after each change, once for all parts that have something to begin or to end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from cohortium_connector.store import windows
from cohortium_connector.store.windows import WindowRecord
from cohortium_connector.waiting import Bell
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database, Tx

Act = Callable[[], Awaitable[None]]
"""What a part does about what it saw, after the reading."""


class Looker(Protocol):
    """A part that works from the spool."""

    def collect(self) -> None:
        """Forget what has ended, before the spool is read: what ends later may be under way in that view. Raises the
        error that no rule covers: it ends the service, loudly."""
        ...

    async def see(self, tx: Tx, opened: Sequence[WindowRecord]) -> Act:
        """Take from this view of the spool, with its open windows, what is to be done. Writes nothing, and waits for
        nothing but the reading."""
        ...

    async def aclose(self) -> None:
        """End what is under way. Nothing is seen any more."""
        ...


class Looking:
    """Looks for all parts, in their order: each acts at once on what it saw, those that write come last."""

    def __init__(self, db: Database, bell: Bell, clock: Clock, poll_s: float, lookers: Sequence[Looker]) -> None:
        self._db = db
        self._bell = bell
        self._clock = clock
        self._poll_s = poll_s
        self._lookers = lookers

    async def run(self, stop: asyncio.Event, leave: Callable[[], Awaitable[None]]) -> None:
        """Look until `stop` is set, then `leave` in order. However it ends, all parts are closed."""
        async with AsyncExitStack() as ending:
            for looker in self._lookers:
                ending.push_async_callback(looker.aclose)
            await self._bell.keep_looking(self.look, stop, self._clock, self._poll_s)
            await leave()

    async def look(self) -> None:
        """Once."""
        for looker in self._lookers:
            looker.collect()
        async with self._db.reading("look") as tx:
            opened = await windows.open_windows(tx)
            acts = [await looker.see(tx, opened) for looker in self._lookers]
        for act in acts:
            await act()
