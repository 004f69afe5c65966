"""What the relay promises, on SQLite and PostgreSQL, with the in-memory broker and a bus that fails on demand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from cohortium_kit.bus import Ack, Delivery, Disposition, Outgoing
from cohortium_kit.clock import SystemClock
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import BrokerUnavailable, Refused, Unroutable
from cohortium_kit.inbox import first_time
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.outbox import Relay, RelaySettings, outbox
from cohortium_kit.testing.clock import ManualClock, settle
from cohortium_messages.topology import EXCHANGES, Binding, Queue, QueueKind, Topology

from .conftest import Collector, eventually, letter

WORK = Topology(EXCHANGES, (Queue("work", QueueKind.QUORUM, (Binding("services", "work"),)),))


class FailingBus:
    """Delegates to a bus, but fails as it is told; keeps what passed, in order."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self.failures: dict[bytes, Exception] = {}
        self.published: list[bytes] = []
        self.in_flight = self.most_in_flight = 0

    async def publish(self, outgoing: Outgoing, *, timeout_s: float = 10.0) -> None:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            if outgoing.body in self.failures:
                raise self.failures[outgoing.body]
            await self._bus.publish(outgoing, timeout_s=timeout_s)
            self.published.append(outgoing.body)
        finally:
            self.in_flight -= 1


class CrashingRelay(Relay):
    """Dies between the broker's confirm and the mark."""

    async def _mark(self, confirmed: Sequence[int]) -> None:
        raise RuntimeError("crashed")


@pytest.fixture
async def bus(namespace: str) -> AsyncIterator[Any]:
    inner = MemoryBus(MemoryBroker(), namespace)
    await inner.declare(WORK)
    failing: Any = FailingBus(inner)
    failing.inner = inner
    yield failing
    await inner.close()


async def commit(db: Database, *bodies: bytes, key: str = "", routing_key: str = "work") -> None:
    async def send(tx: Tx) -> None:
        for body in bodies:
            await tx.send(letter("services", routing_key, body), key)

    await db.run("commit", send)


async def unsent(db: Database) -> int:
    async with db.reading("unsent") as tx:
        return int(await tx.scalar(select(func.count()).select_from(outbox).where(outbox.c.sent_at.is_(None))))


async def test_committed_messages_leave_once_and_whole(db: Database, bus: Any) -> None:
    sent = letter("services", "work", b"\x00", headers={"h": "ä"}, correlation_id="c", persistent=False, ttl_ms=10**6)
    async with db.transaction("send") as tx:
        await tx.send(sent)
    relay = Relay(db, bus, SystemClock())
    assert await relay.send_waiting() == 1
    assert await relay.send_waiting() == 0
    got = await bus.inner.get("work")
    assert (got.body, got.headers, got.message_id, got.correlation_id) == (b"\x00", {"h": "ä"}, sent.message_id, "c")
    assert await unsent(db) == 0


async def test_rolled_back_transaction_sends_nothing(db: Database, bus: Any) -> None:
    with contextlib.suppress(ZeroDivisionError):
        async with db.transaction("fail") as tx:
            await tx.send(letter("services", "work"))
            raise ZeroDivisionError
    assert await Relay(db, bus, SystemClock()).send_waiting() == 0


async def test_messages_of_a_key_keep_their_order_while_keys_go_side_by_side(db: Database, bus: Any) -> None:
    for number in range(10):
        for key in ("a", "b", "c"):
            await commit(db, f"{key}{number}".encode(), key=key)
    assert await Relay(db, bus, SystemClock(), RelaySettings(batch=7)).send_waiting() == 30
    for key in (b"a", b"b", b"c"):
        mine = [body for body in bus.published if body.startswith(key)]
        assert mine == sorted(mine)
    assert bus.most_in_flight == 3


async def test_window_bounds_the_confirms_in_flight(db: Database, bus: Any) -> None:
    await commit(db, *[str(i).encode() for i in range(20)])
    await Relay(db, bus, SystemClock(), RelaySettings(window=4)).send_waiting()
    assert bus.most_in_flight == 4


