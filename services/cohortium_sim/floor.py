"""The physical floor under a secure round: its masks made, and its bytes moved through the broker, and nothing else."""

import asyncio
import os
import secrets
import time

import numpy as np

from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Ack, Delivery, Disposition, Outgoing
from cohortium_messages.topology import UPLINK, Binding, Queue, QueueKind, Topology
from cohortium_protocol.masking import MaskPlan, MaskStream, add_masks

MASK_SAMPLE = 8 << 20
FRAME = (1 << 20) - 4096
FRAMES = 48
IN_FLIGHT = 8
UP_BYTES, DOWN_BYTES = 2, 4
"""A parameter as a ring word of 16 bits, and as float32."""


def mask_seconds(sites: int, parameters: int, cores: int) -> float:
    """Every site adds a mask for each other one and for itself; the server takes off the sites' own. On all cores."""
    words = np.zeros(min(MASK_SAMPLE, max(UP_BYTES * parameters, 1 << 16)) // 2, dtype=np.uint16)
    masks = MaskPlan(tuple(MaskStream(secrets.token_bytes(32)) for _ in range(sites)), ())
    began = time.process_time()
    add_masks(words, masks, 0)
    for_all = (time.process_time() - began) * UP_BYTES * parameters / words.nbytes
    return for_all * (sites + 1) / cores


async def broker_seconds(sites: int, parameters: int, url: str) -> float:
    """The bytes of a round's updates up and models down, in frames through one queue, unsigned and unread."""
    total = sites * parameters * (UP_BYTES + DOWN_BYTES)
    frames = max(4, min(FRAMES, total // FRAME))
    namespace = f"floor-{secrets.token_hex(4)}"
    topology = Topology((UPLINK,), (Queue("floor", QueueKind.CLASSIC, (Binding(UPLINK.name, "floor"),)),))
    sender, receiver = (RabbitBus(url, namespace, connection_name=f"cohortium-{name}") for name in ("up", "down"))
    came, done = 0, asyncio.Event()

    async def take(_: Delivery) -> Disposition:
        nonlocal came
        came += 1
        if came == frames:
            done.set()
        return Ack()

    async def send(numbers: list[int]) -> None:
        for number in numbers:
            await sender.publish(
                Outgoing(UPLINK.name, "floor", bytes(FRAME), f"{namespace}-{number}", "floor", persistent=False)
            )

    try:
        await receiver.declare(topology)
        taking = await receiver.consume("floor", take, prefetch=IN_FLIGHT)
        began = time.monotonic()
        await asyncio.gather(*[send(list(range(lane, frames, IN_FLIGHT))) for lane in range(IN_FLIGHT)])
        await done.wait()
        await taking.cancel()
        return (time.monotonic() - began) * total / (frames * FRAME)
    finally:
        await receiver.delete(topology)
        await sender.close()
        await receiver.close()


async def floor_seconds(sites: int, parameters: int, url: str) -> dict[str, float]:
    """Both parts; they use the same cores, so a round cannot be faster than about their sum."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    masks = await asyncio.to_thread(mask_seconds, sites, parameters, cores)
    return {
        "masks": round(masks, 3),
        "bytes through the broker": round(await broker_seconds(sites, parameters, url), 3),
    }
