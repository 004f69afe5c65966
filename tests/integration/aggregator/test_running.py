"""The aggregator as it runs: on the in-memory bus with SQLite, and on RabbitMQ with PostgreSQL.

The scheduler and the sites are played by the test, through the bus. On real parts the aggregator is a process of its
own, and killed means SIGKILL. (That SQLite's records suffice to go on is in `tests/property/aggregator`.)
"""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aggregator_world import STUDY, Window, World, grid_spec
from live import Live, write_config

from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Bus
from cohortium_kit.clock import SystemClock
from cohortium_kit.db import Database
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.migrate import drop_schema
from cohortium_messages.runs import ModelOffered, ModelWanted, SessionClosed
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.topology import (
    bulk_queue,
    platform_topology,
    site_topology,
)
from cohortium_protocol.chunks import open_model_frame, unwrap_model_key
from cohortium_protocol.keys import SealKey

PARAMETERS = 1_300_000
NOISE: dict[str, Any] = STUDY | {"recipe": {"trainer": "benchmark.noise", "parameters": PARAMETERS}}


@pytest.fixture(params=["embedded", "real"])
async def live(request: pytest.FixtureRequest, tmp_path: Path, namespace: str) -> AsyncIterator[Live]:
    clock = SystemClock()
    more: dict[str, Any] = {"tick_s": 0.02}
    if request.param == "embedded":
        broker = MemoryBroker(clock)

        def make_bus() -> Bus:
            return MemoryBus(broker, namespace)
    else:
        amqp_url: str = request.getfixturevalue("amqp_url")
        more |= {"database_url": request.getfixturevalue("postgres_url"), "schema": namespace}
        more |= {"amqp_url": amqp_url, "namespace": namespace}

        def make_bus() -> Bus:
            return RabbitBus(amqp_url, namespace, connection_name="test")

    bus = make_bus()
    await bus.connect()
    await bus.declare(platform_topology())
    world = await World.of(tmp_path, study=NOISE, clock=clock, make_bus=make_bus, **more)
    live = Live(world, bus)
    await live.listen()
    if request.param == "real":
        live.config = write_config(world, tmp_path / "aggregator.yaml")
    await live.start()
    yield live
    await live.finish()
    await world.close()
    for site in world.identities:
        await bus.delete(site_topology(site))
    await bus.delete(platform_topology())
    await bus.close()
    if request.param == "real":
        database = Database(more["database_url"], schema=namespace)
        await drop_schema(database)
        await database.close()


def update_window(live: Live, base: ModelRef, **changes: Any) -> tuple[Window, dict[int, np.ndarray]]:
    spec = grid_spec(PARAMETERS, chunk_bytes=(1 << 20) - 4096, clip_norm_l2=100.0)
    window = live.world.prepare(live.world.params("update", spec, (base,), **changes))
    values = {index: np.full(PARAMETERS, index / 100, dtype=np.float32) for index in window.view.indices}
    return window, values


def parameters(live: Live, version: int) -> np.ndarray:
    folder = live.world.app.ctx.data.model_dir(live.world.run_id, version)
    return np.fromfile(folder / "parameters.f32", dtype="<f4")


@pytest.mark.real
async def test_rounds_run_and_models_go_down(live: Live) -> None:
    base = await live.first_model()
    window, values = update_window(live, base)
    await live.open(window, values)
    closed = await live.closed(window)
    assert (closed.state, len(closed.survivors)) == ("RELEASED", 4)
    assert closed.bytes_up > 4 * 2 * PARAMETERS
    np.testing.assert_allclose(parameters(live, 1), 0.025, atol=2e-3)
    site = window.sites[2].site_id
    key = SealKey.generate()
    await live.say(site, ModelWanted(run_id=live.world.run_id, version=1, site_id=site, seal_pk=key.public))
    offer = await live.wait(ModelOffered, lambda one: one.version == 1)
    content_key = unwrap_model_key(offer.wrapped_key, live.world.run_id, 1, key)
    chunks: dict[int, bytes] = {}
    for _ in range(1000):
        if len(chunks) == offer.chunks:
            break
        delivery = await live.bus.get(bulk_queue(site))
        if delivery is None:
            await asyncio.sleep(0.01)
            continue
        header, content = open_model_frame(delivery.body, content_key, live.world.keys["aggregator"].public)
        chunks[header.place.chunk] = content
    whole = b"".join(chunks[chunk] for chunk in range(offer.chunks))
    np.testing.assert_array_equal(np.frombuffer(whole, dtype="<f4"), parameters(live, 1))


@pytest.mark.real
async def test_chunks_that_were_lost_are_asked_for_and_sent_again(live: Live) -> None:
    base = await live.first_model()
    window, values = update_window(live, base)
    live.lost_frames = True
    await live.open(window, values)
    closed = await live.closed_asking(window)
    assert (closed.state, len(closed.survivors)) == ("RELEASED", 4)


@pytest.mark.real
@pytest.mark.parametrize("live", ["real"], indirect=True)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
async def test_killed_at_any_moment_the_window_goes_on_and_the_sum_is_right(live: Live, seed: int) -> None:
    base = await live.first_model()
    window, values = update_window(live, base)
    await live.open(window, values)
    moments = random.Random(seed)  # noqa: S311 - moments, no secret
    for _ in range(3):
        await asyncio.sleep(moments.uniform(0.02, 0.4))
        await live.kill()
    closed = await live.closed_asking(window)
    assert (closed.state, len(closed.survivors)) == ("RELEASED", 4)
    np.testing.assert_allclose(parameters(live, 1), 0.025, atol=2e-3)
    assert len({message.model for _, message in live.heard if isinstance(message, SessionClosed)}) == 2
