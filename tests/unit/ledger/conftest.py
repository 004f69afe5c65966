"""Lets the tests here import `ledger_stage` and `federation_in_memory`, which are no tests themselves, and the
hospital's own command."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "protocol"))
sys.path.insert(0, str(Path(__file__).parents[3] / "deploy" / "connector"))

from collections.abc import AsyncIterator

import pytest
from ledger_stage import Hospital


@pytest.fixture
async def hospital(tmp_path: Path) -> AsyncIterator[Hospital]:
    """A hospital with an empty ledger."""
    hospital = Hospital(tmp_path)
    await hospital.start()
    yield hospital
    await hospital.stop()
