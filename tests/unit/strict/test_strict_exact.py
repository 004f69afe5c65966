"""Real numbers as ring words: exact sums, one rounding, and no overflow that is not noticed."""

from math import fsum, inf, nan

import numpy as np
import pytest

from cohortium_protocol.errors import NotFinite, OutOfBounds
from cohortium_protocol.strict.exact import (
    LIMBS,
    from_fixed,
    histogram_scale,
    same_everywhere,
    scalar_sums,
    scalar_words,
    to_fixed,
)

LARGEST = 1.7976931348623157e308
SMALLEST = 5e-324


class TestScalars:
    def test_what_floats_would_lose_is_kept(self) -> None:
        parts = [1e308, 1.0, -1e308, SMALLEST, 2.0**-60]
        assert scalar_sums(sum(scalar_words([part]) for part in parts)) == (1.0 + 2.0**-60 + SMALLEST,)
        assert scalar_sums(sum(scalar_words([part]) for part in [1e308, -1e308, SMALLEST])) == (SMALLEST,)

    def test_several_numbers_at_once(self) -> None:
        total = scalar_words([1.5, -2.0, 0.0]) + scalar_words([0.25, 2.0, -0.0])
        assert len(total) == 3 * LIMBS
        assert scalar_sums(total) == (1.75, 0.0, 0.0)
        assert scalar_sums(scalar_words([])) == ()

    def test_two_hundred_of_the_largest_fit_the_words_if_not_a_float(self) -> None:
        words = scalar_words([LARGEST])
        with pytest.raises(OutOfBounds):
            scalar_sums(200 * words)
        assert scalar_sums(200 * words + 199 * scalar_words([-LARGEST])) == (LARGEST,)
        assert scalar_sums(200 * scalar_words([-SMALLEST])) == (-200 * SMALLEST,)

    def test_the_nearest_float_ties_to_even(self) -> None:
        half = 2.0**-53
        for parts in ([1.0, half], [1.0, half, SMALLEST], [1.0, half, -SMALLEST], [1.0 + 2 * half, half]):
            assert scalar_sums(sum(scalar_words([part]) for part in parts)) == (fsum(parts),)

    def test_what_is_not_finite_is_refused(self) -> None:
        for number in (nan, inf, -inf):
            with pytest.raises(NotFinite):
                scalar_words([1.0, number])

    def test_words_of_another_length_are_refused(self) -> None:
        with pytest.raises(ValueError):
            scalar_sums(np.zeros(LIMBS - 1, dtype=np.int64))

    def test_the_same_number_everywhere_is_known_from_the_sum(self) -> None:
        own = [0.1, -1 / 3, 7.0]
        assert same_everywhere(5 * scalar_words(own), own, 5) == (True, True, True)
        other = 4 * scalar_words(own) + scalar_words([0.1, -1 / 3 + 2.0**-54, 7.0])
        assert same_everywhere(other, own, 5) == (True, False, True)
        with pytest.raises(ValueError):
            same_everywhere(5 * scalar_words(own), own[:2], 5)


class TestHistograms:
    def test_the_largest_scale_at_which_no_sum_overflows(self) -> None:
        assert histogram_scale(1, 1.0) == 60
        assert histogram_scale(4, 1.0) == 60
        assert histogram_scale(5, 1.0) == 59
        assert histogram_scale(1 << 40, 1e6) == 62 - 60
        assert histogram_scale(1 << 40, 1e300) < -900

    @pytest.mark.parametrize(("rows", "bound"), [(0, 1.0), (1, 0.0), (1, -1.0), (1, inf), (1, nan)])
    def test_what_has_no_scale_is_refused(self, rows: int, bound: float) -> None:
        with pytest.raises(ValueError):
            histogram_scale(rows, bound)

    def test_the_largest_cells_of_all_sites_add_without_overflow(self) -> None:
        rows, bound = [1, 999_983, 17], 0.3
        scale = histogram_scale(sum(rows), bound)
        for sign in (1, -1):
            words = [to_fixed(np.array([sign * own * bound]), scale, own * bound) for own in rows]
            exact = sum(int(word[0]) for word in words)
            assert exact == int(sum(words)[0])
            assert from_fixed(sum(words), scale)[0] == pytest.approx(sign * sum(rows) * bound, rel=1e-15)

    def test_a_cell_beyond_this_sites_rows_is_refused(self) -> None:
        scale = histogram_scale(1000, 1.0)
        with pytest.raises(OutOfBounds):
            to_fixed(np.array([0.0, 100.1]), scale, 100.0)
        with pytest.raises(OutOfBounds):
            to_fixed(np.array([-100.1]), scale, 100.0)
        with pytest.raises(OutOfBounds):
            to_fixed(np.array([1.0]), scale, 1e6)
        with pytest.raises(OutOfBounds):
            to_fixed(np.array([1.0]), scale, -1.0)
        assert to_fixed(np.array([100.0]), scale, 100.0)[0] == 100 << scale

    def test_a_floating_sum_that_rounding_carried_over_the_bound_passes(self) -> None:
        summed = sum([0.1] * 1000)
        limit = 1000 * 0.1
        cells = np.array([summed, np.nextafter(limit, inf)])
        assert from_fixed(
            to_fixed(cells, histogram_scale(1000, 0.1), limit), histogram_scale(1000, 0.1)
        ) == pytest.approx(cells, rel=1e-15)

    @pytest.mark.parametrize("cell", [nan, inf, -inf])
    def test_what_is_not_finite_is_refused(self, cell: float) -> None:
        with pytest.raises(NotFinite):
            to_fixed(np.array([1.0, cell]), 40, 100.0)

    def test_nothing_at_all(self) -> None:
        assert len(to_fixed(np.zeros(0), 40, 0.0)) == 0
