"""A part's connection to the in-memory broker, with what a network and a broker may do to messages.

Nothing that a real broker promises is broken: a persistent message whose confirm came is delivered at least once, and
only messages that are marked as transient may be lost. What it does not promise is made use of: a delivery takes time,
comes again, comes after later ones; a confirm is lost.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from cohortium_kit.bus import Delivery, Disposition, Handler, Outgoing, Requeue, Subscription
from cohortium_kit.errors import BrokerUnavailable
from cohortium_kit.memory import MemoryBus
from cohortium_messages.topology import Topology
from cohortium_sim.storm.operations import Operation, Point

FASTEST_S, SLOWEST_S = 0.001, 0.02
"""How long a delivery takes."""

Hit = Callable[[Point], "asyncio.Future[list[Operation]]"]


class Course(Protocol):
    """What a line asks and tells: the operations that hit a part at a point, and what was said."""

    async def reach(self, point: Point) -> list[Operation]:
        """Pass a point; returns the operations that are about what is being done. May never return."""

    def said(self, outgoing: Outgoing) -> None:
        """The broker has this message, and its sender is about to be told."""

    def heard(self, delivery: Delivery) -> None:
        """A handler begins with this message."""


class Line:
    """A `Bus`. `chance` draws how long deliveries take."""

    def __init__(self, inner: MemoryBus, course: Course, chance: random.Random) -> None:
        self._inner = inner
        self._course = course
        self._chance = chance
        self.is_cut = False

    @property
    def connected(self) -> bool:
        return self._inner.connected and not self.is_cut

    def cut(self) -> None:
        """Break the connection; handlers go on, their answers find nobody."""
        self.is_cut = True
        self._inner.lose()

    def mend(self) -> None:
        self.is_cut = False
        if self._inner.connected:
            self._inner.regain()

    def _check(self) -> None:
        if self.is_cut:
            raise BrokerUnavailable("the line to the broker is cut")

    async def connect(self) -> None:
        self._check()
        await self._inner.connect()

    async def close(self) -> None:
        await self._inner.close()

    async def publish(self, outgoing: Outgoing, *, timeout_s: float = 10.0) -> None:
        hits = {one.action for one in await self._course.reach("publish")}
        self._check()
        if "not_taken" in hits:
            await asyncio.sleep(timeout_s)
            raise BrokerUnavailable("the broker did not take the message in time")
        if "vanish" in hits and not outgoing.persistent:
            return
        await self._inner.publish(outgoing, timeout_s=timeout_s)
        self._course.said(outgoing)
        if "confirm_lost" in hits:
            raise BrokerUnavailable("the confirm was lost")
        await self._course.reach("published")

    async def consume(self, queue: str, handler: Handler, *, prefetch: int) -> Subscription:
        self._check()
        free_at = 0.0

        async def deliver(delivery: Delivery) -> Disposition:
            nonlocal free_at
            loop = asyncio.get_running_loop()
            # In order: a delivery does not overtake the one before it, unless that one is held up.
            free_at = max(free_at, loop.time() + self._chance.uniform(FASTEST_S, SLOWEST_S))
            await asyncio.sleep(free_at - loop.time())
            again = False
            for one in await self._course.reach("delivery"):
                if one.action == "late":
                    await asyncio.sleep(one.seconds)
                again |= one.action == "twice"
            self._course.heard(delivery)
            answer = await handler(delivery)
            return Requeue() if again else answer

        return await self._inner.consume(queue, deliver, prefetch=prefetch)

    async def declare(self, topology: Topology, *, timeout_s: float = 30.0) -> None:
        self._check()
        await self._inner.declare(topology, timeout_s=timeout_s)

    async def check_queue(self, name: str, *, timeout_s: float = 10.0) -> None:
        self._check()
        await self._inner.check_queue(name, timeout_s=timeout_s)

    async def queue_depth(self, name: str, *, timeout_s: float = 10.0) -> int:
        self._check()
        return await self._inner.queue_depth(name, timeout_s=timeout_s)

    async def get(self, queue: str, *, timeout_s: float = 10.0) -> Delivery | None:
        self._check()
        return await self._inner.get(queue, timeout_s=timeout_s)

    async def delete(self, topology: Topology, *, timeout_s: float = 30.0) -> None:
        self._check()
        await self._inner.delete(topology, timeout_s=timeout_s)
