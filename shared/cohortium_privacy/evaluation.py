"""Evaluation that test patients pay for: two noisy histograms of scores, and the metrics that follow from them.

A test patient is one more in one of 200 counts, so the L2 sensitivity is 1. Counts are multiplied by a public factor
before each site adds its share of discrete Gaussian noise. What is computed from the opened sum costs nothing more.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohortium_messages.runs import EvaluationResult
from cohortium_messages.secure_sum import ModelRef, NoiseSpec
from cohortium_messages.study import Study
from cohortium_privacy.windows import HISTOGRAM_WORDS, count_factor, total_sigma
from cohortium_protocol.metrics import evaluation_vector, metrics_from_histograms
from cohortium_protocol.statistics import SumsRefused


def histogram_vector(scores: NDArray[Any], labels: NDArray[Any], factor: int) -> NDArray[np.int64]:
    """One site's contribution before its noise: rows by score bin, first those with label 0, times `factor`
    (`windows.count_factor`)."""
    return evaluation_vector(scores, labels)[:HISTOGRAM_WORDS] * factor


def noisy_evaluation(
    study: Study, sums: Sequence[int] | NDArray[Any], noise: NoiseSpec, sites: int, model: ModelRef
) -> EvaluationResult:
    """The study's metrics from an opened sum of `sites` sites, marked with the noise of one count. Counts below 0 are
    read as 0. Raises `SumsRefused` for another length."""
    if len(sums) != HISTOGRAM_WORDS:
        raise SumsRefused(f"expected {HISTOGRAM_WORDS} counts, got {len(sums)}")
    factor = count_factor(noise)
    found = metrics_from_histograms(sums, factor, study.metrics)
    wanted = found.model_dump(include=set(study.metrics) | {"rows", "positives"})
    if "auc" in study.metrics:
        wanted["auc_error_bound"] = found.auc_error_bound
    return EvaluationResult(model=model, count_noise=total_sigma(study, "evaluation", noise, sites) / factor, **wanted)
