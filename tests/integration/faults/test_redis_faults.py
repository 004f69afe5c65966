"""Redis stands still, is stopped in order and started again with its data or without, and is killed, in the middle of
a run: every round goes on meanwhile, and presence is whole again afterwards."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis.asyncio
import yaml
from tests.integration.simulation.noise import SITES, check_sums, in_round, noise_plan, noise_study, started

from cohortium_kit.testing.servers import PrivateRedis, ServerMissing
from cohortium_sim.simulate import Simulation

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]
ROUNDS = 12
"""Nine are waited for; a run that is faster than the looks at it must not be over by then."""
LONGEST_S = 120.0
"""Two rounds, on a busy machine. Was each look at Redis waited for, they would take no end."""


@pytest.fixture(params=[False, True], ids=["without-data", "with-data"])
def private_redis(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[PrivateRedis]:
    server = PrivateRedis(short_folder, keeps=request.param)
    try:
        server.start()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    yield server
    server.remove()


async def test_a_run_does_not_wait_for_redis(
    tmp_path: Path, amqp_url: str, postgres_url: str, private_redis: PrivateRedis
) -> None:
    servers = {"amqp_url": amqp_url, "database_url": postgres_url, "redis_url": private_redis.url}
    async with started(noise_plan(tmp_path, noise_study(ROUNDS), processes=True, **servers)) as simulation:
        run_id = await simulation.submit()

        async def two_rounds_from(number: int) -> None:
            async with asyncio.timeout(LONGEST_S):
                await in_round(simulation.world.operator, run_id, number + 2)

        await in_round(simulation.world.operator, run_id, 1)
        private_redis.freeze()
        await two_rounds_from(1)
        private_redis.thaw()
        await two_rounds_from(3)
        private_redis.stop()
        await two_rounds_from(5)
        # In this thread, not in a worker: the kernel ends the server with the thread that started it.
        private_redis.start()
        private_redis.kill()
        await two_rounds_from(7)
        private_redis.start()
        async with asyncio.timeout(LONGEST_S):
            status = await simulation.watch(run_id, None)
        await check_sums(simulation, run_id, status)
        assert all(len(done.cohort) == len(SITES) for done in status.rounds_done), "nobody was thought to be gone"
        await eventually(lambda: all_are_known(simulation, private_redis))


async def all_are_known(simulation: Simulation, server: PrivateRedis) -> bool:
    """Whether Redis has every site's presence, and the scheduler counts all of them."""
    async with redis.asyncio.from_url(server.url, socket_timeout=5.0) as client:
        known = await client.hlen(f"{simulation.namespace}:presence")
    port = yaml.safe_load(simulation.files.configs["scheduler"].read_text())["http_port"]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10.0) as client:
        measures = (await client.get("/metrics")).text.splitlines()
    return bool(known == len(SITES) and f"cohortium_sites_present {float(len(SITES))}" in measures)


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    until = asyncio.get_running_loop().time() + LONGEST_S
    while not await holds():
        assert asyncio.get_running_loop().time() < until
        await asyncio.sleep(0.2)
