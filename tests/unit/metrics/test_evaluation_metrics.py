"""Metrics from sums: the same numbers as from raw scores, and honest about what cannot be known."""

import numpy as np
import pytest

from cohortium_protocol.metrics import (
    BINS,
    ONE,
    SumsRefused,
    evaluation_length,
    evaluation_vector,
    exact_auc,
    metrics_from_sums,
)

ALL = ("auc", "accuracy", "brier", "calibration")


def chance(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that mean what they say."""
    generator = np.random.default_rng(seed)
    scores = generator.beta(2, 3, rows)
    return scores, (generator.random(rows) < scores).astype(np.uint8)


def test_metrics_are_those_of_the_raw_scores() -> None:
    scores, labels = chance(4000)
    found = metrics_from_sums(evaluation_vector(scores, labels), ALL)
    assert (found.rows, found.positives) == (4000, int(labels.sum()))
    assert found.accuracy == np.mean((scores >= 0.5) == labels)
    assert found.brier == pytest.approx(np.mean((scores - labels) ** 2), abs=1e-9)
    given = np.where(labels == 1, scores, 1 - scores)
    assert found.log_loss == pytest.approx(-np.mean(np.log(given)), abs=1e-9)
    assert found.auc == pytest.approx(exact_auc(scores, labels), abs=7e-4)
    assert found.undefined == {}


def test_the_auc_of_all_pairs_counted_one_by_one() -> None:
    scores, labels = np.array([0.1, 0.4, 0.4, 0.8, 0.9]), np.array([0, 1, 0, 1, 0])
    pairs = [(p > n) + (p == n) / 2 for p in scores[labels == 1] for n in scores[labels == 0]]
    assert exact_auc(scores, labels) == pytest.approx(np.mean(pairs))
    found = metrics_from_sums(evaluation_vector(scores, labels), ["auc"])
    assert found.auc == pytest.approx(np.mean(pairs))
    assert found.auc_error_bound == pytest.approx(1 / 2 / 6)


def test_scores_that_mean_what_they_say_are_calibrated() -> None:
    found = metrics_from_sums(evaluation_vector(*chance(100_000)), ["calibration"]).calibration
    assert found is not None
    assert found.slope == pytest.approx(1, abs=0.03)
    assert found.intercept == pytest.approx(0, abs=0.03)
    assert found.observed_expected == pytest.approx(1, abs=0.01)
    assert found.ece < 0.02


def test_scores_that_are_too_sure_have_a_slope_below_one() -> None:
    scores, labels = chance(100_000)
    odds = (scores / (1 - scores)) ** 2
    found = metrics_from_sums(evaluation_vector(odds / (1 + odds), labels), ["calibration"]).calibration
    assert found is not None
    assert found.slope == pytest.approx(0.5, abs=0.03)


def test_one_class_has_no_auc_and_says_why() -> None:
    found = metrics_from_sums(evaluation_vector(np.array([0.2, 0.7]), np.array([1, 1])), ALL)
    assert found.auc is None
    assert found.auc_error_bound is None
    assert found.undefined["auc"] == "all test rows have the same label"
    assert found.accuracy == 0.5
    assert found.calibration is not None
    assert found.calibration.slope is None
    assert "calibration.slope" in found.undefined


def test_no_test_row_at_all_leaves_everything_undefined() -> None:
    found = metrics_from_sums(evaluation_vector(np.zeros(0), np.zeros(0)), ["auc", "brier"])
    assert found.rows == 0
    assert found.undefined == {"auc": "no test rows", "brier": "no test rows"}


def test_only_what_was_asked_for_is_computed() -> None:
    found = metrics_from_sums(evaluation_vector(*chance(50)), ["brier"])
    assert found.auc is None
    assert found.accuracy is None
    assert found.calibration is None
    assert found.brier is not None


def test_the_edges_of_the_scale_have_their_bins() -> None:
    vector = evaluation_vector(np.array([0.0, 1.0, 0.5]), np.array([0, 1, 1]))
    assert vector[0] == 1
    assert vector[BINS + 99] == 1
    assert vector[BINS + 50] == 1
    assert vector[2 * BINS + 99] == ONE
    assert vector.size == evaluation_length()


@pytest.mark.parametrize("scores", [[1.5], [-0.1], [np.nan], [np.inf], [0.1, 0.2]])
def test_scores_that_are_no_probabilities_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError):
        evaluation_vector(np.array(scores), np.array([1]))


def test_a_label_that_is_no_label_is_refused() -> None:
    with pytest.raises(ValueError):
        evaluation_vector(np.array([0.5]), np.array([2]))


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, -1), (3 * BINS, 10**6), (3 * BINS + 1, 10**6 * ONE), (2 * BINS + 99, 10**6 * ONE), (2 * BINS + 3, ONE)],
)
def test_sums_that_no_scores_can_have_are_refused(place: int, value: int) -> None:
    vector = evaluation_vector(*chance(100))
    vector[place] = value
    with pytest.raises(SumsRefused):
        metrics_from_sums(vector, ALL)
    with pytest.raises(SumsRefused):
        metrics_from_sums(vector[:-1], ALL)
