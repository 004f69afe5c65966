"""What time brings: deadlines of windows, and files that nobody needs any more."""

import asyncio
from functools import partial

import structlog

from cohortium_aggregator.context import Context
from cohortium_aggregator.domain.states import TimePassed
from cohortium_aggregator.handlers.course import move
from cohortium_aggregator.store import windows
from cohortium_kit.db import Tx
from cohortium_kit.errors import DatabaseError

log = structlog.get_logger(__name__)

SWEEP_EVERY = 10
"""Ticks between two sweeps."""


class Ticker:
    """Moves windows whose moment has come, by the service's clock."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def run(self, stop: asyncio.Event) -> None:
        ticks = 0
        while not stop.is_set():
            try:
                await self.tick()
                if ticks % SWEEP_EVERY == 0:
                    await self.sweep()
            except (DatabaseError, OSError) as error:
                log.warning("tick_failed", error=type(error).__name__)
            ticks += 1
            try:
                await asyncio.wait_for(stop.wait(), self._ctx.settings.tick_s)
            except TimeoutError:
                continue

    async def tick(self) -> None:
        """Every window that is due, each in its own transaction."""
        async with self._ctx.db.glance("windows_due") as tx:
            due = await windows.windows_due(tx, self._ctx.clock.now())
        for window_id in due:
            if window_id in self._ctx.held:
                continue  # we have it in memory: its time is the engine's affair
            try:
                await self._ctx.db.run("window_due", partial(self._pass_time, window_id))
            except DatabaseError:
                raise
            except Exception as error:  # an error of ours in one window must not hold up the others
                log.exception("window_not_moved", window=window_id.hex(), error=type(error).__name__)

    async def _pass_time(self, window_id: bytes, tx: Tx) -> None:
        window = await windows.find_window(tx, self._ctx.sessions, window_id)
        if window is not None:
            await move(self._ctx, tx, window, TimePassed())

    async def sweep(self) -> None:
        """Wipe what sites sent for windows that have ended."""
        found = await asyncio.to_thread(self._ctx.data.windows_on_disk)
        if not found:
            return
        async with self._ctx.db.reading("windows_live") as tx:
            live = set(await windows.live_windows(tx, among=[window_id for window_id, _ in found]))
        for window_id, step in found:
            if window_id not in live:
                await asyncio.to_thread(self._ctx.data.wipe_window, window_id, step)
                log.info("uploads_wiped", window=window_id.hex())
