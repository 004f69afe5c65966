"""A federation whose services and hospitals live in this process, on a real RabbitMQ and PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from cohortium_messages.status import RunStatus
from cohortium_sim.bench import bench_study
from cohortium_sim.plan import Plan, SiteTable
from cohortium_sim.simulate import Simulation

SITES, PARAMETERS = 3, 5000


@dataclass(frozen=True)
class Finished:
    """A run that has ended, while its services still serve."""

    simulation: Simulation
    status: RunStatus

    async def metrics(self, role: str) -> str:
        """What the service shows at `/metrics`."""
        client: httpx.AsyncClient = self.simulation.world.operator._clients[role]
        answer = await client.get("/metrics")
        assert answer.status_code == 200
        return answer.text


@asynccontextmanager
async def finished_run(folder: Path, amqp_url: str, postgres_url: str) -> AsyncIterator[Finished]:
    table = folder / "table.csv"
    table.write_text("unused,label\n0,0\n1,1\n", encoding="ascii")
    plan = Plan(
        study=bench_study(PARAMETERS, 1, SITES),
        sites=tuple(SiteTable(f"site-{number}", table) for number in range(SITES)),
        out=folder / "out",
        amqp_url=amqp_url,
        database_url=postgres_url,
        timeout_s=500,
    )
    (folder / "work").mkdir()
    simulation = Simulation(plan, folder / "work")
    try:
        await simulation.start()
        run_id = await simulation.submit()
        yield Finished(simulation, await simulation.watch(run_id, None))
    finally:
        await simulation.clear()
