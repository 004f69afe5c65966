"""RabbitMQ only: cut connections, a dead line, a killed broker, refused rights; nothing is lost and nothing hangs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from yarl import URL

from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Ack, Delivery, Disposition
from cohortium_kit.clock import SystemClock
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import AccessRefused, BrokerUnavailable, Refused
from cohortium_kit.inbox import first_time
from cohortium_kit.migrate import migrate
from cohortium_kit.outbox import Relay, RelaySettings
from cohortium_kit.testing.proxy import CuttingProxy
from cohortium_kit.testing.servers import PrivateRabbit
from cohortium_messages.topology import EXCHANGES, Binding, Queue, QueueKind, Topology

from .conftest import Collector, eventually, letter

pytestmark = pytest.mark.real

WORK = Topology(EXCHANGES, (Queue("work", QueueKind.QUORUM, (Binding("services", "work"),), delivery_limit=100),))
MESSAGES = 300


@pytest.fixture
async def proxy(amqp_url: str) -> AsyncIterator[CuttingProxy]:
    url = URL(amqp_url)
    made = CuttingProxy(url.host or "127.0.0.1", url.port or 5672)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def bus(amqp_url: str, proxy: CuttingProxy, namespace: str) -> AsyncIterator[RabbitBus]:
    url = URL(amqp_url).with_host("127.0.0.1").with_port(proxy.port)
    made = RabbitBus(str(url), namespace, connection_name=namespace, heartbeat_s=2)
    await made.declare(WORK)
    yield made
    await made.delete(WORK)
    await made.close()


class Books:
    """Sends through the outbox, receives through the inbox, and counts what arrived."""

    def __init__(self, db: Database, bus: RabbitBus) -> None:
        self.db = db
        self.bus = bus
        self.applied: list[bytes] = []
        self.deliveries = 0

    async def receive(self, delivery: Delivery) -> Disposition:
        self.deliveries += 1

        async def apply(tx: Tx) -> bool:
            return await first_time(tx, "books", delivery.message_id)

        if await self.db.run("apply", apply):
            self.applied.append(delivery.body)
        return Ack()

    async def send(self, number: int) -> None:
        async def commit(tx: Tx) -> None:
            await tx.send(letter("services", "work", str(number).encode()), f"key {number % 7}")

        await self.db.run("commit", commit)

    async def keep(self, disturb: Callable[[int], Awaitable[None]]) -> None:
        """Send and receive all messages while somebody disturbs; then all have arrived, each applied once."""
        settings = RelaySettings(publish_timeout_s=2, longest_wait_s=1, batch=40)
        stop = asyncio.Event()
        relaying = asyncio.create_task(Relay(self.db, self.bus, SystemClock(), settings).run(stop))
        subscription = await self.bus.consume("work", self.receive, prefetch=20)
        for number in range(MESSAGES):
            await self.send(number)
            await disturb(number)
        await eventually(lambda: len(self.applied) >= MESSAGES, 90)
        stop.set()
        await relaying
        await subscription.cancel()
        assert sorted(map(int, self.applied)) == list(range(MESSAGES))


@pytest.fixture
async def books(tmp_path: Path, bus: RabbitBus) -> AsyncIterator[Books]:
    db = Database(f"sqlite:///{tmp_path}/books.db", schema="books")
    await migrate(db)
    yield Books(db, bus)
    await db.close()


async def test_nothing_is_lost_when_connections_are_cut_again_and_again(books: Books, proxy: CuttingProxy) -> None:
    async def cut(number: int) -> None:
        if number % 40 == 20:
            proxy.cut()
            await asyncio.sleep(0.3)

    await books.keep(cut)
    assert proxy.accepted > 4


async def test_dead_line_is_noticed_by_heartbeat_and_replaced(bus: RabbitBus, proxy: CuttingProxy) -> None:
    collector = Collector()
    await bus.consume("work", collector, prefetch=5)
    await bus.publish(letter("services", "work", b"before"))
    proxy.freeze()
    sends = [bus.publish(letter("services", "work", b"during"), timeout_s=t) for t in (0.5, 30)]
    short, long = await asyncio.gather(*sends, return_exceptions=True)
    assert isinstance(short, BrokerUnavailable)
    assert isinstance(long, BrokerUnavailable)
    proxy.thaw()
    proxy.cut()
    await eventually(lambda: bus.connected, 40)
    await bus.publish(letter("services", "work", b"after"))
    await eventually(lambda: b"after" in collector.bodies, 40)


async def test_wrong_password_is_access_refused_at_once(amqp_url: str, namespace: str) -> None:
    bus = RabbitBus(str(URL(amqp_url).with_password("wrong")), namespace, connection_name=namespace)
    with pytest.raises(AccessRefused):
        await bus.connect()
    with pytest.raises(AccessRefused):
        await bus.publish(letter("services", "work"))
    await bus.close()


async def test_rotated_credentials_are_asked_for_at_every_dial(
    amqp_url: str, proxy: CuttingProxy, namespace: str
) -> None:
    good = URL(amqp_url).with_host("127.0.0.1").with_port(proxy.port)
    addresses = [str(good.with_password("ended")), str(good)]
    bus = RabbitBus(lambda: addresses.pop(0), namespace, connection_name=namespace)
    with pytest.raises(AccessRefused):
        await bus.connect()
    await eventually(lambda: bus.connected)
    await bus.close()


async def test_login_that_is_not_ours_is_refused_without_harm_to_others(bus: RabbitBus, amqp_url: str) -> None:
    liar = RabbitBus(amqp_url, bus._namespace, connection_name="liar", user_id="somebody-else")
    with pytest.raises(Refused, match="somebody-else"):
        await liar.publish(letter("services", "work"))
    await liar.close()
    await bus.publish(letter("services", "work"))


async def test_deleted_queue_is_subscribed_again_when_it_is_back(bus: RabbitBus) -> None:
    collector = Collector()
    subscription = await bus.consume("work", collector, prefetch=5)
    await bus.delete(Topology((), WORK.queues))
    await eventually(lambda: not subscription.active)
    await bus.declare(WORK)
    await bus.publish(letter("services", "work", b"new"))
    await eventually(lambda: collector.bodies == [b"new"], 40)


async def test_unreachable_broker_is_said_and_survived(namespace: str) -> None:
    bus = RabbitBus("amqp://guest:guest@127.0.0.1:9/", namespace, connection_name=namespace)
    with pytest.raises(BrokerUnavailable):
        await bus.connect()
    with pytest.raises(BrokerUnavailable):
        await bus.publish(letter("services", "work"), timeout_s=0.3)
    await bus.close()


@pytest.mark.slow
async def test_nothing_is_lost_when_the_broker_is_killed(
    private_rabbit: PrivateRabbit, tmp_path: Path, namespace: str
) -> None:
    bus = RabbitBus(private_rabbit.url, namespace, connection_name=namespace)
    await bus.declare(WORK)
    db = Database(f"sqlite:///{tmp_path}/books.db", schema="books")
    await migrate(db)
    books = Books(db, bus)
    # RabbitMQ 3.10 writes its directory of quorum queues 3 s late: killed earlier, it forgets a queue just declared.
    await asyncio.sleep(4)

    async def kill(number: int) -> None:
        if number == MESSAGES // 2:
            await asyncio.to_thread(private_rabbit.kill)
            await asyncio.to_thread(private_rabbit.start)

    await books.keep(kill)
    await bus.delete(WORK)
    await bus.close()
    await db.close()
