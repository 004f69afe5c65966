"""Counts on the public grid: whose cells are whose, and sums that no rows can have."""

import math

import numpy as np
import pytest
from tree_studies import AGE, LAB, NORTH, NUMBER, RANDOM, SEX, SOUTH, none_of, numbers, one_number, study_of, table

from cohortium_messages.study import NumberFeature
from cohortium_protocol.statistics import SumsRefused
from cohortium_protocol.trees.grid import (
    FINE_CELLS,
    REFINED_CELLS,
    Scale,
    cell_counts,
    cells_of,
    public_thresholds,
    split_borders,
    tree_statistics_length,
    tree_statistics_vector,
    tree_totals,
)

STUDY = study_of()


def test_the_vector_has_the_layout_that_is_written() -> None:
    vector = tree_statistics_vector(STUDY, NORTH, SOUTH)
    assert vector.size == tree_statistics_length(STUDY) == (4 + 1) + (1024 + 1) + (3 + 1) + 4
    assert vector[:5].tolist() == [1, 0, 0, 1, 1]
    lab = vector[5 : 5 + 1025]
    assert np.flatnonzero(lab).tolist() == [0, 1023]  # 1.0 is on the border and belongs below it, with 0.0
    assert lab[0] == 2
    assert vector[-8:-4].tolist() == [1, 0, 1, 1]
    assert vector[-4:].tolist() == [3, 2, 2, 1]


def test_random_trees_tell_nothing_but_the_totals() -> None:
    study = study_of(recipe=RANDOM)
    assert tree_statistics_vector(study, NORTH, SOUTH).tolist() == [3, 2, 2, 1]
    assert tree_statistics_length(study) == 4


def test_labels_that_are_not_binary_have_no_positives() -> None:
    study = study_of(LAB, label=NUMBER)
    rows = table({"lab": [1.0, 2.0]}, [3.5, 1.0])
    assert tree_statistics_vector(study, rows, rows)[-4:].tolist() == [2, 2, 0, 0]


def test_a_border_belongs_to_the_cell_below_it_as_a_threshold_to_the_left() -> None:
    borders = Scale(18.0, 110.0, whole=False).borders(FINE_CELLS)
    assert borders.size == 1023
    assert borders[0] == 18 + 92 / 1024
    on, above = borders.copy(), np.nextafter(borders, np.inf)
    assert cells_of(borders, on).tolist() == list(range(1023))
    assert cells_of(borders, above).tolist() == list(range(1, 1024))
    assert cells_of(borders, np.array([18.0, 110.0])).tolist() == [0, 1023]


def test_an_int_has_a_cell_for_each_value_and_borders_between_them() -> None:
    assert Scale(-2.0, 2.0, whole=True).borders(FINE_CELLS).tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert not Scale(0.0, 1023.0, whole=True).coarse
    assert Scale(0.0, 1024.0, whole=True).coarse


@pytest.mark.parametrize("values", [1025, 1500, 4096, 100_001, 10**14])
def test_an_int_with_many_values_has_cells_of_whole_numbers_as_even_as_can_be(values: int) -> None:
    borders = Scale(7.0, 7.0 + values - 1, whole=True).borders(FINE_CELLS)
    assert borders.size == 1023
    assert ((borders - 0.5) % 1 == 0).all()
    widths = np.diff(np.concatenate([[6.5], borders, [7.0 + values - 0.5]]))
    assert set(widths.tolist()) <= {values // 1024, values // 1024 + 1}


def test_thresholds_of_the_public_grid_are_as_many_as_the_study_says() -> None:
    assert public_thresholds(LAB, 3).tolist() == [256, 512, 768]
    assert public_thresholds(AGE, 1).tolist() == [19.5]
    assert public_thresholds(AGE, 64).tolist() == [18.5, 19.5, 20.5]


@pytest.mark.parametrize("bounds", [(0.0, 1e16), (1.0, 1.0), (-1e308, 1e308)])
def test_a_range_that_no_study_file_has_is_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="range"):
        Scale(*bounds, whole=False).borders(4)
    with pytest.raises(ValueError, match="whole numbers"):
        Scale(0.5, 3.0, whole=True).borders(4)


@pytest.mark.parametrize("value", [-0.1, 1024.1, math.inf])
def test_a_value_outside_its_range_is_never_counted(value: float) -> None:
    rows = table({"age": [18.0], "lab": [value], "sex": [0]}, [0])
    with pytest.raises(ValueError, match="lab"):
        tree_statistics_vector(STUDY, rows, NORTH)


def test_a_value_that_is_not_whole_or_no_level_is_never_counted() -> None:
    with pytest.raises(ValueError, match="age"):
        tree_statistics_vector(STUDY, table({"age": [18.5], "lab": [1.0], "sex": [0]}, [0]), NORTH)
    with pytest.raises(ValueError, match="sex"):
        tree_statistics_vector(STUDY, table({"age": [18.0], "lab": [1.0], "sex": [3]}, [0]), NORTH)


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, -1), (0, 3), (4, 5), (7, 1), (5 + 1024, 1), (-4, 2), (-4, -1), (-3, -1), (-2, 4), (-1, 9), (-4, 1 << 41)],
)
def test_sums_that_no_table_can_have_are_refused(place: int, value: int) -> None:
    sums = tree_statistics_vector(STUDY, NORTH, SOUTH)
    sums[place] = value
    with pytest.raises(SumsRefused):
        cell_counts(STUDY, sums)


