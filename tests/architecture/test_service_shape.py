"""Every service has the same files, and its inner ones know nothing of its outer ones, whatever those are called."""

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ("enrolment", "consent", "scheduler", "aggregator", "audit", "connector")
MAY_IMPORT = {
    "domain": {"domain"},
    "settings": {"settings", "training.jobs", "simulation"},  # parts of the connector's settings
    "store": {"store", "domain", "settings"},
}
"""By a service's inner module: which of the service's own modules it may reach, itself included."""


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_the_files_that_every_service_has(service: str) -> None:
    folder = ROOT / "services" / f"cohortium_{service}"
    for name in ("__main__", "app", "handlers", "store", "domain", "settings"):
        assert (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file(), name
    assert (folder / "py.typed").is_file()
    assert (folder / "README.md").is_file()
    assert list((folder / "migrations").glob("0001_pre_*.sql"))


@pytest.mark.parametrize("service", SERVICES)
def test_inner_modules_reach_no_outer_ones(service: str) -> None:
    package = f"cohortium_{service}"
    graph = grimp.build_graph(package, cache_dir=None)
    for inner, allowed in MAY_IMPORT.items():
        reached = graph.find_upstream_modules(f"{package}.{inner}", as_package=True)
        own = {module.removeprefix(f"{package}.") for module in reached if module != package}
        outer = {name for name in own if not any(f"{name}.".startswith(f"{one}.") for one in allowed)}
        assert outer - {"training"} == set(), f"{package}.{inner}"


@pytest.mark.parametrize("service", SERVICES)
def test_a_migration_says_when_it_runs(service: str) -> None:
    names = sorted(file.stem for file in (ROOT / "services" / f"cohortium_{service}" / "migrations").glob("*.sql"))
    assert [name.split("_")[0] for name in names] == [f"{number:04d}" for number in range(1, len(names) + 1)]
    assert {name.split("_")[1] for name in names} <= {"pre", "post"}


def test_a_service_starts_without_the_client_of_a_server_that_its_settings_may_not_name() -> None:
    """Importing Redis' client takes as long as importing SQLAlchemy."""
    imports = "; ".join(f"import cohortium_{service}.app" for service in SERVICES)
    program = f"{imports}; import sys; print(sorted({{'redis', 'torch'}} & sys.modules.keys()))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert ended.stdout.strip() == "[]"
