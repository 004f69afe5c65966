"""The connector's played federation (`tests/unit/connector`), on a real broker."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "connector"))

from connector_on_broker import BrokerWorld


@pytest.fixture
async def world(tmp_path: Path, amqp_url: str, namespace: str) -> AsyncIterator[BrokerWorld]:
    """A platform on RabbitMQ, in a namespace of its own; no connector runs yet."""
    world = BrokerWorld(tmp_path, amqp_url, namespace)
    await world.declare()
    await world.listen()
    yield world
    await world.remove()
