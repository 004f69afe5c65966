"""`study check` of private studies: the plan in words and numbers, and mistakes at their line."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cohortium_cli.app import app

STUDY = """\
apiVersion: cohortium/study/1
name: small
purpose: Say what is promised
dataset:
  features:
    - {name: age, type: float, range: [18, 110]}
  label: {name: disease, type: binary}
  split: {test: 0.3}
recipe: {trainer: torch.logistic}
federation: {rounds: 10, min_sites: 4}
privacy: {mode: %s, epsilon: 2, delta: %s, sampling_rate: 0.5, patients: 2000}
governance: trial
"""


def check(folder: Path, mode: str, delta: str, *options: str) -> Any:
    file = folder / "study.yaml"
    file.write_text(STUDY % (mode, delta))
    return CliRunner().invoke(app, ["study", "check", str(file), *options], env={"COLUMNS": "400"})


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_the_plan_is_told(tmp_path: Path, mode: str) -> None:
    found = check(tmp_path, mode, "1e-5")
    assert found.exit_code == 0
    steps = {"local": "20 noisy steps", "distributed": "10 noisy steps"}[mode]
    for words in (f"privacy mode {mode}", steps, "by Rényi accounting", "expected noise of one step", "relies on: "):
        assert words in found.stdout, words
    assert "failed to converge" not in found.output


def test_a_promise_that_cannot_be_kept_is_refused_at_its_line(tmp_path: Path) -> None:
    found = check(tmp_path, "distributed", "1e-3")
    assert found.exit_code == 1
    assert "line 11" in found.output
    assert "privacy.delta: is 0.001, not below 1/patients" in found.output


def test_a_program_gets_the_same_numbers(tmp_path: Path) -> None:
    facts = json.loads(check(tmp_path, "distributed", "1e-5", "--json").stdout)["privacy"]
    assert (facts["mode"], facts["epsilon"], facts["steps"]) == ("distributed", 2.0, 10)
    assert facts["epsilon_pld"] < facts["epsilon_rdp"] <= 2.0001
    assert facts["noise_to_signal"] > 0
    assert facts["site_sigma"] > 10
