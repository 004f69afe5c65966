"""Evaluation from sums: what a site counts on its test rows, and what the sum over the sites says.

No score leaves a site. Scores fall into 100 bins of equal width on [0, 1]; a site contributes a histogram for each
label, and sums of the usual losses as fixed-point integers (2^32 is one). Layout of the vector:

    0 … 99      rows with label 0 by score bin
    100 … 199   rows with label 1 by score bin
    200 … 299   Σ p by score bin
    300         rows that a threshold of 0.5 puts right (p ≥ 0.5 is positive)
    301         Σ (p − y)²
    302         Σ −log(probability given to the true label), each at most −log(1e-7)

Accuracy, Brier score and log loss are those of the raw scores. The AUC is exact up to pairs of rows that share a bin:
they count one half, and `auc_error_bound`, half the share of such pairs, is the most by which the true AUC can differ.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cohortium_messages.ids import Wire
from cohortium_messages.study import Metric
from cohortium_protocol.statistics import SumsRefused

BINS = 100
ONE = 1 << 32
LEAST_PROBABILITY = 1e-7
_CORRECT, _BRIER, _LOG_LOSS, _LENGTH = 3 * BINS, 3 * BINS + 1, 3 * BINS + 2, 3 * BINS + 3


class Calibration(Wire):
    """Do scores mean what they say? Slope and intercept of log-odds(outcome) on log-odds(score), 1 and 0 at best, and
    None where the outcome does not let them be found; expected calibration error; observed over expected cases."""

    ece: float
    slope: float | None
    intercept: float | None
    observed_expected: float | None


class Metrics(Wire):
    """The metrics a study asked for. One that cannot be computed is None, and `undefined` says why."""

    rows: int
    positives: int
    auc: float | None = None
    auc_error_bound: float | None = None
    accuracy: float | None = None
    brier: float | None = None
    log_loss: float | None = None
    calibration: Calibration | None = None
    undefined: dict[str, str] = Field(default_factory=dict)


def evaluation_length() -> int:
    """Integers in one site's contribution."""
    return _LENGTH


def evaluation_vector(scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.int64]:
    """One site's contribution: `scores` are probabilities of label 1, `labels` are 0 and 1. No rows give zeros."""
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError("scores and labels are two lists of the same length")
    if not ((scores >= 0) & (scores <= 1)).all() or not np.isin(labels, (0, 1)).all():
        raise ValueError("scores lie between 0 and 1, labels are 0 or 1")
    positive = labels.astype(bool)
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    vector = np.zeros(_LENGTH, dtype=np.int64)
    vector[:BINS] = np.bincount(bins[~positive], minlength=BINS)
    vector[BINS : 2 * BINS] = np.bincount(bins[positive], minlength=BINS)
    np.add.at(vector, 2 * BINS + bins, _fixed(scores))
    vector[_CORRECT] = np.count_nonzero((scores >= 0.5) == positive)
    vector[_BRIER] = _fixed((scores - positive) ** 2).sum()
    given = np.where(positive, scores, 1.0 - scores)
    vector[_LOG_LOSS] = _fixed(-np.log(np.maximum(given, LEAST_PROBABILITY))).sum()
    return vector


