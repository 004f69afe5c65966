"""Back-pressure at the chunk queues of a real RabbitMQ: a slow aggregator slows who publishes, and a site that floods
pushes nobody out."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import numpy as np
import pytest
from live import Live
from test_running import live, parameters, update_window  # noqa: F401 - a fixture

from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Outgoing
from cohortium_kit.errors import BusError, Refused
from cohortium_messages.study import Deadlines
from cohortium_messages.topology import CHUNK_PARTITIONS, UPLINK, chunk_key, chunk_queue, platform_topology

FRAME = 1 << 20
LIMITS = {queue.name: queue.max_length_bytes for queue in platform_topology().queues}

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("live", ["real"], indirect=True),
]


def junk(site: str, number: int, partition: int = 0) -> Outgoing:
    key = chunk_key(site, partition)  # type: ignore[arg-type]
    body = number.to_bytes(8, "big") + bytes(FRAME - 8)
    return Outgoing(UPLINK.name, key, body, f"junk-{number}", "cohortium.upload.chunk.v1", persistent=False)


@pytest.fixture
async def flooder(amqp_url: str, namespace: str) -> AsyncIterator[RabbitBus]:
    """A site's own connection."""
    bus = RabbitBus(amqp_url, namespace, connection_name="flooder")
    await bus.connect()
    yield bus
    await bus.close()


async def taken_until_refused(bus: RabbitBus, site: str, most: int) -> int:
    """Frames that the broker took before its first negative confirm."""
    for number in range(most):
        try:
            await bus.publish(junk(site, number), timeout_s=30)
        except Refused:
            return number
    raise AssertionError(f"{most} frames were taken: the queue has no bound")


@pytest.mark.long
async def test_slow_aggregator_slows_the_publishers(live: Live, flooder: RabbitBus) -> None:  # noqa: F811
    base = await live.first_model()
    site = next(iter(live.world.identities))
    limit = LIMITS[chunk_queue(0)]
    assert live.process is not None
    assert limit is not None
    os.kill(live.process.pid, signal.SIGSTOP)
    try:
        taken = await taken_until_refused(flooder, site, 2 * limit // FRAME)
        # Nothing was dropped for what came later, and no more than the limit (and what its reader holds) was taken.
        assert limit // FRAME <= taken <= limit // FRAME + 8
        assert await live.bus.queue_depth(chunk_queue(0)) <= limit // FRAME + 1
    finally:
        os.kill(live.process.pid, signal.SIGCONT)
    # The aggregator goes on and makes room, and a round of the honest completes.
    for _ in range(1200):
        if await live.bus.queue_depth(chunk_queue(0)) == 0:
            break
        await asyncio.sleep(0.1)
    window, values = update_window(live, base)
    await live.open(window, values)
    closed = await live.closed(window, 60)
    assert closed.state == "RELEASED"
    assert {one.site_id for index, one in window.sites.items() if one.site_id != site} <= set(closed.survivors)


@pytest.mark.long
async def test_site_that_floods_pushes_nobody_out(live: Live, flooder: RabbitBus) -> None:  # noqa: F811
    base = await live.first_model()
    times = Deadlines(ready_s=30, upload_s=45, echo_s=60, unmask_s=60, expire_s=300)  # the flood takes processors, too
    window, values = update_window(live, base, deadlines=times)
    site, where = window.sites[1].site_id, window.params.window_id[0]  # the queues that the honest send to
    stop, many, sent, refused = asyncio.Event(), asyncio.Event(), 0, 0

    async def flood(lane: int) -> None:
        nonlocal sent, refused
        while not stop.is_set():
            number = sent
            sent += 1
            if sent == 40:
                many.set()
            try:
                await flooder.publish(junk(site, number, (where + lane) % CHUNK_PARTITIONS), timeout_s=30)
            except BusError:
                refused += 1

    del values[1]  # what floods does nothing else
    floods = [asyncio.create_task(flood(lane)) for lane in range(3)]
    try:
        await asyncio.wait_for(many.wait(), 60)
        await live.open(window, values)
        closed = await asyncio.wait_for(live.closed(window, 200), 210)
    finally:
        stop.set()
        await asyncio.gather(*floods)
    assert closed.state == "RELEASED"
    assert set(closed.survivors) == {window.sites[index].site_id for index in (2, 3, 4)}
    np.testing.assert_allclose(parameters(live, 1), 0.03, atol=2e-3)
    assert sent - refused > 40
