"""The public fine grid of a study with trees, and the counts on it that sites add up.

A feature is divided by its public range alone, so the grid says nothing about anybody:

    float                         1,024 equal cells over its range
    int, at most 1,024 values     a cell for each value
    int, more values              1,024 cells of whole numbers, as even as they can be
    category                      a cell for each level

Layout of one site's vector for `lightgbm`: for each feature, in the order of the study file, the training rows in its
cells and then those that miss it; in the last four places the totals of `statistics`: training rows, test rows, and of
both those with label 1 (0 unless the label is binary). `lightgbm.random_trees` sums the four totals only.

Cell k of a number holds border[k-1] < x <= border[k], which is the side that LightGBM's trees take (`x <= threshold`
goes left). Borders come from additions and multiplications of binary64 alone, so every party has the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cohortium_messages.study import CategoryFeature, NumberFeature, RandomTreesRecipe, Study
from cohortium_protocol.statistics import TOTALS, Rows, SumsRefused, Totals

FINE_CELLS: Final = 1024
REFINED_CELLS: Final = 1024
"""Cells that the refining sum has for one feature, over all the places where it looks closer."""
OCTAVES: Final = 16
MOST_ROWS: Final = 1 << 40
WIDEST: Final = 1e15
"""A range is narrower than this (the study file's own rule), so half-integers inside it are exact."""

Borders = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scale:
    """The public range of a numeric feature. `whole`: it has whole numbers only."""

    low: float
    high: float
    whole: bool

    @classmethod
    def of(cls, feature: NumberFeature) -> "Scale":
        return cls(*feature.range, feature.type == "int")

    @property
    def values(self) -> int:
        """Numbers that a whole feature can be. Raises `ValueError` where the ends of its range are not whole."""
        if not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"the range of an int feature has whole numbers, not {self.low} and {self.high}")
        return int(self.high) - int(self.low) + 1

    @property
    def coarse(self) -> bool:
        """Whether a cell of the fine grid can hold several values, so that a second look can tell more."""
        return not self.whole or self.values > FINE_CELLS

    def borders(self, parts: int) -> Borders:
        """Borders of `parts` equal cells, ascending, read-only: fewer where the range has no more values. Raises
        `ValueError` for a range that no study file may have."""
        return _borders(self, parts)


def cell_count(feature: NumberFeature | CategoryFeature) -> int:
    """Cells of a feature, without the one for missing values."""
    if isinstance(feature, CategoryFeature):
        return len(feature.levels)
    scale = Scale.of(feature)
    return FINE_CELLS if scale.coarse else scale.values


def public_thresholds(feature: NumberFeature, count: int) -> Borders:
    """Thresholds that divide the feature's range by `count` borders; fewer where it has no more than `count` values."""
    return Scale.of(feature).borders(count + 1)


