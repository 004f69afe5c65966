"""Bins from sums: equal counts, a second look where the first was too coarse, and the same bytes everywhere."""

import math

import numpy as np
import pytest
from tree_studies import (
    AGE,
    COUNT,
    LAB,
    LIGHTGBM,
    MLP,
    NORTH,
    RANDOM,
    SEX,
    SOUTH,
    none_of,
    numbers,
    one_number,
    parts_of,
    study_of,
    table,
)

from cohortium_messages.study import NumberFeature, Study
from cohortium_protocol.statistics import NoTrainingRows, Rows, SumsRefused
from cohortium_protocol.trees.binning import (
    Binning,
    CategoryBins,
    NumberBins,
    binning_from_sums,
    grid_binning,
    needs_refinement,
    refined,
    refinement_length,
    refinement_vector,
    tree_columns,
)
from cohortium_protocol.trees.cuts import LEAST_ROWS
from cohortium_protocol.trees.grid import REFINED_CELLS, tree_statistics_vector, tree_totals

ROWS = 20_000


def first(study: Study, sites: list[Rows]) -> Binning:
    """What the statistics sum gives."""
    sums = np.sum([tree_statistics_vector(study, rows, none_of(rows)) for rows in sites], axis=0)
    return binning_from_sums(study, sums, len(sites))


def final(study: Study, sites: list[Rows]) -> Binning:
    """What both sums give."""
    binning = first(study, sites)
    if not needs_refinement(binning):
        return binning
    return refined(binning, np.sum([refinement_vector(binning, rows) for rows in sites], axis=0))


def edges_of(binning: Binning, place: int = 0) -> tuple[float, ...]:
    feature = binning.features[place]
    assert isinstance(feature, NumberBins)
    return feature.edges


def counts_of(values: np.ndarray, edges: tuple[float, ...]) -> np.ndarray:
    present = values[~np.isnan(values)]
    return np.bincount(np.searchsorted(edges, present, side="left"), minlength=len(edges) + 1)


