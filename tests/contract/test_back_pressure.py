"""A consumer that is slower than those who publish: its inbox does not grow past its bound, outboxes wait, and nothing
is lost; who publishes much does not keep out who publishes little."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cohortium_kit.bus import Ack, Delivery, Disposition
from cohortium_kit.clock import SystemClock
from cohortium_kit.db import Database
from cohortium_kit.migrate import migrate
from cohortium_kit.outbox import Relay, RelaySettings
from cohortium_messages.topology import (
    SERVICE_NAMES,
    Binding,
    Queue,
    QueueKind,
    dead_letters,
    platform_topology,
    site_topology,
)

from .conftest import eventually, letter

SIZE, ROOM = 1000, 20
INBOX = Queue("work", QueueKind.QUORUM, (Binding("services", "work"),), max_length_bytes=SIZE * ROOM)
MUCH, LITTLE = 120, 5
WINDOW = 4
"""Confirms in flight. RabbitMQ takes about as many over the bound (broker study, 3)."""


@asynccontextmanager
async def sender(folder: Path, name: str, count: int, bus: Any) -> AsyncIterator[Relay]:
    """A part with so many messages in its outbox, which its relay sends side by side."""
    db = Database(f"sqlite:///{folder}/{name}.db", schema=name)
    await migrate(db)
    async with db.transaction("fill") as tx:
        for number in range(count):
            body = f"{name} {number} ".encode().ljust(SIZE, b".")
            await tx.send(letter("services", "work", body, message_id=f"{name}-message-{number}"))
    stop = asyncio.Event()
    relay = Relay(db, bus, SystemClock(), RelaySettings(window=WINDOW, full_wait_s=0.2))
    running = asyncio.create_task(relay.run(stop))
    try:
        yield relay
    finally:
        stop.set()
        await running
        await db.close()


async def test_a_slow_consumer_slows_who_publishes_and_loses_nothing(declared: Any, lab: Any, tmp_path: Path) -> None:
    bus = await declared(INBOX)
    begun = asyncio.Event()
    heard: list[str] = []
    deepest = 0

    async def slow(delivery: Delivery) -> Disposition:
        nonlocal deepest
        await begun.wait()
        deepest = max(deepest, await bus.queue_depth("work"))
        heard.append(delivery.message_id)
        return Ack()

    await bus.consume("work", slow, prefetch=1)
    async with sender(tmp_path, "fast", MUCH, lab.bus()) as fast:
        await eventually(lambda: fast.refusals > 0)
        assert await bus.queue_depth("work") <= ROOM + 2 * WINDOW
        async with sender(tmp_path, "slow", LITTLE, lab.bus()) as late:
            await eventually(lambda: late.refusals > 0)
            begun.set()
            await eventually(lambda: len(set(heard)) == MUCH + LITTLE)
    assert deepest <= ROOM + 2 * WINDOW
    assert len(heard) == MUCH + LITTLE
    last_of_slow = max(place for place, message in enumerate(heard) if message.startswith("slow"))
    last_of_fast = max(place for place, message in enumerate(heard) if message.startswith("fast"))
    assert last_of_slow < last_of_fast, "who came later with little was kept out until the other one had done"


@pytest.mark.parametrize("topology", [platform_topology(), site_topology("s")], ids=["platform", "site"])  # type: ignore[arg-type]
def test_whatever_waits_for_somebody_is_bounded(topology: Any) -> None:
    """Only messages that were parked for people to look at have no bound; frames, which nobody can look into, do."""
    unbounded = {queue.name for queue in topology.queues if queue.max_length is None and queue.max_length_bytes is None}
    assert unbounded <= {dead_letters(name) for name in (*SERVICE_NAMES, "sites")}
