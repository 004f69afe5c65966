"""What the operator's and the hospital's wheel hold, and what they need."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROOTS = ("services", "shared", "deploy/connector")
PLATFORM_SERVICES = {f"cohortium_{name}" for name in ("aggregator", "audit", "consent", "enrolment", "scheduler")}
VERIFIER = {"cohortium_messages", "cohortium_privacy", "cohortium_protocol", "cohortium_verify"}
SHARED_WITH_HOSPITALS = VERIFIER | {"cohortium_kit"}


def packages(wheel: Path) -> set[str]:
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    return {top for top in tops if not top.endswith(".dist-info")}


def members(wheel: Path, pattern: str) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if re.search(pattern, name)}


def project(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return found


def test_the_operators_wheel_holds_every_package_of_the_tree(platform_wheel: Path) -> None:
    in_tree = {file.parent.name for root in ("services", "shared") for file in (ROOT / root).glob("*/__init__.py")}
    assert packages(platform_wheel) == in_tree


def test_the_hospitals_wheel_holds_the_connector_and_what_is_shared_and_nothing_else(connector_wheel: Path) -> None:
    assert packages(connector_wheel) == {"cohortium_connector", "cohortium_hospital"} | SHARED_WITH_HOSPITALS


def test_the_verifiers_wheel_holds_what_it_needs_and_nothing_else(verifier_wheel: Path) -> None:
    assert packages(verifier_wheel) == VERIFIER


@pytest.mark.parametrize("which", ["platform_wheel", "connector_wheel", "verifier_wheel"])
def test_types_and_migrations_are_in_the_wheel_and_caches_are_not(which: str, request: pytest.FixtureRequest) -> None:
    wheel: Path = request.getfixturevalue(which)
    assert {name.partition("/")[0] for name in members(wheel, r"/py\.typed$")} == packages(wheel)
    for package in packages(wheel):
        (source,) = (ROOT / root / package for root in ROOTS if (ROOT / root / package).is_dir())
        here = {f"{package}/{file.relative_to(source).as_posix()}" for file in source.rglob("*.sql")}
        assert here <= members(wheel, r"\.sql$")
    assert not members(wheel, r"__pycache__|\.pyc$|\.pyo$")


@pytest.mark.parametrize("which", ["connector", "verifier"])
def test_the_projects_agree_on_version_licence_and_bounds(which: str) -> None:
    platform, small = project(ROOT / "pyproject.toml"), project(ROOT / f"deploy/{which}/pyproject.toml")
    assert (small["version"], small["license"]) == (platform["version"], platform["license"])
    assert small["requires-python"] == platform["requires-python"]
    assert set(small["dependencies"]) <= set(platform["dependencies"])
    for extra in small["optional-dependencies"].keys() & platform["optional-dependencies"].keys():
        assert small["optional-dependencies"][extra] == platform["optional-dependencies"][extra]
    assert which == "verifier" or "train" in small["optional-dependencies"]


def in_hospital(unpacked: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code that sees the hospital's wheel and third parties, and not this repository."""
    site_packages = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(unpacked), site_packages])}
    # -S leaves out .pth files, and with them the editable installation of this repository.
    command = [sys.executable, "-S", "-c", code, *arguments]
    return subprocess.run(command, env=environment, cwd=unpacked, capture_output=True, text=True, timeout=100)


FORBID = """
import importlib.abc, importlib.util, pkgutil, sys
FORBIDDEN = {forbidden!r}
class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"{{name}} is not installed at a hospital", name=name)
sys.meta_path.insert(0, Forbid())
"""

WALK = """
import cohortium_connector
assert importlib.util.find_spec("cohortium_aggregator") is None
names = [m.name for m in pkgutil.walk_packages(cohortium_connector.__path__, "cohortium_connector.")]
for name in names:
    try:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        trains = name.startswith("cohortium_connector.training.")
        if not trains or error.name not in ("torch", "lightgbm", "opacus", "numba"):
            raise
import cohortium_hospital.__main__
print(len(names))
"""


