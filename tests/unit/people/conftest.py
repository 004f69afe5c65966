"""A consent service with people who sign in."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cohortium_platform.people import passwords
from governance_stage import Stage
from people_stage import House, open_house


@pytest.fixture(autouse=True)
def _cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords.hashed, "__kwdefaults__", {"ops": 1, "memory": 8192})


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage.at(tmp_path)


@pytest.fixture
async def house(stage: Stage) -> AsyncIterator[House]:
    made = await open_house(stage)
    yield made
    await made.app.db.close()
