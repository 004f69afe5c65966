"""Before anything is sent: is this broker as closed as the federation needs it? (decision 0013)

A broker that is open wider than agreed looks like one that works. So every service and every connector tries, at each
start, what must not be possible: an unencrypted way in beside the one it uses, the login that every new RabbitMQ has,
and rights beyond its own: to declare, to read a foreign queue, to write a foreign exchange, to publish under a key of
another's. The queues, the exchange and the keys it tries do not exist: the broker looks at rights first, so a refusal
means no right, and `not found` too many; what a broker does take under such a key reaches no queue.

It tells what our own login may do, from where we are. It cannot see another user's rights, nor a plain port other than
5672, nor one that a firewall shuts for us alone.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection
from pamqp import commands, frame
from pamqp.exceptions import UnmarshalingException
from yarl import URL

from cohortium_kit._amqp_link import client_context, dialled, translated
from cohortium_kit._guard import in_time
from cohortium_kit.addresses import is_loopback, is_tls, login_of, with_login
from cohortium_kit.errors import AccessRefused, BusError, ConfigurationError, QueueMissing
from cohortium_messages.rights import CHECK_NAME

log = structlog.get_logger(__name__)

BrokerCheck = Literal["strict", "trial"]
STEP_S = 15.0
PLAIN_PORT = 5672
PLAIN_S = 3.0
"""A port that lets nothing through is waited for so long: it is closed."""
MOST_GREETING_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Expected:
    """What our login must not be able to do: read these queues, publish to these exchanges, and under these keys, by
    exchange. And the queues that are there for it. Short names."""

    foreign_queues: tuple[str, ...]
    foreign_exchanges: tuple[str, ...] = ()
    foreign_keys: tuple[tuple[str, str], ...] = ()
    plain_port: int = PLAIN_PORT
    """Where the same host must not speak AMQP in plain text."""
    own_queues: tuple[str, ...] = ()
    """Looked for at each start. Others' are not: since RabbitMQ 4.3 that takes a right to them."""


def check_address(url: str, mode: BrokerCheck) -> None:
    """Raise `ConfigurationError` for an address that a strict check never lets pass; nothing is dialled."""
    encrypted = is_tls(url)
    if mode == "trial":
        log.warning("broker_check_off", remedy="set broker_check: strict; a trial is for one machine")
        return
    if not encrypted and not is_loopback(url):
        raise ConfigurationError("amqp_url: amqp:// goes over the network in the clear; give amqps://HOST:5671/VHOST")
    if login_of(url) == "guest":
        raise ConfigurationError(
            "amqp_url: logs in as guest, who may do everything; give this service a user of its own"
        )


async def check_broker(url: str, namespace: str, expected: Expected, connection: AbstractConnection) -> None:
    """Try what must be refused. Raises `ConfigurationError` for the first thing that is not, with the remedy.

    `connection` is our own, open one. Raises other `BusError` where the broker gave no answer: try again later.
    """
    await _plain_is_closed(url, expected.plain_port, connection)
    await _guest_is_refused(url)
    own = _Tries(namespace, connection)
    await own.refused("declare a queue", own.declare, "take its `configure` permission away")
    await own.refused("read any queue", own.reader(CHECK_NAME), "limit its `read` permission to its own queues")
    write = "limit its `write` permission to its own exchanges"
    await own.refused("write any exchange", own.publisher(CHECK_NAME, CHECK_NAME), write)
    for queue in expected.foreign_queues:
        await own.refused(f"read {queue}", own.reader(queue), "limit its `read` permission to its own queues")
    for exchange in expected.foreign_exchanges:
        await own.refused(f"write {exchange}", own.publisher(exchange, CHECK_NAME), write)
    for exchange, key in expected.foreign_keys:
        what = f"publish to {exchange} under {key}"
        await own.refused(what, own.publisher(exchange, key), "set its topic permissions")
    log.info("broker_checked")


