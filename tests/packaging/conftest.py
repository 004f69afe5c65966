"""Wheels, built once for all tests here."""

import asyncio
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from governance_stage import Stage
from study_story import bundle_of, study_lines

ROOT = Path(__file__).parents[2]


def build(project: Path, folder: Path) -> Path:
    """One wheel, without its dependencies. Without network where the build backend is installed."""
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", *isolation]
    subprocess.run([*command, "--wheel-dir", str(folder), str(project)], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def platform_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("platform"))


@pytest.fixture(scope="session")
def connector_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT / "deploy" / "connector", tmp_path_factory.mktemp("connector"))


@pytest.fixture(scope="session")
def verifier_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT / "deploy" / "verifier", tmp_path_factory.mktemp("verifier"))


@pytest.fixture
def told_story(tmp_path: Path) -> Path:
    """An honest result folder: a small study's bundle and signed model."""

    async def make() -> Path:
        stage = Stage.at(tmp_path)
        return await bundle_of(stage, study_lines(stage), tmp_path / "story")

    return asyncio.run(make()).parent


@pytest.fixture
def unpacked(connector_wheel: Path, tmp_path: Path) -> Path:
    """The hospital's wheel as files: what Python imports after an installation."""
    with zipfile.ZipFile(connector_wheel) as archive:
        archive.extractall(tmp_path)
    return tmp_path
