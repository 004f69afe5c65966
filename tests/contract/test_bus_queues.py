"""What both buses promise of queues, consumers and outages: one suite on the in-memory broker and on RabbitMQ."""

import asyncio
import contextlib
import gc
from dataclasses import replace
from typing import Any

import pytest

from cohortium_kit.bus import (
    ORIGINAL_QUEUE_HEADER,
    Ack,
    Delivery,
    Disposition,
    Outgoing,
)
from cohortium_kit.errors import BrokerUnavailable, ConfigurationError, QueueMissing, Refused
from cohortium_messages.envelope import REASON_HEADER
from cohortium_messages.topology import Binding, Queue, QueueKind

from .conftest import Collector, eventually, gets, letter

WORK = Queue("work", QueueKind.QUORUM, (Binding("services", "work"),), delivery_limit=2, dead_letter_key="work")
PARKED = Queue("work.dead", QueueKind.QUORUM, (Binding("dead", "work"),))
PLAIN = Queue("plain", QueueKind.CLASSIC, (Binding("services", "plain"),))


@pytest.mark.parametrize("kind", [QueueKind.QUORUM, QueueKind.CLASSIC])
async def test_message_past_its_own_time_is_parked_as_expired(declared: Any, kind: QueueKind) -> None:
    brief = Queue("brief", kind, (Binding("services", "brief"),), dead_letter_key="brief")
    bus = await declared(brief, Queue("brief.dead", QueueKind.QUORUM, (Binding("dead", "brief"),)))
    await bus.publish(letter("services", "brief", ttl_ms=50))
    parked = await gets(bus, "brief.dead")
    assert parked.headers[REASON_HEADER] == "expired"
    assert parked.headers[ORIGINAL_QUEUE_HEADER] == "brief"
    assert await bus.queue_depth("brief") == 0


async def test_queue_with_a_time_to_live_forgets(declared: Any) -> None:
    fleeting = Queue("fleeting", QueueKind.CLASSIC, (Binding("services", "fleeting"),), message_ttl_ms=50)
    bus = await declared(fleeting)
    await bus.publish(letter("services", "fleeting"))
    await asyncio.sleep(0.3)
    assert await bus.get("fleeting") is None


async def test_no_more_than_prefetch_are_in_hand(declared: Any) -> None:
    bus = await declared(PLAIN)
    gate = asyncio.Event()
    in_hand = most = done = 0

    async def handler(delivery: Delivery) -> Disposition:
        nonlocal in_hand, most, done
        in_hand += 1
        most = max(most, in_hand)
        await gate.wait()
        in_hand -= 1
        done += 1
        return Ack()

    await bus.consume("plain", handler, prefetch=3)
    for _ in range(8):
        await bus.publish(letter("services", "plain"))
    await eventually(lambda: in_hand == 3)
    assert await bus.queue_depth("plain") == 5
    gate.set()
    await eventually(lambda: done == 8)
    assert most == 3


@pytest.mark.parametrize("bound", [{"max_length": 3}, {"max_length_bytes": 3000}])
async def test_full_queue_refuses_and_keeps_what_it_has(declared: Any, bound: dict[str, int]) -> None:
    bus = await declared(Queue("small", QueueKind.CLASSIC, (Binding("services", "small"),), **bound))
    accepted = 0
    with contextlib.suppress(Refused):
        for _ in range(10):
            await bus.publish(letter("services", "small", b"x" * 1000))
            accepted += 1
    assert 3 <= accepted <= 4
    assert await bus.queue_depth("small") == accepted
    assert await bus.get("small") is not None
    assert await bus.get("small") is not None
    await bus.publish(letter("services", "small", b"x" * 1000))


@pytest.mark.parametrize("bound", [{"max_length": 3}, {"max_length_bytes": 3000}])
async def test_full_queue_that_keeps_the_newest_refuses_nobody(declared: Any, bound: dict[str, int]) -> None:
    rules = Queue("newest", QueueKind.QUORUM, (Binding("services", "newest"),), keeps_newest=True, **bound)
    bus = await declared(rules)
    for number in range(10):
        await bus.publish(letter("services", "newest", bytes([number]) * 900))
    kept = [await bus.get("newest") for _ in range(4)]
    assert [delivery and delivery.body[0] for delivery in kept] == [7, 8, 9, None]


