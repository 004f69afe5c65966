"""Lets the tests here import `cli_stage`, which is no test itself, and the hospital's own program; and gives them a
command line."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[3] / "deploy" / "connector"))

from cli_stage import CommandLine, Federation, PlayedServices


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A command sets up logging for its whole process, which here is the tests'."""
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line in a folder of its own, with no settings from outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COHORTIUM_OPERATOR", raising=False)
    return CommandLine()


@pytest.fixture
def federation(cli: CommandLine, tmp_path: Path) -> Federation:
    """What `cohortium init` makes."""
    return Federation(tmp_path / "fed", cli.facts("init", "fed"))


@pytest.fixture
def services(tmp_path: Path, cli: CommandLine) -> Iterator[PlayedServices]:
    """Something that answers as the services do, and operator settings that lead to it."""
    with PlayedServices(tmp_path) as played:
        yield played