@pytest.mark.parametrize("error", [Refused("full"), Unroutable("nobody")])
async def test_refused_message_holds_up_its_own_key_only(db: Database, bus: Any, error: Exception) -> None:
    clock = ManualClock()
    bus.failures[b"a1"] = error
    await commit(db, b"a0", b"a1", b"a2", key="a")
    await commit(db, b"b0", b"b1", key="b")
    relay = Relay(db, bus, clock)
    await relay.send_waiting()
    assert sorted(bus.published) == [b"a0", b"b0", b"b1"]
    bus.failures.clear()
    await relay.send_waiting()
    assert await unsent(db) == 2
    await clock.advance(60)
    await relay.send_waiting()
    assert bus.published[-2:] == [b"a1", b"a2"]
    assert relay.refusals == 1


async def test_many_stuck_messages_do_not_starve_the_others(db: Database, bus: Any) -> None:
    await commit(db, *[b"stuck"] * 30)
    bus.failures[b"stuck"] = Unroutable("nobody")
    relay = Relay(db, bus, ManualClock(), RelaySettings(batch=10))
    await commit(db, b"free")
    for _ in range(4):
        await relay.send_waiting()
    assert bus.published == [b"free"]


async def test_crash_between_confirm_and_mark_is_a_repetition_which_the_inbox_absorbs(db: Database, bus: Any) -> None:
    applied: list[bytes] = []
    collector = Collector()

    async def handler(delivery: Delivery) -> Disposition:
        await collector(delivery)
        async with db.transaction("handle") as tx:
            if await first_time(tx, "test", delivery.message_id):
                applied.append(delivery.body)
        return Ack()

    await bus.inner.consume("work", handler, prefetch=1)
    await commit(db, b"once")
    with pytest.raises(RuntimeError):
        await CrashingRelay(db, bus, SystemClock(), holder="me").send_waiting()
    assert await Relay(db, bus, SystemClock(), holder="me").send_waiting() == 1
    await eventually(lambda: len(collector.got) == 2)
    await eventually(lambda: applied == [b"once"])


async def test_only_the_holder_of_the_lease_sends(db: Database, bus: Any) -> None:
    clock = ManualClock()
    first, second = Relay(db, bus, clock, holder="first"), Relay(db, bus, clock, holder="second")
    await commit(db, b"1")
    assert await first.send_waiting() == 1
    await commit(db, b"2")
    assert await second.send_waiting() == 0
    await clock.advance(6)
    assert await second.send_waiting() == 1
    await commit(db, b"3")
    assert await first.send_waiting() == 0


class SetClock(ManualClock):
    """One whose wall clock was set."""

    step_s = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.step_s)


async def test_a_relay_that_died_with_its_clock_ahead_holds_nothing_up(db: Database, bus: Any) -> None:
    clock = SetClock()
    clock.step_s = 3600.0
    await commit(db, b"1")
    assert await Relay(db, bus, clock, holder="dead").send_waiting() == 1
    clock.step_s = 0.0
    await commit(db, b"2")
    assert await Relay(db, bus, clock, holder="next").send_waiting() == 1


async def test_a_relay_does_not_believe_in_its_lease_for_longer_when_the_clock_is_put_back(
    db: Database, bus: Any
) -> None:
    clock = SetClock()
    first, second = Relay(db, bus, clock, holder="first"), Relay(db, bus, clock, holder="second")
    await commit(db, b"1")
    assert await first.send_waiting() == 1
    clock.step_s = -3600.0
    await clock.advance(6)
    await commit(db, b"2")
    assert await second.send_waiting() == 1
    await commit(db, b"3")
    assert await first.send_waiting() == 0


async def test_commit_wakes_the_relay_at_once(db: Database, bus: Any) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(Relay(db, bus, ManualClock()).run(stop))
    await settle()
    for number in range(3):
        await commit(db, str(number).encode())
        await eventually(lambda number=number: len(bus.published) == number + 1)
    stop.set()
    await running


async def test_poll_finds_what_another_process_committed(db: Database, bus: Any) -> None:
    clock, stop = ManualClock(), asyncio.Event()
    running = asyncio.create_task(Relay(db, bus, clock).run(stop))
    await eventually(lambda: clock.sleepers)
    other = Database(str(db.engine.url.render_as_string(hide_password=False)), schema=db.schema)
    await commit(other, b"foreign")
    await other.close()
    assert bus.published == []
    await clock.advance(0.6)
    await eventually(lambda: bus.published == [b"foreign"])
    stop.set()
    await running


@contextlib.asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(relay.run(stop))
    await settle()
    try:
        yield
    finally:
        stop.set()
        await task


