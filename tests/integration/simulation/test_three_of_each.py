"""Several of every service on one federation, on real parts and in real processes: aggregators share the chunks of one
round, and go on while others of them, and the scheduler, are killed in the middle of it.

Two of each in every run of the tests, three in the long ones, where a calm round is looked at, too.
"""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from tests.integration.simulation.noise import SITES, check_sums, noise_plan, noise_study, started

from cohortium_aggregator.sharing import share_of
from cohortium_cli.operator import Operator, OperatorSettings
from cohortium_kit.testing.servers import PrivatePostgres, PrivateRabbit
from cohortium_messages.secure_sum import MAX_CHUNK_BYTES
from cohortium_messages.topology import CHUNK_PARTITIONS
from cohortium_sim.simulate import Simulation
from cohortium_sim.worlds import SERVICES, ManyProcesses, free_ports

ROUNDS = 4
PATIENT = {"ready_s": 120, "upload_s": 120, "echo_s": 120, "unmask_s": 120, "expire_s": 360}
"""With these, and as many sites as there are asked for, nobody is left out of a round because the machine is busy: then
every chunk can be counted."""
CHUNKS = CHUNK_PARTITIONS
"""Of one update: one for each intake queue."""
PARAMETERS = CHUNKS * (MAX_CHUNK_BYTES // 2) - 100_000
OF_A_ROUND = len(SITES) * CHUNKS
OF_STATISTICS = len(SITES)
"""One chunk of each site, before the first round."""
MEASURE = re.compile(
    r"^(?P<name>cohortium_chunks_stored_total|cohortium_chunk_queues) (?P<value>[0-9.e+]+)$", re.MULTILINE
)

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]


class Aggregators:
    """What each aggregator process says of the chunks that it has stored and the queues that it takes."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self.ports = dict(ports)
        self.names = tuple(ports)
        self.last_words: dict[str, int] = {}
        """Chunks of those that were killed."""

    async def stored(self) -> dict[str, int]:
        """Chunks on disk and on record, by process, with what those who are gone have said."""
        told = {name: await self._measure(name, "cohortium_chunks_stored_total") for name in self.ports}
        return self.last_words | told

    async def queues(self) -> dict[str, int]:
        """Intake queues by process."""
        return {name: await self._measure(name, "cohortium_chunk_queues") for name in self.ports}

    async def shared_out(self) -> bool:
        """Whether every queue is one process' and nobody has two more than another."""
        company = range(len(self.ports))
        fair = sorted(len(share_of(seat, company, CHUNK_PARTITIONS)) for seat in company)
        return sorted((await self.queues()).values()) == fair

    async def _measure(self, name: str, measure: str) -> int:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.ports[name]}", timeout=10.0) as client:
            said = {one["name"]: one["value"] for one in MEASURE.finditer((await client.get("/metrics")).text)}
        return int(float(said.get(measure, 0)))


async def eventually(what: str, holds: Callable[[], Awaitable[bool]], longest_s: float = 120.0) -> None:
    until = asyncio.get_running_loop().time() + longest_s
    while not await holds():
        assert asyncio.get_running_loop().time() < until, f"{what} did not come within {longest_s:g} s"
        await asyncio.sleep(0.02)


async def more_of_each(simulation: Simulation, copies: int) -> Aggregators:
    """Start them with the same settings on ports of their own; from now on the operator speaks to the last ones."""
    world = simulation.world
    assert isinstance(world, ManyProcesses)
    settings = OperatorSettings.load(simulation.files.operator_settings)
    found = {"aggregator": yaml.safe_load(simulation.files.configs["aggregator"].read_text())["http_port"]}
    for number in range(2, copies + 1):
        ports = free_ports(SERVICES)
        for role in SERVICES:
            config = simulation.files.configs[role]
            values = yaml.safe_load(config.read_text()) | {"http_port": ports[role]}
            other = config.with_name(f"{role}-{number}.yaml")
            other.write_text(yaml.safe_dump(values))
            await world.start(f"{role}-{number}", role, other)
        found[f"aggregator-{number}"] = ports["aggregator"]
        settings = settings.model_copy(update={role: f"http://127.0.0.1:{ports[role]}" for role in SERVICES})
    first, world.operator = world.operator, Operator.at(settings, simulation.files.operator_token)
    await first.__aexit__(None, None, None)
    for role in SERVICES:

        async def ready(role: str = role) -> bool:
            world.check()
            return await world.operator.healthy(role)

        await eventually(f"the last {role}", ready)
    return Aggregators(found)


