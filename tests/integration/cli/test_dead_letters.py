"""`cohortium dead-letters` against a real RabbitMQ: seen, sent again, dropped, and each act on record."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cohortium_cli.app import app
from cohortium_cli.dead_letters import listed
from cohortium_cli.federation import FederationSpec, create_federation
from cohortium_kit._dead import dead_headers
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Dead, Delivery, Disposition, Outgoing
from cohortium_kit.clock import SystemClock
from cohortium_kit.consumer import Consumer, Received
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Sender, open_envelope
from cohortium_kit.migrate import migrate
from cohortium_messages.events import DeadLetterSettled
from cohortium_messages.governance import GrantEnded
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.topology import DEAD, SERVICES, dead_letters, inbox, platform_topology
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey, Keyring, service_key_id

pytestmark = pytest.mark.real
SITE = SiteId("11111111-1111-4111-8111-111111111111")
ENDED = GrantEnded(study_id=StudyId("heart"), study_digest=bytes(32), site_id=SITE, reason="GRANT_WITHDRAWN")


@dataclass
class Desk:
    """A federation's files, a broker with its topology, and consent that speaks to the scheduler."""

    bus: RabbitBus
    config: Path
    sender: Sender
    keyring: Keyring
    root: Path

    def message(self, key: str = "scheduler") -> Outgoing:
        return self.sender.outgoing(SERVICES.name, key, ENDED)

    async def park(self, outgoing: Outgoing, reason: str = "handler_error:KeyError") -> None:
        """As a consumer parks it."""
        headers = dead_headers(reason, exchange=SERVICES.name, routing_key="scheduler", queue=inbox("scheduler"))
        parked = {**outgoing.headers, **headers}
        await self.bus.publish(
            Outgoing(DEAD.name, "scheduler", outgoing.body, outgoing.message_id, outgoing.type, parked)
        )

    async def say(self, *arguments: str, code: int = 0) -> Any:
        """Run the command; its JSON, or its text where it failed."""
        words = ["dead-letters", *arguments, "--config", str(self.config)]
        found = await asyncio.to_thread(CliRunner().invoke, app, words)
        assert found.exit_code == code, found.output
        return json.loads(found.stdout) if "--json" in arguments and code == 0 else found.output

    async def acts(self) -> list[DeadLetterSettled]:
        """What the audit service would hear of."""
        found = []
        while (delivery := await self.bus.get(inbox("audit"))) is not None:
            _, message, key_id = open_envelope(delivery, self.keyring)
            assert isinstance(message, DeadLetterSettled)
            assert key_id == "service:audit"
            found.append(message)
        return found


@pytest.fixture
async def desk(tmp_path: Path, amqp_url: str, namespace: str) -> AsyncIterator[Desk]:
    clock = SystemClock()
    files = create_federation(
        FederationSpec(directory=tmp_path, name="test.example", amqp_url=amqp_url, namespace=namespace, now=clock.now())
    )
    key = IdentityKey.from_seed(bytes.fromhex((tmp_path / "secrets" / "consent.key").read_text().strip()))
    services = files.trust.services
    keyring = Keyring({"service:consent": services.consent, "service:audit": services.audit})
    bus = RabbitBus(amqp_url, namespace, connection_name="test")
    await bus.connect()
    await bus.declare(platform_topology())
    sender = Sender("/consent", EnvelopeSigner(service_key_id("consent"), key), clock)
    try:
        yield Desk(bus, files.configs["audit"], sender, keyring, tmp_path)
    finally:
        await bus.delete(platform_topology())
        await bus.close()


async def test_a_letter_may_be_looked_at_as_often_as_people_like(desk: Desk) -> None:
    """RabbitMQ 4 drops from a quorum queue what came back twenty times, unless it is told otherwise."""
    one = desk.message()
    await desk.park(one)
    seen = [await listed(desk.bus, ["scheduler"], 10) for _ in range(30)]
    assert [letter.message_id for letters in seen for letter in letters] == [one.message_id] * 30


async def test_letters_are_listed_and_shown_and_stay_where_they_are(desk: Desk) -> None:
    one = desk.message()
    await desk.park(one)
    for _ in range(2):
        (listed,) = await desk.say("list", "--json")
        assert listed["message_id"] == one.message_id
        assert (listed["consumer"], listed["reason"]) == ("scheduler", "handler_error:KeyError")
        assert (listed["sender"], listed["type"]) == ("service:consent", GrantEnded.type_name)
        assert 0 <= listed["age_s"] < 60
    assert one.message_id in await desk.say("list", "--consumer", "scheduler")
    assert await desk.say("list", "--consumer", "chunks", "--json") == []
    (shown,) = await desk.say("show", one.message_id, "--json")
    assert shown["envelope"]["verified"] == "service:consent"
    assert "GRANT_WITHDRAWN" not in json.dumps(shown), "the content stays closed"
    await desk.park(Outgoing(DEAD.name, "-", b"{}", "forged", GrantEnded.type_name), reason="unsigned")
    (forged,) = await desk.say("show", "forged", "--json")
    assert forged["envelope"] == {"verified": None, "why_not": "unsigned"}
    await asyncio.sleep(0.2)
    assert await desk.bus.queue_depth(dead_letters("scheduler")) == 2
    assert await desk.acts() == []


