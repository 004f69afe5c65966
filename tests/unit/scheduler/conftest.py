"""A scheduler that runs, for the tests of the whole service."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from scheduler_stage import Stage, listen

from cohortium_cli.federation import FederationSpec, create_federation
from cohortium_kit.clock import SystemClock
from cohortium_kit.db import Database
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.migrate import migrate
from cohortium_messages.ids import SiteId
from cohortium_messages.topology import (
    platform_topology,
)
from cohortium_protocol.signing import IdentityKey
from cohortium_scheduler.app import App
from cohortium_scheduler.settings import SchedulerSettings


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    clock = SystemClock()
    spec = FederationSpec(
        directory=tmp_path,
        name="test.example",
        amqp_url="memory://",
        namespace="test",
        now=clock.now(),
        settings={"scheduler": {"tick_s": 0.02, "retry_pause_s": 0.05, "max_attempts": 2, "recruiting_grace_s": 0.2}},
    )
    files = create_federation(spec)
    settings = SchedulerSettings.load(files.configs["scheduler"])
    db = Database(settings.database_url, schema="scheduler")
    await migrate(db, "cohortium_scheduler")
    broker = MemoryBroker(clock)
    bus = MemoryBus(broker, "test")
    await bus.connect()
    await bus.declare(platform_topology())
    sites = {SiteId(str(uuid4())): IdentityKey.generate() for _ in range(4)}
    app = await App.build(settings, bus=MemoryBus(broker, "test"), clock=clock)
    stop = asyncio.Event()
    running = asyncio.create_task(app.run(stop))
    transport = httpx.ASGITransport(app=app.http)
    headers = {"Authorization": f"Bearer {files.operator_token}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
        stage = Stage(files, broker, bus, http, sites, db)
        listeners = await listen(stage)
        yield stage
        for listener in listeners:
            await listener.cancel()
        stop.set()
        await asyncio.wait_for(running, 60)
    await bus.close()
    await db.close()
