"""`cohortium consent exclude`: a patient left, and the hospital says from which round on, and nothing about who."""

import asyncio
import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
import test_consent_proofs
from cli_stage import CommandLine, Federation
from cohortium_hospital import __main__ as hospital

from cohortium_connector.app import open_site
from cohortium_connector.commands import LocalSite
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.store import studies
from cohortium_kit.clock import SystemClock
from cohortium_messages.consent import ConsentFile, Effect, Withdrawal
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


class TestInTheHospital:
    """The same with the hospital's own program, which has no part of the operator's."""

    def hospital(self, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
        code = hospital.main([str(word) for word in words])
        return code, capsys.readouterr().out

    def test_a_patient_s_cohorts_are_proven_to_the_auditor_alone(
        self, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("getpass.getpass", lambda prompt: "bob")
        out = tmp_path / "proof.json"
        code, said = self.hospital(capsys, "consent-prove", "heart", "-o", out, "-c", config)
        assert (code, said) == (0, f"{out}: the person was in 1 of 2 cohorts\n")
        assert stat.S_IMODE(out.stat().st_mode) == 0o600
        assert [proof["present"] for proof in json.loads(out.read_text())] == [True, False]

    def test_a_patient_s_exclusion_is_written_for_people_to_sign(
        self, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asyncio.run(offered(config))
        out = tmp_path / "left.json"
        words = ("consent-exclude", "heart", "--person", "bob", "--effect", "retire", "-o", out, "-c", config)
        code, said = self.hospital(capsys, *words)
        assert (code, "from round 0" in said) == (0, True)
        (record,) = ConsentFile.model_validate_json(out.read_text()).records
        assert isinstance(record.document, Withdrawal)
        assert record.document.requested_effect == "retire"
        assert "bob" not in out.read_text()

    def test_a_hospital_that_leaves_says_what_it_asks_for_the_models(
        self, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple[str, str]] = []

        async def withdraw(site: LocalSite, study: str, effect: Effect = "stop_future") -> int:
            asked.append((study, effect))
            return 1

        monkeypatch.setattr(LocalSite, "withdraw", withdraw)
        assert self.hospital(capsys, "withdraw", "heart", "--effect", "retrain", "-c", config)[0] == 0
        assert self.hospital(capsys, "withdraw", "heart", "-c", config)[0] == 0
        assert asked == [("heart", "retrain"), ("heart", "stop_future")]