async def test_committed_letters_leave_at_once_and_are_marked_together(
    db: Database, bus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    async with running(Relay(db, bus, clock)):
        await commit(db, b"0")
        await eventually(lambda: bus.published == [b"0"])
        looked: list[str] = []
        reading = db.reading
        monkeypatch.setattr(db, "reading", lambda name: looked.append(name) or reading(name))
        for number in range(1, 10):
            await commit(db, str(number).encode(), key="k")
            await eventually(lambda number=number: len(bus.published) == number + 1)
        assert looked == []  # nobody asked the database what to send
        assert await unsent(db) > 0
        for _ in range(3000):
            if await unsent(db) == 0:
                break
            await clock.advance(0.6)
            await asyncio.sleep(0.01)
        assert await unsent(db) == 0
    assert sorted(bus.published) == [str(number).encode() for number in range(10)]
    assert await Relay(db, bus, SystemClock()).send_waiting() == 0


async def test_what_another_process_wrote_before_goes_before(db: Database, bus: Any) -> None:
    other = Database(str(db.engine.url.render_as_string(hide_password=False)), schema=db.schema)
    async with running(Relay(db, bus, ManualClock())):
        await commit(db, b"0", key="k")
        await eventually(lambda: bus.published == [b"0"])
        await commit(other, b"1", key="k")
        await commit(db, b"2", key="k")
        await eventually(lambda: len(bus.published) == 3)
    await other.close()
    assert bus.published == [b"0", b"1", b"2"]


async def test_letters_behind_a_refused_one_wait_for_it_though_handed_over_later(db: Database, bus: Any) -> None:
    clock = ManualClock()
    bus.failures[b"1"] = Refused("full")
    async with running(Relay(db, bus, clock)):
        await commit(db, b"0", key="k")
        await commit(db, b"1", key="k")
        await commit(db, b"2", key="k")
        await commit(db, b"other")
        await eventually(lambda: b"other" in bus.published)
        bus.failures.clear()
        await commit(db, b"3", key="k")
        await settle()
        assert b"3" not in bus.published
        for _ in range(4):
            await eventually(lambda: clock.sleepers)
            await clock.advance(30)
        await eventually(lambda: b"3" in bus.published)
    assert [body for body in bus.published if body != b"other"] == [b"0", b"1", b"2", b"3"]


async def test_letters_handed_over_during_an_outage_leave_after_it(db: Database, bus: Any) -> None:
    clock = ManualClock()
    async with running(Relay(db, bus, clock)):
        await commit(db, b"0", key="k")
        await eventually(lambda: bus.published == [b"0"])
        bus.failures[b"1"] = BrokerUnavailable("away")
        await commit(db, b"1", key="k")
        await commit(db, b"2", key="k")
        await settle()
        assert bus.published == [b"0"]
        bus.failures.clear()
        for _ in range(4):
            await eventually(lambda: clock.sleepers)
            await clock.advance(30)
        await eventually(lambda: bus.published == [b"0", b"1", b"2"])


async def test_outage_ends_and_everything_is_sent(db: Database, bus: Any) -> None:
    clock, stop = ManualClock(), asyncio.Event()
    bus.failures[b"1"] = BrokerUnavailable("away")
    await commit(db, b"0", b"1", b"2", key="k")
    running = asyncio.create_task(Relay(db, bus, clock).run(stop))
    for _ in range(5):
        await eventually(lambda: clock.sleepers)
        await clock.advance(30)
    assert b"1" not in bus.published
    bus.failures.clear()
    for _ in range(3):
        await eventually(lambda: clock.sleepers)
        await clock.advance(30)
    await eventually(lambda: bus.published == [b"0", b"1", b"2"])
    stop.set()
    await running


async def test_what_the_last_transaction_left_is_sent_at_the_end(db: Database, bus: Any) -> None:
    stop = asyncio.Event()
    stop.set()
    await commit(db, b"last")
    await Relay(db, bus, ManualClock()).run(stop)
    assert bus.published == [b"last"]


async def test_sent_rows_are_deleted_when_they_are_old(namespace: str, db: Database, bus: Any) -> None:
    clock = ManualClock(SystemClock().now())
    db.clock = clock
    relay = Relay(db, bus, clock, RelaySettings(keep_sent_s=100))
    await commit(db, b"old")
    await relay.send_waiting()
    await clock.advance(90)
    await commit(db, b"new")
    await relay.send_waiting()
    await clock.advance(61)
    await relay.send_waiting()
    async with db.reading("look") as tx:
        assert [row.body for row in await tx.rows(select(outbox.c.body))] == [b"new"]