def test_the_connector_imports_with_its_declared_dependencies_only(unpacked: Path) -> None:
    """Everything but the training process's own modules: no torch, no web framework, no driver of another database."""
    connector = project(ROOT / "deploy/connector/pyproject.toml")
    platform = project(ROOT / "pyproject.toml")
    extra = set(platform["dependencies"]) - set(connector["dependencies"])
    forbidden = sorted({re.split(r"[<>=\[]", one)[0] for one in extra} | {"torch", "lightgbm", "numba", "opacus"})
    ended = in_hospital(unpacked, FORBID.format(forbidden=set(forbidden)) + WALK)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 20


def test_a_hospital_verifies_with_its_own_wheel(unpacked: Path, told_story: Path) -> None:
    code = "import sys; from cohortium_hospital.__main__ import main; sys.exit(main(sys.argv[1:]))"
    ended = in_hospital(unpacked, code, "audit-convert", str(told_story), "--to", "syslog", "--out", "siem.log")
    assert ended.returncode == 0, ended.stderr
    entries = (told_story / "audit" / "entries.jsonl").read_text().splitlines()
    assert len((unpacked / "siem.log").read_text().splitlines()) == len(entries)
    shutil.rmtree(told_story / "audit" / "manifests")
    for folder, exit_code, says in ((told_story, 1, "manifests"), (unpacked, 2, "Not verified")):
        ended = in_hospital(unpacked, code, "verify", str(folder))
        assert ended.returncode == exit_code, ended.stderr
        assert says in ended.stdout


def test_no_platform_service_can_be_imported_at_a_hospital(unpacked: Path) -> None:
    for package in sorted(PLATFORM_SERVICES | {"cohortium_cli", "cohortium_sim", "cohortium_platform"}):
        ended = in_hospital(unpacked, f"import {package}")
        assert ended.returncode == 1, package
        assert "ModuleNotFoundError" in ended.stderr


VERIFY = """
import contextlib, io
import cohortium_verify.command as command
import cohortium_verify.convert as convert
code = command.main([sys.argv[1], "--json"])
with contextlib.redirect_stdout(io.StringIO()):
    code = code or convert.main([sys.argv[1], "--to", "prov", "--out", "lineage.json"])
sys.exit(code)
"""


def test_the_verifier_runs_with_its_declared_dependencies_only(
    verifier_wheel: Path, tmp_path: Path, told_story: Path
) -> None:
    """A whole bundle, with every other library that Cohortium uses forbidden."""
    with zipfile.ZipFile(verifier_wheel) as archive:
        archive.extractall(tmp_path)
    declared = set(project(ROOT / "deploy/verifier/pyproject.toml")["dependencies"])
    others = set(project(ROOT / "pyproject.toml")["dependencies"]) - declared
    forbidden = {re.split(r"[<>=\[]", one)[0].replace("-", "_") for one in others}
    forbidden |= {"torch", "lightgbm", "numba", "opacus", "dp_accounting", "cohortium_kit"}
    site_packages = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), site_packages])}
    code = FORBID.format(forbidden=forbidden) + VERIFY
    command = [sys.executable, "-S", "-c", code, str(told_story)]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["verified"] is True
    assert json.loads((tmp_path / "lineage.json").read_text())["entity"]


@pytest.mark.long
def test_the_hospitals_command_runs_in_an_environment_of_its_own(connector_wheel: Path, tmp_path: Path) -> None:
    """pip, a clean environment, the declared dependencies, the command."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    programs = tmp_path / "venv" / "bin"
    pip = [str(programs / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    installed = subprocess.run([*pip, str(connector_wheel)], capture_output=True, text=True, timeout=500)
    if installed.returncode != 0:
        pytest.skip(f"pip cannot reach a package index: {installed.stderr[-300:]}")
    said = subprocess.run([str(programs / "cohortium-connector"), "--help"], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    assert "run" in said.stdout
    listed = subprocess.run([str(programs / "python"), "-m", "pip", "list"], capture_output=True, text=True, timeout=60)
    assert "torch" not in listed.stdout
    assert "cohortium-connector" in listed.stdout
