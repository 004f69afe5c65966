"""Early stopping that all sites decide alike: from one opened sum after each round, over rows that do not train.

A site contributes its validation rows and their summed loss, exactly; for `auc`, rows of each label by score in 1,000
equal bins. Losses are LightGBM's own metrics, without weights of classes.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cohortium_messages.lightgbm import EARLY_METRICS, EarlyMetric, LightgbmParams
from cohortium_messages.study import LightgbmRecipe, Study
from cohortium_protocol.strict.exact import scalar_sums, scalar_words

Floats = NDArray[np.float64]
Words = NDArray[np.int64]

AUC_BINS: Final = 1000
_LEAST_PROBABILITY: Final = 1e-15


class Stopping:
    """Follows the metric, round by round. Without early stopping it never asks, and the last round is the best.

    `scores` are the raw scores of the validation rows before the first round: zeros, or those of the model that is gone
    on with.
    """

    def __init__(self, study: Study, recipe: LightgbmRecipe, labels: Floats, scores: Floats) -> None:
        objective = study.objective
        assert objective is not None  # noqa: S101 - a study of trees has one
        params = recipe.params
        self._metric: EarlyMetric = params.metric or EARLY_METRICS[objective][0]
        self._patience = params.early_stopping_round
        self._least_gain = params.early_stopping_min_delta
        self._labels = labels
        self._scores = scores.copy()
        self._best = -np.inf
        self._best_round = 0
        self._begun = False

    @classmethod
    def is_wanted(cls, params: LightgbmParams) -> bool:
        return params.early_stopping_round > 0

    def add(self, grown: Floats) -> None:
        """A round was grown that adds so much to the scores."""
        self._scores += grown

    def words(self) -> Words:
        """This site's part of the sum."""
        if self._metric == "auc":
            return _score_bins(_sigmoid(self._scores), self._labels)
        loss = float(np.sum(_losses(self._metric, self._scores, self._labels)))
        return np.append(scalar_words([loss]), np.int64(len(self._labels)))

    def is_over(self, round_: int, sums: Words) -> bool:
        """Has the metric not become better for so many rounds? `sums`: the opened sum after `round_` rounds."""
        value = _area(sums) if self._metric == "auc" else -_mean(sums)
        if not self._begun or value > self._best + self._least_gain:
            self._best, self._best_round = value, round_
        self._begun = True
        return round_ - self._best_round >= self._patience

    def best_round(self, rounds: int) -> int:
        """Rounds that the model keeps, of `rounds`: never none, since a model has a tree."""
        return max(1, self._best_round) if self._begun else rounds


def _mean(sums: Words) -> float:
    """No validation row anywhere: nothing becomes better, and nothing is worse."""
    (loss,) = scalar_sums(sums[:-1])
    rows = int(sums[-1])
    return loss / rows if rows > 0 else 0.0


def _area(sums: Words) -> float:
    """The area under the ROC curve, pairs of rows in one bin counted one half; 1/2 where a label is missing."""
    negatives, positives = ([int(count) for count in part] for part in (sums[:AUC_BINS], sums[AUC_BINS:]))
    twice = below = 0
    for low, high in zip(negatives, positives, strict=True):
        twice += high * (2 * below + low)
        below += low
    pairs = sum(negatives) * sum(positives)
    return twice / (2 * pairs) if pairs > 0 else 0.5


def _score_bins(scores: Floats, labels: Floats) -> Words:
    bins = np.minimum((scores * AUC_BINS).astype(np.int64), AUC_BINS - 1)
    bins[labels > 0] += AUC_BINS
    return np.bincount(bins, minlength=2 * AUC_BINS).astype(np.int64)


def _losses(metric: EarlyMetric, scores: Floats, labels: Floats) -> Floats:
    match metric:
        case "binary_logloss":
            given = np.where(labels > 0, _sigmoid(scores), _sigmoid(-scores))
            return -np.log(np.maximum(given, _LEAST_PROBABILITY))
        case "multi_logloss":
            parts = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
            given = parts[np.arange(len(labels)), labels.astype(np.int64)] / parts.sum(axis=1)
            return np.asarray(-np.log(np.maximum(given, _LEAST_PROBABILITY)))
        case "l2":
            return np.asarray(np.square(scores - labels))
        case "poisson":
            return np.asarray(np.exp(scores) - labels * scores)
        case "auc":
            raise ValueError("the area under the curve is no sum of losses")


def _sigmoid(scores: Floats) -> Floats:
    """Without an overflow at either end."""
    small = np.exp(-np.abs(scores))
    return np.where(scores >= 0, 1.0 / (1.0 + small), small / (1.0 + small))