@asynccontextmanager
async def several(
    folder: Path, rounds: int, copies: int, servers: Mapping[str, str]
) -> AsyncIterator[tuple[Simulation, Aggregators]]:
    """A federation with so many of each service, among whose aggregators the queues are shared out."""
    study = noise_study(rounds, PARAMETERS, min_sites=len(SITES), deadlines=PATIENT)
    async with started(noise_plan(folder, study, processes=True, **servers)) as simulation:
        aggregators = await more_of_each(simulation, copies)
        await eventually("the sharing out of the queues", aggregators.shared_out)
        yield simulation, aggregators


@pytest.fixture
def servers(private_rabbit: PrivateRabbit, private_postgres: PrivatePostgres, redis_url: str) -> dict[str, str]:
    """Fifteen services want most of the connections that a PostgreSQL has, so this one is for them alone."""
    return {"amqp_url": private_rabbit.url, "database_url": private_postgres.url, "redis_url": redis_url}


@pytest.mark.long
@pytest.mark.parametrize("copies", [2, 3])
async def test_aggregators_share_the_chunks_of_one_round(copies: int, tmp_path: Path, servers: dict[str, str]) -> None:
    async with several(tmp_path, 1, copies, servers) as (simulation, aggregators):
        run_id = await simulation.submit()
        async with asyncio.timeout(120):
            status = await simulation.watch(run_id, None)
        stored = await aggregators.stored()
        assert sum(stored.values()) == OF_STATISTICS + OF_A_ROUND, stored
        # The statistics are one queue's, so whoever has more than them has stored chunks of the only round.
        assert all(count > OF_STATISTICS for count in stored.values()), stored
        await check_sums(simulation, run_id, status)


@pytest.mark.parametrize("copies", [2, pytest.param(3, marks=pytest.mark.long)])
async def test_a_run_goes_on_when_only_one_aggregator_is_left_in_mid_round(
    copies: int, tmp_path: Path, servers: dict[str, str]
) -> None:
    async with several(tmp_path, ROUNDS, copies, servers) as (simulation, aggregators):
        world = simulation.world
        assert isinstance(world, ManyProcesses)
        run_id = await simulation.submit()
        async with in_mid_round(simulation, run_id, aggregators):
            # The first ones are those whom the broker gives the messages that must stay in order, and who hold the
            # leases.
            for name in (*aggregators.names[:-1], "scheduler"):
                await world.kill(name)
                aggregators.ports.pop(name, None)
        async with asyncio.timeout(240):
            status = await simulation.watch(run_id, None)
        stored = await aggregators.stored()
        assert sum(stored.values()) == OF_STATISTICS + ROUNDS * OF_A_ROUND, stored
        assert await aggregators.queues() == {aggregators.names[-1]: CHUNK_PARTITIONS}
        await check_sums(simulation, run_id, status)


@asynccontextmanager
async def in_mid_round(simulation: Simulation, run_id: str, aggregators: Aggregators) -> AsyncIterator[None]:
    """A round of which every aggregator has stored a part, and which waits for chunks of the last site: that stands
    still until the block ends."""
    world = simulation.world
    for round_ in range(2, ROUNDS):
        number = await all_are_sending(world.operator, run_id, round_)
        with standing(world.pids()[f"connector-{SITES[-1]}"]):
            before = OF_STATISTICS + (number - 1) * OF_A_ROUND
            stored = await all_of_the_others(aggregators, before)
            if sum(stored.values()) == before + OF_A_ROUND:
                continue  # the last site was quicker than we
            for name, queues in (await aggregators.queues()).items():
                assert stored[name] > OF_STATISTICS + (number - 1) * len(SITES) * queues, (number, name, stored)
            aggregators.last_words = stored
            yield
            return
    raise AssertionError("no round was caught before its end")


async def all_are_sending(operator: Operator, run_id: str, round_: int) -> int:
    """Wait until the cohort of this round, or of a later one, is bound, with every site in it. Returns which."""
    sending = 0

    async def bound() -> bool:
        nonlocal sending
        window = (await operator.run(run_id)).window
        if window is not None and window.purpose == "update" and len(window.roster) == len(SITES):
            sending = window.round
        return sending >= round_

    await eventually(f"the cohort of round {round_}", bound)
    return sending


async def all_of_the_others(aggregators: Aggregators, before: int) -> dict[str, int]:
    """What is stored when all chunks of the sites that do not stand still are; `before`: of earlier rounds."""
    stored = await aggregators.stored()

    async def nothing_comes_any_more() -> bool:
        nonlocal stored
        earlier, stored = stored, await aggregators.stored()
        await asyncio.sleep(0.5)
        assert sum(stored.values()) <= before + OF_A_ROUND, "the round did not wait for the site that stands still"
        return stored == earlier and sum(stored.values()) >= before + OF_A_ROUND - CHUNKS

    await eventually("the others' chunks", nothing_comes_any_more, 60.0)
    return stored


@contextmanager
def standing(pid: int) -> Iterator[None]:
    """A process that is there and does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
