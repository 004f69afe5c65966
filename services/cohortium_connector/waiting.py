"""Waiting by the injected clock, for a time or for a bell."""

import asyncio
import contextlib
import random

from cohortium_kit.clock import Clock


async def pause(clock: Clock, seconds: float, *events: asyncio.Event) -> bool:
    """Wait until one of the events is set, or for so long; returns whether one is set."""
    waiters = [asyncio.create_task(event.wait()) for event in events]
    sleeper = asyncio.create_task(clock.sleep(seconds))
    try:
        await asyncio.wait([*waiters, sleeper], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*waiters, sleeper):
            task.cancel()
        for task in (*waiters, sleeper):
            with contextlib.suppress(asyncio.CancelledError):
                await task
    return any(event.is_set() for event in events)


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
