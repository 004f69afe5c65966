"""One AMQP connection that is dialled again for ever, and the translation of every AMQP error into ours.

aio-pika's robust connection is not used: it retries at a constant interval without jitter and with the credentials it
was built with (broker study, 4.4). Here every dial asks for the address anew, and waits grow with full jitter.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import aio_pika
import structlog
from aio_pika.abc import AbstractConnection
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

UrlSource = str | Callable[[], str]
"""The broker's address with login and password; a function is asked at every dial, so that tokens can rotate."""

DIAL_S = 15.0
HANG_UP_S = 5.0
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 8.0
_STABLE_AFTER_S = 5.0


def backoff_s(attempt: int, *, first_s: float = _FIRST_WAIT_S, longest_s: float = _LONGEST_WAIT_S) -> float:
    """Full jitter: anywhere between nothing and the doubled limit, so that sites do not return in one wave."""
    return random.uniform(0, min(longest_s, first_s * 2 ** min(attempt, 16)))  # noqa: S311 - spreads load, no secret


def translated(error: Exception, doing: str) -> Exception:
    """Our error for one of aio-pika's; errors that are not about the wire (a `TypeError`) come back as they are."""
    match error:
        case BusError():
            return error
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


class Link:
    """A connection kept open by its own task, from `start` to `close`."""

    def __init__(self, url: UrlSource, name: str, heartbeat_s: int) -> None:
        self._url = url
        self._name = name
        self._heartbeat_s = heartbeat_s
        self._connection: AbstractConnection | None = None
        self._changed = asyncio.Condition()
        self._failure: BusError | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def live(self) -> bool:
        return self._connection is not None

    async def first_dial(self) -> None:
        """Return when a connection stands; raise what the first failed dial met."""
        self._start()
        async with self._changed:
            await self._changed.wait_for(lambda: self._connection is not None or self._failure is not None)
        if self._connection is None and self._failure is not None:
            raise self._failure

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

    async def close(self) -> None:
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
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
                await self._hold_one_connection()
            except BusError as error:
                log.warning("broker_dial_failed", connection=self._name, error=type(error).__name__, attempt=attempt)
                await self._announce(None, error)
            attempt = 0 if loop.time() - since > _STABLE_AFTER_S + DIAL_S else attempt + 1
            await asyncio.sleep(backoff_s(attempt))

    async def _hold_one_connection(self) -> None:
        """Dial, announce, and return when the connection is gone."""
        connection = await self._dial()
        try:
            lost = asyncio.Event()
            connection.close_callbacks.add(lambda *_: lost.set())
            await self._announce(connection, None)
            log.info("broker_connected", connection=self._name)
            await lost.wait()
            log.warning("broker_connection_lost", connection=self._name)
        finally:
            self._connection = None
            with contextlib.suppress(Exception):
                await in_time(connection.close(), HANG_UP_S, "hang up")

    async def _dial(self) -> AbstractConnection:
        doing = f"dial the broker for {self._name}"
        try:
            address = self._url() if callable(self._url) else self._url
            url = URL(address).update_query(heartbeat=str(self._heartbeat_s))
            properties: dict[str, Any] = {"connection_name": self._name}
            return await in_time(aio_pika.connect(url, client_properties=properties, timeout=DIAL_S), DIAL_S + 1, doing)
        except Exception as error:
            known = translated(error, doing)
            if isinstance(known, BusError):
                raise known from None
            raise BrokerUnavailable(f"{doing}: {type(error).__name__}; check the address") from error

    async def _announce(self, connection: AbstractConnection | None, failure: BusError | None) -> None:
        async with self._changed:
            self._connection, self._failure = connection, failure
            self._changed.notify_all()
