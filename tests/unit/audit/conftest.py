"""An audit service on an SQLite file, its appender running, with everybody else played by the test."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cohortium_audit.app import App
from governance_stage import Stage
from study_story import audit_app


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage.at(tmp_path)


@pytest.fixture
async def audit(stage: Stage) -> AsyncIterator[App]:
    app = await audit_app(stage)
    stop = asyncio.Event()
    recording = asyncio.create_task(app.consumer.appender.run(stop))
    yield app
    stop.set()
    await recording
    await app.db.close()
