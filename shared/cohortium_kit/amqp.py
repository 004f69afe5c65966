"""The bus on RabbitMQ, through aio-pika.

Two connections: the broker stops reading from a connection that publishes when it runs out of memory or disk, and
acknowledgements must not be stuck behind that. Every call outside has a limit, and every error is one of ours.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from aio_pika import Message
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelClosed

from cohortium_kit._amqp_link import HANG_UP_S, Link, UrlSource, translated
from cohortium_kit._amqp_subscription import Parking, RabbitSubscription
from cohortium_kit._amqp_wire import decode, encode, queue_arguments
from cohortium_kit._guard import in_time
from cohortium_kit.bus import Delivery, Handler, Outgoing
from cohortium_kit.errors import ConfigurationError, QueueMissing, Refused, Unroutable
from cohortium_messages.topology import Topology, platform_topology

__all__ = ["RabbitBus", "UrlSource"]

T = TypeVar("T")


class RabbitBus:
    """One participant's connections to RabbitMQ.

    Give `user_id` where the broker shall certify the sender: it must be the login, and the broker checks it.
    """

    def __init__(
        self,
        url: UrlSource,
        namespace: str,
        *,
        connection_name: str,
        heartbeat_s: int = 15,
        user_id: str | None = None,
    ) -> None:
        self._namespace = namespace
        self._user_id = user_id
        self._out = Link(url, f"{connection_name}:out", heartbeat_s)
        self._in = Link(url, f"{connection_name}:in", heartbeat_s)
        self._publisher: AbstractChannel | None = None
        self._opening = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._exchanges: set[str] = set()
        self._in_flight: dict[str, tuple[asyncio.Lock, int]] = {}
        self._subscriptions: list[RabbitSubscription] = []
        self._parking = Parking(self.publish)
        self._parking.learn({queue.name: queue.dead_letter_key for queue in platform_topology().queues})

    @property
    def connected(self) -> bool:
        return self._out.live

    async def connect(self) -> None:
        await self._out.first_dial()

    async def close(self) -> None:
        for subscription in self._subscriptions:
            await subscription.cancel()
        await self._hang_up()

    async def abort(self) -> None:
        """End as a killed process ends: handlers stop where they are, their messages return to the queues."""
        for subscription in self._subscriptions:
            await subscription.abort()
        await self._hang_up()

    async def publish(self, outgoing: Outgoing, *, timeout_s: float = 10.0) -> None:
        message = encode(outgoing, self._user_id)
        doing = f"publish {outgoing.type} to {self._namespace}.{outgoing.exchange} under {outgoing.routing_key}"
        try:
            await in_time(self._publish(message, outgoing), timeout_s, doing)
        except Exception as error:  # noqa: BLE001 - translated
            known = translated(error, doing)
            if isinstance(known, QueueMissing):
                raise Unroutable(f"{doing}: no such exchange; declare the topology first") from None
            if isinstance(known, ConfigurationError):
                raise Refused(str(known)) from None
            raise known from None

    async def _publish(self, message: Message, outgoing: Outgoing) -> None:
        # aiormq finds a returned message by its id: two in flight with one id would get each other's answer.
        async with self._alone_with(outgoing.message_id):
            await self._check_exchange(outgoing.exchange)
            try:
                await self._send(await self._publishing_channel(), message, outgoing)
            except ChannelClosed:
                # One bad publish closes the channel under all others in flight. Alone on a channel of its own, this
                # one learns whether it was the bad one.
                async with self._channel(self._out, confirms=True) as channel:
                    await self._send(channel, message, outgoing)

    async def _check_exchange(self, name: str) -> None:
        """Look once whether the exchange exists.

        Publishing to one that does not closes the channel, and what aiormq still writes to the closed channel then
        makes the broker close the connection under everybody.
        """
        if name in self._exchanges:
            return
        async with self._looking:
            if name not in self._exchanges:
                async with self._channel(self._out, confirms=False) as channel:
                    await channel.get_exchange(f"{self._namespace}.{name}", ensure=True)
                self._exchanges.add(name)

    async def _send(self, channel: AbstractChannel, message: Message, outgoing: Outgoing) -> None:
        exchange = await channel.get_exchange(f"{self._namespace}.{outgoing.exchange}", ensure=False)
        await exchange.publish(message, outgoing.routing_key, mandatory=True)

    async def declare(self, topology: Topology, *, timeout_s: float = 30.0) -> None:
        await self._ask(lambda channel: self._declare(channel, topology), timeout_s, "declare the topology")
        self._parking.learn({queue.name: queue.dead_letter_key for queue in topology.queues})

    async def check_queue(self, name: str, *, timeout_s: float = 10.0) -> None:
        await self.queue_depth(name, timeout_s=timeout_s)

    async def consume(self, queue: str, handler: Handler, *, prefetch: int) -> RabbitSubscription:
        subscription = RabbitSubscription(self._in, self._namespace, queue, handler, prefetch, self._parking)
        await subscription.start()
        self._subscriptions.append(subscription)
        return subscription

    async def queue_depth(self, name: str, *, timeout_s: float = 10.0) -> int:
        async def count(channel: AbstractChannel) -> int:
            queue = await channel.declare_queue(f"{self._namespace}.{name}", passive=True)
            return queue.declaration_result.message_count or 0

        return await self._ask(count, timeout_s, f"look at queue {self._namespace}.{name}")

    async def get(self, queue: str, *, timeout_s: float = 10.0) -> Delivery | None:
        async def take(channel: AbstractChannel) -> Delivery | None:
            found = await channel.get_queue(f"{self._namespace}.{queue}", ensure=False)
            message = await found.get(no_ack=True, fail=False)
            return None if message is None else decode(message, queue, self._namespace)

        return await self._ask(take, timeout_s, f"get from queue {self._namespace}.{queue}")

    async def delete(self, topology: Topology, *, timeout_s: float = 30.0) -> None:
        async def drop(channel: AbstractChannel) -> None:
            for queue in topology.queues:
                await channel.queue_delete(f"{self._namespace}.{queue.name}")
            for exchange in topology.exchanges:
                await channel.exchange_delete(f"{self._namespace}.{exchange.name}")

        await self._ask(drop, timeout_s, "delete the topology")

    async def _declare(self, channel: AbstractChannel, topology: Topology) -> None:
        for exchange in topology.exchanges:
            await channel.declare_exchange(f"{self._namespace}.{exchange.name}", exchange.kind.value, durable=True)
        for queue in topology.queues:
            declared = await channel.declare_queue(
                f"{self._namespace}.{queue.name}", durable=True, arguments=queue_arguments(queue, self._namespace)
            )
            for binding in queue.bindings:
                await declared.bind(f"{self._namespace}.{binding.exchange}", binding.key)

    async def _ask(self, work: Callable[[AbstractChannel], Awaitable[T]], timeout_s: float, doing: str) -> T:
        """Do something on a channel of its own: the broker closes the channel on every refusal."""

        async def ask() -> T:
            async with self._channel(self._in, confirms=False) as channel:
                return await work(channel)

        try:
            return await in_time(ask(), timeout_s, doing)
        except Exception as error:  # noqa: BLE001 - translated
            raise translated(error, doing) from None

    @contextlib.asynccontextmanager
    async def _channel(self, link: Link, *, confirms: bool) -> AsyncIterator[AbstractChannel]:
        connection = await link.connection()
        channel = connection.channel(publisher_confirms=confirms, on_return_raises=confirms)
        try:
            await channel.initialize()
            yield channel
        finally:
            with contextlib.suppress(Exception):
                await in_time(channel.close(), HANG_UP_S, "close channel")

    async def _publishing_channel(self) -> AbstractChannel:
        async with self._opening:
            connection = await self._out.connection()
            channel = self._publisher
            if channel is None or channel.is_closed:
                channel = connection.channel(publisher_confirms=True, on_return_raises=True)
                await channel.initialize()
                self._publisher = channel
            return channel

    @contextlib.asynccontextmanager
    async def _alone_with(self, message_id: str) -> AsyncIterator[None]:
        lock, users = self._in_flight.get(message_id, (asyncio.Lock(), 0))
        self._in_flight[message_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            _, users = self._in_flight.pop(message_id)
            if users > 1:
                self._in_flight[message_id] = (lock, users - 1)

    async def _hang_up(self) -> None:
        self._subscriptions.clear()
        await self._in.close()
        await self._out.close()
