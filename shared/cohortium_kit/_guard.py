"""One wrapper for everything awaited outside this process: it ends in time, and only in errors that are ours."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from cohortium_kit.errors import BrokerUnavailable

T = TypeVar("T")


async def in_time(awaitable: Awaitable[T], timeout_s: float, doing: str) -> T:
    """Await with a limit. Raises `BrokerUnavailable` if it took too long or was cancelled by someone else.

    aiormq reports a dead peer as `CancelledError` though nobody cancelled us (broker study, 4.1). A task group would
    swallow that and end the service without a word; so it is told apart by our own task's cancellation count.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        async with asyncio.timeout(timeout_s):
            return await awaitable
    except TimeoutError:
        raise BrokerUnavailable(f"{doing}: no answer within {timeout_s:g} s; it is safe to repeat") from None
    except asyncio.CancelledError:
        if task is not None and task.cancelling() > before:
            raise
        raise BrokerUnavailable(f"{doing}: the connection died meanwhile; it is safe to repeat") from None


def forget_frames(error: BaseException) -> None:
    """Let go of what the frames in the tracebacks of an error, and of those that led to it, hold."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
