"""One real connector, enrolled in a federation that the test plays. The hospital's own program can be imported."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from connector_strict import TreesWorld
from connector_world import World

from cohortium_messages.governance import GrantGiven

sys.path.insert(0, str(Path(__file__).parents[3] / "deploy" / "connector"))


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """A platform; no connector runs yet."""
    world = World(tmp_path)
    await world.declare()
    return world


@pytest.fixture
async def joined(world: World) -> AsyncIterator[World]:
    """The connector runs, is registered, and has granted the study."""
    async with world.running():
        await world.enrol()
        await world.offer()
        await world.expect(GrantGiven)
        yield world


@pytest.fixture
async def trees(tmp_path: Path) -> AsyncIterator[TreesWorld]:
    """The connector runs, is registered, and has granted a study of LightGBM."""
    world = TreesWorld(tmp_path)
    await world.declare()
    async with world.running():
        await world.join()
        yield world
