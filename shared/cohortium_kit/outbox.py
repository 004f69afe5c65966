"""The relay: sends what transactions left in the outbox, and marks it after the broker's confirm.

At least once: a crash between the confirm and the mark sends a message again, and the receiver's inbox absorbs it.
Rows of one `ordering_key` go one after the other; different keys, and rows without one, go side by side.
"""

import asyncio
import json
import os
import random
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import Row, delete, select, update

from cohortium_kit import inbox as inboxes
from cohortium_kit import leases
from cohortium_kit.bus import Bus, Outgoing
from cohortium_kit.clock import Clock, pause
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import BrokerUnavailable, BusError, DatabaseError
from cohortium_kit.tables import outbox

__all__ = ["Relay", "RelaySettings", "outbox"]

log = structlog.get_logger(__name__)

LEASE_NAME = "outbox-relay"


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """How the relay works; the defaults suit a service. `window` is how many confirms are awaited at once."""

    poll_s: float = 0.5
    batch: int = 500
    window: int = 64
    publish_timeout_s: float = 10.0
    lease_s: float = 5.0
    keep_sent_s: float = 3600.0
    prune_every_s: float = 60.0
    first_wait_s: float = 0.2
    longest_wait_s: float = 30.0


@dataclass(slots=True)
class _Waiting:
    """A key that failed: when it is tried again."""

    failures: int
    until: float