def draws(kind: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Skewed features, in ranges that are far wider than they need be."""
    generator = np.random.default_rng(7)
    match kind:
        case "lognormal":
            return generator.lognormal(0, 1, ROWS).clip(0, 1e6), (0, 1e6)
        case "wide lognormal":
            return generator.lognormal(8, 2, ROWS).clip(0, 1e6), (0, 1e6)
        case "narrow lognormal":
            return generator.lognormal(6.5, 0.3, ROWS).clip(0, 1e6), (0, 1e6)
        case "normal around zero":
            return generator.normal(0, 1, ROWS), (-1e6, 1e6)
        case "saturation":
            return 100 - generator.exponential(0.02, ROWS).clip(0, 100), (0, 100)
        case "away from the ends":
            return generator.normal(5e5, 100, ROWS).clip(0, 1e6), (0, 1e6)
    raise AssertionError(kind)


SKEWED = ("lognormal", "wide lognormal", "narrow lognormal", "normal around zero", "saturation", "away from the ends")


@pytest.mark.parametrize("max_bin", [15, 63])
@pytest.mark.parametrize("kind", SKEWED)
def test_a_second_look_gives_skewed_features_bins_of_nearly_equal_counts(kind: str, max_bin: int) -> None:
    values, bounds = draws(kind)
    study = one_number(*bounds, max_bin=max_bin)
    sites = parts_of(numbers(values), 5)
    binning = first(study, sites)
    assert needs_refinement(binning)
    counts = counts_of(values, edges_of(final(study, sites)))
    assert counts.max() <= 2 * ROWS / max_bin
    assert counts.size >= 0.8 * max_bin
    assert counts.size <= max_bin


def test_without_the_second_look_a_skewed_feature_would_have_hardly_any_bins() -> None:
    values, bounds = draws("lognormal")
    coarse = first(one_number(*bounds), [numbers(values)])
    assert counts_of(values, edges_of(coarse)).max() > 0.9 * ROWS


def test_a_repeated_value_has_its_bin_and_the_rest_is_cut_evenly() -> None:
    generator = np.random.default_rng(3)
    values = np.where(generator.random(ROWS) < 0.6, 0.0, generator.gamma(1, 300, ROWS)).clip(0, 5000)
    edges = edges_of(final(one_number(0, 5000), parts_of(numbers(values), 4)))
    counts = counts_of(values, edges)
    zeros = int((values == 0).sum())
    assert zeros <= counts[0] <= zeros + 2 * ROWS / 63
    assert counts[1:].max() <= 2 * ROWS * 0.4 / 62
    assert 60 <= counts.size <= 63


def test_an_even_feature_needs_no_second_look() -> None:
    values = np.random.default_rng(1).normal(50, 12, ROWS).clip(0, 100)
    binning = first(one_number(0, 100), parts_of(numbers(values), 4))
    assert not needs_refinement(binning)
    counts = counts_of(values, edges_of(binning))
    assert counts.size == 63
    assert counts.max() <= 1.2 * ROWS / 63


def test_an_int_is_cut_at_half_integers() -> None:
    values = np.random.default_rng(2).poisson(4, 2000).clip(0, 30)
    binning = first(one_number(0, 30, whole=True), [numbers(values)])
    edges = edges_of(binning)
    assert not needs_refinement(binning)
    assert edges[:3] == (0.5, 1.5, 2.5)
    assert all(edge % 1 == 0.5 for edge in edges)
    assert counts_of(values, edges).min() >= LEAST_ROWS


def test_an_int_with_a_wide_range_is_looked_at_again_and_cut_at_half_integers() -> None:
    values = np.random.default_rng(2).poisson(4, 2000)
    study = one_number(0, 1e9, whole=True)
    binning = final(study, [numbers(values)])
    assert needs_refinement(first(study, [numbers(values)]))
    narrow = first(one_number(0, 30, whole=True), [numbers(values)])
    assert edges_of(binning)[:8] == edges_of(narrow)[:8]


def test_missing_values_take_one_of_the_bins() -> None:
    values = np.random.default_rng(1).random(ROWS)
    values[::3] = math.nan
    binning = first(one_number(0, 1, missing="native", max_bin=16), [numbers(values)])
    feature = binning.features[0]
    assert isinstance(feature, NumberBins)
    assert feature.missing == "native"
    counts = counts_of(values, feature.edges)
    assert counts.size == 15
    assert counts.max() <= 1.1 * np.count_nonzero(~np.isnan(values)) / 15


@pytest.mark.parametrize("values", [[3.7] * 50, [math.nan] * 50, [0.0] * 3])
def test_a_feature_that_tells_nothing_has_one_bin(values: list[float]) -> None:
    assert edges_of(final(one_number(0, 10, missing="native"), [numbers(values)])) == ()


def test_the_document_says_how_columns_are_made() -> None:
    study = study_of(label=COUNT)
    sites = [NORTH, SOUTH, table({"age": [20.0], "lab": [9.0], "sex": [0]}, [4])]
    binning = first(study, sites)
    assert binning.feature_names() == ("age", "lab", "sex")
    assert (binning.training_rows, binning.sites) == (6, 3)
    assert binning.label == COUNT
    assert binning.study_digest == study.digest()
    sex = binning.features[2]
    assert isinstance(sex, CategoryBins)
    assert sex.codes == 4
    data = binning.canonical()
    assert b'"version":"cohortium/binning/1"' in data
    assert Binning.from_canonical(data) == binning
    with pytest.raises(ValueError, match="canonical"):
        Binning.from_canonical(data + b"\n")


def test_a_document_with_a_second_look_to_come_survives_the_wire() -> None:
    values, bounds = draws("lognormal")
    binning = first(one_number(*bounds), [numbers(values)])
    assert Binning.from_canonical(binning.canonical()) == binning
    assert b"refine" in binning.canonical()
    assert final(one_number(*bounds), [numbers(values)]).refine == ()


def test_columns_are_numbers_codes_and_nothing_else() -> None:
    binning = first(study_of(), [NORTH, SOUTH])
    matrix = tree_columns(binning, NORTH)
    assert matrix.dtype == np.float64
    np.testing.assert_array_equal(matrix, [[18, 0, 0], [21, 1, 2], [math.nan, 1024, 3]])
    native = study_of(SEX.model_copy(update={"missing": "native"}))
    matrix = tree_columns(first(native, [NORTH]), NORTH)
    np.testing.assert_array_equal(matrix, [[0], [2], [math.nan]])
    assert tree_columns(binning, none_of(NORTH)).shape == (0, 3)


def test_what_the_study_refuses_never_becomes_a_column() -> None:
    binning = first(study_of(), [NORTH, SOUTH])
    with pytest.raises(ValueError, match="lab has missing"):
        tree_columns(binning, table({"age": [18.0], "lab": [math.nan], "sex": [0]}, [0]))
    with pytest.raises(ValueError, match="sex has a value"):
        tree_columns(binning, table({"age": [18.0], "lab": [1.0], "sex": [3]}, [0]))
    strict = first(study_of(SEX.model_copy(update={"missing": "refuse"})), [SOUTH])
    with pytest.raises(ValueError, match="sex has missing"):
        tree_columns(strict, NORTH)


def test_random_trees_have_the_public_grid_and_need_no_counts() -> None:
    study = study_of(recipe=RANDOM)
    binning = first(study, [NORTH, SOUTH])
    assert edges_of(binning, 0) == (18.5, 19.5, 20.5)
    assert edges_of(binning, 1) == (204.8, 409.6, 614.4, 819.2)
    assert not needs_refinement(binning)
    totals = tree_totals(study, tree_statistics_vector(study, NORTH, SOUTH))
    assert grid_binning(study, totals, 2).training_rows == 3
    with pytest.raises(ValueError, match="public grid"):
        grid_binning(study_of(), totals, 2)


def test_no_training_row_anywhere_is_an_error_of_its_own() -> None:
    for recipe in (LIGHTGBM, RANDOM):
        study = study_of(recipe=recipe)
        with pytest.raises(NoTrainingRows):
            binning_from_sums(study, tree_statistics_vector(study, none_of(NORTH), NORTH), 3)


def test_a_mean_for_missing_values_is_not_for_trees() -> None:
    study = study_of(NumberFeature(name="x", type="float", range=(0, 1), missing="impute"))
    with pytest.raises(ValueError, match="impute"):
        first(study, [numbers([0.5])])


def test_the_refining_sum_is_as_long_as_the_study_says() -> None:
    assert refinement_length(study_of()) == REFINED_CELLS
    assert refinement_length(study_of(LAB, LAB.model_copy(update={"name": "b"}))) == 2 * REFINED_CELLS
    assert refinement_length(study_of(AGE, SEX)) == 0
    assert refinement_length(study_of(recipe=RANDOM)) == 0
    assert refinement_length(study_of(LAB, recipe=MLP)) == 0


def test_only_the_features_and_cells_that_are_named_are_looked_at() -> None:
    skewed, bounds = draws("lognormal")
    even = np.random.default_rng(5).random(ROWS)
    features = (
        NumberFeature(name="even", type="float", range=(0, 1)),
        AGE,
        NumberFeature(name="skewed", type="float", range=bounds),
    )
    study = study_of(*features)
    rows = Rows({"even": even, "age": np.full(ROWS, 19.0), "skewed": skewed}, np.zeros(ROWS, dtype=np.uint8))
    binning = first(study, [rows])
    assert [refinement.feature for refinement in binning.refine] == [2]
    vector = refinement_vector(binning, rows)
    assert vector.size == refinement_length(study)
    assert not vector[:REFINED_CELLS].any()
    inside = skewed <= edges_of(binning, 2)[0]
    assert vector.sum() == inside.sum()
    done = refined(binning, vector)
    assert edges_of(done, 0) == edges_of(binning, 0)
    assert edges_of(done, 2) == edges_of(final(one_number(*bounds), [numbers(skewed)]))


def test_a_site_that_is_not_in_the_second_sum_does_not_spoil_it() -> None:
    values, bounds = draws("lognormal")
    study, sites = one_number(*bounds), parts_of(numbers(values), 5)
    binning = first(study, sites)
    four = refined(binning, np.sum([refinement_vector(binning, rows) for rows in sites[:4]], axis=0))
    counts = counts_of(values, edges_of(four))
    assert counts.max() <= 2 * ROWS / 63
    nobody = refined(binning, np.zeros(REFINED_CELLS, dtype=np.int64))
    assert len(edges_of(nobody)) <= len(edges_of(binning))


@pytest.mark.parametrize(("place", "value"), [(0, -1), (5, 1 << 41), (REFINED_CELLS - 1, 1)])
def test_refining_sums_that_no_table_can_have_are_refused(place: int, value: int) -> None:
    values, bounds = draws("lognormal")
    binning = first(one_number(*bounds), [numbers(values)])
    sums = refinement_vector(binning, numbers(values))
    sums[place] = value
    with pytest.raises(SumsRefused):
        refined(binning, sums)
    with pytest.raises(SumsRefused, match="expected"):
        refined(binning, sums[:-1])


def test_counts_for_a_feature_that_nobody_asked_about_are_refused() -> None:
    binning = first(study_of(LAB), [numbers_of_lab()])
    assert not needs_refinement(binning)
    with pytest.raises(SumsRefused, match="not to be looked into"):
        refined(binning, np.ones(REFINED_CELLS, dtype=np.int64))


def numbers_of_lab() -> Rows:
    values = np.linspace(0, 1024, 3000)
    return Rows({"lab": values}, np.zeros(3000, dtype=np.uint8))


HOSTILE = [
    ({"edges": (3.0, 2.0)}, "ascend"),
    ({"edges": (2.0, 2.0)}, "ascend"),
    ({"edges": (1024.0,)}, "inside"),
    ({"edges": (-1.0, 2.0)}, "inside"),
    ({"edges": (2.25,), "whole": True}, "half-integers"),
    ({"edges": tuple(float(edge) for edge in range(1025)), "high": 2000.0}, "at most 1024"),
    ({"edges": (math.nan,)}, "finite"),
    ({"edges": (2.0,), "missing": "impute"}, "missing"),
]


@pytest.mark.parametrize(("change", "why"), HOSTILE)
def test_a_document_whose_edges_make_no_sense_is_refused(change: dict[str, object], why: str) -> None:
    feature = first(study_of(LAB), [numbers_of_lab()]).features[0]
    with pytest.raises(ValueError, match=why):
        NumberBins(**(dict(feature) | change))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"feature": 1}, "none that can be refined"),
        ({"feature": 7}, "none that can be refined"),
        ({"rows": (1,)}, "one number for each bin"),
        ({"cells": ((9, 2),)}, "places of bins"),
        ({"cells": ((1, 2), (0, 2))}, "places of bins"),
        ({"cells": ((0, 3),)}, "powers of two"),
        ({"cells": ((0, 1024), (1, 2))}, "powers of two"),
        ({"bins": 1}, "bins"),
    ],
)
def test_a_document_that_asks_to_look_where_nothing_can_be_is_refused(change: dict[str, object], why: str) -> None:
    values, bounds = draws("lognormal")
    study = study_of(NumberFeature(name="x", type="float", range=bounds), AGE)
    rows = Rows({"x": values, "age": np.full(ROWS, 20.0)}, np.zeros(ROWS, dtype=np.uint8))
    document = first(study, [rows]).model_dump(mode="json")
    Binning.model_validate(document)
    document["refine"][0] |= change
    with pytest.raises(ValueError, match=why):
        Binning.model_validate(document)


def test_a_document_with_two_features_of_one_name_is_refused() -> None:
    document = first(study_of(), [NORTH, SOUTH]).model_dump(mode="json")
    document["features"][1] = document["features"][0]
    with pytest.raises(ValueError, match="same name"):
        Binning.model_validate(document)


def test_the_document_keeps_no_count_of_a_cell_with_fewer_than_five_rows() -> None:
    values = np.concatenate([np.random.default_rng(1).lognormal(0, 1, 5000), [3e5, 8e5]])
    document = first(one_number(0, 1e6), [numbers(values)])
    rows = document.refine[0].rows
    assert all(count == 0 or count >= LEAST_ROWS for count in rows)
    assert sum(rows) < values.size
