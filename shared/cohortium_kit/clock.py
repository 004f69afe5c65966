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
