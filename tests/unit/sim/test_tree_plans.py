"""Simulations of studies with trees: what can be carried out, what is a surprise, how a site leaves a session."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_surprises import GOOD, round_status, site

from cohortium_messages.runs import EvaluationResult
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.status import BoostingStatus, RunStatus
from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_protocol.metrics import Metrics
from cohortium_sim import plan as plans
from cohortium_sim.outcome import Facts, Stopwatch, make_result, surprises
from cohortium_sim.plan import Drop, Plan, PlanError, SiteTable, check_plan

TREES = (Path(__file__).resolve().parents[2] / "studies" / "heart-trees.yaml").read_text()


def tree_study(*pairs: tuple[str, str]) -> Study:
    text = TREES.replace("  min_sites: 3", "  min_sites: 3\n  rejoin_s: 20")
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    return parse_study(text)


ALLOWED = ("  rejoin_s: 20", "  rejoin_s: 20\n  allow_cohort_change: true")
STOPPING = ("    lambda_l2: 1", "    lambda_l2: 1\n    early_stopping_round: 5")


@pytest.fixture
def tree_plan(plan: Plan) -> Plan:
    """Four sites."""
    return replace(plan, study=tree_study(), sites=(*plan.sites, SiteTable("d", plan.sites[0].path)))


class TestPlans:
    @pytest.mark.parametrize(
        ("pairs", "drops"),
        [
            ([], [Drop("a", 1, "after")]),
            ([ALLOWED], [Drop("a", 1, "after")]),
            ([ALLOWED], [Drop("a", 1, "before")]),
            ([], [Drop("a", 1, "after"), Drop("b", 1, "after")]),
        ],
    )
    def test_what_can_be_carried_out(self, pairs: list[tuple[str, str]], drops: list[Drop], tree_plan: Plan) -> None:
        wanted = replace(tree_plan, study=tree_study(*pairs), drops=tuple(drops))
        assert check_plan(wanted) is wanted

    @pytest.mark.parametrize(
        ("pairs", "changes", "said"),
        [
            ([], {"drops": (Drop("a", 2, "after"),)}, "training with lightgbm is one round; drop in round 1"),
            ([], {"drops": (Drop("a", 1, "before"),)}, "no tree would stand"),
            (
                [ALLOWED],
                {"drops": (Drop("a", 1, "after"), Drop("b", 1, "after"))},
                "2 sites would be left, and the study needs 3",
            ),
            ([], {"drops": (Drop("a", 1, "after"),), "timeout_s": 50.0}, "would wait 50 s for it"),
        ],
    )
    def test_what_cannot(
        self, pairs: list[tuple[str, str]], changes: dict[str, Any], said: str, tree_plan: Plan
    ) -> None:
        with pytest.raises(PlanError) as caught:
            check_plan(replace(tree_plan, study=tree_study(*pairs), **changes))
        assert said in str(caught.value)
        assert str(caught.value).startswith("--drop a@")

    def test_a_missing_library_is_named(self, tree_plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plans, "find_spec", lambda name: None)
        with pytest.raises(PlanError, match="the trainer lightgbm needs LightGBM; install it with"):
            check_plan(tree_plan)


@pytest.fixture
def facts(tree_plan: Plan) -> Facts:
    """A run that went as planned: all 60 boosting rounds, in one session."""
    status = RunStatus(
        run_id="8f14e45f-ceea-467f-9c5b-0d8a5c3b7a11",
        study_id="trees",
        study_digest=tree_plan.study.digest(),
        state="FINISHED",
        reason="",
        sentence=None,
        round=1,
        rounds=1,
        created_at="2026-11-21T09:30:00Z",  # type: ignore[arg-type]
        ended_at=None,
        boosting=BoostingStatus(trees=60, rounds=60, sessions=1, steps=540),
        purpose="Plan",
        mode="synchronous",
        model=None,
        rounds_done=(round_status(1),),
        window=None,
        sites=(site("a"), site("b"), site("c")),
        secure_sum=None,
        attempts_failed=0,
    )
    return Facts(tree_plan, status, GOOD, None, frozenset(), {"all": 100.0}, {})


def with_trees(facts: Facts, trees: int, **changes: Any) -> Facts:
    boosting = BoostingStatus(trees=trees, rounds=60, sessions=2, steps=300)
    return replace(facts, status=facts.status.model_copy(update={"boosting": boosting, **changes}))


def test_all_trees_are_no_surprise(facts: Facts) -> None:
    assert surprises(facts) == ()


def test_missing_trees_are_one(facts: Facts) -> None:
    fewer = with_trees(facts, 31, reason="SITES_LOST")
    assert surprises(fewer) == ("29 of 60 boosting rounds were not done",)
    stopping = replace(facts.plan, study=tree_study(STOPPING))
    assert surprises(replace(fewer, plan=stopping)) == ("29 of 60 boosting rounds were not done",)


def test_early_stopping_ends_as_planned(facts: Facts) -> None:
    stopping = replace(facts.plan, study=tree_study(STOPPING))
    assert surprises(replace(with_trees(facts, 31), plan=stopping)) == ()


def test_a_site_that_was_to_vanish_takes_the_other_trees_with_it(facts: Facts) -> None:
    vanished = replace(with_trees(facts, 30, reason="SITES_LOST"), vanished=frozenset("a"))
    dropping = replace(facts.plan, drops=(Drop("a", 1, "after"),))
    assert surprises(replace(vanished, plan=dropping)) == ()
    allowed = replace(dropping, study=tree_study(ALLOWED))
    assert surprises(replace(vanished, plan=allowed)) == ("30 of 60 boosting rounds were not done",)


def test_a_session_that_never_ended_is_a_round_not_done(facts: Facts) -> None:
    assert surprises(with_trees(facts, 0, rounds_done=(), state="FAILED", sentence="x")) == (
        "the run ended FAILED: x",
        "1 of 1 rounds were not done",
    )


def test_the_result_has_training_and_every_baseline(facts: Facts) -> None:
    jobs = pytest.importorskip("cohortium_connector.training.jobs")
    evaluation = EvaluationResult(
        model=ModelRef(version=0, model_hash=bytes(32)), rows=9, positives=4, auc=0.7, accuracy=0.6, log_loss=0.5
    )
    binned = Metrics(rows=9, positives=4, auc=0.7, accuracy=0.6, log_loss=0.4)
    trees = jobs.Baseline(name="pooled", training_rows=5, exact_auc=0.72, binned=binned, evaluation=evaluation)
    bagging = trees.model_copy(update={"name": "bagging", "exact_auc": 0.71})
    plain = trees.model_copy(update={"name": "a", "evaluation": None})
    done = jobs.BaselinesDone(pooled=trees, local=(plain,), bagging=bagging, refused=(), seconds=1.0, peak_mb=1.0)
    clock = iter(float(number) for number in range(9))
    result, _ = make_result(replace(facts, baselines=done), Stopwatch(lambda: next(clock)))
    assert result.training is not None
    assert (result.training.trees, result.training.steps) == (60, 540)
    assert result.metrics.pooled is not None
    assert (result.metrics.pooled.auc, result.metrics.pooled.auc_error_bound) == (0.72, 0.0)
    assert result.metrics.pooled.log_loss == 0.5
    assert result.metrics.bagging is not None
    assert result.metrics.bagging.auc == 0.71
    assert result.metrics.local["a"].log_loss == 0.4
    plainly = facts.plan.study.model_copy(update={"metrics": ("auc",)})
    clock = iter(float(number) for number in range(9))
    unasked = replace(facts, baselines=done, plan=replace(facts.plan, study=plainly))
    result, _ = make_result(unasked, Stopwatch(lambda: next(clock)))
    assert result.metrics.local["a"].log_loss is None
