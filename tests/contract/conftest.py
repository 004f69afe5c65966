# ruff: noqa: ASYNC110 - what these wait for happens in another process
"""Both adapters of each port, behind one laboratory each."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from yarl import URL

from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Ack, Delivery, Disposition, Outgoing
from cohortium_kit.db import Database
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.migrate import drop_schema, migrate
from cohortium_kit.testing.proxy import CuttingProxy
from cohortium_messages.topology import EXCHANGES, Topology

PATIENCE_S = 60.0
_numbers = itertools.count()


class BusLab(Protocol):
    """A broker with a namespace of its own, and the means to cut its connections."""

    def bus(self, user_id: str | None = None) -> Any: ...

    async def outage(self) -> None: ...

    async def recovery(self) -> None: ...


class MemoryLab:
    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._broker = MemoryBroker()
        self.opened: list[MemoryBus] = []

    def bus(self, user_id: str | None = None) -> MemoryBus:
        self.opened.append(MemoryBus(self._broker, self.namespace, user_id=user_id))
        return self.opened[-1]

    async def outage(self) -> None:
        self._broker.stop()

    async def recovery(self) -> None:
        self._broker.start()

    async def close(self) -> None:
        for bus in self.opened:
            await bus.close()


class RabbitLab:
    def __init__(self, namespace: str, url: str) -> None:
        self.namespace = namespace
        self._url = URL(url)
        self._proxy = CuttingProxy(self._url.host or "127.0.0.1", self._url.port or 5672)
        self.opened: list[RabbitBus] = []

    async def start(self) -> None:
        await self._proxy.start()

    def bus(self, user_id: str | None = None) -> RabbitBus:
        url = str(self._url.with_host("127.0.0.1").with_port(self._proxy.port))
        name = f"{self.namespace}-{len(self.opened)}"
        self.opened.append(RabbitBus(url, self.namespace, connection_name=name, user_id=user_id))
        return self.opened[-1]

    async def outage(self) -> None:
        self._proxy.block()

    async def recovery(self) -> None:
        self._proxy.unblock()

    async def close(self) -> None:
        for bus in self.opened:
            await bus.close()
        await self._proxy.close()


@pytest.fixture(params=["memory", pytest.param("rabbit", marks=pytest.mark.real)])
async def lab(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[MemoryLab | RabbitLab]:
    if request.param == "memory":
        memory = MemoryLab(namespace)
        yield memory
        await memory.close()
        return
    rabbit = RabbitLab(namespace, request.getfixturevalue("amqp_url"))
    await rabbit.start()
    yield rabbit
    await rabbit.close()


@pytest.fixture
async def declared(lab: MemoryLab | RabbitLab) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Declare queues and give a bus; all of it is deleted after the test."""
    topologies: list[Topology] = []

    async def declare(*queues: Any, user_id: str | None = None) -> Any:
        bus = lab.bus(user_id)
        topologies.append(Topology(EXCHANGES, tuple(queues)))
        await bus.declare(topologies[-1])
        return bus

    yield declare
    await lab.recovery()
    cleaner = lab.bus()
    for topology in topologies:
        await cleaner.delete(topology)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.real)])
async def db(request: pytest.FixtureRequest, namespace: str, tmp_path: Path) -> AsyncIterator[Database]:
    """A migrated database with the kit's own tables."""
    async with database(request, namespace, tmp_path) as made:
        await migrate(made)
        yield made


@contextlib.asynccontextmanager
async def database(request: pytest.FixtureRequest, namespace: str, tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path}/{{schema}}.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    made = Database(url, schema=namespace)
    try:
        yield made
        await drop_schema(made)
    finally:
        await made.close()


def letter(exchange: str, key: str, body: bytes = b"body", **more: Any) -> Outgoing:
    more.setdefault("message_id", f"message-{next(_numbers)}")
    return Outgoing(exchange=exchange, routing_key=key, body=body, type="cohortium.test.sent.v1", **more)


class Collector:
    """A handler that keeps what it got and answers what it is told to."""

    def __init__(self, *answers: Disposition) -> None:
        self.got: list[Delivery] = []
        self._answers = list(answers)

    async def __call__(self, delivery: Delivery) -> Disposition:
        self.got.append(delivery)
        return self._answers.pop(0) if self._answers else Ack()

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.got]


async def eventually(true: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
    """Return when it is true, which another process or the network decides; fail when it is not in time."""
    async with asyncio.timeout(patience_s):
        while not true():
            await asyncio.sleep(0.02)


async def gets(bus: Any, queue: str, patience_s: float = PATIENCE_S) -> Delivery:
    """The next message of a queue, waiting for it."""
    async with asyncio.timeout(patience_s):
        while (delivery := await bus.get(queue)) is None:
            await asyncio.sleep(0.05)
        return delivery
