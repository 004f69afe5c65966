"""Windows of private studies: what a hospital works out for itself is what the scheduler asks."""

import json
from dataclasses import replace
from typing import Any

import pytest
from test_scheduler_params import SEEDS, STUDY, asked, facts

from cohortium_messages.study_file import parse_study
from cohortium_privacy.windows import noise_for, plan_for, private_spec
from cohortium_scheduler.windows import RunFacts, course_of, least_cohort, plan_of, prices_of

PRIVACY: dict[str, dict[str, Any]] = {
    "local": {"epsilon": 4, "delta": 1e-5, "sampling_rate": 0.2, "patients": 300, "evaluation_epsilon": 2},
    "distributed": {"epsilon": 4, "delta": 1e-5, "sampling_rate": 0.5, "patients": 800},
}


def private(mode: str) -> RunFacts:
    text = STUDY % ("{trainer: torch.logistic}", "{rounds: 3}")
    known = facts(text + f"privacy: {json.dumps({'mode': mode} | PRIVACY[mode])}\n")
    return replace(known, plan=plan_of(known.study, known.manifest))


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_every_window_is_what_follows_from_study_and_manifest(mode: str) -> None:
    known = private(mode)
    study, least, c = known.study, least_cohort(known.study, known.manifest), known.manifest.collusion
    plan = plan_for(study, len(known.manifest.members), least, c)
    assert plan is not None
    for purpose in ("statistics", "update"):
        params = asked(known, purpose)  # type: ignore[arg-type]
        assert params.privacy_mode == mode
        assert params.noise == noise_for(study, purpose, plan, least, c)  # type: ignore[arg-type]
        expected = private_spec(study, purpose, SEEDS)  # type: ignore[arg-type]
        assert expected is None or params.vector == expected
    assert (params.vector.encoding, params.vector.weight_cap) == ("grid" if mode == "local" else "integer", 1)


def test_only_the_last_model_is_evaluated_and_only_where_that_is_paid_for() -> None:
    for mode, evaluates in (("local", True), ("distributed", False)):
        known = private(mode)
        course = course_of(known.study, known.manifest, 3)
        assert (course.evaluates, course.evaluate_every, course.charges) == (evaluates, 3, True)
    plain = facts(STUDY % ("{trainer: torch.logistic}", "{rounds: 3}"))
    assert not course_of(plain.study, plain.manifest, 3).charges
    with pytest.raises(ValueError, match="has no evaluation window"):
        asked(private("distributed"), "evaluation")


def test_consent_is_told_what_a_private_run_costs_and_of_others_nothing() -> None:
    known = private("local")
    training, evaluation = prices_of(known.study, known.manifest)
    assert known.plan is not None
    price = training.prices[known.plan.order - 2]
    assert price is not None
    assert (training.part, training.uses, evaluation.part, evaluation.uses) == ("training", 3, "evaluation", 1)
    assert price * 3 == pytest.approx(known.plan.divergence)
    plain = facts(STUDY % ("{trainer: torch.logistic}", "{rounds: 3}"))
    assert prices_of(plain.study, plain.manifest) == ()
    assert parse_study(STUDY % ("{trainer: torch.logistic}", "{rounds: 3}")).privacy.mode == "none"
