"""kill -9 of every part in the middle of a round, and a restart of RabbitMQ: real parts, real processes."""

import asyncio
from pathlib import Path

import pytest
from tests.integration.simulation.noise import check_sums, in_round, noise_plan, noise_study, started

from cohortium_kit.testing.servers import PrivateRabbit
from cohortium_sim.worlds import SERVICES, ManyProcesses

ROUNDS = 16


async def again(world: ManyProcesses, name: str) -> None:
    """kill -9, and what a supervisor does then."""
    await world.kill(name)
    await world.restart(name)
    if not name.startswith("connector"):
        await back(world, name)


async def back(world: ManyProcesses, name: str) -> None:
    """Return when the service is ready."""
    for _ in range(2400):
        if await world.operator.healthy(name):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} did not come back")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_run_survives_the_death_of_every_part(
    tmp_path: Path, private_rabbit: PrivateRabbit, postgres_url: str
) -> None:
    servers = {"amqp_url": private_rabbit.url, "database_url": postgres_url}
    async with started(noise_plan(tmp_path, noise_study(ROUNDS), processes=True, **servers)) as simulation:
        world = simulation.world
        assert isinstance(world, ManyProcesses)
        run_id = await simulation.submit()
        for number, name in ((2, "scheduler"), (3, "aggregator"), (4, "connector-b"), (5, "consent"), (6, "audit")):
            await in_round(world.operator, run_id, number)
            await world.kill(name)
            await world.restart(name)
            if name == "scheduler":  # who is asked for the round; the rounds that pass without the others are few
                await back(world, name)
        await in_round(world.operator, run_id, 7)
        # In this thread, not in a worker: the kernel ends the server with the thread that started it.
        private_rabbit.kill()
        private_rabbit.start()
        async with asyncio.timeout(240):
            status = await simulation.watch(run_id, None)
        for name in SERVICES:
            await back(world, name)
        await check_sums(simulation, run_id, status)
