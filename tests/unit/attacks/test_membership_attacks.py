"""Membership inference on scores whose law is known."""

import math

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("torch", reason="the training extra is not installed")

from cohortium_connector.training.attacks.membership import (
    Observed,
    attacked,
    likelihood_scores,
    loss_scores,
    means_of_others,
    observe,
    true_label_logits,
)
from cohortium_connector.training.attacks.setting import PlainFit, scores_of
from cohortium_connector.training.base import Examples, Floats
from cohortium_messages.study import LocalTraining, LogisticRecipe, MlpRecipe

pytestmark = pytest.mark.torch


def observed(shift: float, spread: float = 3.0, models: int = 24, rows: int = 200, seed: int = 0) -> Observed:
    """Each row is as hard as it is (`spread`); to be a member moves its confidence by `shift` standard deviations."""
    chance = np.random.default_rng(seed)
    member = chance.random((models, rows)) < 0.5
    confidence = spread * chance.normal(size=rows) + chance.normal(size=(models, rows)) + shift * member
    return Observed(confidence, member, 0.5, 0.5)


def test_the_likelihood_ratio_reaches_the_best_that_there_is() -> None:
    """Two normals a standard deviation apart: no attacker is better than Φ(1/√2)."""
    seen = observed(1.0, models=64)
    best = float(stats.norm.cdf(1 / math.sqrt(2)))
    assert attacked(seen, likelihood_scores(seen)).auc.mean == pytest.approx(best, abs=0.015)
    assert attacked(seen, likelihood_scores(seen)).auc.mean <= best + 0.005


def test_the_loss_alone_is_weaker_where_rows_differ() -> None:
    seen = observed(1.0)
    loss, ratio = attacked(seen, loss_scores(seen)), attacked(seen, likelihood_scores(seen))
    assert 0.5 < loss.auc.low < loss.auc.mean < ratio.auc.low
    assert loss.roc.advantage < ratio.roc.advantage


def test_without_a_shift_neither_attack_beats_a_coin() -> None:
    """Over many repetitions, the 99 % interval must leave out 0.5 about as seldom as it says."""
    missed = 0
    for seed in range(60):
        seen = observed(0.0, models=12, rows=60, seed=seed)
        found = [attacked(seen, scores(seen)).auc for scores in (loss_scores, likelihood_scores)]
        missed += sum(not one.low <= 0.5 <= one.high for one in found)
    assert missed <= 6


def test_a_models_own_confidence_is_no_part_of_what_it_is_compared_with() -> None:
    seen = observed(1.0, models=24, rows=50)
    moved = seen.confidence.copy()
    moved[3] += 1000.0
    before, after = (means_of_others(confidence, seen.member) for confidence in (seen.confidence, moved))
    assert after[3] == pytest.approx(before[3], abs=1e-9)
    others = np.delete(after - before, 3, axis=0)
    assert (others[:, seen.member[3]] > 40).all()
    assert others[:, ~seen.member[3]] == pytest.approx(0, abs=1e-9)


def test_means_of_others_where_there_is_no_other() -> None:
    confidence, kind = np.array([[1.0, 5.0], [3.0, 7.0]]), np.array([[True, True], [False, True]])
    assert means_of_others(confidence, kind).tolist() == [[7.0, 7.0], [1.0, 5.0]]


def test_true_label_logits_are_symmetric_and_bounded() -> None:
    scores = np.array([0.0, 0.2, 0.5, 0.8, 1.0])
    for_one = true_label_logits(scores, np.ones(5, dtype=np.float32))
    for_zero = true_label_logits(scores, np.zeros(5, dtype=np.float32))
    assert for_one == pytest.approx(-for_zero)
    assert for_one[2] == 0
    assert np.isfinite(for_one).all()


def noise_rows(rows: int = 60, inputs: int = 12) -> Examples:
    """Labels that no input explains: all that a model gets right of them it knows by heart."""
    chance = np.random.default_rng(5)
    return Examples(
        chance.normal(size=(rows, inputs)).astype(np.float32), (chance.random(rows) < 0.5).astype(np.float32)
    )


def test_a_network_that_knows_its_rows_by_heart_is_found_out() -> None:
    recipe = MlpRecipe(trainer="torch.mlp", hidden=(32,), local=LocalTraining(lr=0.02, batch_size=16))
    rows = noise_rows()
    seen = observe(PlainFit(recipe, rows.inputs.shape[1], 30, 0), recipe, rows, models=5, seed=1)
    assert seen.member_auc > 0.98
    assert seen.other_auc < 0.65
    assert attacked(seen, likelihood_scores(seen)).auc.low > 0.75
    assert attacked(seen, loss_scores(seen)).auc.low > 0.75


def test_models_that_ignore_the_rows_tell_nothing() -> None:
    recipe = LogisticRecipe(trainer="torch.logistic")
    rows = noise_rows()

    def fit(rows: Examples, seed: int) -> Floats:
        return np.random.default_rng(seed).normal(size=rows.inputs.shape[1] + 1).astype(np.float32)

    seen = observe(fit, recipe, rows, models=12, seed=3)
    for scores in (loss_scores(seen), likelihood_scores(seen)):
        found = attacked(seen, scores).auc
        assert found.low <= 0.5 <= found.high


def test_observations_are_of_the_models_that_were_fitted() -> None:
    recipe = LogisticRecipe(trainer="torch.logistic")
    rows = noise_rows()
    fitted: list[tuple[int, Floats]] = []

    def fit(part: Examples, seed: int) -> Floats:
        model = np.full(rows.inputs.shape[1] + 1, seed / 100, dtype=np.float32)
        fitted.append((len(part.labels), model))
        return model

    seen = observe(fit, recipe, rows, models=4, seed=7)
    assert [count for count, _ in fitted] == seen.member.sum(axis=1).tolist()
    for place, (_, model) in enumerate(fitted):
        expected = true_label_logits(scores_of(recipe, model, rows.inputs), rows.labels)
        assert seen.confidence[place] == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least 4"):
        observe(fit, recipe, rows, models=3, seed=7)
