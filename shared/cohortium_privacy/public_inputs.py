"""A private study's inputs and bins: from its public ranges alone, so that they say nothing about anybody.

Statistics of rows would have to be paid for. A number is scaled as if it were spread evenly over its range (mean in the
middle, standard deviation width/√12); random trees split on the study's public grid.
"""

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from cohortium_messages.study import NumberFeature, Study
from cohortium_privacy.windows import STATISTICS_WORDS, public_training_rows
from cohortium_protocol.statistics import (
    CategoryInput,
    ModelInput,
    NumberInput,
    Preprocessing,
    SumsRefused,
    Totals,
)
from cohortium_protocol.trees.binning import Binning, grid_binning
from cohortium_protocol.trees.evaluation import has_trees


def public_rules(study: Study, sites: int) -> Preprocessing | Binning:
    """How rows become the inputs of a private study's model. `sites`: those that began it."""
    rows = public_training_rows(study)
    if has_trees(study):
        return grid_binning(study, Totals(rows, 0, 0, 0), sites)
    return Preprocessing(
        study_id=study.name,
        study_digest=study.digest(),
        features=tuple(map(_input, study.dataset.features)),
        label=study.dataset.label.name,
        training_rows=rows,
        sites=sites,
    )


def _input(feature: Any) -> ModelInput:
    if not isinstance(feature, NumberFeature):
        return CategoryInput(name=feature.name, levels=feature.levels, missing=feature.missing)
    low, high = feature.range
    return NumberInput(
        name=feature.name, mean=low + (high - low) / 2, std=(high - low) / math.sqrt(12), missing=feature.missing
    )


def check_statistics(sums: Sequence[int] | NDArray[Any]) -> None:
    """Raises `SumsRefused` unless the opened sum of the first window says nothing: one word, 0."""
    if len(sums) != STATISTICS_WORDS or any(int(word) for word in sums):
        raise SumsRefused("a private study's first sum is not the one word 0: a site sent something of its rows")
