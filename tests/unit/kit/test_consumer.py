"""The loop under every handler, on the in-memory broker and SQLite."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cohortium_kit.bus import Ack, Dead, Outgoing, Requeue
from cohortium_kit.consumer import Consumer, Received
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import DatabaseUnavailable, Poison, TransactionConflict, TryLater
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.migrate import migrate
from cohortium_kit.outbox import Relay
from cohortium_kit.testing.clock import ManualClock, settle
from cohortium_kit.testing.deliveries import delivered
from cohortium_kit.testing.signing import HmacSigner, HmacVerifier
from cohortium_messages.envelope import REASON_HEADER
from cohortium_messages.registry import Message
from cohortium_messages.topology import platform_topology


class Counted(Message, type_name="cohortium.kittest.counted.v1"):
    number: int


class Ignored(Message, type_name="cohortium.kittest.ignored.v1"):
    pass


SIGNER, OTHER = HmacSigner("scheduler"), HmacSigner("audit", b"other")
CLOCK = ManualClock()
SENDER = Sender("/scheduler", SIGNER, CLOCK)


class Bench:
    """A consumer of the scheduler's inbox with its clock, database and bus."""

    def __init__(self, bus: MemoryBus, db: Database) -> None:
        self.bus = bus
        self.db = db
        self.clock = ManualClock()
        verifier = HmacVerifier.of(SIGNER, OTHER)
        self.consumer = Consumer(bus, db, verifier, "scheduler.inbox", "scheduler", clock=self.clock)
        self.numbers: list[int] = []
        self.fails: list[Exception] = []
        self.consumer.on(Counted, self.count)

    async def count(self, tx: Tx, received: Received[Counted]) -> None:
        if self.fails:
            raise self.fails.pop(0)
        await tx.send(SENDER.outgoing("services", "audit", received.message))
        self.numbers.append(received.message.number)

    async def deliver(self, outgoing: Outgoing, delivery_count: int = 0) -> Any:
        """Handle one delivery by hand, letting the clock run."""
        delivery = delivered(outgoing, "scheduler.inbox", count=delivery_count)
        handling = asyncio.create_task(self.consumer.handle(delivery))
        while not handling.done():
            await asyncio.wait({handling}, timeout=0.005)
            await self.clock.advance(5)
        return handling.result()


def counted(number: int, sender: Sender = SENDER, **more: Any) -> Outgoing:
    return sender.outgoing("services", "scheduler", Counted(number=number), **more)


@pytest.fixture
async def bench(tmp_path: Path, namespace: str) -> AsyncIterator[Bench]:
    bus = MemoryBus(MemoryBroker(), namespace)
    await bus.declare(platform_topology())
    db = Database(f"sqlite:///{tmp_path}/s.db", schema="scheduler")
    await migrate(db)
    yield Bench(bus, db)
    await bus.close()
    await db.close()


async def test_message_is_handled_once_however_often_it_comes(bench: Bench) -> None:
    message = counted(1)
    assert [await bench.deliver(message) for _ in range(3)] == [Ack()] * 3
    assert bench.numbers == [1]


async def test_same_id_from_another_signer_is_another_message(bench: Bench) -> None:
    await bench.deliver(counted(1, Sender("/audit", OTHER, CLOCK), message_id="same-id-of-two"))
    await bench.deliver(counted(2, message_id="same-id-of-two"))
    assert bench.numbers == [1, 2]


async def test_poison_of_the_envelope_or_the_handler_is_dead_with_its_reason(bench: Bench) -> None:
    assert await bench.deliver(Outgoing("services", "scheduler", b"{}", "12345678", "x")) == Dead("unsigned")
    bench.fails = [Poison("not_in_cohort", "site 1")]
    assert await bench.deliver(counted(1)) == Dead("not_in_cohort")


async def test_type_without_a_handler_is_dead_unless_there_is_a_general_one(bench: Bench) -> None:
    ignored = SENDER.outgoing("services", "scheduler", Ignored())
    assert await bench.deliver(ignored) == Dead("unhandled_type")
    seen: list[str] = []

    async def anything(tx: Tx, received: Received[Message]) -> None:
        seen.append(received.envelope.type)

    bench.consumer.otherwise(anything)
    assert await bench.deliver(ignored) == Ack()
    assert seen == ["cohortium.kittest.ignored.v1"]
    with pytest.raises(ValueError, match="two handlers"):
        bench.consumer.on(Counted, anything)


async def test_try_later_and_bugs_go_back_and_leave_nothing(bench: Bench) -> None:
    message = counted(1)
    bench.fails = [TryLater("not yet"), ZeroDivisionError()]
    assert await bench.deliver(message) == Requeue()
    assert await bench.deliver(message, 1) == Requeue()
    assert bench.clock.monotonic() >= 0.5
    assert await bench.deliver(message, 2) == Ack()
    assert bench.numbers == [1]


async def test_conflict_is_repeated_and_a_lost_database_waited_for(bench: Bench) -> None:
    bench.fails = [TransactionConflict("met"), DatabaseUnavailable("away"), DatabaseUnavailable("away")]
    assert await bench.deliver(counted(1)) == Ack()
    assert bench.numbers == [1]


async def test_database_away_for_long_puts_the_message_back(bench: Bench) -> None:
    bench.fails = [DatabaseUnavailable("away")] * 500
    assert await bench.deliver(counted(1)) == Requeue()
    assert bench.clock.monotonic() < 1800


async def test_handlers_run_one_at_a_time_in_order(bench: Bench) -> None:
    await bench.consumer.start()
    assert bench.consumer.active
    for number in range(20):
        await bench.bus.publish(counted(number))
    await bench.consumer.stop()
    assert bench.numbers == list(range(20))
    assert not bench.consumer.active


async def test_what_a_handler_sends_leaves_with_its_commit(bench: Bench) -> None:
    await bench.deliver(counted(7))
    bench.fails = [Poison("no")]
    await bench.deliver(counted(8))
    await Relay(bench.db, bench.bus, CLOCK).send_waiting()
    assert await bench.bus.queue_depth("audit.inbox") == 1


async def test_poison_is_parked_and_the_next_message_handled(bench: Bench) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(bench.consumer.run(stop))
    await bench.bus.publish(Outgoing("services", "scheduler", b"junk", "12345678", "x"))
    await bench.bus.publish(counted(1))
    await settle()
    stop.set()
    await running
    parked = await bench.bus.get("scheduler.dead")
    assert parked is not None
    assert parked.headers[REASON_HEADER] == "unsigned"
    assert bench.numbers == [1]
