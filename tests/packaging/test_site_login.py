"""The login that deploy/rabbitmq/site-login.sh makes lets a site do its part and nothing else. On a real broker."""

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Ack, Delivery, Disposition, Outgoing
from cohortium_kit.errors import AccessRefused, BrokerUnavailable, BusError
from cohortium_kit.testing.servers import PrivateRabbit
from cohortium_messages.ids import SiteId
from cohortium_messages.topology import (
    bulk_queue,
    control_queue,
    inbox,
    platform_topology,
    results_queue,
    site_topology,
    uplink_key,
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

SCRIPT = Path(__file__).parents[2] / "deploy" / "rabbitmq" / "site-login.sh"
MINE = SiteId("11111111-1111-4111-8111-111111111111")
OTHER = SiteId("22222222-2222-4222-8222-222222222222")
NAMESPACE = "cohortium"


def site_login(rabbit: PrivateRabbit, *arguments: str, password: str = "") -> subprocess.CompletedProcess[str]:
    (tool,) = Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmqctl")
    environment = {
        **os.environ,
        **rabbit._environment(),
        "VHOST": "/",
        "NAMESPACE": NAMESPACE,
        "RABBITMQCTL": f"{tool} --node {rabbit._node} --erlang-cookie {rabbit._cookie}",
    }
    return subprocess.run(
        [str(SCRIPT), *arguments], env=environment, input=password, capture_output=True, text=True, timeout=120
    )


@asynccontextmanager
async def bus_of(rabbit: PrivateRabbit, login: str) -> AsyncIterator[RabbitBus]:
    bus = RabbitBus(f"amqp://{login}@127.0.0.1:{rabbit.port}/", NAMESPACE, connection_name="test", user_id=None)
    await bus.connect()
    try:
        yield bus
    finally:
        await bus.close()


def hello(key: str, exchange: str = "uplink") -> Outgoing:
    return Outgoing(exchange, key, b"{}", message_id=f"hello-{exchange}-{key}"[:64], type="test")


@pytest.fixture(scope="module")
def broker(private_rabbit: PrivateRabbit) -> PrivateRabbit:
    ended = site_login(private_rabbit, "add", MINE, password="first")
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return private_rabbit


async def declare(broker: PrivateRabbit) -> None:
    async with bus_of(broker, "guest:guest") as platform:
        await platform.declare(platform_topology())
        await platform.declare(site_topology(MINE))
        await platform.declare(site_topology(OTHER))


async def take(delivery: Delivery) -> Disposition:
    return Ack()


async def test_a_site_may_do_its_part(broker: PrivateRabbit) -> None:
    await declare(broker)
    async with bus_of(broker, f"{MINE}:first") as site:
        for key in (
            uplink_key(MINE, "scheduler"),
            f"site.{MINE}.chunks.1",
            f"site.{MINE}.steps.0",
            f"site.{MINE}.presence",
        ):
            await site.publish(hello(key))
        for queue in (control_queue(MINE), bulk_queue(MINE), results_queue(MINE)):
            subscription = await site.consume(queue, take, prefetch=1)
            await subscription.cancel()


async def test_a_site_may_do_nothing_else(broker: PrivateRabbit) -> None:
    await declare(broker)
    async with bus_of(broker, f"{MINE}:first") as site:
        for refused in (
            hello(uplink_key(OTHER, "scheduler")),
            hello(f"site.{MINE}x.scheduler"),
            hello("scheduler", "services"),
            hello(control_queue(OTHER), "tasks"),
            hello("-.cohortium.audit.fault_seen.v1", "events"),
        ):
            with pytest.raises(AccessRefused):
                await site.publish(refused)
        for queue in (
            control_queue(OTHER),
            bulk_queue(OTHER),
            results_queue(OTHER),
            inbox("scheduler"),
            "chunks.0",
            "scheduler.dead",
        ):
            with pytest.raises(AccessRefused):
                await site.consume(queue, take, prefetch=1)
        with pytest.raises(BusError):
            await site.declare(site_topology(SiteId("33333333-3333-4333-8333-333333333333")))


async def test_a_new_password_takes_the_old_ones_place_and_a_removed_login_is_over(broker: PrivateRabbit) -> None:
    assert site_login(broker, "add", OTHER, password="old").returncode == 0
    assert site_login(broker, "add", OTHER, password="new").returncode == 0
    async with bus_of(broker, f"{OTHER}:new"):
        pass
    with pytest.raises((AccessRefused, BrokerUnavailable)):
        async with bus_of(broker, f"{OTHER}:old"):
            pass
    assert site_login(broker, "remove", OTHER).returncode == 0
    with pytest.raises((AccessRefused, BrokerUnavailable)):
        async with bus_of(broker, f"{OTHER}:new"):
            pass


def test_a_name_that_is_no_site_id_is_refused(private_rabbit: PrivateRabbit) -> None:
    for name in ("*", "guest", f"{MINE}|.*"):
        assert site_login(private_rabbit, "add", name, password="x").returncode == 2
