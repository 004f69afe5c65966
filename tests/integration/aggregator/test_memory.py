"""The aggregator's memory does not grow with the model: the real process, RabbitMQ and PostgreSQL, 1e7 parameters."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aggregator_world import STUDY, World, grid_spec
from live import Live, write_config

from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Bus
from cohortium_kit.clock import SystemClock
from cohortium_kit.db import Database
from cohortium_kit.migrate import drop_schema
from cohortium_messages.runs import ModelWanted
from cohortium_messages.topology import bulk_queue, platform_topology, site_topology
from cohortium_protocol.keys import SealKey

PARAMETERS = 10_000_000
MOST_MB = 250
NOISE: dict[str, Any] = STUDY | {
    "recipe": {"trainer": "benchmark.noise", "parameters": PARAMETERS},
    "federation": STUDY["federation"] | {"server": {"optimizer": "fedadam"}},
}


@pytest.fixture
async def live(tmp_path: Path, namespace: str, amqp_url: str, postgres_url: str) -> AsyncIterator[Live]:
    def make_bus() -> Bus:
        return RabbitBus(amqp_url, namespace, connection_name="test")

    bus = make_bus()
    await bus.connect()
    await bus.declare(platform_topology())
    more = {"database_url": postgres_url, "schema": namespace, "amqp_url": amqp_url, "namespace": namespace}
    world = await World.of(tmp_path, study=NOISE, clock=SystemClock(), make_bus=make_bus, **more)
    live = Live(world, bus)
    await live.listen()
    yield live
    for site in world.identities:
        await bus.delete(site_topology(site))
    await bus.delete(platform_topology())
    await bus.close()
    await world.close()
    database = Database(postgres_url, schema=namespace)
    await drop_schema(database)
    await database.close()


def peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_million_parameters_take_a_quarter_of_a_gigabyte_at_most(live: Live, tmp_path: Path) -> None:
    live.config = write_config(live.world, tmp_path / "aggregator.yaml")
    await live.start()
    assert live.process is not None
    try:
        base = await live.first_model()
        spec = grid_spec(PARAMETERS, chunk_bytes=(1 << 20) - 4096, clip_norm_l2=1000.0)
        window = live.world.prepare(live.world.params("update", spec, (base,)))
        await live.open(window, {index: np.full(PARAMETERS, 0.01, dtype=np.float32) for index in window.view.indices})
        closed = await live.closed(window, 120)
        assert closed.state == "RELEASED"
        site = window.sites[1].site_id
        await live.say(
            site, ModelWanted(run_id=live.world.run_id, version=1, site_id=site, seal_pk=SealKey.generate().public)
        )
        size = 0
        for _ in range(6000):
            delivery = await live.bus.get(bulk_queue(site))
            size += 0 if delivery is None else len(delivery.body)
            if size > 4 * PARAMETERS:
                break
            if delivery is None:
                await asyncio.sleep(0.01)
        assert size > 4 * PARAMETERS
        peak = peak_mb(live.process.pid)
        print(f"peak {peak:.0f} MB")  # noqa: T201 - the figure is the point
        assert peak < MOST_MB
    finally:
        await live.finish()
