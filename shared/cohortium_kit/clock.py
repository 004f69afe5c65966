"""Time as a port: a service asks its clock, so that a test can hold time still and a simulation can run it fast."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where a service gets the time from, and how it waits."""

    def now(self) -> datetime:
        """The wall clock, always with the UTC time zone."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never runs backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return `seconds` later by this clock. Zero or less gives other tasks one turn."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


async def pause(clock: Clock, seconds: float, *events: asyncio.Event) -> bool:
    """Wait by the clock, or until one of the events is set; returns whether one is set.

    A cancellation always passes: awaiting the cancelled waiters one by one under `suppress` would swallow our own.
    """
    waiters = [asyncio.create_task(event.wait()) for event in events]
    sleeper = asyncio.create_task(clock.sleep(seconds))
    try:
        await asyncio.wait([*waiters, sleeper], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in (*waiters, sleeper):
            waiter.cancel()
        await asyncio.gather(*waiters, sleeper, return_exceptions=True)
    return any(event.is_set() for event in events)
