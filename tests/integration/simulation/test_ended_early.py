"""A simulation that is told to stop takes down what it made."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.integration.simulation.noise import noise_study


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_simulation_that_is_told_to_stop_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    table, study, temporary = tmp_path / "table.csv", tmp_path / "study.yaml", tmp_path / "temporary"
    table.write_text("unused,label\n0,0\n1,1\n")
    study.write_text(json.dumps(noise_study(1000).model_dump(mode="json")))
    temporary.mkdir()
    command = [sys.executable, "-m", "cohortium_cli", "simulate", str(study), "--out", str(tmp_path / "out"), "--json"]
    command += [part for name in "abc" for part in ("--site", f"{name}={table}")]
    log = tmp_path / "out" / "log.jsonl"
    process = subprocess.Popen(
        command,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # A shell that starts the tests in the background has interrupts ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.monotonic() + 60
    while not (log.exists() and "work_finished" in log.read_text()):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    assert [path for path in temporary.iterdir() if path.name.startswith("cohortium-")]
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, b"interrupted" in said, b"Traceback" in said) == (130, True, False)
    assert list(temporary.iterdir()) == []
