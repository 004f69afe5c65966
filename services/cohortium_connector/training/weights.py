"""Weights of rows, the public bound of what one row adds to a histogram, and the rows that early stopping looks at."""

import hashlib
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cohortium_messages.study import BinaryLabel, CountLabel, LightgbmRecipe, MulticlassLabel, NumberLabel, Study

OVERSHOOT: Final = 8.0
"""Boosted scores may leave the labels' range by some steps before they come back; a sum that still exceeds its bound
ends the session, and is never sent."""

_LARGEST_MULTICLASS_HESSIAN: Final = 0.375
"""K/(K-1) · p(1-p) with at least three classes; a gradient, p - y, is at most 1."""


def row_weights(study: Study, recipe: LightgbmRecipe, labels: NDArray[np.float64]) -> NDArray[np.float32] | None:
    """The class weight of each row, as the float32 that LightGBM takes; None where the study has none."""
    if recipe.class_weight is None:
        return None
    by_class = np.array([recipe.class_weight.get(level, 1.0) for level in _levels(study)], dtype=np.float32)
    weights: NDArray[np.float32] = by_class[labels.astype(np.int64)]
    return weights


def row_bound(study: Study, recipe: LightgbmRecipe, counts: tuple[int, ...] = ()) -> float:
    """No row of any site adds more than this to a histogram's cell: neither its gradient nor its hessian is larger.

    From the study, and for `is_unbalance` from the opened counts of label 1 and 0 alone: so it is the same at all
    sites.
    """
    weight = max((recipe.class_weight or {}).values(), default=1.0)
    weight = max(weight, 1.0) * max(1.0, recipe.params.scale_pos_weight)
    if recipe.params.is_unbalance and len(counts) == 2 and min(counts) > 0:
        weight *= max(counts) / min(counts)
    return weight * _unweighted_bound(study, recipe)


def _unweighted_bound(study: Study, recipe: LightgbmRecipe) -> float:
    match study.dataset.label:
        case BinaryLabel():
            return 1.0
        case MulticlassLabel():
            return max(1.0, _LARGEST_MULTICLASS_HESSIAN)
        case NumberLabel(range=(low, high)):
            return max(1.0, OVERSHOOT * max(abs(low), abs(high), high - low))
        case CountLabel(most=most):
            expected = OVERSHOOT * (most + 1.0)
            poisson = study.objective == "poisson"
            return expected * math.exp(recipe.params.poisson_max_delta_step) if poisson else expected


def _levels(study: Study) -> tuple[str, ...]:
    label = study.dataset.label
    return label.levels if isinstance(label, MulticlassLabel) else ("0", "1")


def validation_rows(study: Study, recipe: LightgbmRecipe, rows: int) -> NDArray[np.bool_]:
    """Which of a site's training rows decide on early stopping instead of training: none without it.

    Each row with the probability `recipe.validation`, by the study's seed and its place among the training rows alone,
    so that a session that goes on chooses the same ones. At least one row is left to train on.
    """
    if not recipe.params.early_stopping_round:
        return np.zeros(rows, dtype=bool)
    seed = hashlib.sha256(b"cohortium/validation/1" + study.federation.seed.to_bytes(8, "little")).digest()
    keys = np.random.PCG64(int.from_bytes(seed[:16], "little")).random_raw(rows)
    chosen: NDArray[np.bool_] = keys < np.uint64(recipe.validation * 2.0**64)
    if chosen.all():
        chosen[np.argmax(keys)] = False
    return chosen
