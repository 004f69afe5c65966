"""What is committed under contracts/ is what the code says."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from cohortium_cli import contracts_command
from cohortium_cli.contracts_lifecycle import LIFECYCLES, Lifecycle, lifecycle_page
from cohortium_messages import export

CONTRACTS = Path(__file__).parents[2] / "contracts"


def test_committed_contracts_are_what_the_code_says() -> None:
    assert export.stale(CONTRACTS, contracts_command.documents(), contracts_command.GENERATED) == []


def test_the_output_is_the_same_whatever_the_hash_seed() -> None:
    code = "from cohortium_cli.contracts_command import documents; print(documents())"
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


@pytest.mark.parametrize("lifecycle", LIFECYCLES, ids=lambda one: one.name)
def test_every_state_of_a_lifecycle_is_explained(lifecycle: Lifecycle) -> None:
    rows = [line for line in lifecycle_page(lifecycle).splitlines() if line.startswith("| `")]
    assert len(rows) >= 3
    assert [row for row in rows if row.endswith("|  |")] == []


@pytest.mark.parametrize("lifecycle", LIFECYCLES, ids=lambda one: one.name)
def test_every_lifecycle_has_an_end(lifecycle: Lifecycle) -> None:
    assert importlib.import_module(lifecycle.module).TRANSITIONS
    assert "--> [*]" in lifecycle_page(lifecycle)


class TestTheCommand:
    def test_a_file_that_differs_is_named_and_written_again(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = {"schemas/a.json": "{}\n", "asyncapi.yaml": "asyncapi: 3.0.0\n"}
        globs = ("schemas/**/*.json", "asyncapi.yaml")
        assert export.run(files, globs, [str(tmp_path)]) == 0
        assert export.run(files, globs, [str(tmp_path), "--check"]) == 0
        (tmp_path / "schemas/a.json").write_text("{} \n")
        capsys.readouterr()
        assert export.run(files, globs, [str(tmp_path), "--check"]) == 1
        assert "schemas/a.json: differs" in capsys.readouterr().out
        assert export.write(tmp_path, files) == ["schemas/a.json"]

    def test_a_type_that_vanished_is_not_passed_over(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "schemas").mkdir()
        (tmp_path / "schemas/old.json").write_text("{}\n")
        assert export.run({}, ("schemas/**/*.json",), [str(tmp_path), "--check"]) == 1
        assert "schemas/old.json: nothing makes this file any more" in capsys.readouterr().out
        assert export.run({}, ("schemas/**/*.json",), [str(tmp_path)]) == 1
        assert (tmp_path / "schemas/old.json").exists()
