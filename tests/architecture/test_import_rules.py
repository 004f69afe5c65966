"""The import rules of pyproject.toml hold, and each of them is broken by the import that it forbids."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PLANTS: dict[str, tuple[str, str]] = {
    "independence": ("services/cohortium_consent/domain.py", "import cohortium_audit.domain"),
    "verifier": ("shared/cohortium_verify/report.py", "import sqlalchemy"),
    "packages": ("shared/cohortium_protocol/labels.py", "import cohortium_kit.clock"),
    "service": ("services/cohortium_scheduler/store.py", "import cohortium_scheduler.handlers"),
    "pure": ("services/cohortium_scheduler/domain/windows.py", "import asyncio"),
    "torch": ("services/cohortium_aggregator/settings.py", "import torch"),
    "hospital": ("services/cohortium_connector/settings.py", "import cohortium_platform.identity"),
    "drivers": ("services/cohortium_audit/store.py", "import aio_pika"),
}
"""By rule: a file, and a line that must not be in it."""


def lint(tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
    path = os.pathsep.join(str(tree / folder) for folder in ("services", "shared"))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [*command, *options], cwd=tree, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources alone, to be broken."""
    for folder in ("services", "shared"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_rules_hold() -> None:
    ended = lint(ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{len(PLANTS)} kept, 0 broken" in ended.stdout


@pytest.mark.parametrize("rule", PLANTS)
def test_a_forbidden_import_is_found(rule: str, copy: Path) -> None:
    file, line = PLANTS[rule]
    with (copy / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    ended = lint(copy, "--contract", rule)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "0 kept, 1 broken" in ended.stdout


def test_a_detour_through_a_shared_package_is_found(copy: Path) -> None:
    (copy / "shared/cohortium_platform/detour.py").write_text("import cohortium_audit.domain\n", encoding="utf-8")
    with (copy / "services/cohortium_consent/domain.py").open("a", encoding="utf-8") as source:
        source.write("\nimport cohortium_platform.detour\n")
    ended = lint(copy, "--contract", "independence")
    assert ended.returncode == 1, ended.stdout + ended.stderr
