"""The relay: sends what transactions left in the outbox, and marks it after the broker's confirm.

The process that commits hands its letters over at once, and they are on their way before the database is asked again.
The outbox is the safety net: it is searched at the start, after every failure, where ids show that another process has
written, and now and then. Marks follow together, a moment later.

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
from typing import Any

import structlog
from sqlalchemy import Row, bindparam, delete, select, update

from cohortium_kit import inbox as inboxes
from cohortium_kit import leases, telemetry
from cohortium_kit._lanes import Lanes, Letter
from cohortium_kit.bus import Bus, Outgoing
from cohortium_kit.clock import Clock, pause
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import BusError, DatabaseError, Refused
from cohortium_kit.metrics import known_type
from cohortium_kit.tables import outbox

__all__ = ["Relay", "RelaySettings", "outbox"]

log = structlog.get_logger(__name__)

LEASE_NAME = "outbox-relay"
_UNSENT = (
    select(outbox)
    .where(outbox.c.sent_at.is_(None), outbox.c.id > bindparam("after"))
    .order_by(outbox.c.id)
    .limit(bindparam("most"))
)
_MARK = update(outbox).where(outbox.c.id.in_(bindparam("ids", expanding=True))).values(sent_at=bindparam("now"))


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
    full_wait_s: float = 2.0


@dataclass(slots=True)
class _Waiting:
    """A lane that failed: when it is tried again."""

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
        self._lease_taken_at = 0.0
        self._lanes = Lanes(self._publish, self._hold_up, settings.window)
        self._waiting: dict[str, _Waiting] = {}
        self._complete_to: int | None = None
        """Every row up to this id is sent, in hand, or in a lane that waits; None: not known."""
        self._busy = False
        self._pruned_at = clock.monotonic()
        self.refusals = 0
        """Publishes not accepted since the start. More than a few mean a full queue or a missing declaration."""

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop` is set, then once more for what the last transactions left. Survives any outage."""
        failures = 0
        self._db.hand_over = self._take_at_once
        try:
            while not stop.is_set():
                self._db.message_waits.clear()
                try:
                    await self._look()
                    failures = 0
                except (BusError, DatabaseError) as error:
                    failures += 1
                    log.warning("relay_waits", error=type(error).__name__, attempt=failures)
                    self._db.metrics.relay_outages.labels(type(error).__name__).inc()
                    await pause(self._clock, self._backoff_s(failures), stop)
                else:
                    await pause(self._clock, self._settings.poll_s, stop, self._db.message_waits)
            self._db.hand_over = None
            try:
                await self.send_waiting()
            except (BusError, DatabaseError) as error:
                log.warning("relay_left_messages", error=type(error).__name__)
        finally:
            self._db.hand_over = None
            await self._lanes.close()

    async def send_waiting(self) -> int:
        """Send what waits now, as far as it can be sent; returns how many messages the broker confirmed.

        Raises `BrokerUnavailable` if the broker is away, a `DatabaseError` if the database is.
        """
        sent = 0
        while True:
            await self._look()
            await self._lanes.settled()
            confirmed = len(self._lanes.confirmed)
            sent += confirmed
            if not confirmed and self._lanes.away is None:
                return sent

    def _take_at_once(self, letters: Sequence[Letter]) -> bool:
        """Letters of a transaction that has just committed; False if they are to be found in the outbox.

        Ids without a gap behind the last one prove that no other process has written in between.
        """
        known, last = self._complete_to, letters[-1].id
        if known is None or last > known + sum(letter.id > known for letter in letters):
            return False
        too_many = len(self._lanes.in_hand) > self._settings.batch
        if too_many or self._lanes.away or self._lease_left_s() < self._settings.lease_s / 4:
            return False
        if any(letter.lane in self._waiting for letter in letters):
            return False
        self._complete_to = max(known, last)
        self._busy = True
        self._lanes.take(letters)
        return True

    async def _look(self) -> None:
        """Mark what was confirmed, and take what the outbox has besides. Raises as `send_waiting`."""
        self._lanes.check()
        confirmed = list(self._lanes.confirmed)
        if confirmed:
            await self._mark(confirmed)
            self._lanes.forget(confirmed)
        if (away := self._lanes.away) is not None:
            await self._lanes.settled()
            self._lanes.away, self._complete_to = None, None
            raise away
        letters, seen_to = await self._due()
        if (letters or self._busy) and await self._hold_lease():
            self._busy = False
            self._lanes.take(letters)
            if seen_to is not None:
                self._complete_to = max(self._complete_to or 0, seen_to)
        if seen_to is None:
            self._complete_to = None
            await self._lanes.settled()
            self._db.message_waits.set()
        await self._prune_in_time()

    async def _due(self) -> tuple[list[Letter], int | None]:
        """The oldest unsent letters that are not in hand, without the lanes that wait after a failure; and the newest
        id that was seen, or None if there is more than a batch."""
        now = self._clock.monotonic()
        held_up = {key for key, waiting in self._waiting.items() if waiting.until > now}
        due: list[Letter] = []
        after = 0
        async with self._db.glance("relay_due_rows") as tx:
            while len(due) < self._settings.batch:
                page = await tx.rows(_UNSENT, {"after": after, "most": self._settings.batch})
                fresh = [_letter(row) for row in page if row.id not in self._lanes.in_hand]
                due += [letter for letter in fresh if letter.lane not in held_up]
                after = page[-1].id if page else after
                if len(page) < self._settings.batch and len(due) <= self._settings.batch:
                    return due, after
        return due[: self._settings.batch], None

    def _lease_left_s(self) -> float:
        return leases.left_s(self._lease, self._lease_taken_at, self._settings.lease_s, self._clock)

    async def _hold_lease(self) -> bool:
        """Have the lease for long enough to send a batch, taking or renewing it only when it is needed."""
        if self._lease_left_s() > self._settings.lease_s / 2:
            return True
        now, taken_at = self._clock.now(), self._clock.monotonic()
        held, ttl_s = self._lease, self._settings.lease_s

        async def take(tx: Tx) -> leases.Lease | None:
            renewed = await leases.renew(tx, held, now, ttl_s) if held else None
            return renewed or await leases.acquire(tx, LEASE_NAME, self._holder, now, ttl_s)

        self._lease, self._lease_taken_at = await self._db.run("relay_lease", take), taken_at
        return self._lease is not None

    async def _publish(self, letter: Letter) -> None:
        with telemetry.sending(letter.outgoing) as outgoing:
            await self._bus.publish(outgoing, timeout_s=self._settings.publish_timeout_s)
        self._db.metrics.published.labels(outgoing.exchange, known_type(outgoing.type)).inc()
        self._waiting.pop(letter.lane, None)

    def _hold_up(self, letter: Letter, error: Exception) -> None:
        """Leave this lane alone for a while. The row stays: an operator can mend the cause, never the loss.

        A full queue needs no mending, only a consumer: it is asked again sooner, so that who waits for room is not
        left behind by who begins to publish now.
        """
        lane, outgoing = letter.lane, letter.outgoing
        failures = self._waiting[lane].failures + 1 if lane in self._waiting else 1
        full = isinstance(error, Refused)
        wait_s = min(self._backoff_s(failures), self._settings.full_wait_s) if full else self._backoff_s(failures)
        self._waiting[lane] = _Waiting(failures, self._clock.monotonic() + wait_s)
        self.refusals += 1
        self._db.metrics.publish_refusals.labels(outgoing.exchange, type(error).__name__).inc()
        (log.warning if full else log.error)(
            "message_not_accepted",
            type=outgoing.type,
            exchange=outgoing.exchange,
            routing_key=outgoing.routing_key,
            message_id=outgoing.message_id,
            error=type(error).__name__,
            attempt=failures,
            count=self.refusals,
        )

    async def _mark(self, confirmed: Sequence[int]) -> None:
        async def mark(tx: Tx) -> None:
            await tx.execute(_MARK, {"ids": list(confirmed), "now": tx.now})

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


def _letter(row: Row[Any]) -> Letter:
    outgoing = Outgoing(
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
    return Letter(row.id, row.ordering_key, outgoing)
