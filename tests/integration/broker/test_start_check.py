"""Nothing runs against a broker that is open wider than it must be; what is wrong, and what to do, is said."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from broker_world import NAMESPACE, VHOST, GuardedBroker, GuardedWorld

from cohortium_kit import broker_check
from cohortium_kit.addresses import with_login
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.broker_check import Expected
from cohortium_kit.errors import ConfigurationError
from cohortium_kit.settings import Settings
from cohortium_kit.testing.servers import PrivateRabbit
from cohortium_messages.rights import NOBODY, NOBODYS_KEY, service_rights
from cohortium_messages.topology import SERVICE_NAMES, UPLINK, inbox, platform_topology
from cohortium_platform.service import open_bus

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


SITES = Expected((f"site.{NOBODY}.control",), foreign_keys=((UPLINK.name, NOBODYS_KEY),))


def strict(url: str, expected: Expected) -> RabbitBus:
    return RabbitBus(url, NAMESPACE, connection_name="test", strict=expected)


def as_wired(role: str, url: str) -> RabbitBus:
    """The bus that this service makes of its settings."""
    values = {"amqp_url": url, "database_url": "sqlite:///{schema}.db", "schema": role, "namespace": NAMESPACE}
    bus = open_bus(Settings.model_validate(values), role)
    assert isinstance(bus, RabbitBus)
    return bus


async def refused(bus: RabbitBus, word: str) -> None:
    try:
        with pytest.raises(ConfigurationError, match=word):
            await bus.connect()
    finally:
        await bus.close()


@contextlib.asynccontextmanager
async def user(broker: GuardedBroker, rights: dict[str, str], topics: dict[str, str]) -> AsyncIterator[str]:
    """The address of a login at the broker with these rights, for as long as the block lasts."""
    api = f"https://localhost:{broker.management_port}/api"
    login = "reaper", broker.passwords["reaper"]
    async with broker.client(auth=login) as client:
        try:
            (await client.put(f"{api}/users/wide", json={"password": "w", "tags": ""})).raise_for_status()
            (await client.put(f"{api}/permissions/{VHOST}/wide", json=rights)).raise_for_status()
            for exchange, write in topics.items():
                allowed = {"exchange": exchange, "write": write, "read": "^$"}
                (await client.put(f"{api}/topic-permissions/{VHOST}/wide", json=allowed)).raise_for_status()
            yield broker.url("wide", "w")
        finally:
            await client.delete(f"{api}/users/wide")


@contextlib.asynccontextmanager
async def plain_door(broker: GuardedBroker) -> AsyncIterator[int]:
    """A port that speaks plain text for this broker: what a second listener, or a proxy that opens TLS, would be."""
    context = ssl.create_default_context(cafile=str(broker.folder / "ca.crt"))
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("localhost", broker.tls_port, ssl=context)
        for one in (pump(reader, far_writer), pump(far_reader, writer)):
            tasks.add(asyncio.create_task(one))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_broker_with_a_guest(private_rabbit: PrivateRabbit) -> None:
    await refused(strict(private_rabbit.url, Expected(())), "guest")
    await refused(strict(with_login(private_rabbit.url, "guest", "guest"), Expected(())), "delete that user")


async def test_a_broker_with_a_plain_port_beside_the_encrypted_one(guarded_broker: GuardedBroker) -> None:
    async with plain_door(guarded_broker) as port:
        bus = strict(guarded_broker.user("audit"), replace(SITES, plain_port=port))
        await refused(bus, rf"in plain text, at localhost:{port}: set listeners\.tcp = none")


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x00\x00\x09\x01"])
async def test_what_else_answers_at_the_plain_port_is_no_broker(
    guarded_broker: GuardedBroker, monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    monkeypatch.setattr(broker_check, "PLAIN_S", 0.3)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        bus = strict(guarded_broker.user("audit"), replace(SITES, plain_port=server.sockets[0].getsockname()[1]))
        await bus.connect()
        await bus.close()


async def test_another_brokers_plain_port_is_not_this_ones(
    guarded_broker: GuardedBroker, private_rabbit: PrivateRabbit
) -> None:
    bus = strict(guarded_broker.user("audit"), replace(SITES, plain_port=private_rabbit.port))
    await bus.connect()
    await bus.close()


@pytest.mark.parametrize("role", SERVICE_NAMES)
async def test_each_service_has_what_it_needs_and_no_more(guarded_broker: GuardedBroker, role: str) -> None:
    bus = as_wired(role, guarded_broker.user(role))
    try:
        await bus.connect()
        await bus.declare(platform_topology())
        assert await bus.queue_depth(inbox(role)) >= 0
    finally:
        await bus.close()


OWN = service_rights("audit", NAMESPACE)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"configure": ".*"}, "declare a queue"),
        ({"read": ".*"}, "read any queue"),
        ({"write": ".*"}, "write any exchange"),
        ({"read": rf"^{NAMESPACE}\.(audit|consent)\.inbox$"}, r"read consent\.inbox"),
        ({"write": rf"{OWN.write}|^{NAMESPACE}\.bulk$"}, "write bulk"),
    ],
)
async def test_a_login_with_a_right_too_many(guarded_broker: GuardedBroker, changes: dict[str, str], word: str) -> None:
    granted = {"configure": OWN.configure, "write": OWN.write, "read": OWN.read, **changes}
    async with user(guarded_broker, granted, OWN.topics) as url:
        await refused(as_wired("audit", url), word)


async def test_a_login_with_too_few_topic_permissions(guarded_broker: GuardedBroker) -> None:
    """Without any RabbitMQ lets a login use every key of an exchange that it may write."""
    granted = {"configure": OWN.configure, "write": OWN.write, "read": OWN.read}
    wide = granted | {"write": rf"{OWN.write}|^{NAMESPACE}\.uplink$"}
    async with user(guarded_broker, wide, OWN.topics | {f"{NAMESPACE}.uplink": ".*"}) as url:
        await refused(as_wired("audit", url), "write uplink")
    async with user(guarded_broker, granted, {}) as url:
        await refused(as_wired("audit", url), "publish to dead under")
    site = {"configure": "^$", "write": rf"^{NAMESPACE}\.uplink$", "read": "^$"}
    async with user(guarded_broker, site, {}) as url:
        await refused(strict(url, SITES), "publish to uplink under .* set its topic permissions")
    async with user(guarded_broker, site, {f"{NAMESPACE}.uplink": r"^site\.me\..+$"}) as url:
        bus = strict(url, SITES)
        await bus.connect()
        await bus.close()


async def test_the_right_broker_passes_and_its_look_is_no_attack(guarded: GuardedWorld) -> None:
    from cohortium_messages.events import BrokerRefusal

    site = await guarded.hospital("Cleveland")
    bus = strict(guarded.address(site), SITES)
    await bus.connect()
    await bus.close()
    await guarded.app.gate.refusals.report(guarded.db)
    assert [one for one in await guarded.recorded(BrokerRefusal) if one.site_id == site.site_id] == []  # type: ignore[attr-defined]


async def test_the_shipped_configuration_makes_no_guest(guarded_broker: GuardedBroker) -> None:
    login = "reaper", guarded_broker.passwords["reaper"]
    async with guarded_broker.client(auth=login) as client:
        answer = await client.get(f"https://localhost:{guarded_broker.management_port}/api/users")
    assert {user["name"] for user in answer.json()} == set(guarded_broker.passwords)
