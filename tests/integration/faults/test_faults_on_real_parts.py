"""Faults of real parts in the middle of rounds: one row, one federation, one fault after the other.

After each row: the run came to its end; the model is what the declared cohorts give, so nothing was counted twice and
nothing lost; the audit bundle verifies; the log holds every event that a part's outbox has marked as sent; and nothing
is left in queues, records, spools and the aggregator's memory. `contracts/faults.md` says which row is which fault.
"""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from tests.integration.faults.leftovers import leftovers
from tests.integration.faults.yard import NoRight, Yard, yard_of
from tests.integration.simulation.noise import check_sums, error_bound, expected_model, released_model

from cohortium_kit.testing.servers import PrivatePostgres, PrivateRabbit, PrivateRedis
from cohortium_messages.status import RunStatus
from cohortium_sim.worlds import SERVICES
from cohortium_verify.verification import verify_bundle

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]
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
    refuted: frozenset[str] = frozenset()
    """What `verify` must refute: events that were signed with a wrong clock are in the log as they were signed."""


PAST_HEARTBEAT_S = 40.0
"""Longer than two heartbeats of a connection, every lease, and the time after which a hospital counts as away."""
HOUR_S, MINUTES_S = 3600.0, 300.0

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
    Row(
        "servers-line-and-clock",
        (
            Fault("restart_server", "rabbit", 1.0),
            Fault("set_clock", "aggregator", HOUR_S),
            Fault("set_clock", "aggregator", 0.0),
            Fault("freeze_server", "postgres", 8.0),
            Fault("dead_line", "scheduler", 6.0),
            Fault("restart_server", "postgres", 1.0),
        ),
        refuted=frozenset({"order"}),
    ),
    Row("killed-services", tuple(Fault("kill", name, 1.0) for name in SERVICES)),
    Row("killed-twice", tuple(Fault("kill", name, 4.0) for name in ("aggregator", "scheduler", "aggregator"))),
    Row("frozen-services", tuple(Fault("freeze", name, 6.0) for name in SERVICES)),
    Row("frozen-services-long", tuple(Fault("freeze", name, PAST_HEARTBEAT_S) for name in SERVICES)),
    Row("restarted-services", tuple(Fault("restart", name, 1.0) for name in SERVICES)),
    Row("killed-sites", tuple(Fault("kill", f"connector-{name}", 1.0) for name in "abcd")),
    Row("frozen-sites", tuple(Fault("freeze", f"connector-{name}", 8.0) for name in "abcd")),
    Row("frozen-sites-long", (Fault("freeze", "connector-a", PAST_HEARTBEAT_S),)),
    Row("restarted-sites", tuple(Fault("restart", f"connector-{name}", 1.0) for name in "abcd")),
    Row("killed-servers", tuple(Fault("kill_server", name, 2.0) for name in ("rabbit", "postgres", "redis"))),
    Row("restarted-servers", tuple(Fault("restart_server", name, 2.0) for name in ("rabbit", "postgres"))),
    Row("frozen-servers", tuple(Fault("freeze_server", name, 6.0) for name in ("rabbit", "postgres"))),
    Row(
        "frozen-servers-long", tuple(Fault("freeze_server", name, PAST_HEARTBEAT_S) for name in ("rabbit", "postgres"))
    ),
    Row("partition", (Fault("partition", "a", 3.0), Fault("partition", "a", 45.0))),
    Row("dead-line", (Fault("dead_line", "a", 5.0), Fault("dead_line", "a", 45.0))),
    Row("bad-line", (Fault("far_away", "a", 20.0), Fault("narrow", "a", 20.0))),
    Row("partitioned-services", tuple(Fault("partition", name, 10.0) for name in SERVICES)),
    Row("dead-lines-of-services", tuple(Fault("dead_line", name, PAST_HEARTBEAT_S) for name in SERVICES)),
    Row("far-services", tuple(Fault("far_away", name, 10.0) for name in SERVICES)),
    Row("narrow-services", tuple(Fault("narrow", name, 10.0) for name in SERVICES)),
    Row("line-to-the-database", tuple(Fault(what, "postgres", 10.0) for what in ("partition", "far_away", "narrow"))),
    Row("dead-line-to-the-database", (Fault("dead_line", "postgres", PAST_HEARTBEAT_S),)),
    Row("full-disk", (Fault("fill_disk", "a", 10.0), Fault("fill_disk", "a", 40.0)), small_spool=True),
    Row("wrong-clock", (Fault("set_clock", "a", 600.0), Fault("set_clock", "a", -600.0), Fault("set_clock", "a", 0.0))),
    Row(
        "services-clocks-ahead",
        tuple(Fault("set_clock", name, seconds) for name in SERVICES for seconds in (HOUR_S, 0.0)),
        refuted=frozenset({"order"}),
    ),
    Row(
        "services-clocks-behind",
        # Not consent's: by its clock no grant is in force yet, so no round is to be had until it is set right.
        tuple(
            Fault("set_clock", name, seconds) for name in SERVICES if name != "consent" for seconds in (-HOUR_S, 0.0)
        ),
        # The scheduler says when it was given a permit, and by that time the grants of this run were not in force yet.
        refuted=frozenset({"grants", "consent documents"}),
    ),
    Row(
        "services-clocks-off",
        tuple(Fault("set_clock", name, seconds) for name in SERVICES for seconds in (MINUTES_S, -MINUTES_S, 0.0)),
    ),
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
            await check(yard, row, status, run_id)
    except NoRight as missing:
        # COHORTIUM_REQUIRE_REAL does not make this a failure: it asks for servers, and this is a right.
        pytest.skip(f"{row.name} is not tried: {missing}")


async def check(yard: Yard, row: Row, status: RunStatus, run_id: str) -> None:
    if row.refuted:
        await check_sums_but(yard, row.refuted, status, run_id)
    else:
        await check_sums(yard.simulation, run_id, status)
    missing = await events_that_the_log_lacks(yard)
    assert not missing, missing
    left = await leftovers(yard)
    assert not left, left


async def check_sums_but(yard: Yard, refuted: frozenset[str], status: RunStatus, run_id: str) -> None:
    """The model is what it must be, and of the log everything holds but this."""
    simulation = yard.simulation
    study, out = simulation.plan.study, simulation.plan.out
    assert (status.state, status.reason, len(status.rounds_done)) == ("FINISHED", "", study.rounds)
    await simulation.fetch(run_id, status)
    report = verify_bundle(out / "audit", list(simulation.files.trust.governance_keys))
    assert {one.name for one in report.checks if one.state != "passed"} == refuted, report.text()
    released = released_model(out / "model")
    np.testing.assert_allclose(released, expected_model(study, status), atol=error_bound(study.rounds))


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
