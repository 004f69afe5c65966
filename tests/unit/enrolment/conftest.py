"""An enrolment service on an SQLite file, with everybody else played by the test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cohortium_enrolment.app import App
from cohortium_enrolment.settings import EnrolmentSettings
from governance_stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage.at(tmp_path)


@pytest.fixture
async def enrolment(stage: Stage) -> AsyncIterator[App]:
    settings = EnrolmentSettings.model_validate(stage.settings("enrolment"))
    db = await stage.database("enrolment")
    app = await App.build(settings, bus=await stage.bus(), database=db, clock=stage.clock)
    yield app
    await db.close()
