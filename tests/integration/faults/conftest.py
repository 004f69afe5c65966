"""Servers that faults are done to, and the clock of the sites."""

import os
from pathlib import Path

import pytest

from cohortium_kit.testing.servers import PrivatePostgres, PrivateRabbit, PrivateRedis

CLOCKS = Path(__file__).parent / "clocks"


@pytest.fixture
def servers(
    private_rabbit: PrivateRabbit, private_postgres: PrivatePostgres, private_redis: PrivateRedis
) -> tuple[PrivateRabbit, PrivatePostgres, PrivateRedis]:
    return private_rabbit, private_postgres, private_redis


@pytest.fixture(autouse=True)
def clocks_that_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started take their wall clock from `clocks/sitecustomize.py`."""
    monkeypatch.setenv("PYTHONPATH", str(CLOCKS), prepend=os.pathsep)
