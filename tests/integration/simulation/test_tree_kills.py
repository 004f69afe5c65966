"""kill -9 in the middle of strict sessions, real parts, real processes: the trees are those of a calm run."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.simulation.test_killed_parts import again
from tests.integration.simulation.test_tree_combinations import BOOSTING, plan_of, released

from cohortium_messages.status import BoostingStatus
from cohortium_sim.plan import Plan
from cohortium_sim.simulate import Simulation, run_plan
from cohortium_verify.verification import verify_bundle

ROUNDS = 40

pytestmark = [pytest.mark.real, pytest.mark.torch, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(400)]


@pytest.fixture
def calm(tmp_path: Path) -> Plan:
    deadlines = {"ready_s": 60, "upload_s": 20, "echo_s": 10, "unmask_s": 10, "step_s": 10}
    more = {"rejoin_s": 60, "deadlines": deadlines}
    return plan_of(tmp_path / "calm", "binary", BOOSTING | {"rounds": ROUNDS}, more=more)


@pytest.fixture
async def simulation(calm: Plan, tmp_path: Path, amqp_url: str, postgres_url: str) -> AsyncIterator[Simulation]:
    plan = replace(calm, out=tmp_path / "out", amqp_url=amqp_url, database_url=postgres_url, processes=True)
    (tmp_path / "work").mkdir()
    simulation = Simulation(plan, tmp_path / "work")
    try:
        yield simulation
    finally:
        await simulation.clear()


async def grown(simulation: Simulation, run_id: str, *, trees: int, sessions: int) -> BoostingStatus:
    """Wait until so many trees stand, after so many sessions have ended."""
    for _ in range(6000):
        status = await simulation.world.operator.run(run_id)
        assert status.state not in ("FAILED", "STOPPED"), f"the run is {status.state} {status.reason}"
        boosting = status.boosting
        if boosting is not None and boosting.trees >= trees and boosting.sessions >= sessions:
            assert boosting.trees < ROUNDS, "it was over before it could be disturbed"
            return boosting
        await asyncio.sleep(0.02)
    raise AssertionError(f"{trees} trees did not come")


async def test_hospital_aggregator_and_scheduler_die_and_the_trees_are_the_same(
    simulation: Simulation, calm: Plan
) -> None:
    assert (await run_plan(calm, live=False)).as_planned
    await simulation.start()
    run_id = await simulation.submit()
    await grown(simulation, run_id, trees=3, sessions=0)
    await again(simulation, "connector-va")
    await grown(simulation, run_id, trees=8, sessions=1)
    await again(simulation, "aggregator")
    await grown(simulation, run_id, trees=14, sessions=2)
    await again(simulation, "scheduler")
    async with asyncio.timeout(200):
        status = await simulation.watch(run_id, None)
    assert status.state == "FINISHED", status.reason
    assert status.boosting is not None
    assert (status.boosting.trees, status.boosting.cohort_changes) == (ROUNDS, 0)
    assert status.boosting.sessions >= 3
    await simulation.fetch(run_id, status)
    out = simulation.plan.out
    assert released(simulation.plan).rounds == ROUNDS
    assert (out / "model" / "model.txt").read_bytes() == (calm.out / "model" / "model.txt").read_bytes()
    report = verify_bundle(out / "audit", list(simulation.files.trust.governance_keys))
    assert report.verified, report.text()
