"""What both buses promise of routing, confirms and answers: one suite on the in-memory broker and on RabbitMQ."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from cohortium_kit._dead import revived
from cohortium_kit.bus import (
    ORIGINAL_EXCHANGE_HEADER,
    ORIGINAL_KEY_HEADER,
    ORIGINAL_QUEUE_HEADER,
    PARKED_AT_HEADER,
    Ack,
    Dead,
    Delivery,
    Disposition,
    Requeue,
)
from cohortium_kit.errors import Unroutable
from cohortium_messages.envelope import REASON_HEADER
from cohortium_messages.topology import Binding, Queue, QueueKind

from .conftest import Collector, eventually, gets, letter

WORK = Queue("work", QueueKind.QUORUM, (Binding("services", "work"),), delivery_limit=2, dead_letter_key="work")
PARKED = Queue("work.dead", QueueKind.QUORUM, (Binding("dead", "work"),))
PLAIN = Queue("plain", QueueKind.CLASSIC, (Binding("services", "plain"),))


async def test_direct_exchange_routes_by_equal_key_only(declared: Any) -> None:
    bus = await declared(PLAIN, Queue("other", QueueKind.CLASSIC, (Binding("services", "other"),)))
    await bus.publish(letter("services", "plain", b"mine"))
    assert (await gets(bus, "plain")).body == b"mine"
    assert await bus.get("other") is None


async def test_topic_exchange_knows_star_and_hash(declared: Any) -> None:
    bus = await declared(
        Queue("star", QueueKind.CLASSIC, (Binding("uplink", "site.*.scheduler"),)),
        Queue("hash", QueueKind.CLASSIC, (Binding("uplink", "site.#"),)),
        Queue("exact", QueueKind.CLASSIC, (Binding("uplink", "site.a.presence"),)),
    )
    for key in ("site.a.scheduler", "site.a.chunks.1", "site", "site.a.presence"):
        await bus.publish(letter("uplink", key, key.encode()))
    with pytest.raises(Unroutable):
        await bus.publish(letter("uplink", "sites.a"))
    assert await bus.queue_depth("hash") == 4
    assert (await gets(bus, "star")).body == b"site.a.scheduler"
    assert await bus.get("star") is None
    assert (await gets(bus, "exact")).body == b"site.a.presence"


async def test_two_bindings_deliver_once(declared: Any) -> None:
    bus = await declared(Queue("both", QueueKind.CLASSIC, (Binding("uplink", "#"), Binding("uplink", "a.*"))))
    await bus.publish(letter("uplink", "a.b"))
    assert await bus.queue_depth("both") == 1


async def test_delivery_carries_everything_that_was_sent(declared: Any) -> None:
    bus = await declared(PLAIN)
    headers = {"cohortium-key-id": "key 1", "cohortium-signature": "00ff", "umlaut": "ä"}
    sent = letter("services", "plain", b"\x00\xff", headers=headers, correlation_id="run-1", persistent=False)
    await bus.publish(sent)
    got = await gets(bus, "plain")
    assert (got.body, got.headers, got.exchange, got.routing_key) == (sent.body, headers, "services", "plain")
    assert (got.message_id, got.type, got.content_type) == (sent.message_id, sent.type, sent.content_type)
    assert (got.correlation_id, got.queue, got.user_id) == ("run-1", "plain", None)
    assert (got.redelivered, got.delivery_count) == (False, 0)


async def test_user_id_is_certified(declared: Any) -> None:
    bus = await declared(PLAIN, user_id="guest")
    await bus.publish(letter("services", "plain"))
    assert (await gets(bus, "plain")).user_id == "guest"


async def test_publish_without_a_queue_is_unroutable(declared: Any) -> None:
    bus = await declared(PLAIN)
    with pytest.raises(Unroutable):
        await bus.publish(letter("services", "nobody"))
    with pytest.raises(Unroutable):
        await bus.publish(letter("no-such-exchange", "plain"))
    await bus.publish(letter("services", "plain"))


async def test_one_bad_publish_does_not_spoil_those_beside_it(declared: Any) -> None:
    bus = await declared(PLAIN)
    outgoing = [letter("no-such-exchange" if i == 10 else "services", "plain", str(i).encode()) for i in range(40)]
    results = await asyncio.gather(*[bus.publish(one) for one in outgoing], return_exceptions=True)
    assert [i for i, result in enumerate(results) if result is not None] == [10]
    assert isinstance(results[10], Unroutable)


async def test_one_id_under_two_keys_gets_each_its_own_answer(declared: Any) -> None:
    bus = await declared(PLAIN)
    same = [letter("services", key, message_id="same-id") for key in ("nobody", "plain", "nobody")]
    results = await asyncio.gather(*[bus.publish(one) for one in same], return_exceptions=True)
    assert [type(result) for result in results] == [Unroutable, type(None), Unroutable]


async def test_messages_arrive_in_the_order_of_their_confirms(declared: Any) -> None:
    bus = await declared(PLAIN)
    for i in range(50):
        await bus.publish(letter("services", "plain", str(i).encode()))
    collector = Collector()
    await bus.consume("plain", collector, prefetch=10)
    await eventually(lambda: len(collector.got) == 50)
    assert collector.bodies == [str(i).encode() for i in range(50)]


async def test_many_confirms_in_flight_lose_nothing(declared: Any) -> None:
    bus = await declared(PLAIN)
    await asyncio.gather(*[bus.publish(letter("services", "plain", str(i).encode())) for i in range(300)])
    collector = Collector()
    await bus.consume("plain", collector, prefetch=50)
    await eventually(lambda: len(collector.got) == 300)
    assert set(collector.bodies) == {str(i).encode() for i in range(300)}


async def test_acknowledged_message_is_gone(declared: Any, lab: Any) -> None:
    bus = await declared(WORK, PARKED)
    collector = Collector()
    subscription = await bus.consume("work", collector, prefetch=1)
    assert subscription.active
    await bus.publish(letter("services", "work"))
    await eventually(lambda: collector.got)
    await bus.close()
    assert await lab.bus().queue_depth("work") == 0


async def test_requeued_message_comes_again_with_flag_and_count(declared: Any) -> None:
    bus = await declared(WORK, PARKED)
    collector = Collector(Requeue(), Requeue(), Ack())
    await bus.consume("work", collector, prefetch=1)
    await bus.publish(letter("services", "work"))
    await eventually(lambda: len(collector.got) == 3)
    assert [one.redelivered for one in collector.got] == [False, True, True]
    assert [one.delivery_count for one in collector.got] == [0, 1, 2]


async def test_classic_queue_flags_redelivery_and_counts_to_one(declared: Any) -> None:
    bus = await declared(PLAIN)
    collector = Collector(Requeue(), Requeue(), Ack())
    await bus.consume("plain", collector, prefetch=1)
    await bus.publish(letter("services", "plain"))
    await eventually(lambda: len(collector.got) == 3)
    assert [one.delivery_count for one in collector.got] == [0, 1, 1]


async def test_beyond_the_delivery_limit_it_is_parked_with_reason_and_origin(declared: Any) -> None:
    bus = await declared(WORK, PARKED)
    collector = Collector(*[Requeue()] * 10)
    await bus.consume("work", collector, prefetch=1)
    sent = letter("services", "work", b"hopeless", headers={"cohortium-key-id": "k"})
    await bus.publish(sent)
    parked = await gets(bus, "work.dead")
    assert len(collector.got) == 3
    assert parked.body == b"hopeless"
    assert datetime.fromisoformat(parked.headers[PARKED_AT_HEADER]) <= datetime.now(UTC)
    assert {**parked.headers, PARKED_AT_HEADER: ""} == {
        "cohortium-key-id": "k",
        PARKED_AT_HEADER: "",
        REASON_HEADER: "delivery_limit",
        ORIGINAL_EXCHANGE_HEADER: "services",
        ORIGINAL_KEY_HEADER: "work",
        ORIGINAL_QUEUE_HEADER: "work",
    }


async def test_dead_parks_with_the_handlers_reason_and_can_be_revived(declared: Any) -> None:
    bus = await declared(WORK, PARKED)
    collector = Collector(Dead("bad_schema:data.site"))
    await bus.consume("work", collector, prefetch=1)
    sent = letter("services", "work", headers={"cohortium-key-id": "k"}, correlation_id="run-1")
    await bus.publish(sent)
    parked = await gets(bus, "work.dead")
    assert parked.headers[REASON_HEADER] == "bad_schema:data.site"
    assert parked.headers[ORIGINAL_QUEUE_HEADER] == "work"
    assert revived(parked) == sent
    await bus.publish(revived(parked))
    await eventually(lambda: len(collector.got) == 2)
    assert collector.got[1].delivery_count == 0


async def test_dead_on_a_queue_this_bus_did_not_declare_is_parked_by_the_broker(declared: Any, lab: Any) -> None:
    bus = await declared(WORK, PARKED)
    stranger = lab.bus()
    await stranger.consume("work", Collector(Dead("poison")), prefetch=1)
    await bus.publish(letter("services", "work", b"rejected"))
    parked = await gets(bus, "work.dead")
    assert parked.headers[REASON_HEADER] in ("poison", "rejected")
    assert parked.headers[ORIGINAL_EXCHANGE_HEADER] == "services"


async def test_dead_that_cannot_be_parked_comes_back(declared: Any) -> None:
    bus = await declared(WORK)
    collector = Collector(Dead("first"), Ack())
    await bus.consume("work", collector, prefetch=1)
    await bus.publish(letter("services", "work"))
    await eventually(lambda: len(collector.got) == 2)


async def test_exception_in_a_handler_is_a_dead_letter_and_stops_nothing(declared: Any) -> None:
    bus = await declared(WORK, PARKED)
    seen: list[bytes] = []

    async def handler(delivery: Delivery) -> Disposition:
        if delivery.body == b"poison":
            raise ZeroDivisionError
        seen.append(delivery.body)
        return Ack()

    await bus.consume("work", handler, prefetch=1)
    for body in (b"one", b"poison", b"two"):
        await bus.publish(letter("services", "work", body))
    assert (await gets(bus, "work.dead")).headers[REASON_HEADER] == "handler_error:ZeroDivisionError"
    await eventually(lambda: seen == [b"one", b"two"])


async def test_foreign_cancellation_in_a_handler_puts_the_message_back(declared: Any) -> None:
    bus = await declared(WORK, PARKED)
    got: list[Delivery] = []

    async def handler(delivery: Delivery) -> Disposition:
        got.append(delivery)
        if len(got) == 1:
            raise asyncio.CancelledError
        return Ack()

    await bus.consume("work", handler, prefetch=1)
    await bus.publish(letter("services", "work"))
    await eventually(lambda: len(got) == 2)
    assert got[1].redelivered
