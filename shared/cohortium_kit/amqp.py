"""The bus on RabbitMQ, through aio-pika.

Two connections: the broker stops reading from a connection that publishes when it runs out of memory or disk, and
acknowledgements must not be stuck behind that. Every call outside has a limit, and every error is one of ours.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import structlog
from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelClosed

from cohortium_kit._amqp_link import HANG_UP_S, Link, Login, UrlSource, client_context, translated
from cohortium_kit._amqp_subscription import Parking, RabbitSubscription
from cohortium_kit._amqp_wire import decode, encode, other_bound, queue_arguments
from cohortium_kit._certified import certified
from cohortium_kit._guard import forget_frames, in_time
from cohortium_kit.broker_check import Expected, check_broker
from cohortium_kit.bus import Delivery, Handler, Outgoing, Start
from cohortium_kit.dead_letters import Held
from cohortium_kit.errors import ConfigurationError, QueueMissing, Refused, Unroutable
from cohortium_messages.topology import Topology, platform_topology

__all__ = ["Login", "RabbitBus", "UrlSource", "client_context"]

log = structlog.get_logger(__name__)
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
        strict: Expected | None = None,
    ) -> None:
        """Raises `ConfigurationError` for an address that `strict` does not let pass; nothing is dialled before
        `connect`, which then tries the rest of it."""
        self._url = url
        self._namespace = namespace
        self._user_id = user_id
        self._strict = strict
        self._checked = strict is None
        self._out = Link(url, f"{connection_name}:out", heartbeat_s)
        self._in = Link(url, f"{connection_name}:in", heartbeat_s)
        self._publisher: tuple[AbstractConnection, AbstractChannel] | None = None
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
        """As the port says; the first time, also raises `ConfigurationError` for a broker that is open too wide."""
        await self._out.first_dial()
        if not self._checked and self._strict is not None:
            source = self._url() if callable(self._url) else self._url
            address = source.url if isinstance(source, Login) else source
            await check_broker(address, self._namespace, self._strict, await self._out.connection())
            self._checked = True

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
        refusal = await self._refusal(outgoing, timeout_s)
        try:
            if refusal is not None:
                raise refusal
        finally:
            del refusal

    async def _refusal(self, outgoing: Outgoing, timeout_s: float) -> Exception | None:
        """Publish; why it failed, if it did.

        Nothing of a message that failed is held: the frames in tracebacks would keep it, in cycles (aiormq's too),
        until the collector happens to come by, and what a full queue refuses would pile up till then, in megabytes.
        """
        message = encode(outgoing, self._user_id)
        doing = f"publish {outgoing.type} to {self._namespace}.{outgoing.exchange} under {outgoing.routing_key}"
        try:
            await in_time(self._publish(message, outgoing), timeout_s, doing)
        except Exception as error:  # noqa: BLE001 - translated
            known = translated(error, doing)
            forget_frames(error)
            if isinstance(known, QueueMissing):
                return Unroutable(f"{doing}: no such exchange; declare the topology first")
            return Refused(str(known)) if isinstance(known, ConfigurationError) else known
        return None

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
        makes the broker close the connection under everybody. At a strict broker they were there before any login; and
        since RabbitMQ 4.3 to look asks first for the right to read, which a site is on record for having tried.
        """
        if name in self._exchanges or self._strict is not None:
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
        standing: dict[str, dict[str, Any]] = {}
        doing = "declare the topology"
        while True:
            try:
                await self._ask(lambda channel: self._declare(channel, topology, standing), timeout_s, doing)
                break
            except ConfigurationError as error:
                _learn_bound(str(error), standing)
        for name, bounds in standing.items():
            log.warning(
                "queue_keeps_its_bounds",
                queue=name,
                bounds=[f"{argument}={value}" for argument, value in bounds.items()],
                remedy="runbooks/operate.md, A new version",
            )
        self._parking.learn({queue.name: queue.dead_letter_key for queue in topology.queues})

    async def check_queue(self, name: str, *, timeout_s: float = 10.0) -> None:
        await self.queue_depth(name, timeout_s=timeout_s)

    async def consume(
        self, queue: str, handler: Handler, *, prefetch: int, start: Start | None = None
    ) -> RabbitSubscription:
        if self._strict is not None:
            handler = certified(handler)
        subscription = RabbitSubscription(self._in, self._namespace, queue, handler, prefetch, self._parking, start)
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

    @contextlib.asynccontextmanager
    async def hold(
        self, queue: str, *, most: int, most_bytes: int, timeout_s: float = 10.0
    ) -> AsyncIterator[list[Held]]:
        """Take messages of a queue in hand, in their order, up to these bounds. What is not settled when the block ends
        is back in the queue as it was. For parking queues, whose messages nobody else takes."""
        doing = f"look into queue {self._namespace}.{queue}"
        async with contextlib.AsyncExitStack() as stack:
            held: list[Held] = []
            try:
                channel = await stack.enter_async_context(self._channel(self._in, confirms=False))
                found = await channel.get_queue(f"{self._namespace}.{queue}", ensure=False)
                while len(held) < most and sum(len(one.delivery.body) for one in held) < most_bytes:
                    message = await in_time(found.get(no_ack=False, fail=False), timeout_s, doing)
                    if message is None:
                        break
                    held.append(Held(decode(message, queue, self._namespace), message.ack))
            except Exception as error:  # noqa: BLE001 - translated
                raise translated(error, doing) from None
            yield held

    async def delete(self, topology: Topology, *, timeout_s: float = 30.0) -> None:
        async def drop(channel: AbstractChannel) -> None:
            for queue in topology.queues:
                await channel.queue_delete(f"{self._namespace}.{queue.name}")
            for exchange in topology.exchanges:
                await channel.exchange_delete(f"{self._namespace}.{exchange.name}")

        await self._ask(drop, timeout_s, "delete the topology")

    async def _declare(
        self, channel: AbstractChannel, topology: Topology, standing: Mapping[str, Mapping[str, Any]]
    ) -> None:
        # `cohortium broker definitions` made what the platform shares: no service has the right to.
        given = set() if self._strict is None else {queue.name for queue in platform_topology().queues}
        for exchange in topology.exchanges if self._strict is None else ():
            await channel.declare_exchange(f"{self._namespace}.{exchange.name}", exchange.kind.value, durable=True)
        for queue in topology.queues:
            name = f"{self._namespace}.{queue.name}"
            if queue.name in given:
                if self._strict is not None and queue.name in self._strict.own_queues:
                    await channel.declare_queue(name, passive=True)
                continue
            arguments = queue_arguments(queue, self._namespace) | dict(standing.get(name, {}))
            declared = await channel.declare_queue(
                name, durable=True, arguments={key: value for key, value in arguments.items() if value is not None}
            )
            for binding in queue.bindings:
                own = binding.exchange.startswith("amq.")  # the broker's own have no namespace
                await declared.bind(binding.exchange if own else f"{self._namespace}.{binding.exchange}", binding.key)

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
            standing, channel = self._publisher or (None, None)
            if channel is None or channel.is_closed or standing is not connection:
                # After a renewed login the old channel stays open a while: confirms on it are on their way.
                channel = connection.channel(publisher_confirms=True, on_return_raises=True)
                await channel.initialize()
                self._publisher = connection, channel
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


def _learn_bound(refusal: str, standing: dict[str, dict[str, Any]]) -> None:
    """Note which bound the refused queue has, to declare it so. Raises `ConfigurationError` where that is no way out:
    another rule than a bound, or one that was noted already."""
    match other_bound(refusal):
        case (queue, argument, value) if argument not in standing.get(queue, {}):
            standing.setdefault(queue, {})[argument] = value
        case _:
            raise ConfigurationError(
                f"{refusal}; a queue's rules never change by themselves: delete it when it is empty"
            )
