"""`cohortium budget`: what a person in the hospital sees of the ledger."""

import asyncio
import json
import logging
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
import typer
import yaml
from cohortium_hospital import __main__ as wheel
from ledger_stage import Q1, part_of, plan_of, run_id, window
from typer.testing import CliRunner, Result

from cohortium_cli import budget as command
from cohortium_cli.budget import budget, budget_write_off
from cohortium_cli.output import quiet_logs
from cohortium_connector.app import open_site
from cohortium_connector.ledger.anchor import Anchor
from cohortium_connector.ledger.service import Ledger
from cohortium_connector.settings import ConnectorSettings
from cohortium_kit.clock import SystemClock
from cohortium_messages.budgets import BudgetView, SiteBudget
from cohortium_messages.governance import Invitation, ServiceKeys, TrustDocument
from cohortium_messages.ids import SiteId
from cohortium_protocol.documents import sign_trust
from cohortium_protocol.keys import SealKey
from cohortium_protocol.signing import IdentityKey

ROLES = ("enrolment", "consent", "scheduler", "aggregator", "audit")


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A command sets up logging for its whole process, which here is the tests'."""
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    quiet_logs()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The settings of a connector that has joined a federation."""
    officer, now = IdentityKey.generate(), datetime.now(UTC)
    services = ServiceKeys(
        **{role: IdentityKey.generate().public for role in ROLES}, aggregator_seal=SealKey.generate().public
    )
    trust = TrustDocument(
        federation="test-federation",
        version=1,
        issued_at=now,
        services=services,
        governance_keys=(officer.public,),
        threshold=1,
    )
    invitation = Invitation(
        site_id=SiteId("00000000-0000-4000-8000-00000000000a"),
        name="Hospital",
        token="t" * 43,
        expires_at=now + timedelta(days=1),
        trust=sign_trust(trust, officer),
    )
    (tmp_path / "invitation.json").write_text(invitation.model_dump_json())
    values = {
        "amqp_url": "memory://",
        "spool_dir": str(tmp_path / "spool"),
        "invitation_file": str(tmp_path / "invitation.json"),
        "governance_keys": [officer.public.hex()],
        "governance_threshold": 1,
        "privacy": {"epsilon_max": 3.0, "delta": 1e-5},
    }
    path = tmp_path / "connector.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def ask(*words: str) -> Result:
    app = typer.Typer()
    app.command("budget")(budget)
    app.command("budget-write-off")(budget_write_off)
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return CliRunner(env=environment).invoke(app, list(words), catch_exceptions=False)


def spend(config: Path, number: int, uses: int) -> None:
    """A connector that reserves and begins: 5 rounds of 0.1 each."""

    async def inside() -> None:
        settings = ConnectorSettings.load(config)
        desk, db = await open_site(settings, SystemClock())
        anchor = Anchor(desk.spool.ledger_head)
        ledger = Ledger(desk.identity.site_id, desk.identity.key, settings.privacy.limits, anchor, desk.post)
        await ledger.open(db)
        await db.run("reserve", lambda tx: ledger.reserve(tx, plan_of(number, part_of(0.1, 5))))
        for use in range(uses):
            name = window(100 * number + use)
            await db.run("commit", lambda tx, name=name: ledger.commit(tx, run_id(number), "training", name))
        await ledger.note_head(db)
        await db.close()

    asyncio.run(inside())


def test_an_untouched_ledger_says_so(config: Path) -> None:
    said = ask("budget", "--config", str(config))
    assert said.exit_code == 0
    assert "No study has been charged" in said.stdout


def test_people_see_what_is_left_and_who_has_it(config: Path) -> None:
    spend(config, 1, uses=2)
    said = ask("budget", "--config", str(config), "--report")
    assert said.exit_code == 0, said.output
    assert "5 ledger entries" not in said.stdout
    assert "4 ledger entries, each signed and in its place" in said.stdout
    for words in (Q1, "3 at delta 1e-05", "heart", "open", "used, tighter"):
        assert words in said.stdout
    facts = json.loads(ask("budget", "--config", str(config), "--json").stdout)
    (account,) = facts["accounts"]
    assert account["block"] == Q1
    assert account["committed_share"] + account["reserved_share"] + account["left_share"] == pytest.approx(1)
    assert account["reserved_share"] == pytest.approx(1.5 * account["committed_share"])
    assert account["epsilon_used"] < account["epsilon_set_aside"] < 3
    assert account["epsilon_report"] is None
    (run,) = account["runs"]
    assert (run["study"], run["run"], run["rounds_planned"], run["rounds_begun"]) == ("heart", run_id(1), 5, 2)
    each = (account["committed_share"] + account["reserved_share"]) / 5
    assert run["exhausted_at_round"] == 5 + int(account["left_share"] / each)
    assert f"round {run['exhausted_at_round']}" in said.stdout
    assert "2 of 5" in said.stdout


def test_the_operator_sees_what_hospitals_tell(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = BudgetView(
        site_id="00000000-0000-4000-8000-00000000000a",
        site_name="St. Anna",
        study_id="heart",
        run_id=run_id(1),
        part="training",
        planned_steps=5,
        charged_steps=4,
        begun_steps=3,
        order=7,
        rdp=0.1,
        exhausted_at_round=12,
    )
    site = SiteBudget(
        site_id=run.site_id,
        site_name=run.site_name,
        epsilon=2.0,
        epsilon_used=1.5,
        epsilon_cap=3.0,
        delta=1e-6,
        used_share=0.4,
        reserved_share=0.1,
        left_share=0.5,
        runs=(run,),
    )
    uncapped = site.model_copy(
        update=dict.fromkeys(("epsilon", "epsilon_used", "epsilon_cap", "used_share", "reserved_share", "left_share"))
    )
    monkeypatch.setattr(command, "ask", lambda path, _: [site, uncapped] if path == Path("operator.yaml") else [])
    said = ask("budget", "--operator", "operator.yaml")
    assert said.exit_code == 0, said.output
    for words in ("St. Anna", "3 at delta 1e-06", "40.0% (epsilon 1.5)", "10.0%", "50.0%", "3 of 5", "round 12"):
        assert words in said.stdout
    assert "none agreed" in said.stdout
    spend(config, 1, uses=1)
    both = json.loads(ask("budget", "--config", str(config), "--operator", "operator.yaml", "--json").stdout)
    assert both["accounts"][0]["block"] == Q1
    assert [one["epsilon_cap"] for one in both["federation"]] == [3.0, None]


def test_nobody_s_budget_is_a_question_without_a_meaning() -> None:
    said = ask("budget")
    assert said.exit_code == 2
    assert "--config in a hospital, or --operator" in said.stderr


def test_looking_changes_nothing(config: Path) -> None:
    spend(config, 1, uses=1)
    first = ask("budget", "--config", str(config), "--json").stdout
    settings = yaml.safe_load(config.read_text())
    settings["privacy"]["epsilon_max"] = 1.0
    config.write_text(yaml.safe_dump(settings))
    assert ask("budget", "--config", str(config), "--json").stdout == first


def test_a_changed_ledger_is_told_and_not_shown(config: Path) -> None:
    spend(config, 1, uses=2)
    with sqlite3.connect(config.parent / "spool" / "spool.db") as connection:
        connection.execute("DROP TRIGGER ledger_row_is_final")
        connection.execute("UPDATE ledger_row SET sig = zeroblob(64) WHERE sequence = 3")
    connection.close()
    said = ask("budget", "--config", str(config))
    assert said.exit_code == 1
    assert "entry 3 is not signed by this site's key" in said.stderr
    assert ask("budget-write-off", "--config", str(config), "--yes").exit_code == 1


def test_a_lost_ledger_is_written_off_when_one_is_sure(config: Path) -> None:
    spend(config, 1, uses=1)
    with sqlite3.connect(config.parent / "spool" / "spool.db") as connection:
        connection.execute("DROP TRIGGER ledger_row_stays")
        connection.execute("DELETE FROM ledger_row WHERE sequence = 3")
    connection.close()
    said = ask("budget", "--config", str(config))
    assert said.exit_code == 1
    assert "older copy" in said.stderr
    assert "budget-write-off" in said.stderr
    refused = ask("budget-write-off", "--config", str(config))
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr
    written = ask("budget-write-off", "--config", str(config), "--yes")
    assert written.exit_code == 0, written.output
    facts = json.loads(ask("budget", "--config", str(config), "--json").stdout)
    assert [account["frozen"] for account in facts["accounts"]] == [True]


def at_the_hospital(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The command of the hospital's own wheel, which has no platform beside it."""
    code = wheel.main(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_hospital_without_the_platform_sees_its_budget_too(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    untouched = at_the_hospital(capsys, "budget", "--config", str(config))
    assert untouched[0] == 0
    assert "No study has been charged" in untouched[1]
    spend(config, 1, uses=2)
    code, text, _ = at_the_hospital(capsys, "budget", "--config", str(config), "--report")
    assert code == 0
    for words in (
        f"{Q1}: epsilon 3 at delta 1e-05 allowed",
        "by the tighter report",
        "2 of 5 rounds begun",
        "at round",
    ):
        assert words in text
    _, facts, _ = at_the_hospital(capsys, "budget", "--config", str(config), "--json")
    assert json.loads(facts) == json.loads(ask("budget", "--config", str(config), "--json").stdout)


def test_a_hospital_without_the_platform_can_write_a_ledger_off(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spend(config, 1, uses=1)
    with sqlite3.connect(config.parent / "spool" / "spool.db") as connection:
        connection.execute("DROP TRIGGER ledger_row_stays")
        connection.execute("DELETE FROM ledger_row WHERE sequence = 3")
    connection.close()
    code, _, error = at_the_hospital(capsys, "budget", "--config", str(config))
    assert (code, "older copy" in error) == (1, True)
    code, _, error = at_the_hospital(capsys, "budget-write-off", "--config", str(config))
    assert (code, "--yes" in error) == (2, True)
    assert at_the_hospital(capsys, "budget-write-off", "--config", str(config), "--yes")[0] == 0
    code, text, _ = at_the_hospital(capsys, "budget", "--config", str(config))
    assert (code, "frozen, nothing more is charged" in text) == (0, True)
