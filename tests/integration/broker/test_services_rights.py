"""What the platform's own logins may do at a broker: services their channels, the operator the dead letters."""

import asyncio
import json
import secrets
from typing import Any

import pytest
from broker_world import NAMESPACE, VHOST, GuardedBroker, GuardedWorld, take
from typer.testing import CliRunner

from cohortium_cli.app import app
from cohortium_kit._amqp_wire import NO_DELIVERY_LIMIT
from cohortium_kit._dead import dead_headers
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Ack, Delivery, Disposition, Outgoing
from cohortium_kit.errors import AccessRefused
from cohortium_messages.channels import AMONG_SERVICES
from cohortium_messages.events import BrokerCut, SiteEnrolled
from cohortium_messages.topology import (
    BULK,
    CHUNK_BYTES,
    DEAD,
    DELIVERY_LIMIT,
    EVENTS,
    INBOX_BYTES,
    SERVICES,
    UPLINK,
    dead_letters,
    inbox,
)
from governance_stage import eventually

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def words(exchange: str, key: str, **more: Any) -> Outgoing:
    return Outgoing(exchange, key, b"{}", f"m-{secrets.token_hex(8)}", "test", **more)


async def test_a_service_speaks_where_its_channels_are_and_nowhere_else(guarded_broker: GuardedBroker) -> None:
    bus = RabbitBus(guarded_broker.user("consent"), NAMESPACE, connection_name="test", user_id="consent")
    await bus.connect()
    try:
        for exchange, key in (
            (EVENTS.name, f"-.{SiteEnrolled.type_name}"),  # enrolment's
            (EVENTS.name, f"heart.{BrokerCut.type_name}"),
            (DEAD.name, "scheduler"),
            (UPLINK.name, "site.33333333-3333-4333-8333-333333333333.audit"),
            (BULK.name, "site.33333333-3333-4333-8333-333333333333.bulk"),
        ):
            with pytest.raises(AccessRefused):
                await bus.publish(words(exchange, key))
        for queue in (inbox("scheduler"), dead_letters("consent")):
            with pytest.raises(AccessRefused):
                await bus.consume(queue, take, prefetch=1)
        assert bus.connected
    finally:
        await bus.close()


async def test_a_direct_exchange_takes_every_key_of_who_may_write_it(guarded_broker: GuardedBroker) -> None:
    """Topic permissions hold for topic exchanges alone (decision 0013): whose message it is, the receiver judges."""
    assert not [one for one in AMONG_SERVICES if (one.publisher, one.key) == ("consent", "audit")]
    letter = words(SERVICES.name, "audit")
    consent = RabbitBus(guarded_broker.user("consent"), NAMESPACE, connection_name="test", user_id="consent")
    audit = RabbitBus(guarded_broker.user("audit"), NAMESPACE, connection_name="test", user_id="audit")
    for bus in (consent, audit):
        await bus.connect()
    try:
        await consent.publish(letter)
        came = []
        while (one := await audit.get(inbox("audit"))) is not None:
            came.append((one.message_id, one.user_id))
        assert (letter.message_id, "consent") in came
    finally:
        await consent.close()
        await audit.close()


async def test_the_bounds_hold_as_policies_too(guarded_broker: GuardedBroker) -> None:
    """So that they reach queues which an older version made: RabbitMQ takes no other argument for those."""
    queues = f"{guarded_broker.management_url}/api/queues/{VHOST}/{NAMESPACE}"
    found: dict[str, Any] = {}

    async def told() -> bool:
        """A young broker knows its queues' policies a little before it tells them."""
        for name in ("chunks.0", "audit.inbox", dead_letters("audit")):
            answer = (await client.get(f"{queues}.{name}")).raise_for_status().json()
            found[name] = answer.get("effective_policy_definition")
        return None not in found.values()

    async with guarded_broker.client() as client:
        await eventually(told, timeout_s=60)
    assert found == {
        "chunks.0": {"max-length-bytes": CHUNK_BYTES},
        "audit.inbox": {"max-length-bytes": INBOX_BYTES, "delivery-limit": DELIVERY_LIMIT},
        dead_letters("audit"): {"delivery-limit": NO_DELIVERY_LIMIT},
    }


async def test_the_operator_sees_dead_letters_and_sends_them_again(guarded: GuardedWorld) -> None:
    parked = words(SERVICES.name, "scheduler")
    headers = dead_headers(
        "handler_error:KeyError", exchange=SERVICES.name, routing_key="scheduler", queue="scheduler.inbox"
    )
    letter = Outgoing(DEAD.name, "scheduler", parked.body, parked.message_id, parked.type, headers)

    async def say(user: str, *arguments: str) -> Any:
        """What somebody with this user's address in the environment gets."""
        named = ["dead-letters", *arguments, "--config", str(guarded.files.configs["audit"]), "--json"]
        environment = {"COHORTIUM_AMQP_URL": guarded.broker.user(user)}
        return await asyncio.to_thread(CliRunner().invoke, app, named, env=environment)

    came: list[Delivery] = []

    async def hear(delivery: Delivery) -> Disposition:
        came.append(delivery)
        return Ack()

    async def again() -> bool:
        return any(one.message_id == parked.message_id for one in came)

    async with guarded.bus(guarded.broker.user("scheduler"), user_id="scheduler") as scheduler:
        await scheduler.publish(letter)
        seen = await say("operator", "list", "--consumer", "scheduler")
        assert seen.exit_code == 0, seen.output
        assert parked.message_id in {one["message_id"] for one in json.loads(seen.stdout)}
        refused = await say("audit", "list", "--consumer", "scheduler")
        assert refused.exit_code != 0
        assert "operator.amqp-url" in refused.output
        sent = await say("operator", "redrive", parked.message_id, "--consumer", "scheduler")
        assert sent.exit_code == 0, sent.output
        subscription = await scheduler.consume(inbox("scheduler"), hear, prefetch=8)
        await eventually(again)
        await subscription.cancel()
    (one,) = [one for one in came if one.message_id == parked.message_id]
    assert (one.exchange, one.routing_key, one.user_id) == (SERVICES.name, "scheduler", "operator")


async def test_the_operator_may_read_nothing_else(guarded_broker: GuardedBroker) -> None:
    bus = RabbitBus(guarded_broker.user("operator"), NAMESPACE, connection_name="test", user_id="operator")
    await bus.connect()
    try:
        for queue in (inbox("audit"), "presence", "chunks.0"):
            with pytest.raises(AccessRefused):
                await bus.consume(queue, take, prefetch=1)
        with pytest.raises(AccessRefused):
            await bus.publish(words("entries", "entries.log"))
    finally:
        await bus.close()
