"""The manual clock: time moves only when told, and wakes its sleepers in order."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from cohortium_kit.clock import SystemClock, pause
from cohortium_kit.testing.clock import START, ManualClock


async def test_sleepers_wake_in_the_order_of_their_ends() -> None:
    clock, woken = ManualClock(), []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic()))

    tasks = [asyncio.create_task(sleeper(name, s)) for name, s in (("c", 3), ("a", 1), ("b", 2), ("late", 9))]
    await clock.advance(5)
    assert woken == [("a", 1), ("b", 2), ("c", 3)]
    assert clock.now() == START + timedelta(seconds=5)
    assert clock.sleepers == 1
    tasks[-1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert clock.sleepers == 0


async def test_sleeper_that_sleeps_again_wakes_again_within_one_advance() -> None:
    clock, ticks = ManualClock(), []

    async def tick() -> None:
        for _ in range(3):
            await clock.sleep(1)
            ticks.append(clock.monotonic())

    task = asyncio.create_task(tick())
    await clock.advance(10)
    await task
    assert ticks == [1, 2, 3]


def test_start_needs_a_time_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        ManualClock(datetime(2026, 1, 1))  # noqa: DTZ001


async def test_system_clock_is_utc_and_moves() -> None:
    clock = SystemClock()
    assert clock.now().tzinfo is UTC
    before = clock.monotonic()
    await clock.sleep(0.01)
    await clock.sleep(-1)
    assert clock.monotonic() > before


async def test_pause_ends_with_the_time_or_with_an_event() -> None:
    clock, bell = ManualClock(), asyncio.Event()
    waiting = asyncio.create_task(pause(clock, 5, bell))
    await clock.advance(5)
    assert await waiting is False
    waiting = asyncio.create_task(pause(clock, 5, asyncio.Event(), bell))
    await clock.advance(1)
    bell.set()
    assert await waiting is True
    assert clock.sleepers == 0


async def test_pause_never_swallows_a_cancellation() -> None:
    for turns in range(8):
        clock, bell = ManualClock(), asyncio.Event()
        waiting = asyncio.create_task(pause(clock, 5, bell))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        bell.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        if waiting.cancel():
            await asyncio.wait({waiting})
            assert waiting.cancelled()
