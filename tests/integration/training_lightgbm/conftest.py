"""Fixtures of the tests with LightGBM: processes that stay for a module, and four real hospitals."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightgbm_world import World, worlds

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "studies"))

from heart_sites import data_dir, write_heart_sites


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Four sites."""
    yield from worlds(tmp_path_factory.mktemp("sites"), 4)


@pytest.fixture(scope="module")
def heart_tables(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    source = data_dir()
    if source is None:
        pytest.skip("the UCI heart data are not beside the repository")
    return list(write_heart_sites(source, tmp_path_factory.mktemp("heart"), seed=0).values())
