"""Bins of equal counts, cut in integers."""

import numpy as np
import pytest

from cohortium_protocol.trees.cuts import LEAST_ROWS, equal_cuts, isolated


def bins_of(rows: list[int], cuts: tuple[int, ...]) -> list[int]:
    return [int(part.sum()) for part in np.split(np.array(rows), [cut + 1 for cut in cuts])]


def test_even_counts_are_cut_evenly() -> None:
    assert equal_cuts([10] * 12, 4) == (2, 5, 8)
    assert bins_of([10] * 12, equal_cuts([10] * 12, 5)) == [30, 30, 30, 30]


def test_few_cells_have_a_bin_each() -> None:
    assert equal_cuts([30, 20, 10], 63) == (0, 1)


def test_between_bins_the_cut_is_in_the_middle_of_the_empty_cells() -> None:
    assert equal_cuts([9, 0, 0, 0, 0, 0, 9], 63) == (2,)
    assert equal_cuts([0, 9, 0, 9, 0, 0], 63) == (1,)


def test_a_frequent_value_has_a_bin_of_its_own_and_costs_the_others_no_bin() -> None:
    rows = [10] * 20 + [5000] + [10] * 20
    cuts = equal_cuts(rows, 11)
    assert {19, 20} <= set(cuts)
    assert bins_of(rows, cuts) == [40] * 5 + [5000] + [40] * 5


def test_several_frequent_values_are_found_one_after_the_other() -> None:
    # 60 is less than a fifth of 1,000, but more than a quarter of what is left without 800.
    rows = [800, 20, 60, 20, 20, 20, 20, 20, 20]
    assert 60 in bins_of(rows, equal_cuts(rows, 5))


def test_frequent_values_between_rare_ones_take_them_in_where_bins_are_too_few() -> None:
    rows = [7, 100] * 6
    counts = bins_of(rows, equal_cuts(rows, 7))
    assert len(counts) <= 7
    assert max(counts) <= 114


@pytest.mark.parametrize("rows", [[], [0, 0], [7], [0, 7, 0], [4, 5], [1] * 9])
def test_too_few_rows_are_one_bin(rows: list[int]) -> None:
    assert equal_cuts(rows, 63) == ()


def test_no_bin_tells_of_fewer_than_five_rows() -> None:
    rows = [1, 1, 1, 50, 2, 50, 1, 0, 1, 1, 1, 1, 40, 3]
    counts = bins_of(rows, equal_cuts(rows, 63))
    assert min(counts) >= LEAST_ROWS
    assert counts == [55, 50, 5, 43]


def test_one_bin_needs_no_cut() -> None:
    assert equal_cuts([10] * 10, 1) == ()


def test_cells_that_must_be_alone_are_alone() -> None:
    rows = [3, 3, 900, 3, 3, 3, 700, 0, 0]
    assert isolated(rows, frozenset({2, 6}), 2) == (1, 2, 5, 6)
    assert isolated([900], frozenset({0}), 3) == ()


def test_between_cells_that_must_be_alone_bins_have_five_rows_or_are_all_there_is() -> None:
    rows = [2, 2, 2, 2, 2, 900, 1, 1, 1, 700, 4, 9, 4, 4]
    assert bins_of(rows, isolated(rows, frozenset({5, 9}), 50)) == [10, 900, 3, 700, 13, 8]