async def test_what_a_full_queue_refused_is_let_go_of_at_once(declared: Any) -> None:
    """A sender that tries again and again must not hold every try until the garbage collector comes by."""
    bus = await declared(Queue("refusing", QueueKind.CLASSIC, (Binding("services", "refusing"),), max_length=1))
    gc.collect()
    gc.disable()
    refused = 0
    try:
        for _ in range(20):
            try:
                await bus.publish(letter("services", "refusing", b"x" * 1000))
            except Refused:
                refused += 1
        held = [one for one in gc.get_objects() if type(one) is Outgoing and one.routing_key == "refusing"]
    finally:
        gc.enable()
    assert refused >= 17
    assert len(held) <= 1  # the memory broker's queue holds the one it took


async def test_single_active_consumer_and_takeover(declared: Any, lab: Any) -> None:
    alone = Queue("alone", QueueKind.CLASSIC, (Binding("services", "alone"),), single_active_consumer=True)
    bus = await declared(alone)
    first, second = Collector(), Collector()
    first_bus = lab.bus()
    await first_bus.consume("alone", first, prefetch=5)
    await bus.consume("alone", second, prefetch=5)
    for _ in range(5):
        await bus.publish(letter("services", "alone"))
    await eventually(lambda: len(first.got) == 5)
    assert second.got == []
    await first_bus.close()
    await bus.publish(letter("services", "alone", b"next"))
    await eventually(lambda: second.bodies == [b"next"])


async def test_two_consumers_share_a_queue(declared: Any, lab: Any) -> None:
    bus = await declared(PLAIN)
    first, second = Collector(), Collector()
    await bus.consume("plain", first, prefetch=1)
    await lab.bus().consume("plain", second, prefetch=1)
    for _ in range(20):
        await bus.publish(letter("services", "plain"))
    await eventually(lambda: len(first.got) + len(second.got) == 20)
    assert first.got
    assert second.got


async def test_message_of_a_killed_consumer_returns_to_the_front(declared: Any, lab: Any) -> None:
    bus = await declared(PLAIN)
    holding = asyncio.Event()

    async def hold(delivery: Delivery) -> Disposition:
        holding.set()
        await asyncio.Event().wait()
        return Ack()

    doomed = lab.bus()
    await doomed.consume("plain", hold, prefetch=1)
    await bus.publish(letter("services", "plain", b"first"))
    await bus.publish(letter("services", "plain", b"second"))
    await asyncio.wait_for(holding.wait(), 60)
    await doomed.abort()
    got = await gets(bus, "plain")
    assert (got.body, got.redelivered) == (b"first", True)
    assert (await gets(bus, "plain")).body == b"second"


async def test_crash_loop_ends_in_the_dead_letters(declared: Any, lab: Any) -> None:
    bus = await declared(WORK, PARKED)
    await bus.publish(letter("services", "work", b"deadly"))
    for _ in range(3):
        holding = asyncio.Event()

        async def hold(delivery: Delivery, holding: asyncio.Event = holding) -> Disposition:
            holding.set()
            await asyncio.Event().wait()
            return Ack()

        doomed = lab.bus()
        await doomed.consume("work", hold, prefetch=1)
        await asyncio.wait_for(holding.wait(), 60)
        await doomed.abort()
    assert (await gets(bus, "work.dead")).headers[REASON_HEADER] == "delivery_limit"


async def test_cancel_drains_and_takes_no_more(declared: Any) -> None:
    bus = await declared(PLAIN)
    gate, begun, finished = asyncio.Event(), asyncio.Event(), []

    async def handler(delivery: Delivery) -> Disposition:
        begun.set()
        await gate.wait()
        finished.append(delivery.body)
        return Ack()

    subscription = await bus.consume("plain", handler, prefetch=1)
    await bus.publish(letter("services", "plain", b"begun"))
    await begun.wait()
    cancelling = asyncio.create_task(subscription.cancel())
    await asyncio.sleep(0.1)
    assert not cancelling.done()
    gate.set()
    await cancelling
    await subscription.cancel()
    assert finished == [b"begun"]
    assert not subscription.active
    await bus.publish(letter("services", "plain", b"later"))
    assert (await gets(bus, "plain")).body == b"later"


