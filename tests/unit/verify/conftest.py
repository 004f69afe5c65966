"""One honest result folder for all tests that damage a copy of it. The hospital's own program can be imported."""

import asyncio
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from governance_stage import Stage
from study_story import bundle_of, study_lines

sys.path.insert(0, str(Path(__file__).parents[3] / "deploy" / "connector"))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, Path]:
    """The stage and the audit folder of an honest study."""
    folder = tmp_path_factory.mktemp("honest")

    async def make() -> tuple[Stage, Path]:
        stage = Stage.at(folder)
        return stage, await bundle_of(stage, study_lines(stage), folder / "result")

    return asyncio.run(make())


@pytest.fixture
def result(honest: tuple[Stage, Path], tmp_path: Path) -> Path:
    """A copy of the honest result's audit folder, to be damaged."""
    shutil.copytree(honest[1].parent, tmp_path / "result")
    return tmp_path / "result" / "audit"


@pytest.fixture
def pinned(honest: tuple[Stage, Path]) -> tuple[bytes, ...]:
    """The officers' keys, as a reader has them from the officers."""
    return tuple(officer.public for officer in honest[0].files.officers)


Damage = Callable[[Path], None]
