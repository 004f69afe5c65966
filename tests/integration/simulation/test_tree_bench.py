"""`make bench` for trees: a small run of it, so that its numbers are there and mean what they say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.real
@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_small_benchmark(tmp_path: Path, amqp_url: str, postgres_url: str) -> None:
    words = ["--sites", "3", "--rows", "600", "--features", "5", "--trees", "4", "--leaves", "4"]
    words += ["--amqp", amqp_url, "--database", postgres_url, "--json", str(tmp_path / "run.json")]
    command = [sys.executable, "-m", "cohortium_sim.bench_trees", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    assert "3 sites, 600 rows x 5 features, 4 trees of 4 leaves" in ended.stdout
    run = json.loads((tmp_path / "run.json").read_text())
    # Six that begin and end the session, and for each tree one at its root, two a split, one agreement.
    assert 6 + 4 * (1 + 2 + 1) <= run["steps"] <= 6 + 4 * (1 + 2 * 3 + 1)
    assert 0 < run["step_ms"]["p50"] <= run["step_ms"]["p99"]
    assert 0 < run["session_seconds"] <= run["training_seconds"]
    assert run["largest_difference"] < 1e-12
    assert run["sockets_seconds"] > 0
