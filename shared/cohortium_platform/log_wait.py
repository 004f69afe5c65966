"""Who waits for the log says so: a service that sends an event and goes on only with audit's proof of it.

Such a service serves while audit is away, and what it was asked for stands still all the same. So its readiness tells
that it is degraded and for how long, and a gauge has an alert.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import FastAPI

from cohortium_kit.db import Database, Tx
from cohortium_kit.http import add_worry
from cohortium_kit.sampling import Sampler

LIMIT_S: Final = 30.0
"""Audit answers within a second; a restart of it takes less than this."""

Waiting = Callable[[Tx], Awaitable[list[float]]]
"""Since when, in unix seconds, each thing waits that waits for the log's proof of an event."""


def tell_of_waiting(http: FastAPI, sampler: Sampler, db: Database, waiting: Waiting, things: str) -> None:
    """Show at `/readyz` and `/metrics` for how long `things` (in the plural) have waited for the log's answer."""
    gauge = db.metrics.gauge(
        "cohortium_log_wait_seconds", "For how long the oldest thing that needs the log's proof has waited for it."
    )

    async def read(tx: Tx) -> None:
        began = await waiting(tx)
        gauge.set(max(0.0, tx.now - min(began)) if began else 0.0)

    async def worry() -> str | None:
        async with db.reading("waits_for_log") as tx:
            began, now = await waiting(tx), tx.now
        if not began or now - min(began) <= LIMIT_S:
            return None
        return f"audit has not answered for {now - min(began):.0f} s; {len(began)} {things} wait for the log's proof"

    sampler.add("log", read, gauge)
    add_worry(http, "log", worry)
