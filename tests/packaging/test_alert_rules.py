"""The alert rules as Prometheus itself reads and evaluates them: `alert_rules.yaml` says what fires when."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RULES = HERE.parents[1] / "deploy" / "observability" / "alerts.yaml"


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed; it comes with Debian's prometheus")
    return found


def test_the_alerts_fire_when_they_should_and_not_before(promtool: str, tmp_path: Path) -> None:
    for file in (RULES, HERE / "alert_rules.yaml"):
        shutil.copy(file, tmp_path)
    done = subprocess.run(
        [promtool, "test", "rules", "alert_rules.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
