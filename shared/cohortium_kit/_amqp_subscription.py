"""One consumer on RabbitMQ: its own channel, its own task that subscribes again, its own handlers' tasks."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from pamqp.common import FieldTable

from cohortium_kit._amqp_link import Link, backoff_s, translated
from cohortium_kit._amqp_wire import STREAM_OFFSET, decode
from cohortium_kit._dead import dead_letter
from cohortium_kit._guard import in_time
from cohortium_kit._handling import DRAIN_S, drain, handle
from cohortium_kit.bus import Ack, Dead, Delivery, Handler, Outgoing, Requeue, Start
from cohortium_kit.errors import AccessRefused, BusError, QueueMissing

log = structlog.get_logger(__name__)

ANSWER_S = 10.0
SUBSCRIBE_S = 15.0
LEAVE_S = 15.0
"""So long a handler may go on that holds a message of a connection whose login was renewed."""

Publish = Callable[[Outgoing], Awaitable[None]]


class RabbitSubscription:
    """Handlers run in tasks of ours, not of the channel: a lost connection must not cancel a half-done transaction."""

    def __init__(
        self,
        link: Link,
        namespace: str,
        queue: str,
        handler: Handler,
        prefetch: int,
        park: "Parking",
        start: Start | None = None,
    ) -> None:
        self._link = link
        self._namespace = namespace
        self._name = queue
        self._handler = handler
        self._prefetch = prefetch
        self._parking = park
        self._start = start
        self._unanswered: set[int] = set()
        self._working: set[asyncio.Task[None]] = set()
        self._seat: _Seat | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._ended = False

    @property
    def active(self) -> bool:
        return self._seat is not None

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
            if self._seat is not None:
                await self._seat.stop()
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
                await self._hold_a_seat()
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

    async def _hold_a_seat(self) -> None:
        """Subscribe, and return when the broker or the network ended it. Moves over to a connection that takes the
        place of ours, without a gap: for a moment there are two consumers."""
        seat = await self._seated()
        try:
            if self._first is not None and not self._first.done():
                self._first.set_result(None)
            attempt = 0
            while not await seat.lost_before_another(self._link):
                try:
                    fresh = await self._seated()
                except BusError as error:
                    # The old one serves on, until its connection is closed; then everything begins anew.
                    log.warning("not_moved_over", queue=self._name, error=type(error).__name__, attempt=attempt)
                    attempt += 1
                    await asyncio.sleep(backoff_s(attempt, longest_s=2.0))
                    continue
                seat, old, attempt = fresh, seat, 0
                self._leave(old)
            log.info("subscription_lost", queue=self._name)
        finally:
            self._seat = None
            await seat.close()

    async def _seated(self) -> "_Seat":
        connection = await self._link.connection()
        seat = _Seat(connection, connection.channel(publisher_confirms=False))
        try:
            await in_time(self._subscribe(seat), SUBSCRIBE_S, "consume")
        except BaseException as error:
            await seat.close()
            if isinstance(error, Exception):
                raise translated(error, f"consume from {self._name}") from None
            raise
        self._seat = seat
        log.info("subscribed", queue=self._name)
        return seat

    async def _subscribe(self, seat: "_Seat") -> None:
        channel = seat.channel
        await channel.initialize()
        channel.close_callbacks.add(lambda *_: seat.lost.set())
        transport = await channel.get_underlay_channel()
        # The broker cancels a consumer whose queue is deleted or moved; the channel stays open, nothing else tells us.
        transport.on_consumer_cancel_callbacks.add(lambda *_: seat.lost.set())
        await channel.set_qos(prefetch_count=self._prefetch)
        queue = await channel.declare_queue(f"{self._namespace}.{self._name}", passive=True)

        async def take(message: AbstractIncomingMessage) -> None:
            self._take(seat, message)

        wish: FieldTable = {}
        if self._start is not None:
            wish[STREAM_OFFSET] = min(self._unanswered, default=self._start)
        seat.consuming = queue, await queue.consume(take, arguments=wish)

    def _take(self, seat: "_Seat", message: AbstractIncomingMessage) -> None:
        task = asyncio.get_running_loop().create_task(self._work(message))
        for working in (self._working, seat.working):
            working.add(task)
            task.add_done_callback(working.discard)

    def _leave(self, old: "_Seat") -> None:
        """Take no more there, answer what was taken, and go. What takes too long is handed over again."""

        async def leave() -> None:
            await old.stop()
            if old.working:
                await asyncio.wait(set(old.working), timeout=LEAVE_S)
            await old.close()

        task = asyncio.get_running_loop().create_task(leave(), name=f"leave:{self._name}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _work(self, message: AbstractIncomingMessage) -> None:
        delivery = decode(message, self._name, self._namespace)
        if delivery.offset is not None:
            self._unanswered.add(delivery.offset)
            self._start = delivery.offset + 1
        answer = await self._answer(message, delivery)
        if delivery.offset is not None:
            self._unanswered.discard(delivery.offset)
        try:
            await in_time(answer, ANSWER_S, "answer")
        except Exception as error:  # noqa: BLE001 - whatever the reason, the broker hands it over again
            # The channel is gone, so the broker has put the message back already; the inbox absorbs the repetition.
            log.info("answer_lost", queue=self._name, message_id=delivery.message_id, error=type(error).__name__)

    async def _answer(self, message: AbstractIncomingMessage, delivery: Delivery) -> Awaitable[None]:
        disposition = await handle(self._handler, delivery)
        if delivery.offset is not None:
            return message.ack()
        match disposition:
            case Ack():
                return message.ack()
            case Requeue():
                return _again(message)
            case Dead(reason=reason):
                return await self._parking.park(message, delivery, reason)

    async def _stop_keeper(self) -> None:
        ending = {*self._leaving, *([self._keeper] if self._keeper is not None else [])}
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)


class _Seat:
    """One consumer on one channel of one connection."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self.channel = channel
        self.consuming: tuple[AbstractQueue, str] | None = None
        self.lost = asyncio.Event()
        self.working: set[asyncio.Task[None]] = set()
        self._connection = connection

    async def lost_before_another(self, link: Link) -> bool:
        """Return when the channel is lost, True, or when another connection takes the place of ours, False."""
        losing = asyncio.create_task(self.lost.wait())
        moving = asyncio.create_task(link.superseded(self._connection))
        try:
            await asyncio.wait({losing, moving}, return_when=asyncio.FIRST_COMPLETED)
            return self.lost.is_set()
        finally:
            losing.cancel()
            moving.cancel()
            await asyncio.gather(losing, moving, return_exceptions=True)

    async def stop(self) -> None:
        """Take no more messages."""
        consuming, self.consuming = self.consuming, None
        if consuming is not None:
            queue, tag = consuming
            with contextlib.suppress(Exception):
                await in_time(queue.cancel(tag), ANSWER_S, "cancel consumer")

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            await in_time(self.channel.close(), ANSWER_S, "close channel")


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
            return _again(message)
        return message.ack()


def _again(message: AbstractIncomingMessage) -> Awaitable[None]:
    """Back to its queue, counted: from RabbitMQ 4.3 on `basic.nack` is not, and a message that nobody can handle would
    come again for ever."""
    return message.reject(requeue=True)
