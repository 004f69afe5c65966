"""Bins depend on the rows alone: not on where they lie, and not on anything that floating point could do."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tree_studies import SEX, none_of, study_of

from cohortium_messages.study import NumberFeature, Study
from cohortium_protocol.statistics import Rows
from cohortium_protocol.trees.binning import (
    Binning,
    NumberBins,
    binning_from_sums,
    needs_refinement,
    refined,
    refinement_vector,
    tree_columns,
)
from cohortium_protocol.trees.cuts import LEAST_ROWS, equal_cuts
from cohortium_protocol.trees.grid import Scale, cells_of, split_borders, tree_statistics_vector
from examples import examples

FEATURES = (
    NumberFeature(name="lab", type="float", range=(-3, 1000), missing="native"),
    NumberFeature(name="days", type="int", range=(0, 100_000)),
    NumberFeature(name="age", type="int", range=(18, 110)),
    SEX,
)
SHAPES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "even": lambda generator, rows: generator.random(rows),
    "skewed": lambda generator, rows: np.minimum(generator.lognormal(-7, 2, rows), 1),
    "repeated": lambda generator, rows: generator.choice([0.0, 0.25, 0.7, 1.0], rows, p=[0.7, 0.1, 0.1, 0.1]),
    "single": lambda generator, rows: np.full(rows, generator.random()),
}
SITES = st.lists(st.integers(0, 400), min_size=1, max_size=5).filter(any)


def rows_of(seed: int, shape: str, rows: int) -> Rows:
    generator = np.random.default_rng(seed)
    share = SHAPES[shape](generator, rows)
    lab = -3 + 1003 * share
    lab[generator.random(rows) < 0.1] = math.nan
    return Rows(
        {
            "lab": lab,
            "days": np.rint(100_000 * share),
            "age": np.rint(18 + 92 * share),
            "sex": generator.integers(-1, 3, rows).astype(np.int32),
        },
        generator.integers(0, 2, rows).astype(np.uint8),
    )


def binnings(study: Study, sites: list[Rows]) -> tuple[Binning, Binning]:
    """After the first sum, and after both."""
    binning = binning_from_sums(study, sum(tree_statistics_vector(study, rows, rows) for rows in sites), 3)
    if not needs_refinement(binning):
        return binning, binning
    return binning, refined(binning, sum(refinement_vector(binning, rows) for rows in sites))


@settings(max_examples=examples(60), deadline=None)
@given(SITES, st.integers(0, 1000), st.sampled_from(sorted(SHAPES)), st.sampled_from([2, 5, 63, 255]))
def test_sums_over_any_partition_give_the_bins_of_the_pooled_rows(
    sizes: list[int], seed: int, shape: str, max_bin: int
) -> None:
    study = study_of(*FEATURES, max_bin=max_bin)
    pooled = rows_of(seed, shape, sum(sizes))
    order = np.random.default_rng(seed + 1).permutation(len(pooled))
    sites = [pooled.take(part) for part in np.split(order, np.cumsum(sizes)[:-1])]
    first, last = binnings(study, sites)
    pooled_first, pooled_last = binnings(study, [pooled, none_of(pooled)])
    assert first.canonical() == pooled_first.canonical()
    assert last.canonical() == pooled_last.canonical()
    assert Binning.from_canonical(last.canonical()) == last
    assert tree_columns(last, pooled).shape == (len(pooled), 4)


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(1, 3000), st.integers(0, 1000), st.sampled_from(sorted(SHAPES)), st.sampled_from([2, 5, 63, 255]))
def test_no_bin_holds_much_more_than_its_share_beside_one_cell(rows: int, seed: int, shape: str, max_bin: int) -> None:
    table = rows_of(seed, shape, rows)
    first, last = binnings(study_of(*FEATURES, max_bin=max_bin), [table])
    for coarse, feature in zip(first.features[:3], last.features[:3], strict=True):
        assert isinstance(coarse, NumberBins)
        assert isinstance(feature, NumberBins)
        values = table.columns[feature.name]
        values = values[~np.isnan(values)]
        bins = max(1, min(max_bin - (feature.missing == "native"), values.size // LEAST_ROWS))
        counts = np.bincount(cells_of(np.array(feature.edges), values), minlength=len(feature.edges) + 1)
        assert counts.size <= bins
        assert counts.size == 1 or counts.min() >= LEAST_ROWS
        heaviest = finest_cell(first, coarse, values)
        assert counts.max() <= 2 * math.ceil(values.size / bins) + heaviest + 4 * LEAST_ROWS


def finest_cell(first: Binning, feature: NumberBins, values: np.ndarray) -> int:
    """Rows in the fullest cell of the grid and of the second look together: a repeated value's, if one is frequent."""
    borders = set(feature.scale.borders(1024).tolist()) | set(feature.edges)
    ends = (feature.low, *feature.edges, feature.high)
    for refinement in first.refine:
        if first.features[refinement.feature] is feature:
            for place, parts in refinement.cells:
                borders |= set(split_borders(feature.scale, ends[place], ends[place + 1], parts).tolist())
    cells = cells_of(np.array(sorted(borders)), values)
    return int(np.bincount(cells).max()) if values.size else 0


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.integers(0, 50) | st.integers(0, 5000), max_size=120), st.integers(1, 70))
def test_cuts_keep_their_bound_whatever_the_counts(rows: list[int], bins: int) -> None:
    cuts = equal_cuts(rows, bins)
    assert all(first < second for first, second in pairwise(cuts))
    assert all(0 <= cut < len(rows) - 1 for cut in cuts)
    parts = np.split(np.array(rows, dtype=np.int64), [cut + 1 for cut in cuts])
    total, wanted = sum(rows), max(1, min(bins, sum(rows) // LEAST_ROWS))
    assert len(parts) <= wanted
    share = math.ceil(total / wanted)
    for part in parts:
        heaviest = int(part.max(initial=0))
        beside = int(part.sum()) - (heaviest if heaviest * wanted > total else 0)
        assert beside <= 2 * share + 2 * (LEAST_ROWS - 1)
    if len(parts) > 1:
        assert min(int(part.sum()) for part in parts) >= LEAST_ROWS


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.integers(1, 10).map(lambda power: 1 << power),
    st.lists(st.floats(0, 1), max_size=20),
)
def test_every_value_has_one_cell_and_a_threshold_at_its_border_agrees(
    low: float, width: float, parts: int, places: list[float]
) -> None:
    scale = Scale(low, low + width, whole=False)
    values = np.clip(np.array([low + width * place for place in places]), low, scale.high)
    for borders in (scale.borders(parts), split_borders(scale, low, scale.high, parts)):
        assert (np.diff(borders) > 0).all()
        cells = cells_of(borders, values)
        for cell, value in zip(cells.tolist(), values.tolist(), strict=True):
            assert cell == 0 or value > borders[cell - 1]
            assert cell == borders.size or value <= borders[cell]