async def test_what_is_sent_again_comes_as_it_was_and_is_not_done_twice(desk: Desk) -> None:
    database = Database(f"sqlite:///{desk.root}/again.db", schema="again")
    await migrate(database, "cohortium_scheduler")
    done: list[str] = []

    async def handle(_: Tx, received: Received[GrantEnded]) -> None:
        done.append(received.envelope.id)

    consumer = Consumer(desk.bus, database, desk.keyring, inbox("scheduler"), "scheduler")
    consumer.on(GrantEnded, handle)
    seen: list[Delivery] = []

    async def watch(delivery: Delivery) -> Disposition:
        seen.append(delivery)
        return await consumer.handle(delivery)

    subscription = await desk.bus.consume(inbox("scheduler"), watch, prefetch=4)
    done_before, new = desk.message(), desk.message()
    await desk.bus.publish(done_before)
    await desk.park(done_before, reason="delivery_limit")
    await desk.park(new)
    answer = await desk.say("redrive", done_before.message_id, new.message_id, "--json")
    assert len(answer["settled"]) == 2
    for _ in range(3000):
        if len(seen) == 3:
            break
        await asyncio.sleep(0.02)
    assert done == [done_before.message_id, new.message_id]
    assert [one.message_id for one in seen] == [done_before.message_id, done_before.message_id, new.message_id]
    for delivery, sent in zip(seen, (done_before, done_before, new), strict=True):
        assert (delivery.body, dict(delivery.headers)) == (sent.body, dict(sent.headers))
        assert delivery.delivery_count == 0, "the broker counts anew"
    assert await desk.bus.queue_depth(dead_letters("scheduler")) == 0
    acts = await desk.acts()
    assert [(one.act, one.reason) for one in acts] == [("REDRIVEN", "DELIVERY_LIMIT"), ("REDRIVEN", "HANDLER_ERROR")]
    await subscription.cancel()
    await database.close()


async def test_a_letter_is_dropped_only_by_its_name_or_by_saying_all(desk: Desk) -> None:
    first, second = desk.message(), desk.message()
    await desk.park(first)
    await desk.park(second)
    assert "name the ids" in await desk.say("drop", code=2)
    assert "there is no such consumer" in await desk.say("drop", "--all", "--consumer", "nobody", code=2)
    assert "no dead letter has the id lost" in await desk.say("drop", "lost", code=1)
    assert await desk.bus.queue_depth(dead_letters("scheduler")) == 2
    await desk.say("drop", first.message_id)
    (left,) = await desk.say("list", "--json")
    assert left["message_id"] == second.message_id
    await desk.say("drop", "--all", "--consumer", "scheduler")
    assert await desk.say("list", "--json") == []
    assert [one.act for one in await desk.acts()] == ["DROPPED", "DROPPED"]


async def test_an_id_that_several_letters_have_settles_none_of_them_until_their_bodies_are_named(desk: Desk) -> None:
    """Who sends a message chooses its id: it could be the one of a letter that the operator wants rid of."""
    own = desk.message()
    await desk.park(own)
    await desk.bus.publish(Outgoing(DEAD.name, "audit", b"{}", own.message_id, own.type))
    sums = {one["consumer"]: one["sha256"] for one in await desk.say("list", "--json")}
    for act in ("drop", "redrive"):
        text = " ".join((await desk.say(act, own.message_id, code=2)).split())
        assert "2 letters have this id" in text
        assert all(f"{dead_letters(consumer)} sha256 {body}" in text for consumer, body in sums.items())
    assert "not with --all" in await desk.say("drop", "--all", "--sha256", sums["audit"], code=2)
    assert "no dead letter has the id" in await desk.say("drop", own.message_id, "--sha256", "00" * 32, code=1)
    assert len(await desk.say("list", "--json")) == 2
    assert await desk.acts() == []
    await desk.say("drop", own.message_id, "--sha256", sums["audit"].upper())
    (left,) = await desk.say("list", "--json")
    assert left["sha256"] == sums["scheduler"]
    await desk.say("drop", own.message_id)
    assert await desk.say("list", "--json") == []


async def test_a_message_that_cannot_be_sent_stays(desk: Desk) -> None:
    lost = Outgoing(SERVICES.name, "nobody", b"{}", "lost", "x")
    headers = dead_headers("x", exchange=SERVICES.name, routing_key="nobody", queue="q")
    await desk.bus.publish(Outgoing(DEAD.name, "scheduler", lost.body, lost.message_id, lost.type, headers))
    await desk.bus.publish(Outgoing(DEAD.name, "scheduler", b"{}", "strange", "x"))
    text = await desk.say("redrive", "--all", "--consumer", "scheduler", code=1)
    assert "lost stays" in text
    assert "strange stays: it does not say where it came from" in text
    assert await desk.bus.queue_depth(dead_letters("scheduler")) == 2


async def test_what_a_sender_wrote_into_the_headers_of_a_dead_letter_does_not_count(desk: Desk) -> None:
    """A sender could write where its message is to be sent again; who parks it says where it came from."""
    signed = desk.message()
    forged = dead_headers("fine", exchange=SERVICES.name, routing_key="aggregator", queue="elsewhere")
    sent = Outgoing(
        SERVICES.name, "scheduler", signed.body, signed.message_id, signed.type, {**signed.headers, **forged}
    )

    async def fails(_: Delivery) -> Disposition:
        return Dead("x")

    await desk.bus.publish(sent)
    subscription = await desk.bus.consume(inbox("scheduler"), fails, prefetch=1)
    for _ in range(3000):
        if await desk.bus.queue_depth(dead_letters("scheduler")):
            break
        await asyncio.sleep(0.02)
    await subscription.cancel()
    (letter,) = await desk.say("list", "--json")
    assert (letter["reason"], letter["routing_key"], letter["queue"]) == ("x", "scheduler", inbox("scheduler"))
