"""`cohortium sites`, and `cohortium connector preflight` where there is nothing to try yet."""

from pathlib import Path
from typing import Any

from cli_stage import SITE_ID, CommandLine, PlayedServices

from cohortium_cli.sites import site_row

CAPACITY = {"cpus": 4, "memory_mb": 8000, "up_mbit_s": 38.1, "down_mbit_s": 93.6}


def site(**more: Any) -> dict[str, Any]:
    return {"site_id": SITE_ID, "name": "North", "state": "active", "preflight": None, "preflight_at": None, **more}


def trial(*checks: tuple[str, str, str | None], **capacity: Any) -> dict[str, Any]:
    told = [{"name": name, "state": state, "code": code} for name, state, code in checks]
    report = {"site_id": SITE_ID, "checks": told, "capacity": CAPACITY | capacity}
    return site(preflight=report, preflight_at="2026-11-21T12:00:00Z")


def test_a_hospital_is_a_line_with_what_its_trial_found() -> None:
    assert site_row(site())[3:] == ["", "no trial yet"]
    assert site_row(trial(("line", "ok", None)))[3:] == ["38/94 Mbit/s", "2026-11-21 all well"]
    found = site_row(trial(("clock", "failed", "CLOCK_OFF"), ("data", "warning", "DATA_WRITABLE"), up_mbit_s=None))
    assert found[3:] == ["", "2026-11-21 failed: clock CLOCK_OFF; warning: data DATA_WRITABLE"]


def test_they_are_listed(cli: CommandLine, services: PlayedServices) -> None:
    services.listed("GET /sites", [])
    assert "cohortium site invite" in cli.ok("sites")
    services.listed("GET /sites", [trial(("line", "ok", None)), site(name="[red]South\x1b[2J")])
    text = cli.ok("sites")
    assert "all well" in text
    assert "\x1b" not in text
    assert cli.facts("sites")[0]["name"] == "North"


def test_a_trial_without_settings_says_what_is_missing(cli: CommandLine, tmp_path: Path) -> None:
    said = cli("connector", "preflight", "--config", str(tmp_path / "none.yaml"))
    assert said.code != 0
    assert "none.yaml" in said.err
    (tmp_path / "report.json").write_text("{}")
    words = ("connector", "preflight", "--config", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "report.json"))
    assert "choose another file" in cli(*words).err
