"""Bins of a study with trees, made from integer sums over the sites and from nothing else.

A site contributes counts on the public fine grid (`grid`); the sum over the sites, opened by the secure sum, gives bins
of equal counts (`binning_from_sums`). Where one cell of the grid held more than two bins' share of the rows, a second
sum looks closer at those cells (`refinement_vector`), and `refined` cuts again. Every site then turns its rows into the
same columns (`tree_columns`), and all of them cut these at the same edges. No site's own quantile, and no pooled file,
has any part in it.

After both looks a bin has at most 2/max_bin of a feature's rows beside one repeated value's (tested; `cuts` has the
rule), as long as the grid can tell its values apart: inside the range that is 2^-18 of its width where one or two cells
hold nearly all rows, and near its ends and zero, where skewed features are, 2^-30. No bin has fewer than five rows.

Random trees need no counts: their bins are the public grid itself (`grid_binning`).
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohortium_messages.study import LightgbmRecipe, NumberFeature, RandomTreesRecipe, Study
from cohortium_protocol.statistics import NoTrainingRows, Rows, SumsRefused, Totals
from cohortium_protocol.trees.bins import Binning, CategoryBins, FeatureBins, NumberBins, Refinement
from cohortium_protocol.trees.cuts import LEAST_ROWS, equal_cuts, isolated
from cohortium_protocol.trees.grid import (
    FINE_CELLS,
    MOST_ROWS,
    REFINED_CELLS,
    Borders,
    Scale,
    as_sums,
    cell_counts,
    cells_of,
    public_thresholds,
    split_borders,
    tree_totals,
)

__all__ = [
    "Binning",
    "CategoryBins",
    "FeatureBins",
    "NumberBins",
    "Refinement",
    "binning_from_sums",
    "grid_binning",
    "needs_refinement",
    "refined",
    "refinement_length",
    "refinement_vector",
    "tree_columns",
]


def binning_from_sums(study: Study, sums: Sequence[int] | NDArray[Any], sites: int) -> Binning:
    """The bins of a study with trees, of either trainer, from statistics summed over `sites` sites.

    Raises `SumsRefused`, and `NoTrainingRows` where the sites together have none.
    """
    totals = tree_totals(study, sums)
    if not isinstance(recipe := study.recipe, LightgbmRecipe):
        return grid_binning(study, totals, sites)
    features: list[FeatureBins] = []
    refine: list[Refinement] = []
    for place, (feature, counts) in enumerate(zip(study.dataset.features, cell_counts(study, sums), strict=True)):
        if not isinstance(feature, NumberFeature):
            features.append(CategoryBins(name=feature.name, levels=feature.levels, missing=feature.missing))
            continue
        # LightGBM counts a bin for missing values among max_bin.
        bins = recipe.params.max_bin - (feature.missing == "native")
        edges, refinement = _first_look(Scale.of(feature), counts[:-1].tolist(), bins, place)
        features.append(_number_bins(feature, edges))
        refine += refinement
    return _binning(study, tuple(features), totals, sites, tuple(refine))


def grid_binning(study: Study, totals: Totals, sites: int) -> Binning:
    """The bins of random trees: each feature's range, divided by the thresholds of the study's public grid. Raises
    `NoTrainingRows`."""
    if not isinstance(recipe := study.recipe, RandomTreesRecipe):
        raise ValueError(f"the trainer {recipe.trainer} does not split on a public grid")
    features = tuple(
        _number_bins(feature, public_thresholds(feature, recipe.grid).tolist())
        if isinstance(feature, NumberFeature)
        else CategoryBins(name=feature.name, levels=feature.levels, missing=feature.missing)
        for feature in study.dataset.features
    )
    return _binning(study, features, totals, sites, ())


def _binning(
    study: Study,
    features: tuple[FeatureBins, ...],
    totals: Totals,
    sites: int,
    refine: tuple[Refinement, ...],
) -> Binning:
    if totals.training_rows == 0:
        raise NoTrainingRows("no site of the sum has a training row")
    return Binning(
        study_id=study.name,
        study_digest=study.digest(),
        features=features,
        label=study.dataset.label,
        training_rows=totals.training_rows,
        sites=sites,
        refine=refine,
    )


def _number_bins(feature: NumberFeature, edges: Sequence[float]) -> NumberBins:
    if feature.missing == "impute":
        raise ValueError(f"{feature.name}: missing: impute is not for trees; use native or refuse")
    scale = Scale.of(feature)
    return NumberBins(
        name=feature.name,
        low=scale.low,
        high=scale.high,
        whole=scale.whole,
        edges=tuple(edges),
        missing=feature.missing,
    )


def _first_look(scale: Scale, rows: list[int], bins: int, place: int) -> tuple[list[float], list[Refinement]]:
    """Edges from the fine grid, and what is still to be found out about the feature, if anything."""
    borders = scale.borders(FINE_CELLS)
    # Where a range is so narrow that two borders are the same number, the grid has fewer cells than places.
    if any(rows[len(borders) + 1 :]):
        raise SumsRefused("rows are counted in cells that the feature's grid does not have")
    total = sum(rows)
    bins = min(bins, total // LEAST_ROWS)
    heavy = (cell for cell, count in enumerate(rows) if scale.coarse and count * bins >= 2 * total)
    close = frozenset(heavy) if bins > 1 else frozenset()
    if not close:
        return borders[list(equal_cuts(rows, bins))].tolist(), []
    cuts = [cut for cut in isolated(rows, close, bins) if cut < len(borders)]
    starts = [0, *(cut + 1 for cut in cuts)]
    together = [sum(rows[start:stop]) for start, stop in pairwise([*starts, len(rows)])]
    within = sum(rows[cell] for cell in close)
    refinement = Refinement(
        feature=place,
        bins=bins,
        rows=tuple(count if count >= LEAST_ROWS else 0 for count in together),
        cells=tuple((starts.index(cell), _parts(rows[cell], within, len(close))) for cell in sorted(close)),
    )
    return borders[cuts].tolist(), [refinement]


def _parts(count: int, together: int, cells: int) -> int:
    """A power of two: half of all parts go to the cells evenly, half by their rows. At most 127 cells hold two bins'
    shares each, so it is at least 4."""
    parts = REFINED_CELLS // 2 // cells + REFINED_CELLS // 2 * count // together
    return 1 << (parts.bit_length() - 1)


def needs_refinement(binning: Binning) -> bool:
    """Whether the refining sum must come before trees may be grown on these bins."""
    return bool(binning.refine)


def refinement_length(study: Study) -> int:
    """Integers in one site's contribution to the refining sum, which the study alone decides: a place for every part
    that every feature could have. 0 for a study that can need none."""
    if not isinstance(study.recipe, LightgbmRecipe):
        return 0
    return REFINED_CELLS * sum(
        isinstance(feature, NumberFeature) and Scale.of(feature).coarse for feature in study.dataset.features
    )


def _places(binning: Binning) -> Iterator[tuple[NumberBins, Refinement | None, slice]]:
    """The features that could be refined, in their order, what is to be found out about each, and where its numbers
    stand."""
    wanted = {refinement.feature: refinement for refinement in binning.refine}
    start = 0
    for place, feature in enumerate(binning.features):
        if isinstance(feature, NumberBins) and feature.scale.coarse:
            yield feature, wanted.get(place), slice(start, start + REFINED_CELLS)
            start += REFINED_CELLS


def _spans(feature: NumberBins, refinement: Refinement) -> Iterator[tuple[int, Borders]]:
    """The bins to look into, and the borders inside each."""
    ends = (feature.low, *feature.edges, feature.high)
    for place, parts in refinement.cells:
        yield place, split_borders(feature.scale, ends[place], ends[place + 1], parts)


def refinement_vector(binning: Binning, train: Rows) -> NDArray[np.int64]:
    """One site's contribution to the refining sum: of each feature in `refine`, its training rows in the parts of each
    bin to look into, one bin after the other. Other places are 0."""
    pieces: list[NDArray[np.int64]] = []
    for feature, refinement, _ in _places(binning):
        piece = np.zeros(REFINED_CELLS, dtype=np.int64)
        pieces.append(piece)
        if refinement is None:
            continue
        values = train.columns[feature.name]
        bins = np.where(np.isnan(values), -1, cells_of(np.asarray(feature.edges), values))
        start = 0
        for place, borders in _spans(feature, refinement):
            inside = cells_of(borders, values[bins == place])
            piece[start : start + borders.size + 1] = np.bincount(inside, minlength=borders.size + 1)
            start += borders.size + 1
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


def refined(binning: Binning, sums: Sequence[int] | NDArray[Any]) -> Binning:
    """The final bins, from the refining sum. Its sites need not be those of the first sum: of each bin that was looked
    into, the sum only says how its rows are spread.

    Raises `SumsRefused` when a count is negative, or stands where nothing was to be counted.
    """
    values = as_sums(sums)
    features = {feature.name: feature for feature in binning.features}
    places = list(_places(binning))
    if values.shape != (REFINED_CELLS * len(places),):
        raise SumsRefused(f"expected {REFINED_CELLS * len(places)} sums, got {values.size}")
    for feature, refinement, where in places:
        counts = values[where]
        if counts.min() < 0 or counts.max() > MOST_ROWS:
            raise SumsRefused(f"a count of {feature.name} is negative, or larger than any federation")
        edges = feature.edges if refinement is None else _second_look(feature, refinement, counts)
        if refinement is None and counts.any():
            raise SumsRefused(f"rows are counted for {feature.name}, which was not to be looked into")
        features[feature.name] = NumberBins(**(dict(feature) | {"edges": edges}))
    return Binning(**(dict(binning) | {"features": tuple(features.values()), "refine": ()}))


def _second_look(feature: NumberBins, refinement: Refinement, counts: NDArray[np.int64]) -> tuple[float, ...]:
    inner = dict(_spans(feature, refinement))
    rows: list[int] = []
    borders: list[float] = []
    start = 0
    for place, known in enumerate(refinement.rows):
        if place in inner:
            stop = start + inner[place].size + 1
            rows += _spread(known, counts[start:stop].tolist())
            borders += inner[place].tolist()
            start = stop
        else:
            rows.append(known)
        borders += feature.edges[place : place + 1]
    if counts[start:].any():
        raise SumsRefused(f"rows of {feature.name} are counted in parts that it does not have")
    return tuple(borders[cut] for cut in equal_cuts(rows, refinement.bins))


def _spread(rows: int, counts: list[int]) -> list[int]:
    """`rows`, spread as `counts` are: exactly these where the same sites were in both sums. A bin that the second sum
    found empty stays whole, in its first part."""
    total = sum(counts)
    if total == 0:
        return [rows] + [0] * (len(counts) - 1)
    upto = [rows * count // total for count in np.cumsum(counts).tolist()]
    return [stop - start for start, stop in pairwise([0, *upto])]


def tree_columns(binning: Binning, rows: Rows) -> NDArray[np.float64]:
    """What the trees split, one line per row, in the order of `feature_names()`: a number as it is, a category as the
    place of its level (after the last one for a missing value that has a level of its own), NaN for what is missing.

    A published model takes exactly this matrix. Raises `ValueError` for what the study does not allow: the rows were
    checked before.
    """
    matrix = np.empty((len(rows), len(binning.features)), dtype=np.float64)
    for place, feature in enumerate(binning.features):
        values = rows.columns[feature.name]
        if isinstance(feature, NumberBins):
            column, absent = values, np.isnan(values)
        else:
            absent = values < 0
            column = np.where(absent, len(feature.levels) if feature.missing == "level" else np.nan, values)
            if values.size and int(values.max()) >= len(feature.levels):
                raise ValueError(f"{feature.name} has a value that is no level of the study")
        if feature.missing == "refuse" and absent.any():
            raise ValueError(f"{feature.name} has missing values, which the study refuses")
        matrix[:, place] = column
    return matrix
