"""Evaluation of any study's models from sums: one entry for all trainers and all types of label.

No score leaves a site. What a site counts on its test rows depends on the label; integers throughout, so sums over
sites are exact, and the metrics are those of all rows together:

    binary       the vector of `metrics` (histograms of scores by label, sums of losses)
    multiclass   rows; rows whose most probable class is the true one (of equal probabilities the first counts);
                 Σ −log(probability given to the true class), each at most −log(1e-7), in steps of 2^-32
    number,      rows; then, with w the width of the public range, e = min(|score − y| / w, 2) and v = (y − low) / w,
    count        both in steps of 2^-48: Σ e (2 words), Σ e² (4), Σ v (2), Σ v² (4); a count's range is 0 … `most`

An error of more than twice the range counts as twice the range: it says no more than that the model is useless, and it
bounds every sum. A sum of several words has 32 bits in each but the last, the lowest first, so a range that is far
wider than the errors costs no accuracy; 2^30 rows fit.

A study with trees appends 1 + F words: rows whose SHAP values were computed, and for each feature the sum of |SHAP|
over these rows, and over classes where there are several, in steps of 2^-24 (on the scale of the raw score; for the
objective `regression` as a share of the range w).
"""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, assert_never

import numpy as np
from numpy.typing import NDArray

from cohortium_messages.lightgbm import OBJECTIVES
from cohortium_messages.runs import EvaluationResult, FeatureImportance
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.study import (
    TREE_TRAINERS,
    BinaryLabel,
    CountLabel,
    LightgbmRecipe,
    MulticlassLabel,
    NumberLabel,
    Study,
)
from cohortium_protocol import metrics
from cohortium_protocol.errors import OutOfRange
from cohortium_protocol.metrics import LEAST_PROBABILITY, metrics_from_sums
from cohortium_protocol.statistics import SumsRefused
from cohortium_protocol.trees.grid import MOST_ROWS, as_sums
from cohortium_protocol.trees.text import ModelText, gains_and_splits

STEPS: Final = 1 << 48
"""Steps that the range of a label is divided into."""
MOST_ERROR: Final = 2
SHAP_ONE: Final = 1 << 24
MULTICLASS_WORDS: Final = 3
SUM_WORDS, SQUARES_WORDS = 2, 4
NUMBER_WORDS: Final = 1 + 2 * (SUM_WORDS + SQUARES_WORDS)


def evaluation_length(study: Study) -> int:
    """Integers in one site's contribution; the study alone decides it."""
    extra = 1 + len(study.dataset.features) if has_trees(study) else 0
    match study.dataset.label:
        case BinaryLabel():
            return metrics.evaluation_length() + extra
        case MulticlassLabel():
            return MULTICLASS_WORDS + extra
        case NumberLabel() | CountLabel():
            return NUMBER_WORDS + extra


def has_trees(study: Study) -> bool:
    """Whether the study's model is a LightGBM text."""
    return study.recipe.trainer in TREE_TRAINERS


