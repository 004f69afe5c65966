"""Faults of real parts in the middle of rounds: one row, one federation, one fault after the other.

After each row: the run came to its end; the model is what the declared cohorts give, so nothing was counted twice and
nothing lost; the audit bundle verifies; and the log holds every event that a part's outbox has marked as sent.
"""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from tests.integration.faults.yard import NoRight, Yard, yard_of
from tests.integration.simulation.noise import check_sums

from cohortium_kit.testing.servers import PrivatePostgres, PrivateRabbit, PrivateRedis
from cohortium_messages.status import RunStatus
from cohortium_sim.worlds import SERVICES

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]
LONGEST_S = 400.0


@dataclass(frozen=True, slots=True)
class Fault:
    """`what` is a method of `Yard`, done to `whom` for `seconds`, in a round of its own."""

    what: str
    whom: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    faults: tuple[Fault, ...]
    small_spool: bool = False


ROWS = (
    Row(
        "services-and-line",
        (
            Fault("freeze", "aggregator", 2.0),
            Fault("restart", "scheduler", 0.5),
            Fault("partition", "a", 2.0),
            Fault("kill_server", "redis", 0.5),
        ),
    ),
    Row("killed-services", tuple(Fault("kill", name, 1.0) for name in SERVICES)),
    Row("killed-twice", tuple(Fault("kill", name, 4.0) for name in ("aggregator", "scheduler", "aggregator"))),
    Row("frozen-services", tuple(Fault("freeze", name, 6.0) for name in SERVICES)),
    Row("restarted-services", tuple(Fault("restart", name, 1.0) for name in SERVICES)),
    Row("killed-sites", tuple(Fault("kill", f"connector-{name}", 1.0) for name in "abcd")),
    Row("frozen-sites", tuple(Fault("freeze", f"connector-{name}", 8.0) for name in "abcd")),
    Row("killed-servers", tuple(Fault("kill_server", name, 2.0) for name in ("rabbit", "postgres", "redis"))),
    Row("frozen-servers", tuple(Fault("freeze_server", name, 6.0) for name in ("rabbit", "postgres"))),
    Row("partition", (Fault("partition", "a", 3.0), Fault("partition", "a", 45.0))),
    Row("dead-line", (Fault("dead_line", "a", 5.0), Fault("dead_line", "a", 45.0))),
    Row("bad-line", (Fault("far_away", "a", 20.0), Fault("narrow", "a", 20.0))),
    Row("full-disk", (Fault("fill_disk", "a", 10.0), Fault("fill_disk", "a", 40.0)), small_spool=True),
    Row("wrong-clock", (Fault("set_clock", "a", 600.0), Fault("set_clock", "a", -600.0), Fault("set_clock", "a", 0.0))),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_a_run_comes_through(
    row: Row, tmp_path: Path, servers: tuple[PrivateRabbit, PrivatePostgres, PrivateRedis]
) -> None:
    rounds = 2 * len(row.faults) + 1
    try:
        async with yard_of(tmp_path, servers, rounds, small_spool=row.small_spool) as yard:
            run_id = await yard.simulation.submit()
            for number, fault in enumerate(row.faults):
                await yard.in_round(run_id, 2 * number + 1)
                await getattr(yard, fault.what)(fault.whom, fault.seconds)
            status = await yard.final(run_id, LONGEST_S)
            await check(yard, status, run_id)
    except NoRight as missing:
        # COHORTIUM_REQUIRE_REAL does not make this a failure: it asks for servers, and this is a right.
        pytest.skip(f"{row.name} is not tried: {missing}")


async def check(yard: Yard, status: RunStatus, run_id: str) -> None:
    await check_sums(yard.simulation, run_id, status)
    missing = await events_that_the_log_lacks(yard)
    assert not missing, missing


async def events_that_the_log_lacks(yard: Yard) -> list[str]:
    """Events that some part's relay has marked as taken by the broker, and that are no leaf of the log."""
    prefix = yard.simulation.namespace.replace("-", "_")
    engine = create_async_engine(yard.postgres.url.replace("postgresql://", "postgresql+asyncpg://"))
    sent: dict[str, str] = {}
    try:
        async with engine.connect() as connection:
            for role in SERVICES:
                query = (
                    f"SELECT message_id, type FROM {prefix}_{role}.outbox"  # noqa: S608 - our own names
                    " WHERE sent_at IS NOT NULL AND type LIKE 'cohortium.audit.%'"
                )
                sent |= {row[0]: row[1] for row in await connection.execute(sa.text(query))}
            leaves = await connection.execute(sa.text(f"SELECT event_id FROM {prefix}_audit.leaf"))  # noqa: S608
            logged = [row[0] for row in leaves]
    finally:
        await engine.dispose()
    for folder in yard.simulation.folders.values():
        with closing(sqlite3.connect(f"file:{folder}/spool/spool.db?mode=ro", uri=True)) as spool:
            query = "SELECT message_id, type FROM outbox WHERE sent_at IS NOT NULL AND type LIKE 'cohortium.audit.%'"
            sent |= dict(spool.execute(query).fetchall())
    assert sent
    assert len(logged) == len(set(logged))
    return sorted(f"{kind} {event}" for event, kind in sent.items() if event not in set(logged))
