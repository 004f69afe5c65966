"""One consumer on RabbitMQ: its own channel, its own task that subscribes again, its own handlers' tasks."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from cohortium_kit._amqp_link import Link, backoff_s, translated
from cohortium_kit._amqp_wire import decode
from cohortium_kit._dead import dead_letter
from cohortium_kit._guard import in_time
from cohortium_kit._handling import DRAIN_S, drain, handle
from cohortium_kit.bus import Ack, Dead, Delivery, Handler, Outgoing, Requeue
from cohortium_kit.errors import AccessRefused, BusError, QueueMissing

log = structlog.get_logger(__name__)

ANSWER_S = 10.0
SUBSCRIBE_S = 15.0

Publish = Callable[[Outgoing], Awaitable[None]]


class RabbitSubscription:
    """Handlers run in tasks of ours, not of the channel: a lost connection must not cancel a half-done transaction."""

    def __init__(
        self, link: Link, namespace: str, queue: str, handler: Handler, prefetch: int, park: "Parking"
    ) -> None:
        self._link = link
        self._namespace = namespace
        self._name = queue
        self._handler = handler
        self._prefetch = prefetch
        self._parking = park
        self._working: set[asyncio.Task[None]] = set()
        self._consuming: tuple[AbstractQueue, str] | None = None
        self._channel: AbstractChannel | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._ended = False

    @property
    def active(self) -> bool:
        return self._consuming is not None

    async def start(self) -> None:
        """Subscribe. Raises `QueueMissing` or `AccessRefused`; an unreachable broker is waited for in the keeper."""
        loop = asyncio.get_running_loop()
        self._first = loop.create_future()
        self._keeper = loop.create_task(self._keep(), name=f"consume:{self._name}")
        try:
            await asyncio.wait({self._first}, timeout=SUBSCRIBE_S)
            if self._first.done():
                self._first.result()
        except BaseException:
            await self._stop_keeper()
            raise

    async def cancel(self) -> None:
        if not self._ended:
            self._ended = True
            await self._unsubscribe()
        await drain(self._working, DRAIN_S)
        await self._stop_keeper()
        # A subscription that was just being made again may have taken a few more in the meantime.
        await drain(self._working, DRAIN_S)

    async def abort(self) -> None:
        self._ended = True
        await drain(self._working, 0)
        await self._stop_keeper()

    async def _keep(self) -> None:
        attempt = 0
        while not self._ended:
            try:
                await self._hold_one_channel()
                attempt = 0
            except BusError as error:
                self._report(error)
                attempt += 1
            if not self._ended:
                await asyncio.sleep(backoff_s(attempt, longest_s=10.0))

    def _report(self, error: BusError) -> None:
        log.warning("subscription_failed", queue=self._name, error=type(error).__name__)
        if self._first is not None and not self._first.done() and isinstance(error, QueueMissing | AccessRefused):
            self._first.set_exception(error)

    async def _hold_one_channel(self) -> None:
        """Subscribe on a new channel, and return when the broker or the network ended it."""
        lost = asyncio.Event()
        connection = await self._link.connection()
        try:
            await in_time(self._subscribe(connection.channel(publisher_confirms=False), lost), SUBSCRIBE_S, "consume")
            if self._first is not None and not self._first.done():
                self._first.set_result(None)
            log.info("subscribed", queue=self._name)
            await lost.wait()
            log.info("subscription_lost", queue=self._name)
        except Exception as error:  # noqa: BLE001 - translated
            raise translated(error, f"consume from {self._name}") from None
        finally:
            self._consuming = None
            channel, self._channel = self._channel, None
            if channel is not None:
                with contextlib.suppress(Exception):
                    await in_time(channel.close(), ANSWER_S, "close channel")

    async def _subscribe(self, channel: AbstractChannel, lost: asyncio.Event) -> None:
        self._channel = channel
        await channel.initialize()
        channel.close_callbacks.add(lambda *_: lost.set())
        transport = await channel.get_underlay_channel()
        # The broker cancels a consumer whose queue is deleted or moved; the channel stays open, nothing else tells us.
        transport.on_consumer_cancel_callbacks.add(lambda *_: lost.set())
        await channel.set_qos(prefetch_count=self._prefetch)
        queue = await channel.declare_queue(f"{self._namespace}.{self._name}", passive=True)
        self._consuming = (queue, await queue.consume(self._take))

    async def _take(self, message: AbstractIncomingMessage) -> None:
        task = asyncio.get_running_loop().create_task(self._work(message))
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _work(self, message: AbstractIncomingMessage) -> None:
        delivery = decode(message, self._name, self._namespace)
        answer = await self._answer(message, delivery)
        try:
            await in_time(answer, ANSWER_S, "answer")
        except Exception as error:  # noqa: BLE001 - whatever the reason, the broker hands it over again
            # The channel is gone, so the broker has put the message back already; the inbox absorbs the repetition.
            log.info("answer_lost", queue=self._name, message_id=delivery.message_id, error=type(error).__name__)

    async def _answer(self, message: AbstractIncomingMessage, delivery: Delivery) -> Awaitable[None]:
        match await handle(self._handler, delivery):
            case Ack():
                return message.ack()
            case Requeue():
                return message.nack(requeue=True)
            case Dead(reason=reason):
                return await self._parking.park(message, delivery, reason)

    async def _unsubscribe(self) -> None:
        consuming, self._consuming = self._consuming, None
        if consuming is not None:
            queue, tag = consuming
            with contextlib.suppress(Exception):
                await in_time(queue.cancel(tag), ANSWER_S, "cancel consumer")

    async def _stop_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})


class Parking:
    """Where each queue's dead letters go, as far as this bus knows."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._keys: dict[str, str | None] = {}

    def learn(self, keys: dict[str, str | None]) -> None:
        self._keys.update(keys)

    async def park(self, message: AbstractIncomingMessage, delivery: Delivery, reason: str) -> Awaitable[None]:
        """Copy the message to the dead letters; returns the answer to give to the broker for the original.

        A queue we did not declare is a site's: a site may not write to `dead`, so the broker parks it (`rejected`).
        """
        key = self._keys.get(delivery.queue)
        if key is None:
            log.error("message_rejected", queue=delivery.queue, reason=reason, message_id=delivery.message_id)
            return message.reject(requeue=False)
        try:
            await self._publish(dead_letter(delivery, reason, key))
        except BusError as error:
            log.warning("parking_failed", queue=delivery.queue, reason=reason, error=type(error).__name__)
            return message.nack(requeue=True)
        return message.ack()
