"""The bench of the audit log runs, and its figures are of what it says."""

import json
from pathlib import Path

import pytest

from cohortium_sim.bench_audit import main, tree_figures


def test_a_small_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--leaves", "3000", "--events", "60", "--json", str(tmp_path / "audit.json")])
    figures = json.loads((tmp_path / "audit.json").read_text())
    assert figures == json.loads(capsys.readouterr().out[-len((tmp_path / "audit.json").read_text()) :])
    assert figures["log"]["events"] == 60
    assert 1000 < figures["log"]["checkpoint_bytes_with_10_cosignatures"] < 3000


def test_a_tree_of_one_leaf_has_figures() -> None:
    assert tree_figures(1)["leaves"] == 1