class Relay:
    """Sends one database's outbox. Of several relays on one database only the holder of the lease sends."""

    def __init__(
        self, db: Database, bus: Bus, clock: Clock, settings: RelaySettings = RelaySettings(), *, holder: str = ""
    ) -> None:
        self._db = db
        self._bus = bus
        self._clock = clock
        self._settings = settings
        self._holder = holder or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._lease: leases.Lease | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._pruned_at = clock.monotonic()
        self.refusals = 0
        """Publishes not accepted since the start. More than a few mean a full queue or a missing declaration."""

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop` is set, then once more for what the last transactions left. Survives any outage."""
        failures = 0
        while not stop.is_set():
            self._db.message_waits.clear()
            try:
                await self.send_waiting()
                failures = 0
            except (BusError, DatabaseError) as error:
                failures += 1
                log.warning("relay_waits", error=type(error).__name__, attempt=failures)
                await pause(self._clock, self._backoff_s(failures), stop)
            else:
                await pause(self._clock, self._settings.poll_s, stop, self._db.message_waits)
        try:
            await self.send_waiting()
        except (BusError, DatabaseError) as error:
            log.warning("relay_left_messages", error=type(error).__name__)

    async def send_waiting(self) -> int:
        """Send what waits now, as far as it can be sent; returns how many messages the broker confirmed.

        Raises `BrokerUnavailable` if the broker is away, a `DatabaseError` if the database is.
        """
        sent = 0
        while rows := await self._due_rows():
            if not await self._hold_lease():
                break
            confirmed = await self._send_rows(rows)
            sent += len(confirmed)
            # A short batch was all there was; what came since has set `message_waits`, and `run` comes back for it.
            if len(confirmed) < self._settings.batch:
                break
        await self._prune_in_time()
        return sent

    async def _due_rows(self) -> list[Row[Any]]:
        """The oldest unsent rows, without the keys that wait after a failure."""
        now = self._clock.monotonic()
        held_up = {key for key, waiting in self._waiting.items() if waiting.until > now}
        due: list[Row[Any]] = []
        after = 0
        async with self._db.reading("relay_due_rows") as tx:
            while len(due) < self._settings.batch:
                query = select(outbox).where(outbox.c.sent_at.is_(None), outbox.c.id > after)
                page = await tx.rows(query.order_by(outbox.c.id).limit(self._settings.batch))
                due += [row for row in page if _lane(row) not in held_up]
                if len(page) < self._settings.batch:
                    break
                after = page[-1].id
        return due[: self._settings.batch]

    async def _hold_lease(self) -> bool:
        """Have the lease for long enough to send a batch, taking or renewing it only when it is needed."""
        now = self._clock.now()
        half = timedelta(seconds=self._settings.lease_s / 2)
        if self._lease is not None and self._lease.expires_at - now > half:
            return True
        held, ttl_s = self._lease, self._settings.lease_s

        async def take(tx: Tx) -> leases.Lease | None:
            renewed = await leases.renew(tx, held, now, ttl_s) if held else None
            return renewed or await leases.acquire(tx, LEASE_NAME, self._holder, now, ttl_s)

        self._lease = await self._db.run("relay_lease", take)
        return self._lease is not None

    async def _send_rows(self, rows: Sequence[Row[Any]]) -> list[int]:
        """Publish with many confirms in flight, then mark in one transaction what was confirmed."""
        lanes: dict[str, list[Row[Any]]] = {}
        for row in rows:
            lanes.setdefault(_lane(row), []).append(row)
        confirmed: list[int] = []
        away: list[BrokerUnavailable] = []
        window = asyncio.Semaphore(self._settings.window)
        try:
            async with asyncio.TaskGroup() as group:
                for lane, in_order in lanes.items():
                    group.create_task(self._send_lane(lane, in_order, window, confirmed, away))
        finally:
            await self._mark(confirmed)
        if away:
            raise away[0]
        return confirmed

    async def _send_lane(
        self,
        lane: str,
        rows: Sequence[Row[Any]],
        window: asyncio.Semaphore,
        confirmed: list[int],
        away: list[BrokerUnavailable],
    ) -> None:
        for row in rows:
            async with window:
                if away:
                    return
                try:
                    await self._bus.publish(_outgoing(row), timeout_s=self._settings.publish_timeout_s)
                except BrokerUnavailable as error:
                    away.append(error)
                    return
                except (BusError, TypeError) as error:
                    self._hold_up(lane, row, error)
                    return
                confirmed.append(row.id)
                self._waiting.pop(lane, None)

    def _hold_up(self, lane: str, row: Row[Any], error: Exception) -> None:
        """Leave this lane alone for a while. The row stays: an operator can mend the cause, never the loss."""
        failures = self._waiting[lane].failures + 1 if lane in self._waiting else 1
        wait_s = self._backoff_s(failures)
        self._waiting[lane] = _Waiting(failures, self._clock.monotonic() + wait_s)
        self.refusals += 1
        log.error(
            "message_not_accepted",
            type=row.type,
            exchange=row.exchange,
            routing_key=row.routing_key,
            message_id=row.message_id,
            error=type(error).__name__,
            attempt=failures,
            count=self.refusals,
        )

    async def _mark(self, confirmed: Sequence[int]) -> None:
        if not confirmed:
            return

        async def mark(tx: Tx) -> None:
            await tx.execute(update(outbox).where(outbox.c.id.in_(confirmed)).values(sent_at=tx.now))

        await self._db.run("relay_mark_sent", mark)

    async def _prune_in_time(self) -> None:
        if self._clock.monotonic() - self._pruned_at < self._settings.prune_every_s:
            return
        self._pruned_at = self._clock.monotonic()

        async def prune(tx: Tx) -> None:
            await tx.execute(delete(outbox).where(outbox.c.sent_at < tx.now - self._settings.keep_sent_s))
            await inboxes.prune(tx)

        await self._db.run("relay_prune", prune)

    def _backoff_s(self, failures: int) -> float:
        limit = min(self._settings.longest_wait_s, self._settings.first_wait_s * 2 ** min(failures, 16))
        return random.uniform(limit / 2, limit)  # noqa: S311 - spreads load, no secret


def _lane(row: Row[Any]) -> str:
    """What must go one after the other: a key's rows, or a row without a key by itself."""
    return f"key:{row.ordering_key}" if row.ordering_key else f"row:{row.id}"


def _outgoing(row: Row[Any]) -> Outgoing:
    return Outgoing(
        exchange=row.exchange,
        routing_key=row.routing_key,
        body=row.body,
        message_id=row.message_id,
        type=row.type,
        headers=json.loads(row.headers),
        content_type=row.content_type,
        persistent=bool(row.persistent),
        ttl_ms=row.ttl_ms,
        correlation_id=row.correlation_id,
    )
