"""Scores in numpy are LightGBM's own, for every kind of label, split and missing value."""

import numpy as np
import pytest

from cohortium_protocol.trees.predict import raw_scores, response
from cohortium_protocol.trees.text import check_model_text
from tree_text_stage import CLASSES, genuine, table

lightgbm = pytest.importorskip("lightgbm", reason="the training extra is not installed")


def odd_rows() -> np.ndarray:
    """Rows with missing values everywhere, codes that no level has, and numbers at and beyond all ends."""
    values, _ = table(rows=600, seed=9)
    random = np.random.default_rng(3)
    values[random.random(values.shape) < 0.15] = np.nan
    values[:60, 1] = random.choice([-1.0, -0.5, 40.0, 41.0, 1000.0, 63.0, 64.0, 0.0], size=60)
    values[60:90, 0] = random.choice([np.inf, -np.inf, 0.0, -0.0, 1e300, 1e-300], size=30)
    return values


@pytest.mark.parametrize("objective", CLASSES)
def test_scores_and_responses_are_those_of_lightgbm(objective: str) -> None:
    model = genuine(objective, rounds=12, leaves=16)
    rows = odd_rows()
    booster = lightgbm.Booster(model_str=model.text)
    raw = raw_scores(check_model_text(model.data, **model.rules), rows)
    expected = booster.predict(rows, raw_score=True, num_threads=1)
    assert raw.shape == expected.shape
    assert np.abs(raw - expected).max() <= 1e-12
    assert np.abs(response(objective, raw) - booster.predict(rows, num_threads=1)).max() <= 1e-12
    assert np.unique(expected).size > 100


def test_scores_at_the_thresholds_themselves_are_those_of_lightgbm() -> None:
    model = genuine("binary", rounds=12, leaves=16)
    read = check_model_text(model.data, **model.rules)
    numbers = np.concatenate([tree.threshold[tree.decision_type & 1 == 0] for tree in read.trees])
    exact = np.concatenate([numbers, np.nextafter(numbers, np.inf), np.nextafter(numbers, -np.inf)])
    rows = np.stack([exact, np.arange(len(exact)) % 41, np.roll(exact, 1), np.roll(exact, 2)], axis=1)
    expected = lightgbm.Booster(model_str=model.text).predict(rows, raw_score=True, num_threads=1)
    assert np.abs(raw_scores(read, rows) - expected).max() <= 1e-12


def test_scores_of_no_rows_are_none() -> None:
    model = genuine("multiclass")
    assert raw_scores(check_model_text(model.data, **model.rules), np.zeros((0, 4))).shape == (0, 3)


def test_rows_of_another_width_are_refused() -> None:
    model = genuine("binary")
    with pytest.raises(ValueError, match="4 features"):
        raw_scores(check_model_text(model.data, **model.rules), np.zeros((2, 5)))


def test_response_of_far_scores_is_the_limit() -> None:
    assert response("binary", np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
    assert response("multiclass", np.array([[1e4, 0.0, -1e4]])).tolist() == [[1.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match="lambdarank"):
        response("lambdarank", np.zeros(1))
