"""kill -9 of every part in the middle of a round, and a restart of RabbitMQ: real parts, real processes.

Afterwards the model is recomputed from the cohorts that the run declared: an update that was lost, or counted twice,
would show in every parameter.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from tests.integration.simulation.noise import error_bound, expected_model, noise_study, released_model

from cohortium_cli.verify import verify_bundle
from cohortium_kit.testing.servers import PrivateRabbit
from cohortium_messages.status import RunStatus
from cohortium_sim.plan import Plan, SiteTable
from cohortium_sim.simulate import Simulation
from cohortium_sim.worlds import ManyProcesses

ROUNDS = 9
SITES = ("a", "b", "c", "d")


@pytest.fixture
async def simulation(tmp_path: Path, private_rabbit: PrivateRabbit, postgres_url: str) -> AsyncIterator[Simulation]:
    table = tmp_path / "table.csv"
    table.write_text("unused,label\n0,0\n1,1\n")
    plan = Plan(
        study=noise_study(ROUNDS),
        sites=tuple(SiteTable(name, table) for name in SITES),
        out=tmp_path / "out",
        amqp_url=private_rabbit.url,
        database_url=postgres_url,
        processes=True,
    )
    work = tmp_path / "work"
    work.mkdir()
    simulation = Simulation(plan, work)
    try:
        yield simulation
    finally:
        await simulation.clear()


async def in_round(simulation: Simulation, run_id: str, number: int) -> RunStatus:
    """Wait until the update window of this round is open."""
    for _ in range(3000):
        status = await simulation.world.operator.run(run_id)
        assert status.state not in ("FINISHED", "FAILED", "STOPPED"), f"the run is {status.state} {status.reason}"
        window = status.window
        if window is not None and window.purpose == "update" and window.round >= number and window.phase != "PLANNED":
            return status
        await asyncio.sleep(0.01)
    raise AssertionError(f"round {number} did not come")


async def again(simulation: Simulation, name: str) -> None:
    """kill -9, and what a supervisor does then."""
    assert isinstance(simulation.world, ManyProcesses)
    await simulation.world.kill(name)
    await simulation.world.restart(name)
    if name.startswith("connector"):
        return
    for _ in range(600):
        if await simulation.world.operator.healthy(name):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} did not come back")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_run_survives_the_death_of_every_part(simulation: Simulation, private_rabbit: PrivateRabbit) -> None:
    await simulation.start()
    run_id = await simulation.submit()
    for number, name in ((2, "scheduler"), (3, "aggregator"), (4, "connector-b"), (5, "consent"), (6, "audit")):
        await in_round(simulation, run_id, number)
        await again(simulation, name)
    await in_round(simulation, run_id, 7)
    # In this thread, not in a worker: the kernel ends the server with the thread that started it.
    private_rabbit.kill()
    private_rabbit.start()
    async with asyncio.timeout(150):
        status = await simulation.watch(run_id, None)
    assert status.state == "FINISHED", status.reason
    assert [done.number for done in status.rounds_done] == list(range(1, ROUNDS + 1))
    await simulation.fetch(run_id, status)
    out = simulation.plan.out
    released = released_model(out / "model")
    np.testing.assert_allclose(released, expected_model(simulation.plan.study, status), atol=error_bound(ROUNDS))
    report = verify_bundle(out / "audit", list(simulation.files.trust.governance_keys))
    assert report.verified, report.text()
