"""Health from traffic: a probe that goes the way of every message, and is looked for at the end of it.

Broker study: a connection that says it is open, and a consumer that says it is active, both may be deaf. So an instance
writes a number into its database and its outbox; the relay publishes it, the broker routes it to the service's own
queue, a consumer of the service takes it in its turn and notes it in the database, and the instance reads that. Any
instance of the service may take it, for they share the queue. A probe that is lost is no harm: the next one follows.
"""

import asyncio
import secrets

import structlog
from sqlalchemy import delete, insert, select, update

from cohortium_kit.bus import Ack, Delivery, Disposition, Outgoing
from cohortium_kit.clock import Clock, pause
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import CohortiumError, DatabaseError
from cohortium_kit.tables import probe
from cohortium_messages.topology import SERVICES

log = structlog.get_logger(__name__)

PROBE_TYPE = "cohortium.kit.probe"
FORGET_S = 24 * 3600.0


class ProbeMissing(CohortiumError):
    """No probe came back in time: the broker, the database, the relay or the consumer does not work."""


class NotSubscribed(CohortiumError):
    """A consumer of this very instance is not subscribed, though another instance may take the probes."""


def is_probe(delivery: Delivery) -> bool:
    """Only what came by the services' own exchange: the broker lets no site write there."""
    return delivery.type == PROBE_TYPE and delivery.exchange == SERVICES.name


async def answer(db: Database, delivery: Delivery) -> Disposition:
    """Note that a probe arrived. Nothing is retried: a probe must never wait among the dead letters."""
    nonce = delivery.body[:64].decode("ascii", "replace")

    async def note(tx: Tx) -> None:
        await tx.execute(update(probe).where(probe.c.nonce == nonce).values(seen_at=tx.now))

    try:
        await db.run("probe_seen", note)
    except DatabaseError as error:
        log.warning("probe_not_noted", error=type(error).__name__)
    return Ack()


class Prober:
    """Sends probes for one instance of a service, and knows when the last one came back."""

    def __init__(self, db: Database, clock: Clock, role: str, *, every_s: float = 5.0, limit_s: float = 15.0) -> None:
        self._db = db
        self._clock = clock
        self._role = role
        self._every_s = every_s
        self._limit_s = limit_s
        self._instance = secrets.token_hex(16)
        self._waiting: tuple[str, float] | None = None
        self._proven_at: float | None = None
        metrics = db.metrics
        metrics.gauge("cohortium_probe_age_seconds", "Since the newest probe that came back was sent.").set_function(
            self.age_s
        )
        self._trip = metrics.histogram(
            "cohortium_probe_seconds",
            "From a probe's sending until it was found.",
            (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
        )

    def age_s(self) -> float:
        """Seconds since the newest probe that came back was sent; infinite before the first."""
        return float("inf") if self._proven_at is None else self._clock.monotonic() - self._proven_at

    async def run(self, stop: asyncio.Event) -> None:
        """Send and look until `stop` is set. Survives any outage."""
        while not stop.is_set():
            try:
                await self._look()
                # While one is away, another would only make the queue longer.
                if self._waiting is None or self._clock.monotonic() - self._waiting[1] > 2 * self._limit_s:
                    await self._send()
            except DatabaseError as error:
                log.warning("probe_waits", error=type(error).__name__)
            await pause(self._clock, self._every_s, stop)

    async def ping(self) -> None:
        """Return if a probe that was sent within the limit came back. Raises `ProbeMissing` or a `DatabaseError`."""
        await self._look()
        if self.age_s() > self._limit_s:
            raise ProbeMissing(
                f"no probe of the last {self._limit_s:.0f} s came back through {self._role}.inbox: "
                "look at the broker, the database and this service's log"
            )

    async def _send(self) -> None:
        nonce = secrets.token_hex(16)
        outgoing = Outgoing(
            SERVICES.name,
            self._role,
            nonce.encode(),
            f"probe-{nonce}",
            PROBE_TYPE,
            content_type="text/plain",
            persistent=False,
        )

        async def send(tx: Tx) -> None:
            await tx.execute(delete(probe).where(probe.c.sent_at < tx.now - FORGET_S))
            await tx.execute(delete(probe).where(probe.c.instance == self._instance))
            await tx.execute(insert(probe).values(instance=self._instance, nonce=nonce, sent_at=tx.now))
            await tx.send(outgoing)

        sent_at = self._clock.monotonic()
        await self._db.run("probe_sent", send)
        self._waiting = (nonce, sent_at)

    async def _look(self) -> None:
        async with self._db.reading("probe_found") as tx:
            nonce, sent_at = self._waiting or ("", 0.0)
            seen_at = await tx.scalar(select(probe.c.seen_at).where(probe.c.nonce == nonce))
        if seen_at is not None and self._waiting == (nonce, sent_at):
            self._waiting, self._proven_at = None, sent_at
            self._trip.observe(self._clock.monotonic() - sent_at)
