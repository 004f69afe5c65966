"""What a federation of real parts leaves behind when its run is over: nothing, in the end."""

import asyncio
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import httpx
import sqlalchemy as sa
import yaml
from sqlalchemy.ext.asyncio import create_async_engine
from tests.integration.faults.yard import Yard

from cohortium_kit.amqp import RabbitBus
from cohortium_messages.topology import PRESENCE_QUEUE, QueueKind, platform_topology, site_topology
from cohortium_sim.storm.checks import files_of, records_of
from cohortium_sim.worlds import SERVICES

SETTLE_S = 180.0
"""So long until nothing is left: hospitals delete what runs left that are over once a minute and more."""
OWN_MAPS = ("cohortium_sums", "cohortium_sessions")
"""What the aggregator says it has in work."""


async def leftovers(yard: Yard) -> list[str]:
    """What is left `SETTLE_S` after the run, in words; sooner, as soon as that is nothing."""
    until = asyncio.get_running_loop().time() + SETTLE_S
    while True:
        found = [one async for one in _left(yard)]
        if not found or asyncio.get_running_loop().time() > until:
            return found
        await asyncio.sleep(2.0)


async def _left(yard: Yard) -> AsyncIterator[str]:
    async for one in _in_queues(yard):
        yield one
    async for one in _in_services(yard):
        yield one
    for one in _at_sites(yard):
        yield one
    async for one in _in_memory(yard):
        yield one


async def _in_queues(yard: Yard) -> AsyncIterator[str]:
    """Dead letters, too: no fault of a part or a line makes an honest message one."""
    bus = RabbitBus(yard.rabbit.url, yard.simulation.namespace, connection_name="leftovers")
    queues = [*platform_topology().queues]
    for invitation in yard.simulation.sites.values():
        queues += site_topology(invitation.site_id).queues
    try:
        for queue in queues:
            if queue.name == PRESENCE_QUEUE or queue.kind is QueueKind.STREAM:
                continue
            depth = await bus.queue_depth(queue.name)
            if depth:
                yield f"{depth} messages wait in {queue.name}"
    finally:
        await bus.close()


async def _in_services(yard: Yard) -> AsyncIterator[str]:
    """Records of work, unsent messages, and leases whose holder is no process of ours and that are not over."""
    prefix = yard.simulation.namespace.replace("-", "_")
    engine = create_async_engine(yard.postgres.url.replace("postgresql://", "postgresql+asyncpg://"))
    try:
        for role in SERVICES:
            async with engine.connect() as connection:
                await connection.execute(sa.text(f"SET search_path TO {prefix}_{role}"))
                for what, query in records_of(role).items():
                    count = await connection.scalar(sa.text(query))
                    if count:
                        yield f"{role} has {count} {what}"
                query = "SELECT name, holder FROM lease WHERE expires_at > extract(epoch FROM now())"
                own = f"{socket.gethostname()}:{yard.world.pids().get(role)}:"
                for name, holder in await connection.execute(sa.text(query)):
                    if not holder.startswith(own):
                        yield f"{role} has an orphan lease on {name}, of {holder}"
    finally:
        await engine.dispose()
    data_dir = yard.simulation.files.directory / "data" / "aggregator"
    for what in files_of("aggregator", data_dir):
        yield f"aggregator has {what}"


def _at_sites(yard: Yard) -> Iterator[str]:
    for name, folder in yard.simulation.folders.items():
        with closing(sqlite3.connect(f"file:{folder}/spool/spool.db?mode=ro", uri=True, timeout=30)) as spool:
            for what, query in records_of("connector").items():
                (count,) = spool.execute(query).fetchone()
                if count:
                    yield f"{name} has {count} {what}"
        for what in files_of("connector", folder / "spool"):
            yield f"{name} has {what}"


async def _in_memory(yard: Yard) -> AsyncIterator[str]:
    port = yaml.safe_load(yard.simulation.files.configs["aggregator"].read_text())["http_port"]
    async with httpx.AsyncClient(trust_env=False) as client:
        measures = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    for line in measures.splitlines():
        if line.startswith(OWN_MAPS) and float(line.split()[-1]):
            yield f"aggregator has in memory: {line}"
    assert all(f"# TYPE {one} gauge" in measures for one in OWN_MAPS), "the aggregator does not say what it has in work"
