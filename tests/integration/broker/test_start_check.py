"""Nothing runs against a broker that is open wider than it must be; what is wrong, and what to do, is said."""

import httpx
import pytest
from broker_world import NAMESPACE, VHOST, GuardedBroker, GuardedWorld

from cohortium_kit.addresses import with_login
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.broker_check import Expected
from cohortium_kit.errors import ConfigurationError
from cohortium_kit.testing.servers import PrivateRabbit
from cohortium_messages.rights import service_rights
from cohortium_messages.topology import SERVICE_NAMES, inbox, platform_topology

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def strict(url: str, *foreign: str) -> RabbitBus:
    return RabbitBus(url, NAMESPACE, connection_name="test", strict=Expected(foreign))


async def refused(url: str, word: str, *foreign: str) -> None:
    bus = strict(url, *foreign)
    try:
        with pytest.raises(ConfigurationError, match=word):
            await bus.connect()
    finally:
        await bus.close()


async def test_a_broker_with_a_guest(private_rabbit: PrivateRabbit) -> None:
    await refused(private_rabbit.url, "guest")
    await refused(with_login(private_rabbit.url, "guest", "guest"), "delete that user")


@pytest.mark.parametrize("role", SERVICE_NAMES)
async def test_each_service_has_what_it_needs_and_no_more(guarded: GuardedWorld, role: str) -> None:
    bus = strict(guarded.broker.user(role), *(inbox(other) for other in SERVICE_NAMES if other != role))
    try:
        await bus.connect()
        await bus.declare(platform_topology())
        assert await bus.queue_depth(inbox(role)) >= 0
    finally:
        await bus.close()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"configure": ".*"}, "declare a queue"),
        ({"read": ".*"}, "read any queue"),
        ({"write": ".*"}, "write any exchange"),
        ({"read": rf"^{NAMESPACE}\.(audit|consent)\.inbox$"}, r"read consent\.inbox"),
    ],
)
async def test_a_login_with_a_right_too_many(guarded: GuardedWorld, changes: dict[str, str], word: str) -> None:
    rights = service_rights("audit", NAMESPACE)
    granted = {"configure": rights.configure, "write": rights.write, "read": rights.read, **changes}
    api = f"http://127.0.0.1:{guarded.broker.management_port}/api"
    login = "reaper", guarded.broker.passwords["reaper"]
    async with httpx.AsyncClient(auth=login, trust_env=False) as client:
        try:
            (await client.put(f"{api}/users/wide", json={"password": "w", "tags": ""})).raise_for_status()
            (await client.put(f"{api}/permissions/{VHOST}/wide", json=granted)).raise_for_status()
            await refused(guarded.broker.url("wide", "w"), word, inbox("consent"))
        finally:
            await client.delete(f"{api}/users/wide")


async def test_the_right_broker_passes_and_its_look_is_no_attack(guarded: GuardedWorld) -> None:
    from cohortium_messages.events import BrokerRefusal

    site = await guarded.hospital("Cleveland")
    bus = strict(guarded.address(site), "site.00000000-0000-4000-8000-000000000000.control")
    await bus.connect()
    await bus.close()
    await guarded.app.gate.refusals.report(guarded.db)
    assert [one for one in await guarded.recorded(BrokerRefusal) if one.site_id == site.site_id] == []  # type: ignore[attr-defined]


async def test_the_shipped_configuration_makes_no_guest(guarded_broker: GuardedBroker) -> None:
    login = "reaper", guarded_broker.passwords["reaper"]
    async with httpx.AsyncClient(auth=login, trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{guarded_broker.management_port}/api/users")
    assert {user["name"] for user in answer.json()} == set(guarded_broker.passwords)