async def _plain_is_closed(url: str, port: int, connection: AbstractConnection) -> None:
    """Raise `ConfigurationError` if this broker also greets who does not encrypt. Another broker may: on one machine
    there are several."""
    host = urlsplit(url).hostname or "localhost"
    if not is_tls(url):
        return
    greeted = await _greeting(host, port)
    ours = _cluster(cast("Any", connection).transport.connection.server_properties)
    if greeted is not None and _cluster(greeted) in (ours, None):
        raise ConfigurationError(
            f"the broker takes connections in plain text, at {host}:{port}: set listeners.tcp = none in rabbitmq.conf"
        )


def _cluster(properties: dict[str, Any]) -> Any:
    """The cluster's name, which a broker gives with its greeting on each of its ports. None if it gives none."""
    return properties.get("cluster_name")


async def _greeting(host: str, port: int) -> dict[str, Any] | None:
    """What a broker says there to who opens AMQP 0-9-1 in plain text; None if nobody, or no broker, answers."""
    writer = None
    try:
        async with asyncio.timeout(PLAIN_S):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"AMQP\x00\x00\x09\x01")
            head = await reader.readexactly(7)
            size = int.from_bytes(head[3:7], "big")
            if size > MOST_GREETING_BYTES:
                return None
            _, _, method = frame.unmarshal(head + await reader.readexactly(size + 1))
    except (OSError, TimeoutError, asyncio.IncompleteReadError, UnmarshalingException):
        return None
    finally:
        if writer is not None:
            writer.transport.abort()
    return dict(method.server_properties) if isinstance(method, commands.Connection.Start) else None


async def _guest_is_refused(url: str) -> None:
    doing = "try to log in as guest"
    address = with_login(url, "guest", "guest")
    try:
        connection, line = await dialled(URL(address), client_context(url), {}, doing)
    except Exception as error:  # noqa: BLE001 - translated
        known = translated(error, doing)
        if isinstance(known, AccessRefused):
            return
        raise known from None
    try:
        await in_time(connection.close(), STEP_S, doing)
    finally:
        line.cut()
    raise ConfigurationError(
        "the broker lets guest in with the password guest: delete that user (rabbitmqctl delete_user guest)"
    )


@dataclass(frozen=True, slots=True)
class _Tries:
    namespace: str
    connection: AbstractConnection

    async def refused(self, what: str, attempt: Callable[[AbstractChannel], Awaitable[object]], remedy: str) -> None:
        """Return if the broker refuses the attempt; it closes the channel then, so each has one of its own."""
        try:
            async with self.connection.channel(publisher_confirms=True) as channel:
                await in_time(attempt(channel), STEP_S, what)
        except Exception as error:
            known = translated(error, what)
            if isinstance(known, AccessRefused):
                return
            if isinstance(known, BusError) and not isinstance(known, QueueMissing):
                raise known from None
            if not isinstance(known, QueueMissing):
                raise
        raise ConfigurationError(f"the broker lets our own login {what}: {remedy}; see `cohortium broker definitions`")

    async def declare(self, channel: AbstractChannel) -> None:
        name = f"{self.namespace}.{CHECK_NAME}"
        await channel.declare_queue(name, durable=False, exclusive=True, auto_delete=True)

    def reader(self, queue: str) -> Callable[[AbstractChannel], Awaitable[object]]:
        async def read(channel: AbstractChannel) -> None:
            await channel.set_qos(prefetch_count=1)
            found = await channel.get_queue(f"{self.namespace}.{queue}", ensure=False)
            tag = await found.consume(_leave_it)
            await found.cancel(tag)

        return read

    def publisher(self, exchange: str, key: str) -> Callable[[AbstractChannel], Awaitable[object]]:
        async def publish(channel: AbstractChannel) -> None:
            found = await channel.get_exchange(f"{self.namespace}.{exchange}", ensure=False)
            await found.publish(aio_pika.Message(b""), key, mandatory=False)

        return publish


async def _leave_it(_: object) -> None:
    """What is delivered here goes back to its queue when the channel closes."""
