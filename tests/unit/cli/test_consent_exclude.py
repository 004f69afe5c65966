"""`cohortium consent exclude`: a patient left, and the hospital says from which round on, and nothing about who."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import test_consent_proofs
from cli_stage import CommandLine, Federation

from cohortium_connector.app import open_site
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.store import studies
from cohortium_kit.clock import SystemClock
from cohortium_messages.consent import ConsentFile, Withdrawal
from cohortium_messages.study_file import parse_study

STUDY = """
apiVersion: cohortium/study/1
governance: trial
name: heart
purpose: test
dataset:
  features: [{name: age, type: float, range: [18, 110]}]
  label: {name: disease, type: binary}
  split: {test: 0.3}
recipe: {trainer: torch.logistic}
federation: {rounds: 2, min_sites: 3}
"""


async def offered(config: Path) -> bytes:
    """The study is offered to the hospital; returns its digest."""
    study = parse_study(STUDY)
    desk, db = await open_site(ConnectorSettings.load(config), SystemClock())
    try:
        await db.run("test_offer", lambda tx: studies.save_offer(tx, study, study.digest(), by="test"))
    finally:
        await db.close()
    assert desk.identity.site_id
    return study.digest()


@pytest.fixture
def config(cli: CommandLine, federation: Federation, tmp_path: Path) -> Path:
    """A hospital whose two cohorts were used: ada and Müller in both, bob in the first."""
    (tmp_path / "table.csv").write_text("age,disease\n1,0\n")
    federation.invitation(tmp_path / "invitation.json")
    words = ("site", "join", "invitation.json", "--dir", "north", "--data", "table.csv")
    made = Path(str(cli.facts(*words)["config"]))
    asyncio.run(test_consent_proofs._used(made))
    return made


def exclude(cli: CommandLine, config: Path, person: str, *more: str) -> dict[str, object]:
    words = ("consent", "exclude", "heart", "--config", str(config), "--out", "left.json", "--person", person)
    facts: dict[str, object] = cli.facts(*words, *more)
    return facts


def test_the_file_names_the_first_round_and_nobody(cli: CommandLine, config: Path, tmp_path: Path) -> None:
    digest, before = asyncio.run(offered(config)), datetime.now(UTC)
    facts = exclude(cli, config, " bob ", "--effect", "retrain")
    text = (tmp_path / "left.json").read_text()
    (record,) = ConsentFile.model_validate_json(text).records
    left = record.document
    assert isinstance(left, Withdrawal)
    assert (left.type, left.requested_effect, left.from_round, left.study_digest) == (
        "patient_set",
        "retrain",
        0,
        digest,
    )
    assert left.effective_at >= before
    assert facts["from_round"] == 0
    assert record.acts == (), "somebody of the hospital signs it"
    assert "bob" not in text
    assert "bob" not in json.dumps(facts)


def test_who_was_never_used_or_what_is_no_effect_is_said(cli: CommandLine, config: Path, tmp_path: Path) -> None:
    words = ("consent", "exclude", "heart", "--config", str(config), "--out", "left.json", "--person")
    assert "no offer 'heart'" in cli.error(*words, "bob", code=1)
    asyncio.run(offered(config))
    assert "nothing to exclude" in cli.error(*words, "eve", code=1)
    assert "stop_future" in cli.error(*words, "bob", "--effect", "forget", code=2)
    assert not (tmp_path / "left.json").exists()
