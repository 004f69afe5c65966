"""Fixtures of the tests with LightGBM: processes that stay for a module."""

from collections.abc import Iterator

import pytest
from lightgbm_world import World, worlds


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Four sites."""
    yield from worlds(tmp_path_factory.mktemp("sites"), 4)
