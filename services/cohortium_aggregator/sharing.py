"""Which of several aggregators takes which intake queue of chunks.

Each queue has one active consumer, by the broker's rule, so two that believe in the same one do no harm: the later one
waits. What is decided here is only that the work is spread, and taken over when an aggregator ends.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from cohortium_aggregator.files import Seat
from cohortium_kit.bus import Subscription
from cohortium_kit.clock import Clock, pause

log = structlog.get_logger(__name__)

LOOK_S = 0.5


def share_of(seat: int, company: Sequence[int], partitions: int) -> frozenset[int]:
    """The partitions of one seat: dealt round, so that each has one owner and nobody two more than another."""
    return frozenset(one for one in range(partitions) if company[one % len(company)] == seat)


class Sharing:
    """Keeps this process subscribed to its share while it runs."""

    def __init__(
        self, seat: Seat, partitions: int, subscribe: Callable[[int], Awaitable[Subscription]], clock: Clock
    ) -> None:
        self._seat = seat
        self._partitions = partitions
        self._subscribe = subscribe
        self._clock = clock
        self._taken: dict[int, Subscription] = {}

    @property
    def taken(self) -> int:
        """How many queues this process is subscribed to."""
        return len(self._taken)

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the company until `stop` is set; then finish what is in hand."""
        try:
            while not stop.is_set():
                await self._follow()
                await pause(self._clock, LOOK_S, stop)
        finally:
            for subscription in self._taken.values():
                await subscription.cancel()

    async def _follow(self) -> None:
        try:
            company = await asyncio.to_thread(self._seat.company)
        except OSError as error:
            log.warning("company_not_seen", error=type(error).__name__)
            return
        share = share_of(self._seat.number, company, self._partitions)
        for partition in sorted(share - self._taken.keys()):
            self._taken[partition] = await self._subscribe(partition)
        for partition in sorted(self._taken.keys() - share):
            await self._taken.pop(partition).cancel()
            log.info("partition_left", partition=partition, company=len(company))