@lru_cache(maxsize=1024)
def _borders(scale: Scale, parts: int) -> Borders:
    low, high = scale.low, scale.high
    if not low < high < low + WIDEST:
        raise ValueError(f"a range from {low} to {high} is empty or too wide: choose a realistic one")
    if scale.whole:
        parts = min(parts, scale.values)
        firsts = (-(-place * scale.values // parts) for place in range(1, parts))  # a cell's first value, past `low`
        borders = np.array([int(low) + first - 0.5 for first in firsts], dtype=np.float64)
    else:
        borders = low + (high - low) * (np.arange(1, parts, dtype=np.float64) / parts)
    return _clean(borders, scale)


def _clean(borders: Borders, scale: Scale) -> Borders:
    """Each border once, inside the range, and never −0.0, which JSON does not keep."""
    inside: Borders = np.unique(borders[(borders >= scale.low) & (borders < scale.high)]) + 0.0
    inside.flags.writeable = False
    return inside


def split_borders(scale: Scale, start: float, stop: float, parts: int) -> Borders:
    """Borders that divide start < x <= stop, a part of the range, into at most `parts` cells.

    Inside the range the cells are even. At an end of the range, and at zero, a skewed feature has its mass at a scale
    that nobody knows beforehand: there the cells become narrower toward that point (`_graded`).
    """
    width = stop - start
    if start < 0.0 < stop:
        half = _graded(parts // 2)
        borders = np.concatenate([start * half, np.zeros(1), stop * half])
    elif start in (scale.low, 0.0):
        borders = start + width * _graded(parts)
    elif stop in (scale.high, 0.0):
        borders = stop - width * _graded(parts)
    else:
        borders = start + width * (np.arange(1, parts, dtype=np.float64) / parts)
    if scale.whole:
        borders = np.floor(borders) + 0.5
    return _clean(borders[(borders > start) & (borders < stop)], scale)


@lru_cache(maxsize=32)
def _graded(parts: int) -> Borders:
    """Shares of a span, narrower toward 0: half of the borders even, half in octaves of even steps, like the mantissas
    of floating-point numbers. All are sums of a few powers of two, so exact. `parts` is a power of two.

    With 1,024 parts: steps of 1/512, and below 1/16 sixteen octaves of 32 steps, down to 2^-20. No cell beyond that is
    wider than 1/32 of its distance from 0.
    """
    if parts < 2:
        return np.zeros(0)
    even = parts // 2
    steps = max(1, even // OCTAVES)
    octave = (1.0 + np.arange(steps) / steps) * steps / even
    octaves = [octave * 2.0 ** -(place + 1) for place in range(even // steps)]
    borders: Borders = np.unique(np.concatenate([np.arange(1, even) / even, *octaves]))
    borders.flags.writeable = False
    return borders


def cells_of(borders: Borders, values: NDArray[np.float64]) -> NDArray[np.intp]:
    """The cell of each value."""
    return np.searchsorted(borders, values, side="left")


def tree_statistics_length(study: Study) -> int:
    """Integers in one site's contribution to the statistics of a study with trees."""
    if isinstance(study.recipe, RandomTreesRecipe):
        return TOTALS
    return sum(cell_count(feature) + 1 for feature in study.dataset.features) + TOTALS


def tree_statistics_vector(study: Study, train: Rows, test: Rows) -> NDArray[np.int64]:
    """One site's contribution. Only counts over its training rows, and four totals. Raises `ValueError` for a value
    that the study does not allow: the reader of the table refuses those before."""
    parts: list[NDArray[np.int64]] = []
    if not isinstance(study.recipe, RandomTreesRecipe):
        for feature in study.dataset.features:
            column = train.columns[feature.name]
            if isinstance(feature, NumberFeature):
                parts.append(_number_counts(feature, column))
            else:
                parts.append(_category_counts(feature, column))
    binary = study.dataset.label.type == "binary"
    positives = [int(rows.labels.sum()) if binary else 0 for rows in (train, test)]
    parts.append(np.array([len(train), len(test), *positives], dtype=np.int64))
    return np.concatenate(parts)


def _number_counts(feature: NumberFeature, values: NDArray[np.float64]) -> NDArray[np.int64]:
    scale = Scale.of(feature)
    present = values[~np.isnan(values)]
    outside = present.size and (present.min() < scale.low or present.max() > scale.high)
    if outside or (scale.whole and (present % 1).any()):
        raise ValueError(f"{feature.name} has a value outside its range, or one that is not whole")
    cells = cells_of(scale.borders(FINE_CELLS), present)
    return np.append(np.bincount(cells, minlength=cell_count(feature)), values.size - present.size).astype(np.int64)


def _category_counts(feature: CategoryFeature, codes: NDArray[np.int32]) -> NDArray[np.int64]:
    present = codes[codes >= 0]
    if present.size and int(present.max()) >= len(feature.levels):
        raise ValueError(f"{feature.name} has a value that is no level of the study")
    return np.append(np.bincount(present, minlength=len(feature.levels)), codes.size - present.size).astype(np.int64)


def tree_totals(study: Study, sums: Sequence[int] | NDArray[Any]) -> Totals:
    """The four counts at the end of the summed vector. Raises `SumsRefused` unless the vector has the study's length
    and the counts can be true."""
    if len(sums) != tree_statistics_length(study):
        raise SumsRefused(f"expected {tree_statistics_length(study)} sums, got {len(sums)}")
    totals = Totals(*(int(value) for value in sums[-TOTALS:]))
    for rows, positives in (
        (totals.training_rows, totals.training_positives),
        (totals.test_rows, totals.test_positives),
    ):
        if not 0 <= positives <= rows <= MOST_ROWS or (positives and study.dataset.label.type != "binary"):
            raise SumsRefused("totals of rows and of rows with label 1 contradict each other")
    return totals


def as_sums(sums: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    """Raises `SumsRefused` for a number that no ring of 64 bits has."""
    try:
        return np.asarray(sums, dtype=np.int64)
    except OverflowError as error:
        raise SumsRefused("a sum is larger than the ring") from error


def cell_counts(study: Study, sums: Sequence[int] | NDArray[Any]) -> list[NDArray[np.int64]]:
    """By feature: the rows of all sites by cell, and at the end those that miss it.

    Raises `SumsRefused` when a count is negative, a feature's counts do not add up to the training rows, or rows miss a
    feature that the study refuses to be missing.
    """
    rows = tree_totals(study, sums).training_rows
    values = as_sums(sums)
    found: list[NDArray[np.int64]] = []
    start = 0
    for feature in study.dataset.features:
        counts = values[start : start + cell_count(feature) + 1]
        start += counts.size
        # Each is at most the rows before they are added up, so that no sum of hostile numbers wraps around to the rows.
        if counts.min() < 0 or counts.max() > rows or int(counts.sum()) != rows:
            raise SumsRefused(f"the counts of {feature.name} do not add up to the training rows")
        if feature.missing == "refuse" and counts[-1]:
            raise SumsRefused(f"{feature.name} is missing in some rows, which the study refuses")
        found.append(counts)
    return found
