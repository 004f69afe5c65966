"""What a command does in the hospital itself: on the spool, beside a running connector or not."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cohortium_cli.output import USAGE, friendly

if TYPE_CHECKING:
    from cohortium_connector.settings import ConnectorSettings

S = TypeVar("S")
T = TypeVar("T")


def locally(
    config: Path,
    opened: "Callable[[ConnectorSettings], AbstractAsyncContextManager[S]]",
    ask: Callable[[S], Awaitable[T]],
) -> T:
    """What `ask` says of the part of the connector that `opened` opens, by the settings in this file."""
    from cohortium_connector.settings import ConnectorSettings

    with friendly(code=USAGE):
        settings = ConnectorSettings.load(config)

    async def inside() -> T:
        async with opened(settings) as part:
            return await ask(part)

    with friendly():
        return asyncio.run(inside())
