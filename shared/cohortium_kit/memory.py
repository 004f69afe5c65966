# ruff: noqa: ARG002 - the port limits every call in time; nothing here can wait
"""The embedded bus: a broker in this process with RabbitMQ's rules, for one-process runs, simulations and tests.

`MemoryBroker` is the server, shared by every `MemoryBus` of the process; a bus is one connection in one namespace.
Nothing outlives the process: senders have their outbox, and an installation of several processes has its RabbitMQ.
"""

import asyncio
from contextvars import copy_context

import structlog

from cohortium_kit._dead import dead_letter
from cohortium_kit._handling import DRAIN_S, drain, handle
from cohortium_kit._memory_broker import MemoryBroker
from cohortium_kit._memory_queue import Held, MemoryQueue, Taker
from cohortium_kit.bus import Ack, Dead, Delivery, Disposition, Handler, Outgoing, Requeue, Start
from cohortium_kit.errors import BrokerUnavailable, BusError
from cohortium_messages.topology import Topology

__all__ = ["MemoryBroker", "MemoryBus", "MemorySubscription"]

log = structlog.get_logger(__name__)


class MemorySubscription:
    """One consumer. Its handlers outlive a lost connection, as they do with RabbitMQ; only their answers are void."""

    def __init__(self, bus: "MemoryBus", queue: MemoryQueue, handler: Handler, prefetch: int, at: int) -> None:
        self._bus = bus
        self._queue = queue
        self._handler = handler
        self._taker = Taker(prefetch, self._hand_over, at=at)
        # Who consumes, not who happened to publish: a message must not bring its publisher's log fields along.
        self._context = copy_context()
        self._working: set[asyncio.Task[None]] = set()
        self._cancelled = False

    @property
    def active(self) -> bool:
        return self._taker in self._queue.takers

    def attach(self) -> None:
        if not self._cancelled and not self.active:
            self._queue.takers.append(self._taker)
            self._bus.pump(self._queue)

    def detach(self) -> None:
        """Take no more; what handlers hold stays theirs to answer."""
        if self.active:
            self._queue.takers.remove(self._taker)
            self._bus.pump(self._queue)

    def drop(self) -> None:
        """Lose the connection: everything held goes back, and late answers find nothing."""
        if self.active:
            self._queue.takers.remove(self._taker)
        self._queue.left_by(self._taker)
        held, self._taker.holding = self._taker.holding, []
        for item in held:
            self._bus.give_back(self._queue, item)
        self._bus.pump(self._queue)

    async def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self.detach()
        await drain(self._working, DRAIN_S)
        self.drop()
        self._bus.forget(self)

    async def abort(self) -> None:
        self._cancelled = True
        self.drop()
        await drain(self._working, 0)

    def _hand_over(self, held: Held) -> None:
        task = asyncio.get_running_loop().create_task(self._work(held), context=self._context.copy())
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _work(self, held: Held) -> None:
        delivery = self._queue.as_delivery(held)
        disposition = await handle(self._handler, delivery)
        if isinstance(disposition, Dead):
            disposition = await self._park(delivery, disposition.reason)
        self._answer(held, disposition)

    async def _park(self, delivery: Delivery, reason: str) -> Disposition:
        key = self._queue.rules.dead_letter_key
        if key is None:
            log.error("message_dropped", queue=delivery.queue, reason=reason, message_id=delivery.message_id)
            return Ack()
        try:
            await self._bus.publish(dead_letter(delivery, reason, key))
        except BusError as error:
            log.warning("parking_failed", queue=delivery.queue, reason=reason, error=type(error).__name__)
            return Requeue()
        return Ack()

    def _answer(self, held: Held, disposition: Disposition) -> None:
        if held not in self._taker.holding:
            return
        self._taker.holding.remove(held)
        if isinstance(disposition, Requeue):
            self._bus.give_back(self._queue, held)
        self._bus.pump(self._queue)


class MemoryBus:
    """One connection to a `MemoryBroker`. `user_id` is what the broker certifies on every message of this bus."""

    def __init__(self, broker: MemoryBroker, namespace: str, *, user_id: str | None = None) -> None:
        self._broker = broker
        self._namespace = namespace
        self._user_id = user_id
        self._subscriptions: list[MemorySubscription] = []
        self._closed = False
        broker.admit(self)

    @property
    def connected(self) -> bool:
        return self._broker.up and not self._closed

    async def connect(self) -> None:
        await self._reach()

    async def close(self) -> None:
        for subscription in list(self._subscriptions):
            await subscription.cancel()
        self._closed = True
        self._broker.forget(self)

    async def abort(self) -> None:
        """End as a killed process ends: handlers stop where they are, their messages return to the queues."""
        self._closed = True
        for subscription in self._subscriptions:
            await subscription.abort()
        self._subscriptions.clear()
        self._broker.forget(self)

    async def publish(self, outgoing: Outgoing, *, timeout_s: float = 10.0) -> None:
        await self._reach()
        self._broker.publish(self._namespace, outgoing, self._user_id)

    async def declare(self, topology: Topology, *, timeout_s: float = 30.0) -> None:
        await self._reach()
        self._broker.declare(self._namespace, topology)

    async def check_queue(self, name: str, *, timeout_s: float = 10.0) -> None:
        await self._reach()
        self._broker.queue(self._namespace, name)

    async def consume(
        self, queue: str, handler: Handler, *, prefetch: int, start: Start | None = None
    ) -> MemorySubscription:
        await asyncio.sleep(0)
        if self._closed:
            raise _closed()
        found = self._broker.queue(self._namespace, queue)
        subscription = MemorySubscription(self, found, handler, prefetch, self._broker.place_of(found, start))
        self._subscriptions.append(subscription)
        if self._broker.up:
            subscription.attach()
        return subscription

    async def queue_depth(self, name: str, *, timeout_s: float = 10.0) -> int:
        await self._reach()
        return len(self._broker.queue(self._namespace, name).ready)

    async def get(self, queue: str, *, timeout_s: float = 10.0) -> Delivery | None:
        await self._reach()
        found = self._broker.queue(self._namespace, queue)
        return found.as_delivery(found.take()) if found.ready else None

    async def delete(self, topology: Topology, *, timeout_s: float = 30.0) -> None:
        await self._reach()
        self._broker.delete(self._namespace, topology)

    def lose(self) -> None:
        for subscription in self._subscriptions:
            subscription.drop()

    def regain(self) -> None:
        for subscription in self._subscriptions:
            subscription.attach()

    def pump(self, queue: MemoryQueue) -> None:
        self._broker.pump(self._namespace, queue)

    def give_back(self, queue: MemoryQueue, held: Held) -> None:
        self._broker.give_back(self._namespace, queue, held)

    def forget(self, subscription: MemorySubscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    async def _reach(self) -> None:
        # Another task gets its turn, as it would during a round trip.
        await asyncio.sleep(0)
        if not self.connected:
            raise _closed()


def _closed() -> BrokerUnavailable:
    return BrokerUnavailable("the in-memory broker is stopped or this bus is closed: start it, or make a new bus")
