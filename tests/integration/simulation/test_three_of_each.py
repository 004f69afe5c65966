"""Several of every service on one federation, two of them killed in the middle of a round: real parts, real processes.

Two of each in every run of the tests, three in the long ones.
"""

import asyncio
from pathlib import Path

import pytest
import yaml
from tests.integration.simulation.noise import check_sums, in_round, noise_plan, noise_study, started

from cohortium_cli.operator import Operator, OperatorSettings
from cohortium_kit.testing.servers import PrivateRabbit
from cohortium_sim.simulate import Simulation
from cohortium_sim.worlds import SERVICES, ManyProcesses, free_ports

ROUNDS = 6


async def more_of_each(simulation: Simulation, copies: int) -> Operator:
    """Start them with the same settings on ports of their own; returns an operator who speaks to the last ones."""
    world = simulation.world
    assert isinstance(world, ManyProcesses)
    settings = OperatorSettings.load(simulation.files.operator_settings)
    for number in range(2, copies + 1):
        ports = free_ports(SERVICES)
        for role in SERVICES:
            config = simulation.files.configs[role]
            values = yaml.safe_load(config.read_text()) | {"http_port": ports[role]}
            other = config.with_name(f"{role}-{number}.yaml")
            other.write_text(yaml.safe_dump(values))
            await world.start(f"{role}-{number}", role, other)
        settings = settings.model_copy(update={role: f"http://127.0.0.1:{ports[role]}" for role in SERVICES})
    operator = Operator.at(settings, simulation.files.operator_token)
    for role in SERVICES:
        for _ in range(1200):
            if await operator.healthy(role):
                break
            world.check()
            await asyncio.sleep(0.05)
        else:
            raise AssertionError(f"the last {role} is not ready")
    return operator


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("copies", [2, pytest.param(3, marks=pytest.mark.long)])
async def test_a_run_goes_on_while_two_services_are_killed(
    copies: int, tmp_path: Path, private_rabbit: PrivateRabbit, postgres_url: str, redis_url: str
) -> None:
    servers = {"amqp_url": private_rabbit.url, "database_url": postgres_url, "redis_url": redis_url}
    async with started(noise_plan(tmp_path, noise_study(ROUNDS), processes=True, **servers)) as simulation:
        world = simulation.world
        assert isinstance(world, ManyProcesses)
        first, world.operator = world.operator, await more_of_each(simulation, copies)
        await first.__aexit__(None, None, None)
        run_id = await simulation.submit()
        # The first ones are those whom the broker gives the messages that must stay in order, and who hold the leases.
        await in_round(world.operator, run_id, 2)
        await world.kill("aggregator")
        await world.kill("scheduler")
        async with asyncio.timeout(240):
            status = await simulation.watch(run_id, None)
        await check_sums(simulation, run_id, status)
