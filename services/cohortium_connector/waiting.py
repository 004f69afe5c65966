"""Waiting for a bell, and how long to wait before another attempt."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from cohortium_kit.clock import Clock, pause


def backoff_s(attempt: int, first_s: float, longest_s: float) -> float:
    """Seconds before the next attempt: doubled each time up to a limit, with jitter, so that sites do not keep step."""
    limit = min(longest_s, first_s * 2.0 ** min(attempt, 16))
    return random.uniform(limit / 2, limit)  # noqa: S311 - spreads load, no secret


class Bell:
    """Rings after each change of the spool. Take the next ring's event, then look, then wait: no ring is missed."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        """The event that the next ring sets; every waiter may have the same one."""
        return self._next

    def ring(self) -> None:
        """Something changed, and is committed."""
        rung, self._next = self._next, asyncio.Event()
        rung.set()

    async def keep_looking(
        self, look: Callable[[], Awaitable[None]], stop: asyncio.Event, clock: Clock, longest_s: float
    ) -> None:
        """Look now, after each ring, and after `longest_s` seconds without one, until `stop` is set."""
        while not stop.is_set():
            changed = self.next()
            await look()
            await pause(clock, longest_s, changed, stop)
