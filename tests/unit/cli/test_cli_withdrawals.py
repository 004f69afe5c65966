"""What officers are told of a retraining that hospitals refuse, before they decide it and while it waits."""

from pathlib import Path
from typing import Any

import pytest
from cli_stage import RUN_ID, SITE_ID, CommandLine, PlayedServices

from cohortium_messages.consent import ConsentFile, WithdrawalEffect

LEFT = "ab" * 32
CASE: dict[str, Any] = {
    "withdrawal": LEFT,
    "type": "institution",
    "site_id": SITE_ID,
    "study_id": "heart-disease",
    "study_digest": "5a" * 32,
    "state": "EFFECTIVE",
    "received_at": "2027-01-01T00:00:00Z",
    "models": [{"run_id": RUN_ID, "model": {"version": 0, "model_hash": "0a" * 32}}],
    "decision": None,
    "fault": None,
    "refused": [],
    "deadlines": [],
}
SETTING = "refuse_cohort_differing_by_one: false"


def answers(services: PlayedServices, **changes: Any) -> None:
    services.listed("GET /withdrawals", [CASE | changes])


@pytest.mark.parametrize(
    ("kind", "effect", "told"),
    [("institution", "retrain", True), ("institution", "retire", False), ("patient_set", "retrain", False)],
)
def test_who_decides_to_train_again_without_one_hospital_is_told_what_it_takes(
    cli: CommandLine, services: PlayedServices, tmp_path: Path, kind: str, effect: str, told: bool
) -> None:
    answers(services, type=kind)
    said = cli.ok("consent", "decide", "abab", "--effect", effect, "--out", "decision.json")
    assert (SETTING in " ".join(said.split())) == told
    (record,) = ConsentFile.model_validate_json((tmp_path / "decision.json").read_text()).records
    assert isinstance(record.document, WithdrawalEffect)
    assert record.document.effect == effect
    facts = cli.facts("consent", "decide", "abab", "--effect", effect, "--out", "decision.json")
    assert ("note" in facts) == told


@pytest.mark.parametrize(
    ("agreed", "named", "decided"),
    [(None, None, "stop_future"), ("retrain", None, "retrain"), ("retrain", "retire", "retire")],
)
def test_what_the_terms_promise_is_decided_unless_more_is_named(
    cli: CommandLine, services: PlayedServices, tmp_path: Path, agreed: str | None, named: str | None, decided: str
) -> None:
    answers(services, agreed_effect=agreed)
    cli.ok("consent", "decide", "abab", "--out", "decision.json", *(("--effect", named) if named else ()))
    (record,) = ConsentFile.model_validate_json((tmp_path / "decision.json").read_text()).records
    assert isinstance(record.document, WithdrawalEffect)
    assert record.document.effect == decided


def test_less_than_the_terms_promise_is_not_written(cli: CommandLine, services: PlayedServices, tmp_path: Path) -> None:
    answers(services, agreed_effect="retrain")
    said = cli.error("consent", "decide", "abab", "--effect", "stop_future", "--out", "decision.json", code=2)
    assert "less than the hospital's data-use terms promise, and would be refused: retrain at least" in " ".join(
        said.split()
    )
    assert not (tmp_path / "decision.json").exists()


def test_the_list_shows_who_refuses_and_the_way_out(cli: CommandLine, services: PlayedServices) -> None:
    others = [f"{number}0000000-0000-4000-8000-000000000000" for number in (1, 2)]
    refused = [{"site_id": site, "code": "COHORT_DIFFERS_BY_ONE"} for site in others]
    decision = {"effect": "retrain"}
    answers(services, state="EXECUTING", decision=decision, refused=refused, fault="COHORT_DIFFERS_BY_ONE")
    said = " ".join(cli.ok("consent", "withdrawals").split())
    assert "COHORT_DIFFERS_BY_ONE" in said
    assert SETTING in said
    answers(services, state="EXECUTING", decision=decision, fault="NOT_ENOUGH_READY")
    said = " ".join(cli.ok("consent", "withdrawals").split())
    assert SETTING not in said
