"""Lets the tests here import `attack_stage`, the maker of the four hospitals' tables, and the hospital's program."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "unit" / "attacks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "studies"))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "deploy" / "connector"))

from heart_sites import data_dir, write_heart_sites


@pytest.fixture(scope="session")
def heart_tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    source = data_dir()
    if source is None:
        pytest.skip(
            "the UCI heart data are not beside the repository, and COHORTIUM_DATA_DIR names no folder with them"
        )
    return write_heart_sites(source, tmp_path_factory.mktemp("heart"), seed=0)
