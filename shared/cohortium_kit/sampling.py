"""Gauges that are read from the database and the broker when Prometheus asks: what waits, and for how long.

A sample that fails shows nothing, instead of the value of an earlier day; its failures are counted.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import Gauge
from sqlalchemy import ColumnElement, func, select

from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import BusError, DatabaseError
from cohortium_kit.tables import lease, outbox

log = structlog.get_logger(__name__)

FRESH_S = 2.0
"""Who asks again within this time is told the same: a scrape must not be a way to load the database."""
LIMIT_S = 5.0

Read = Callable[[Tx], Awaitable[None]]
"""Reads from the service's own tables and sets its gauges."""


@dataclass(frozen=True, slots=True)
class _Sample:
    name: str
    take: Callable[[], Awaitable[None]]
    gauges: Sequence[Gauge]


class Sampler:
    """The samples of one service. Those of the kit are there from the start."""

    def __init__(self, db: Database, bus: Bus, clock: Clock, queues: Sequence[str]) -> None:
        self._db = db
        self._bus = bus
        self._clock = clock
        self._queues = queues
        self._samples: list[_Sample] = []
        self._one_at_a_time = asyncio.Lock()
        self._taken_at = -math.inf
        metrics = db.metrics
        self._failures = metrics.counter("cohortium_sample_failures", "Samples not taken.", "sample", "error")
        self._outbox = metrics.gauge("cohortium_outbox_messages", "Messages that wait in the outbox.")
        self._oldest = metrics.gauge("cohortium_outbox_oldest_seconds", "How long the oldest of them has waited.")
        self._leases = metrics.gauge("cohortium_leases", "Leases in this service's database.", "state")
        self._depth = metrics.gauge(
            "cohortium_queue_messages", "Messages ready in a queue of this service, its dead letters included.", "queue"
        )
        self.add("kit", self._kit, self._outbox, self._oldest, self._leases)
        self._samples.append(_Sample("queues", self._depths, [self._depth]))

    def add(self, name: str, read: Read, *gauges: Gauge) -> None:
        """Call `read` in a reading transaction whenever somebody asks; it sets these gauges."""

        async def take() -> None:
            async with self._db.reading(f"sample_{name}") as tx:
                await read(tx)

        self._samples.append(_Sample(name, take, gauges))

    async def unsent(self, limit_s: float) -> str | None:
        """What to tell of an outbox whose oldest message has waited for longer than this; None if none has."""
        waiting = outbox.c.sent_at.is_(None)
        query = select(outbox.c.created_at, outbox.c.exchange).where(waiting).order_by(outbox.c.created_at).limit(1)
        async with self._db.reading("unsent") as tx:
            oldest = await tx.row(query)
            found = await tx.scalar(select(func.count()).select_from(outbox).where(waiting))
            now = tx.now
        if oldest is None or now - oldest.created_at <= limit_s:
            return None
        return (
            f"{found} messages wait to be sent, the oldest for {now - oldest.created_at:.0f} s, for the exchange "
            f"{oldest.exchange}: the broker is away, or a queue behind it takes no more"
        )

    async def refresh(self) -> None:
        """Take every sample now, unless that was done a moment ago."""
        async with self._one_at_a_time:
            if self._clock.monotonic() - self._taken_at < FRESH_S:
                return
            await asyncio.gather(*[self._take(sample) for sample in self._samples])
            self._taken_at = self._clock.monotonic()

    async def _take(self, sample: _Sample) -> None:
        try:
            async with asyncio.timeout(LIMIT_S):
                await sample.take()
        except (DatabaseError, BusError, TimeoutError) as error:
            log.warning("sample_failed", name=sample.name, error=type(error).__name__)
            self._failures.labels(sample.name, type(error).__name__).inc()
            for gauge in sample.gauges:
                forget(gauge)

    async def _kit(self, tx: Tx) -> None:
        unsent = outbox.c.sent_at.is_(None)
        oldest = await tx.scalar(select(func.min(outbox.c.created_at)).where(unsent))
        self._outbox.set(await tx.scalar(select(func.count()).select_from(outbox).where(unsent)))
        self._oldest.set(0.0 if oldest is None else max(0.0, tx.now - oldest))
        held = await tx.scalar(select(func.count()).where(lease.c.expires_at > tx.now))
        ended = await tx.scalar(select(func.count()).where(lease.c.expires_at <= tx.now))
        self._leases.labels("held").set(held)
        self._leases.labels("ended").set(ended)

    async def _depths(self) -> None:
        depths = await asyncio.gather(*[self._bus.queue_depth(name, timeout_s=LIMIT_S) for name in self._queues])
        for name, depth in zip(self._queues, depths, strict=True):
            self._depth.labels(name).set(depth)


def forget(gauge: Gauge) -> None:
    """Show no value: none at all where there are labels, and `NaN` where there are none."""
    gauge.clear()
    with contextlib.suppress(ValueError):  # it has labels
        gauge.set(math.nan)


class LoopWatch:
    """Measures how late the event loop comes round: what runs too long on it holds up heartbeats and everybody else."""

    EVERY_S = 0.5

    def __init__(self, db: Database) -> None:
        self._lag = db.metrics.histogram(
            "cohortium_event_loop_lag_seconds",
            "How much later than asked for a sleeping task was woken.",
            (0.005, 0.025, 0.1, 0.25, 1.0, 5.0, 15.0),
        )

    async def run(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            due = loop.time() + self.EVERY_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self.EVERY_S)
                return
            self._lag.observe(max(0.0, loop.time() - due))


async def count_by(tx: Tx, gauge: Gauge, column: ColumnElement[str], where: ColumnElement[bool] | None = None) -> None:
    """Set a gauge with one label to the number of rows for each value of a column, which holds a closed set."""
    query = select(column.label("value"), func.count().label("found")).group_by(column)
    rows = await tx.rows(query if where is None else query.where(where))
    gauge.clear()
    for row in rows:
        gauge.labels(row.value).set(row.found)
