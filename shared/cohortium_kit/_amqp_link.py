"""One AMQP connection that is dialled again for ever, and the translation of every AMQP error into ours.

aio-pika's robust connection is not used: it retries at a constant interval without jitter and with the credentials it
was built with (broker study, 4.4). Here every dial asks for the address anew, and waits grow with full jitter.

A login that ends is renewed without a gap: before its end a second connection is made with a fresh one, everybody moves
over, and only then the first is closed. (AMQP could take a new secret on an open connection; RabbitMQ 3.10 would accept
another party's there: broker study, 1.)
"""

import asyncio
import contextlib
import itertools
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import structlog
from aio_pika import Connection
from aio_pika.abc import AbstractConnection
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    DeliveryError,
    ProbableAuthenticationError,
    PublishError,
)
from yarl import URL

from cohortium_kit._guard import in_time
from cohortium_kit.addresses import is_tls
from cohortium_kit.errors import (
    AccessRefused,
    BrokerUnavailable,
    BusError,
    ConfigurationError,
    QueueMissing,
    Refused,
    Unroutable,
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Login:
    """The broker's address with a login that ends. `renew_at` is by the event loop's clock: from then on a new one is
    asked for. All connections of one participant are told the same moment, so that they move over together."""

    url: str
    renew_at: float

    def __repr__(self) -> str:
        return "Login(***)"


UrlSource = str | Callable[[], str | Login]
"""The broker's address with login and password; a function is asked at every dial, so that logins can be renewed."""

DIAL_S = 15.0
HANG_UP_S = 5.0
HANDOVER_S = 20.0
"""So long an old connection stays after the new one stands: for answers and confirms that are on their way."""
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 8.0
_STABLE_AFTER_S = 5.0


def backoff_s(attempt: int, *, first_s: float = _FIRST_WAIT_S, longest_s: float = _LONGEST_WAIT_S) -> float:
    """Full jitter: anywhere between nothing and the doubled limit, so that sites do not return in one wave."""
    return random.uniform(0, min(longest_s, first_s * 2 ** min(attempt, 16)))  # noqa: S311 - spreads load, no secret


def client_context(address: str) -> ssl.SSLContext | None:
    """How the broker's certificate is checked: TLS 1.3, its chain, its name against the address. None for plain text.

    `cafile` in the address names the authority; without it the system's ones count. Raises `ConfigurationError`.
    """
    if not is_tls(address):
        return None
    query = parse_qs(urlsplit(address).query)
    file = query.get("cafile", [None])[-1]
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=file)
    except OSError as error:
        raise ConfigurationError(f"amqp_url: cafile {file}: {error.strerror or 'no certificate in it'}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def translated(error: Exception, doing: str) -> Exception:
    """Our error for one of aio-pika's; errors that are not about the wire (a `TypeError`) come back as they are."""
    match error:
        case BusError():
            return error
        case _ if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return BrokerUnavailable(
                f"{doing}: the broker's certificate is not good for this name, or of an authority that is not trusted"
                " here; check the name and cafile in amqp_url"
            )
        case PublishError():
            return Unroutable(f"{doing}: no queue is bound there; declare the receiver's topology")
        case DeliveryError():
            return Refused(f"{doing}: the broker refused it, its queue is full; publish again later")
        case ChannelNotFoundEntity():
            return QueueMissing(f"{doing}: it does not exist; declare the topology first")
        case ChannelAccessRefused() | AuthenticationError() | ProbableAuthenticationError() | ConnectionNotAllowed():
            return AccessRefused(f"{doing}: the broker refuses us; check login, its end, and rights")
        case ChannelPreconditionFailed():
            return ConfigurationError(f"{doing}: {error.args[-1] if error.args else 'precondition failed'}")
        case AMQPError() | OSError() | RuntimeError():
            return BrokerUnavailable(f"{doing}: {type(error).__name__}; it is safe to repeat")
        case _:
            return error


class _Connection(Connection):
    """aio-pika's own; it reads only some of its arguments into what aiormq is given, so more is put there."""

    kwargs: dict[str, Any]

    def __del__(self) -> None:
        """Nothing: whoever dialled closes it and cuts its line. aio-pika would close what a failed dial left in
        whatever loop, or none, runs where the collector happens to come by."""


class Line(TransportFactory):
    """The line of one dial, to be cut when it is no longer used, whatever became of that dial.

    aiormq closes a line politely, and with TLS that takes the broker's answer. Cancelled while it waits for that (the
    bus is closed, a limit has passed), it leaves the socket to TLS's own limit of 30 s, or to nobody.
    """

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await factory.create(url, **kwargs)
        self._transport = writer.transport
        return reader, writer

    def cut(self) -> None:
        """Close it now, unless it is closed."""
        if self._transport is not None:
            self._transport.abort()


async def dialled(
    url: URL, context: ssl.SSLContext | None, properties: dict[str, Any], doing: str
) -> tuple[AbstractConnection, Line]:
    """An open connection and its line, which the caller cuts after closing. Raises aio-pika's errors, and ours for a
    broker that does not answer; then, as when it is cancelled, the line is cut."""
    connection, line, stands = _Connection(url, ssl_context=context, client_properties=properties), Line(), False
    connection.kwargs["transport_factory"] = line
    try:
        await in_time(connection.connect(), DIAL_S, doing)
        stands = True
    finally:
        if not stands:
            line.cut()
    return connection, line


class Link:
    """A connection kept open by its own task, from `start` to `close`."""

    def __init__(self, url: UrlSource, name: str, heartbeat_s: int, *, handover_s: float = HANDOVER_S) -> None:
        self._url = url
        self._name = name
        self._heartbeat_s = heartbeat_s
        self._handover_s = handover_s
        self._connection: AbstractConnection | None = None
        self._changed = asyncio.Condition()
        self._failure: BusError | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def live(self) -> bool:
        return self._connection is not None

    async def first_dial(self) -> None:
        """Return when a connection stands; raise what the first failed dial met."""
        self._start()
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._connection is not None or self._failure is not None or self._closed
            )
        if self._connection is None:
            raise self._failure or BrokerUnavailable(f"connection {self._name} is closed: make a new bus")

    async def connection(self) -> AbstractConnection:
        """The open connection; waits for it as long as the caller lets us. Raises `AccessRefused` at once."""
        self._start()
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._connection is not None or isinstance(self._failure, AccessRefused) or self._closed
            )
        if self._connection is not None:
            return self._connection
        raise self._failure or BrokerUnavailable(f"connection {self._name} is closed: make a new bus")

    async def superseded(self, connection: AbstractConnection) -> None:
        """Return when another connection stands in this one's place: move over, this one ends in a moment."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._connection not in (None, connection))

    async def close(self) -> None:
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        for task in self._retiring:
            task.cancel()
        if self._retiring:
            await asyncio.wait(self._retiring)
        await self._announce(None, None)

    def _start(self) -> None:
        if self._closed:
            raise BrokerUnavailable(f"connection {self._name} is closed: make a new bus")
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._keep(), name=f"amqp:{self._name}")

    async def _keep(self) -> None:
        attempt = 0
        loop = asyncio.get_running_loop()
        while True:
            since = loop.time()
            try:
                await self._hold_connections()
            except BusError as error:
                log.warning("broker_dial_failed", connection=self._name, error=type(error).__name__, attempt=attempt)
                await self._announce(None, error)
            attempt = 0 if loop.time() - since > _STABLE_AFTER_S + DIAL_S else attempt + 1
            await asyncio.sleep(backoff_s(attempt))

    async def _hold_connections(self) -> None:
        """Dial, and hold what stands and each one that takes its place; return when one is lost."""
        held: _Held | None = await self._dial()
        while held is not None:
            held = await self._hold(held)

    async def _hold(self, held: "_Held") -> "_Held | None":
        """Announce a connection; return the one that took its place, or None when it is gone."""
        successor: _Held | None = None
        try:
            await self._announce(held.connection, None)
            log.info("broker_connected", connection=self._name)
            if not await held.lost_before(held.renew_at):
                successor = await self._renewed(held)
            if successor is None:
                log.warning("broker_connection_lost", connection=self._name)
            return successor
        finally:
            if successor is None:
                self._connection = None
                await held.hang_up()
            else:
                self._retire(held)

    async def _renewed(self, held: "_Held") -> "_Held | None":
        """A connection with a fresh login. While none can be had the old one serves; None when that one is lost."""
        loop = asyncio.get_running_loop()
        for attempt in itertools.count(1):
            try:
                return await self._dial()
            except BusError as error:
                log.warning("login_not_renewed", connection=self._name, error=type(error).__name__, attempt=attempt)
            if await held.lost_before(loop.time() + backoff_s(attempt)):
                return None
        raise AssertionError("unreachable")

    def _retire(self, held: "_Held") -> None:
        async def end() -> None:
            try:
                await held.lost_before(asyncio.get_running_loop().time() + self._handover_s)
            finally:
                await held.hang_up()

        log.info("login_renewed", connection=self._name)
        task = asyncio.get_running_loop().create_task(end(), name=f"amqp:{self._name}:old")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _dial(self) -> "_Held":
        doing = f"dial the broker for {self._name}"
        try:
            source = self._url() if callable(self._url) else self._url
            address, renew_at = (source.url, source.renew_at) if isinstance(source, Login) else (source, None)
            url = URL(address).update_query(heartbeat=str(self._heartbeat_s))
            properties: dict[str, Any] = {"connection_name": self._name}
            return _Held(*await dialled(url, client_context(address), properties, doing), renew_at)
        except Exception as error:
            known = translated(error, doing)
            if isinstance(known, BusError):
                raise known from None
            raise BrokerUnavailable(f"{doing}: {type(error).__name__}; check the address") from error

    async def _announce(self, connection: AbstractConnection | None, failure: BusError | None) -> None:
        async with self._changed:
            self._connection, self._failure = connection, failure
            self._changed.notify_all()


class _Held:
    """One open connection, and whether it is lost."""

    def __init__(self, connection: AbstractConnection, line: Line, renew_at: float | None) -> None:
        self.connection = connection
        self._line = line
        self.renew_at = renew_at
        self._lost = asyncio.Event()
        connection.close_callbacks.add(lambda *_: self._lost.set())

    async def lost_before(self, moment: float | None) -> bool:
        """Whether it was lost before this moment of the loop's clock; with None, wait until it is."""
        try:
            async with asyncio.timeout_at(moment):
                await self._lost.wait()
        except TimeoutError:
            return False
        return True

    async def hang_up(self) -> None:
        try:
            with contextlib.suppress(Exception):
                await in_time(self.connection.close(), HANG_UP_S, "hang up")
        finally:
            self._line.cut()
