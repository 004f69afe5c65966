"""What a run's status says of its promise: the statement, and what its sums have cost."""

import json
from dataclasses import replace
from typing import Any

import pytest
from course_story import SITES, ended, model
from test_private_params import PRIVACY
from test_scheduler_params import STUDY

from cohortium_cli.runs import _promise
from cohortium_messages.runs import EvaluationResult
from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_privacy.study_plans import statement_of
from cohortium_scheduler.domain.windows import Window
from cohortium_scheduler.promises import privacy_status
from cohortium_scheduler.status import status
from cohortium_scheduler.store import Run

RECIPE = STUDY % ("{trainer: torch.logistic}", "{rounds: 3}")


def private(mode: str) -> Study:
    return parse_study(RECIPE + f"privacy: {json.dumps({'mode': mode} | PRIVACY[mode])}\n")


def update(round_: int, state: Any = "RELEASED") -> Window:
    reason = "" if state == "RELEASED" else "NOT_ENOUGH_SHARES"
    return ended("update", state, reason, round_=round_, sites=SITES, survivors=SITES, model=model(round_))


def test_a_study_without_privacy_needs_no_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohortium_privacy.windows.usual_course", lambda _: pytest.fail("a plan was begun"))
    assert privacy_status(parse_study(RECIPE), []).statement.mode == "none"


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_released_and_lost_sums_are_spent_and_aborted_ones_are_not(mode: str) -> None:
    study = private(mode)
    promised = statement_of(study)
    start = [ended("statistics", sites=SITES, model=model(0))]
    assert privacy_status(study, start).epsilon_spent == 0
    spent = [0.0]
    windows = start
    for window, charged in (
        (update(1), 1),
        (update(2, "ABORTED"), 1),
        (ended("update", "CANCELLED", "NOT_ENOUGH_READY", round_=2), 1),
        (update(2, "FAILED"), 2),
        (ended("evaluation", round_=3, sites=SITES), 2),
        (update(2), 3),
    ):
        windows = [*windows, window]
        told = privacy_status(study, windows)
        assert (told.statement, told.sums_planned, told.sums_charged) == (promised, 3, charged)
        spent.append(told.epsilon_spent)
    assert spent == sorted(spent)
    assert len(set(spent)) == 4
    assert promised.epsilon is not None
    assert spent[-1] == pytest.approx(promised.epsilon_rdp)
    assert spent[-1] <= promised.epsilon
    line = _promise(told)
    assert f"{mode}, epsilon 4 at delta 1e-05 for each patient (rdp)" in line
    assert "3 of 3 noisy sums" in line


def test_a_run_without_privacy_says_so() -> None:
    told = privacy_status(parse_study(RECIPE), [update(1)])
    assert (told.statement.mode, told.sums_charged, told.epsilon_spent) == ("none", 0, 0)
    assert _promise(told) == "privacy: none"


def test_the_evaluation_of_a_plan_used_up_early_is_shown_with_the_model_that_it_is_of() -> None:
    study = private("local")
    run = Run(ended().run_id, study, study.digest(), "FINISHED", "PLAN_SPENT", update(1).state.ended_at)  # type: ignore[union-attr]
    result = EvaluationResult(model=model(1), rows=100, positives=40, auc=0.8)
    evaluation = ended("evaluation", round_=3, sites=SITES, evaluation=result)
    windows = [update(1), update(2, "FAILED"), update(2, "FAILED"), evaluation]
    windows = [replace(one, sequence=place) for place, one in enumerate(windows)]
    shown = status(run, windows, None, [], {}, [model(1)], frozenset())
    assert [(done.number, done.evaluation) for done in shown.rounds_done] == [(1, result)]
    assert (shown.round, shown.rounds) == (2, 3)
    assert shown.sentence is not None
    assert "fewer rounds" in shown.sentence
