"""Results on their way to sites: at once, to all, again where the broker refuses or is away."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog

from cohortium_kit.bus import Bus, Outgoing
from cohortium_kit.errors import BrokerUnavailable, BusError, Refused
from cohortium_messages.envelope import CHUNK_CONTENT_TYPE
from cohortium_messages.ids import SiteId
from cohortium_messages.topology import BULK, results_queue

log = structlog.get_logger(__name__)

RESULT_TYPE = "cohortium.strict.result.v1"
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0
PUBLISH_TIMEOUT_S = 10.0
PATIENCE_S = 60.0

Wanted = Callable[[], bool]
"""Whether a result is still of use to anybody."""


class Courier:
    """Publishes frames in tasks of its own, so that nobody waits for one site's confirm."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._tasks: set[asyncio.Task[None]] = set()

    def show(self, name: str, frames: tuple[bytes, ...], sites: Iterable[SiteId], wanted: Wanted) -> None:
        """Send one step's result to these sites. `name` is different for each result; `wanted` is asked before each
        repetition."""
        for site in sites:
            for part, frame in enumerate(frames):
                self._spawn(self._send(site, f"{name}-{part}-{site}", frame, wanted))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, site: SiteId, message_id: str, frame: bytes, wanted: Wanted) -> None:
        outgoing = Outgoing(
            exchange=BULK.name,
            routing_key=results_queue(site),
            body=frame,
            message_id=message_id,
            type=RESULT_TYPE,
            content_type=CHUNK_CONTENT_TYPE,
            persistent=False,
        )
        wait_s = FIRST_WAIT_S
        until = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            try:
                await self._bus.publish(outgoing, timeout_s=PUBLISH_TIMEOUT_S)
                return
            except (Refused, BrokerUnavailable):
                await asyncio.sleep(random.uniform(wait_s / 2, wait_s))  # noqa: S311 - spreads load, no secret
                wait_s = min(LONGEST_WAIT_S, 2 * wait_s)
            except BusError as error:
                log.warning("result_not_sent", site=site, error=type(error).__name__)
                return
            if not wanted() or asyncio.get_running_loop().time() > until:
                return

    async def close(self) -> None:
        """Give up what is still on its way."""
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