async def test_missing_queue_is_named(declared: Any) -> None:
    bus = await declared(PLAIN)
    await bus.check_queue("plain")
    with pytest.raises(QueueMissing):
        await bus.check_queue("absent")
    with pytest.raises(QueueMissing):
        await bus.consume("absent", Collector(), prefetch=1)
    with pytest.raises(QueueMissing):
        await bus.get("absent")
    await bus.check_queue("plain")


async def test_declaring_twice_is_once_and_another_rule_is_refused(declared: Any) -> None:
    bus = await declared(PLAIN)
    await bus.publish(letter("services", "plain"))
    await declared(PLAIN)
    assert await bus.queue_depth("plain") == 1
    changed = Queue("plain", QueueKind.CLASSIC, PLAIN.bindings, max_length=5)
    with pytest.raises(ConfigurationError):
        await declared(changed)


async def test_a_queue_that_exists_keeps_its_bounds_and_no_other_rule(declared: Any) -> None:
    """So the platform can be updated where queues were made with the bounds of another version."""
    narrow = Queue("narrow", QueueKind.CLASSIC, (Binding("services", "narrow"),), max_length=1, message_ttl_ms=60_000)
    bus = await declared(narrow)
    wider = replace(narrow, max_length=None, max_length_bytes=1 << 20, message_ttl_ms=None, delivery_limit=3)
    await declared(wider, PLAIN)
    await bus.check_queue("plain")
    filling = [bus.publish(letter("services", "narrow")) for _ in range(5)]  # RabbitMQ takes a few over the limit
    with pytest.raises(Refused):
        await asyncio.gather(*filling)
    for another in (replace(wider, single_active_consumer=True), replace(wider, keeps_newest=True)):
        with pytest.raises(ConfigurationError):
            await declared(another)


async def test_outage_fails_publishes_in_time_and_consumers_recover(declared: Any, lab: Any) -> None:
    bus = await declared(WORK, PARKED)
    await bus.connect()
    assert bus.connected
    collector = Collector()
    await bus.consume("work", collector, prefetch=4)
    await bus.publish(letter("services", "work", b"before"))
    await eventually(lambda: collector.bodies == [b"before"])
    await lab.outage()
    with pytest.raises(BrokerUnavailable):
        await bus.publish(letter("services", "work", b"during"), timeout_s=0.5)
    await eventually(lambda: not bus.connected)
    await lab.recovery()
    await eventually(lambda: bus.connected, 40)
    await bus.publish(letter("services", "work", b"after"))
    await eventually(lambda: collector.bodies == [b"before", b"after"], 40)


async def test_handler_outlives_the_connection_and_its_message_comes_again(declared: Any, lab: Any) -> None:
    bus = await declared(WORK, PARKED)
    gate, counts, cancelled = asyncio.Event(), [], []

    async def handler(delivery: Delivery) -> Disposition:
        counts.append(delivery.delivery_count)
        try:
            await gate.wait()
        except asyncio.CancelledError:
            cancelled.append(delivery)
            raise
        return Ack()

    await bus.consume("work", handler, prefetch=1)
    await bus.publish(letter("services", "work"))
    await eventually(lambda: counts == [0])
    await lab.outage()
    await asyncio.sleep(0.2)
    gate.set()
    await lab.recovery()
    await eventually(lambda: counts == [0, 1], 40)
    assert cancelled == []


async def test_closed_bus_says_so(declared: Any) -> None:
    bus = await declared(PLAIN)
    await bus.close()
    await bus.close()
    with pytest.raises(BrokerUnavailable):
        await bus.publish(letter("services", "plain"))
    assert not bus.connected


async def test_cancelled_publisher_is_cancelled(declared: Any) -> None:
    bus = await declared(PLAIN)
    task = asyncio.create_task(bus.publish(letter("services", "plain")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await bus.publish(letter("services", "plain"))
