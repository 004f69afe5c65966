"""What windows of private studies ask: the same for scheduler and connector, and enough noise whoever stays."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium_messages.runs import EvaluationResult
from cohortium_messages.secure_sum import ModelRef, NoiseSpec, Purpose
from cohortium_messages.study import Study
from cohortium_privacy.evaluation import histogram_vector, noisy_evaluation
from cohortium_privacy.lattice import LEAST_SITE_SIGMA
from cohortium_privacy.prices import planned_parts
from cohortium_privacy.public_inputs import check_statistics, public_rules
from cohortium_privacy.windows import (
    HISTOGRAM_WORDS,
    count_factor,
    noise_for,
    plan_for,
    private_spec,
    private_vector_length,
    sensitivity_for,
    share_for,
    total_sigma,
    update_scale,
    usual_plan,
)
from cohortium_protocol.metrics import evaluation_vector, metrics_from_histograms, metrics_from_sums
from cohortium_protocol.statistics import Preprocessing, SumsRefused
from cohortium_protocol.trees.random_trees import sensitivity, vector_length
from examples import examples

SEEDS = (bytes(32), bytes(32))
MODEL = ModelRef(version=3, model_hash=bytes(32))


def study(privacy: dict[str, Any], **recipe: Any) -> Study:
    return Study.model_validate(
        {
            "apiVersion": "cohortium/study/1",
            "governance": "trial",
            "name": "small",
            "purpose": "Ask for noise",
            "dataset": {
                "features": [
                    {"name": "age", "type": "float", "range": [20, 100]},
                    {"name": "sex", "type": "category", "levels": ["f", "m"]},
                ],
                "label": {"name": "disease", "type": "binary"},
                "split": {"test": 0.3},
            },
            "recipe": recipe or {"trainer": "torch.logistic", "local": {"lr": 0.5}},
            "federation": {"rounds": 4},
            "metrics": ["auc", "accuracy", "brier", "calibration", "log_loss"],
            "privacy": privacy,
        }
    )


LOCAL = study(
    {"mode": "local", "epsilon": 4, "delta": 1e-5, "sampling_rate": 0.2, "patients": 300, "evaluation_epsilon": 2}
)
SUMMED = study(
    {"mode": "distributed", "epsilon": 4, "delta": 1e-5, "sampling_rate": 0.5, "patients": 800, "evaluation_epsilon": 2}
)
SITE = study({"mode": "site", "epsilon": 8, "delta": 1e-4, "sites": 50, "clip": 3.0})
TREES = study(
    {"mode": "distributed", "epsilon": 4, "delta": 1e-5, "patients": 800},
    trainer="lightgbm.random_trees",
    trees=6,
    trees_per_sum=3,
)
OPEN = study({"mode": "none"})


def test_lengths_and_rings_by_mode() -> None:
    assert {private_vector_length(one, "statistics") for one in (LOCAL, SUMMED, SITE, TREES)} == {1}
    assert private_vector_length(OPEN, "statistics") is None
    assert private_vector_length(LOCAL, "update") is None
    assert private_vector_length(SUMMED, "update") == private_vector_length(SITE, "update") == 4
    assert private_vector_length(TREES, "update") == vector_length(TREES)
    rings = {one.privacy.mode: spec.ring_bits for one in (SUMMED, SITE) if (spec := private_spec(one, "update", SEEDS))}
    assert rings == {"distributed": 32, "site": 32}
    leaves, counts = private_spec(TREES, "update", SEEDS), private_spec(SUMMED, "evaluation", SEEDS)
    assert leaves is not None
    assert counts is not None
    assert (leaves.ring_bits, counts.ring_bits, counts.dimension, counts.weight_cap) == (64, 64, HISTOGRAM_WORDS, 1)


@pytest.mark.parametrize(
    ("which", "purpose"),
    [(SITE, "evaluation"), (TREES, "evaluation"), (SUMMED, "refinement"), (LOCAL, "training")],
)
def test_windows_that_nothing_is_promised_about_do_not_exist(which: Study, purpose: Purpose) -> None:
    with pytest.raises(ValueError, match=f"has no {purpose} window"):
        private_vector_length(which, purpose)
    with pytest.raises(ValueError, match=f"has no {purpose} window"):
        noise_for(which, purpose, usual_plan(which), 4, 1)


def test_noise_is_none_only_where_no_row_is_read() -> None:
    for one in (LOCAL, SUMMED, SITE, TREES):
        plan = usual_plan(one)
        assert noise_for(one, "statistics", plan, 50, 16) is None
        assert noise_for(one, "update", plan, 50, 16) is not None
    assert noise_for(OPEN, "update", usual_plan(OPEN), 4, 1) is None
    local = noise_for(LOCAL, "update", usual_plan(LOCAL), 4, 1)
    assert local is not None
    assert (local.site_sigma, local.sampling_rate) == (0, 0.2)
    assert total_sigma(LOCAL, "update", local, 4) == 0


@given(
    k_min=st.integers(3, 100),
    collusion=st.integers(0, 98),
    extra=st.integers(0, 100),
    which=st.sampled_from([SUMMED, TREES]),
)
@settings(max_examples=examples(60), deadline=None)
def test_the_fewest_honest_sites_that_can_be_in_a_sum_have_the_whole_noise(
    k_min: int, collusion: int, extra: int, which: Study
) -> None:
    k_min = max(k_min, collusion + 2)
    plan = plan_for(which, min(200, k_min + extra), k_min, collusion)
    assert plan is not None
    noise = noise_for(which, "update", plan, k_min, collusion)
    assert noise is not None
    honest = noise.site_sigma * math.sqrt(k_min - collusion)
    assert honest == pytest.approx(plan.noise_multiplier * sensitivity_for(which, "update"))
    assert share_for(which, "update", noise, min(200, k_min + extra)).sigma >= LEAST_SITE_SIGMA
    assert total_sigma(which, "update", noise, k_min) >= honest


@given(k_min=st.integers(3, 150), collusion=st.integers(0, 100))
@settings(max_examples=examples(40), deadline=None)
def test_counts_have_their_whole_noise_too_in_every_mode(k_min: int, collusion: int) -> None:
    k_min = max(k_min, collusion + 2)
    for one in (LOCAL, SUMMED):
        plan = usual_plan(one)
        noise = noise_for(one, "evaluation", plan, k_min, collusion)
        assert plan is not None
        assert noise is not None
        factor = count_factor(noise)
        assert noise.site_sigma >= LEAST_SITE_SIGMA
        honest = noise.site_sigma * math.sqrt(k_min - collusion) / factor
        assert honest == pytest.approx(plan.evaluation[0].noise_multiplier)
        share_for(one, "evaluation", noise, k_min)


def test_steps_of_the_lattice_are_worth_a_gradient_step_or_a_mean() -> None:
    summed, site = (
        noise_for(SUMMED, "update", usual_plan(SUMMED), 4, 1),
        noise_for(SITE, "update", usual_plan(SITE), 50, 16),
    )
    assert summed is not None
    assert site is not None
    assert update_scale(SUMMED, summed, 4) == pytest.approx(0.5 * 0.01 / math.sqrt(4) / (0.5 * 800))
    assert update_scale(SITE, site, 60) == pytest.approx(0.01 * 3.0 / math.sqrt(4) / 60)
    with pytest.raises(ValueError, match="not sums on a lattice"):
        update_scale(TREES, summed, 4)


def test_trees_have_the_noise_of_their_own_sensitivity() -> None:
    noise = noise_for(TREES, "update", usual_plan(TREES), 5, 1)
    assert noise is not None
    assert noise.site_sigma == pytest.approx(noise.multiplier * sensitivity(TREES) / 2)


def test_inputs_come_from_public_ranges_alone() -> None:
    rules = public_rules(SUMMED, 4)
    assert isinstance(rules, Preprocessing)
    age = rules.features[0]
    assert (age.name, rules.training_rows, rules.sites) == ("age", 800, 4)
    assert age.model_dump()["mean"] == 60
    assert age.model_dump()["std"] == pytest.approx(80 / math.sqrt(12))
    bins = public_rules(TREES, 4)
    assert bins.feature_names() == ("age", "sex")  # type: ignore[union-attr]
    check_statistics(np.zeros(1, dtype=np.int64))
    for wrong in ([1], [0, 0], []):
        with pytest.raises(SumsRefused):
            check_statistics(wrong)


def evaluated(scores: np.ndarray, labels: np.ndarray, noise: np.ndarray, spec: NoiseSpec) -> EvaluationResult:
    return noisy_evaluation(SUMMED, histogram_vector(scores, labels, count_factor(spec)) + noise, spec, 4, MODEL)


def test_metrics_of_noisy_histograms() -> None:
    spec = noise_for(SUMMED, "evaluation", usual_plan(SUMMED), 4, 1)
    assert spec is not None
    draw = np.random.default_rng(5)
    labels = draw.integers(0, 2, 40_000)
    scores = np.clip(0.5 + 0.25 * (labels - 0.5) + draw.normal(0, 0.15, labels.size), 0, 1)
    clear = evaluated(scores, labels, np.zeros(HISTOGRAM_WORDS, dtype=np.int64), spec)
    exact = metrics_from_sums(evaluation_vector(scores, labels), SUMMED.metrics)
    assert (clear.rows, clear.positives) == (40_000, int(labels.sum()))
    assert clear.auc == pytest.approx(exact.auc, abs=1e-12)
    assert clear.accuracy == pytest.approx(exact.accuracy, abs=1e-12)
    assert clear.brier == pytest.approx(exact.brier, abs=0.003)
    assert clear.log_loss == pytest.approx(exact.log_loss, abs=0.01)
    assert clear.calibration is not None
    sigma = total_sigma(SUMMED, "evaluation", spec, 4)
    noisy = evaluated(scores, labels, np.rint(draw.normal(0, sigma, HISTOGRAM_WORDS)).astype(np.int64), spec)
    assert noisy.count_noise == pytest.approx(sigma / count_factor(spec))
    assert noisy.auc != clear.auc
    assert noisy.auc == pytest.approx(clear.auc, abs=0.01)


def test_noise_without_rows_gives_no_metrics_and_no_error() -> None:
    found = metrics_from_histograms([-5] * HISTOGRAM_WORDS, 4, SUMMED.metrics)
    assert (found.rows, found.auc) == (0, None)
    spec = noise_for(SUMMED, "evaluation", usual_plan(SUMMED), 4, 1)
    assert spec is not None
    with pytest.raises(SumsRefused):
        noisy_evaluation(SUMMED, [0] * 199, spec, 4, MODEL)


def test_prices_at_the_plans_own_order_are_what_the_plan_costs() -> None:
    for one in (LOCAL, SUMMED):
        plan = usual_plan(one)
        assert plan is not None
        training, evaluation = planned_parts(plan, one.rounds)
        price = training.prices[plan.order - 2]
        assert price is not None
        assert price * training.uses == pytest.approx(plan.divergence)
        assert (training.uses, evaluation.uses) == (4, 1)
