"""An audit service on an SQLite file, its appender running, with everybody else played by the test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cohortium_audit.app import App
from governance_stage import Stage
from study_story import recording


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage.at(tmp_path)


@pytest.fixture
async def audit(stage: Stage) -> AsyncIterator[App]:
    async with recording(stage) as app:
        yield app