def test_sums_that_wrap_around_to_the_right_total_are_refused() -> None:
    study = one_number(0, 1)
    sums = tree_statistics_vector(study, numbers([0.1, 0.2]), numbers([]))
    sums[:4] = 1 << 62  # four of them are 0 modulo 2^64
    with pytest.raises(SumsRefused):
        cell_counts(study, sums)
    with pytest.raises(SumsRefused, match="larger than the ring"):
        cell_counts(study, [*sums[:-5].tolist(), 1 << 64, *sums[-4:].tolist()])


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(SumsRefused, match="expected"):
        tree_totals(STUDY, [1, 2, 3])


def test_a_missing_value_that_the_study_refuses_is_refused_in_the_sum_too() -> None:
    sums = tree_statistics_vector(STUDY, NORTH, SOUTH)
    lab = slice(5, 5 + 1025)
    sums[lab] = 0
    sums[5 + 1024] = 3
    with pytest.raises(SumsRefused, match="lab is missing"):
        cell_counts(STUDY, sums)


def test_counts_are_those_of_all_sites() -> None:
    sums = tree_statistics_vector(STUDY, NORTH, SOUTH) + tree_statistics_vector(STUDY, SOUTH, none_of(SOUTH))
    age, lab, sex = cell_counts(STUDY, sums)
    assert age.tolist() == [2, 1, 0, 1, 1]
    assert lab.sum() == 5
    assert sex.tolist() == [1, 2, 1, 1]


class TestTheSecondLook:
    """Cells of the refining sum."""

    def test_inside_the_range_parts_are_even(self) -> None:
        borders = split_borders(Scale(-100.0, 100.0, whole=False), 8.0, 16.0, 8)
        assert borders.tolist() == [9, 10, 11, 12, 13, 14, 15]

    @pytest.mark.parametrize(
        ("span", "scale"),
        [
            ((0.0, 64.0), Scale(0.0, 1e6, whole=False)),
            ((0.0, 64.0), Scale(-64.0, 1e6, whole=False)),
            ((-64.0, 0.0), Scale(-64.0, 64.0, whole=False)),
            ((36.0, 100.0), Scale(0.0, 100.0, whole=False)),
        ],
    )
    def test_at_an_end_of_the_range_and_at_zero_parts_become_narrower(
        self, span: tuple[float, float], scale: Scale
    ) -> None:
        borders = split_borders(scale, *span, REFINED_CELLS)
        anchor = span[0] if span[0] in (scale.low, 0.0) else span[1]
        distance = np.sort(np.abs(borders - anchor))
        assert borders.size < REFINED_CELLS
        assert distance[0] <= 64 * 2.0**-20
        assert (np.diff(distance) <= np.maximum(distance[1:] / 32, 0)).all()
        assert np.diff(distance).max() <= 64 / 512

    def test_a_span_over_zero_is_narrow_on_both_sides_of_it(self) -> None:
        borders = split_borders(Scale(-100.0, 300.0, whole=False), -1.0, 3.0, 256)
        assert 0.0 in borders
        assert np.abs(borders[borders != 0]).min() < 1e-4
        assert np.sum(borders < 0) == np.sum(borders > 0)

    def test_whole_numbers_are_parted_at_half_integers(self) -> None:
        scale = Scale(0.0, 1e6, whole=True)
        borders = split_borders(scale, 0.0, 976.5, REFINED_CELLS)
        assert borders[:5].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
        assert ((borders - 0.5) % 1 == 0).all()
        assert split_borders(scale, 1.5, 3.5, 64).tolist() == [2.5]
        assert split_borders(scale, 2.5, 3.5, 64).tolist() == []

    @pytest.mark.parametrize("parts", [2**k for k in range(1, 11)])
    def test_parts_are_never_more_than_their_places(self, parts: int) -> None:
        scale = Scale(-3.0, 5.0, whole=False)
        for start, stop in ((-3.0, -1.0), (-3.0, 5.0), (-1.0, 0.0), (1.0, 2.0), (4.0, 5.0), (0.0, 1e-300)):
            borders = split_borders(scale, start, stop, parts)
            assert borders.size < parts
            assert ((borders > start) & (borders < stop)).all()
            assert (np.diff(borders) > 0).all()


def test_a_range_narrower_than_its_borders_can_tell_has_fewer_cells() -> None:
    low = 1e15 - 1.0
    scale = Scale(low, 1e15, whole=False)
    assert scale.borders(FINE_CELLS).tolist() == [low + step / 8 for step in range(8)]


def test_the_same_range_has_the_same_cells_whatever_its_feature() -> None:
    one = NumberFeature(name="a", type="float", range=(0, 1))
    other = NumberFeature(name="b", type="float", range=(0, 1))
    assert Scale.of(one) == Scale.of(other)
    assert not Scale.of(one).borders(8).flags.writeable
    assert SEX.levels == ("f", "m", "x")