def evaluation_vector(
    study: Study, scores: NDArray[Any], labels: NDArray[Any], shap: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """One site's contribution, from its test rows; no rows give zeros.

    `scores`: the probability of label 1 (binary), rows × classes of probabilities (multiclass), the predicted value
    (number, count). `shap`, for trees: by feature the sum of |SHAP| over all rows and classes, in raw scores; None
    where it was not computed. Raises `ValueError` for scores or labels that the label's type does not have,
    `OutOfRange` for a sum that has no place in its word.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    match study.dataset.label:
        case BinaryLabel():
            vector = metrics.evaluation_vector(scores, labels)
        case MulticlassLabel(levels=levels):
            vector = _multiclass_vector(scores, labels, len(levels))
        case NumberLabel() | CountLabel() as label:
            vector = _number_vector(scores, labels, label)
        case other:
            assert_never(other)
    if not has_trees(study):
        if shap is not None:
            raise ValueError(f"the trainer {study.recipe.trainer} has no SHAP values here")
        return vector
    return np.concatenate([vector, _shap_words(study, labels.size, shap)])


def _multiclass_vector(scores: NDArray[np.float64], labels: NDArray[Any], classes: int) -> NDArray[np.int64]:
    scores = scores.reshape(-1, classes) if scores.size == 0 else scores
    if scores.shape != (*labels.shape, classes):
        raise ValueError(f"scores are a line of {classes} probabilities for each label")
    if not ((scores >= 0) & (scores <= 1)).all() or not np.isin(labels, np.arange(classes)).all():
        raise ValueError("scores lie between 0 and 1, labels are places of levels")
    places = labels.astype(np.int64)
    given = np.maximum(scores[np.arange(places.size), places], LEAST_PROBABILITY)
    losses = np.rint(-np.log(given) * metrics.ONE).astype(np.int64)
    correct = np.count_nonzero(scores.argmax(axis=1) == places)
    return np.array([places.size, correct, losses.sum()], dtype=np.int64)


def _number_vector(
    scores: NDArray[np.float64], labels: NDArray[Any], label: NumberLabel | CountLabel
) -> NDArray[np.int64]:
    low, high = _range(label)
    values = labels.astype(np.float64)
    if scores.shape != values.shape or values.ndim != 1:
        raise ValueError("scores and labels are two lists of the same length")
    if not np.isfinite(scores).all() or not ((values >= low) & (values <= high)).all():
        raise ValueError("scores are finite, labels lie in the study's range")
    if isinstance(label, CountLabel) and (values % 1).any():
        raise ValueError("labels of a count are whole numbers")
    width = high - low
    near = np.clip(scores, low - MOST_ERROR * width, high + MOST_ERROR * width)
    errors = np.minimum(np.abs(near - values) / width, MOST_ERROR)
    return np.array([values.size, *_moments(errors), *_moments((values - low) / width)], dtype=np.int64)


def _range(label: NumberLabel | CountLabel) -> tuple[float, float]:
    return label.range if isinstance(label, NumberLabel) else (0.0, float(label.most))


def _moments(values: NDArray[np.float64]) -> list[int]:
    """Words of Σ q and Σ q², exact, with q = round(value · 2^48) for values from 0 to 2."""
    places = np.rint(values * STEPS).astype(np.int64)
    upper, lower = places >> 24, places & ((1 << 24) - 1)  # below 2^26 and 2^24
    squares = (_total(upper * upper) << 48) + (_total(upper * lower) << 25) + _total(lower * lower)
    return _words(_total(places), SUM_WORDS) + _words(squares, SQUARES_WORDS)


def _total(values: NDArray[np.int64]) -> int:
    """Σ values, each at most 2^52: 1,024 of them have place in an int64, and the rest is done without bounds."""
    return sum(np.add.reduceat(values, np.arange(0, values.size, 1024)).tolist()) if values.size else 0


def _words(total: int, count: int) -> list[int]:
    """A sum as words of 32 bits, the lowest first; the last holds all the rest."""
    return [(total >> 32 * place) & 0xFFFFFFFF for place in range(count - 1)] + [total >> 32 * (count - 1)]


def _whole(words: list[int]) -> int:
    return sum(word << 32 * place for place, word in enumerate(words))


def _shap_words(study: Study, rows: int, shap: NDArray[Any] | None) -> NDArray[np.int64]:
    features = len(study.dataset.features)
    if shap is None:
        return np.zeros(1 + features, dtype=np.int64)
    sums = np.asarray(shap, dtype=np.float64)
    if sums.shape != (features,) or not (np.isfinite(sums) & (sums >= 0)).all():
        raise ValueError(f"sums of |SHAP| are {features} finite numbers, none below 0")
    words = np.rint(sums / _shap_unit(study) * SHAP_ONE)
    if words.max() >= 2.0**62:
        raise OutOfRange("a sum of |SHAP| has no place in its word: the model's raw scores are absurdly large")
    return np.array([rows, *words], dtype=np.int64)


def _shap_unit(study: Study) -> float:
    """What one is in the words of |SHAP|: raw scores of `regression` are values in the label's range, all others are
    logarithms."""
    label = study.dataset.label
    if isinstance(label, NumberLabel | CountLabel) and objective_of(study) == "regression":
        low, high = _range(label)
        return high - low
    return 1.0


def objective_of(study: Study) -> str:
    """LightGBM's name of what the trees of a study minimise: the recipe's, or the first that fits the label."""
    wanted = study.recipe.params.objective if isinstance(study.recipe, LightgbmRecipe) else None
    return wanted or OBJECTIVES[study.dataset.label.type][0]


def evaluation_from_sums(
    study: Study, sums: Sequence[int] | NDArray[Any], text: ModelText | None, model: ModelRef
) -> EvaluationResult:
    """The metrics that the study asks for, of all sites' test rows together. `text`: of a study with trees, the model
    that was evaluated, for gains and splits; the result has no importance without it. Raises `SumsRefused`."""
    if len(sums) != evaluation_length(study):
        raise SumsRefused(f"expected {evaluation_length(study)} sums, got {len(sums)}")
    values = [int(value) for value in as_sums(sums)]
    extra = 1 + len(study.dataset.features) if has_trees(study) else 0
    own, shap = values[: len(values) - extra], values[len(values) - extra :]
    match study.dataset.label:
        case BinaryLabel():
            rows, found = _binary(study, own)
        case MulticlassLabel():
            rows, found = _multiclass(own)
        case NumberLabel() | CountLabel() as label:
            rows, found = _numbers(label, own)
        case other:
            assert_never(other)
    wanted = {name: value for name, value in found.items() if name in ("positives", *study.metrics)}
    if "auc" in wanted:
        wanted["auc_error_bound"] = found["auc_error_bound"]
    importance = _importance(study, shap, rows, text) if extra else None
    return EvaluationResult(model=model, rows=rows, importance=importance, **({"positives": 0} | wanted))


def _binary(study: Study, values: list[int]) -> tuple[int, dict[str, Any]]:
    found = metrics_from_sums(values, study.metrics)
    return found.rows, found.model_dump(exclude={"rows", "undefined"})


def _multiclass(values: list[int]) -> tuple[int, dict[str, Any]]:
    rows, correct, loss = values
    most = rows * (math.ceil(-math.log(LEAST_PROBABILITY) * metrics.ONE) + 1)
    if not 0 <= correct <= rows <= MOST_ROWS or not 0 <= loss <= most:
        raise SumsRefused("a count is negative, or larger than the rows allow")
    if rows == 0:
        return 0, {}
    return rows, {"accuracy": correct / rows, "log_loss": loss / metrics.ONE / rows}


def _numbers(label: NumberLabel | CountLabel, values: list[int]) -> tuple[int, dict[str, Any]]:
    rows, words = values[0], iter(values[1:])
    counts = (SUM_WORDS, SQUARES_WORDS, SUM_WORDS, SQUARES_WORDS)
    errors, error_squares, places, place_squares = (_whole(list(islice(words, count))) for count in counts)
    spread = rows * place_squares - places * places  # rows² times the variance of the labels
    possible = (
        min(values) >= 0
        and rows <= MOST_ROWS
        and error_squares <= MOST_ERROR * STEPS * errors
        and place_squares <= STEPS * places
        and errors * errors <= rows * error_squares
        and spread >= 0
    )
    if not possible:
        raise SumsRefused("sums of errors and labels that no rows can have")
    if rows == 0:
        return 0, {}
    low, high = _range(label)
    found: dict[str, Any] = {
        "mae": errors / (rows * STEPS) * (high - low),
        "rmse": math.sqrt(error_squares / (rows * STEPS * STEPS)) * (high - low),
    }
    if spread:
        found["r2"] = 1 - rows * error_squares / spread
    return rows, found


def _importance(
    study: Study, words: list[int], rows: int, text: ModelText | None
) -> tuple[FeatureImportance, ...] | None:
    explained, *sums = words
    if not 0 <= explained <= rows or min(sums) < 0 or (not explained and any(sums)):
        raise SumsRefused("sums of |SHAP| that no rows can have")
    if text is None:
        return None
    if text.features != tuple(feature.name for feature in study.dataset.features):
        raise ValueError("the model's features are not those of the study")
    gains, splits = gains_and_splits(text)
    unit = _shap_unit(study)
    return tuple(
        FeatureImportance(
            name=name,
            shap=total / (explained * SHAP_ONE) * unit if explained else None,
            gain=float(gain),
            splits=int(count),
        )
        for name, total, gain, count in zip(text.features, sums, gains, splits, strict=True)
    )
