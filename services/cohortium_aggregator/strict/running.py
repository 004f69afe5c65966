"""The engine as a part of the service: it listens while it runs, and looks at the time."""

import asyncio

import structlog

from cohortium_aggregator.context import Context
from cohortium_aggregator.strict.engine import PAUSE_S, Engine
from cohortium_kit.bus import Bus, Subscription
from cohortium_kit.errors import DatabaseError
from cohortium_messages.topology import STEP_PARTITIONS, steps_queue

log = structlog.get_logger(__name__)


class Listener:
    """Consumes the queues of steps."""

    def __init__(self, ctx: Context, bus: Bus, engine: Engine) -> None:
        self._ctx = ctx
        self._bus = bus
        self._engine = engine
        self._subscriptions: list[Subscription] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Hold sessions until `stop` is set; those that are held then are given up."""
        await self._end_earlier_lives(stop)
        try:
            for partition in range(STEP_PARTITIONS):
                queue, prefetch = steps_queue(partition), self._ctx.settings.steps_prefetch
                self._subscriptions.append(await self._bus.consume(queue, self._engine.handle, prefetch=prefetch))
            await self._keep_time(stop)
        finally:
            for subscription in self._subscriptions:
                await subscription.cancel()
            await self._engine.close()

    async def _end_earlier_lives(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                found = await self._engine.ledger.end_earlier_lives()
            except DatabaseError as error:
                log.warning("sessions_not_looked_at", error=type(error).__name__)
                await asyncio.sleep(PAUSE_S)
                continue
            if found:
                log.info("sessions_lost", sessions=found)
            return

    async def _keep_time(self, stop: asyncio.Event) -> None:
        wake, tick_s = self._ctx.wakes.sessions, self._ctx.settings.tick_s
        while not stop.is_set():
            self._engine.tick(listening=all(one.active for one in self._subscriptions))
            if wake.is_set():
                wake.clear()
                await self._look()
            try:
                await asyncio.wait_for(wake.wait(), tick_s)
            except TimeoutError:
                continue

    async def _look(self) -> None:
        try:
            await self._engine.watch()
        except DatabaseError as error:
            log.warning("sessions_not_watched", error=type(error).__name__)
            self._ctx.wakes.sessions.set()
            await asyncio.sleep(PAUSE_S)