def _fixed(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(values * ONE).astype(np.int64)


def metrics_from_sums(sums: Sequence[int] | NDArray[Any], wanted: Sequence[Metric]) -> Metrics:
    """The metrics of all sites' test rows together. Raises `SumsRefused`."""
    negatives, positives, expected, scalars = _parts(sums)
    rows, cases = sum(negatives) + sum(positives), sum(positives)
    found: dict[str, Any] = {"rows": rows, "positives": cases}
    if rows == 0:
        return Metrics(**found, undefined=dict.fromkeys(wanted, "no test rows"))
    found["log_loss"] = scalars[2] / ONE / rows
    if "accuracy" in wanted:
        found["accuracy"] = scalars[0] / rows
    if "brier" in wanted:
        found["brier"] = scalars[1] / ONE / rows
    undefined: dict[str, str] = {}
    if "auc" in wanted and 0 < cases < rows:
        found["auc"], found["auc_error_bound"] = auc_from_histograms(negatives, positives)
    elif "auc" in wanted:
        undefined["auc"] = "all test rows have the same label"
    if "calibration" in wanted:
        found["calibration"] = _calibration(negatives, positives, expected)
        if found["calibration"].slope is None:
            undefined["calibration.slope"] = "scores or labels do not vary enough to fit a slope"
    return Metrics(**found, undefined=undefined)


def metrics_from_histograms(counts: Sequence[int] | NDArray[Any], unit: int, wanted: Sequence[Metric]) -> Metrics:
    """The metrics from noisy histograms: words 0 … 199 of the vector, one row being `unit`; a count below 0 is read as
    0. A score counts as its bin's centre, so losses are off by up to half a bin, besides the noise.
    """
    clipped = [max(0, int(count)) for count in counts]
    negatives, positives = clipped[:BINS], clipped[BINS : 2 * BINS]
    total, cases = sum(negatives) + sum(positives), sum(positives)
    found: dict[str, Any] = {"rows": round(total / unit), "positives": round(cases / unit)}
    if total == 0:
        return Metrics(**found, undefined=dict.fromkeys(wanted, "no test rows"))
    centres = [(2 * place + 1) / (2 * BINS) for place in range(BINS)]
    by_bin = list(zip(centres, negatives, positives, strict=True))
    found["accuracy"] = sum(high if centre >= 0.5 else low for centre, low, high in by_bin) / total
    found["brier"] = sum(low * centre**2 + high * (1 - centre) ** 2 for centre, low, high in by_bin) / total
    found["log_loss"] = (
        sum(-low * math.log1p(-centre) - high * math.log(centre) for centre, low, high in by_bin) / total
    )
    if 0 < cases < total:
        found["auc"], found["auc_error_bound"] = auc_from_histograms(negatives, positives)
    if "calibration" in wanted:
        expected = [round((low + high) * centre * ONE) for centre, low, high in by_bin]
        found["calibration"] = _calibration(negatives, positives, expected)
    return Metrics(**found)


def _parts(sums: Sequence[int] | NDArray[Any]) -> tuple[list[int], list[int], list[int], list[int]]:
    if len(sums) != _LENGTH:
        raise SumsRefused(f"expected {_LENGTH} sums, got {len(sums)}")
    values = [int(value) for value in sums]
    negatives, positives = values[:BINS], values[BINS : 2 * BINS]
    expected, scalars = values[2 * BINS : 3 * BINS], values[3 * BINS :]
    counts = [low + high for low, high in zip(negatives, positives, strict=True)]
    rows = sum(counts)
    if min(values) < 0 or scalars[0] > rows or scalars[1] > rows * ONE:
        raise SumsRefused("a count is negative, or larger than the rows allow")
    for place, (count, total) in enumerate(zip(counts, expected, strict=True)):
        slack = count  # each summand was rounded by at most one half
        if not count * ONE * place // BINS - slack <= total <= -(-count * ONE * (place + 1) // BINS) + slack:
            raise SumsRefused(f"the scores summed in bin {place} do not belong there")
    return negatives, positives, expected, scalars


def auc_from_histograms(negatives: Sequence[int], positives: Sequence[int]) -> tuple[float, float]:
    """The area under the ROC curve with ties counted one half, and the most by which unbinned scores can differ."""
    twice = tied = below = 0
    for low, high in zip(negatives, positives, strict=True):
        twice += high * (2 * below + low)
        tied += high * low
        below += low
    pairs = 2 * sum(negatives) * sum(positives)
    return twice / pairs, tied / pairs


def exact_auc(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """The area under the ROC curve of raw scores, ties counted one half: for comparison where rows are at hand."""
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(bool)
    cases, others = int(positive.sum()), int((~positive).sum())
    if not cases or not others:
        raise ValueError("the area under the ROC curve needs both labels")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2.0
    return float((ranks[inverse][positive].sum() - cases * (cases + 1) / 2.0) / (cases * others))


def _calibration(negatives: Sequence[int], positives: Sequence[int], expected: Sequence[int]) -> Calibration:
    low, high = np.asarray(negatives, dtype=np.float64), np.asarray(positives, dtype=np.float64)
    filled = low + high > 0
    low, high = low[filled], high[filled]
    predicted = np.asarray(expected, dtype=np.float64)[filled] / ONE
    rows = low + high
    line = _logit_line(np.clip(predicted / rows, 1e-6, 1 - 1e-6), high, rows)
    return Calibration(
        ece=float(np.abs(predicted - high).sum() / rows.sum()),
        slope=line[0] if line else None,
        intercept=line[1] if line else None,
        observed_expected=float(high.sum() / predicted.sum()) if predicted.sum() > 0 else None,
    )


def _logit_line(
    scores: NDArray[np.float64], cases: NDArray[np.float64], rows: NDArray[np.float64]
) -> tuple[float, float] | None:
    """Slope and intercept by Newton's method on bins; None when the likelihood has no finite maximum."""
    points = np.stack([np.log(scores / (1 - scores)), np.ones_like(scores)], axis=1)
    line = np.array([1.0, 0.0])
    for _ in range(50):
        fitted = 1.0 / (1.0 + np.exp(-np.clip(points @ line, -40, 40)))
        gradient = points.T @ (cases - rows * fitted)
        curvature = (points * (rows * fitted * (1 - fitted))[:, None]).T @ points
        if not np.isfinite(curvature).all() or np.linalg.cond(curvature) > 1e12:
            return None
        move = np.linalg.solve(curvature, gradient)
        line = line + np.clip(move, -2.0, 2.0)
        if math.hypot(*move) < 1e-9:
            return (float(line[0]), float(line[1])) if np.abs(line).max() < 100 else None
    return None
