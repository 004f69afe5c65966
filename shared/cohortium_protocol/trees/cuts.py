"""Where to cut: bins of equal counts from counts on cells, in integers alone.

The rule, for N rows in cells and at most B bins:

* no bin has fewer than five rows, so B is at most N/5: no edge of a published model then tells one patient's value;
* where B bins are enough to give each cell that has rows its own, each has its own;
* otherwise a cell that holds more than a bin's share of the rows (N/B, and again of what is left to the other cells and
  bins) is a bin of its own, as LightGBM does with frequent values; the others are cut so that the heaviest bin is as
  light as it can be.

Bound (tested): a bin has at most 2·⌈N/B⌉ rows beside at most one such heavy cell, and 2·4 rows of bins that were too
small to stand alone. Heavy cells get neighbours only where bins of their own would not leave enough for the rest.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

LEAST_ROWS: Final = 5

Groups = list[tuple[int, int]]
"""Neighbouring cells, from the first to before the last."""


def equal_cuts(rows: Sequence[int], bins: int) -> tuple[int, ...]:
    """Places of the cuts, ascending: k is between cell k and cell k + 1. Between two bins with empty cells between them
    the cut is in the middle of these."""
    filled = [cell for cell, count in enumerate(rows) if count]
    counts = [rows[cell] for cell in filled]
    bins = min(bins, sum(counts) // LEAST_ROWS)
    if bins < 2:
        return ()
    groups = [(place, place + 1) for place in range(len(filled))]
    if len(filled) > bins:
        groups = _balanced(counts, bins)
    groups = _without_small(counts, groups)
    return tuple((filled[left[1] - 1] + filled[right[0]] - 1) // 2 for left, right in pairwise(groups))


def isolated(rows: Sequence[int], alone: frozenset[int], bins: int) -> tuple[int, ...]:
    """Cuts around each cell of `alone`, and between them about `bins` bins of the other rows, single cells at least.
    Bins of fewer than five rows are only where all other rows between two such cells are fewer."""
    others = sum(count for cell, count in enumerate(rows) if cell not in alone)
    packing = _Packing(rows, alone, apart=True)
    groups: Groups = []
    between: Groups = []
    for group in packing.groups(max(LEAST_ROWS, -(-others // bins))):
        if group[0] in alone:
            groups += [*_without_small(rows, between), group]
            between = []
        else:
            between.append(group)
    groups += _without_small(rows, between)
    return tuple(stop - 1 for _, stop in groups[:-1])


def _balanced(counts: Sequence[int], bins: int) -> Groups:
    heavy, rest, left = _heavy(counts, bins)
    share = -(-rest // left)
    for packing in (_Packing(counts, heavy, apart=True), _Packing(counts, heavy, apart=False)):
        # With twice the share the second always fits: a bin that is full holds more than one share of the light cells,
        # so fewer than `left` are full, and each of the others ends before a heavy cell and has one itself.
        if len(packing.groups(2 * share)) <= bins:
            return packing.groups(_least_limit(packing, share, bins))
    raise AssertionError("bins of twice the share are never too many")


def _heavy(counts: Sequence[int], bins: int) -> tuple[frozenset[int], int, int]:
    """Cells above a bin's share, until there are none; the rows and bins that are left to the others, at least one."""
    heavy: set[int] = set()
    rest, left = sum(counts), bins
    while new := [cell for cell, count in enumerate(counts) if cell not in heavy and count * left > rest]:
        heavy.update(new)
        rest -= sum(counts[cell] for cell in new)
        left -= len(new)
    return frozenset(heavy), rest, left


def _least_limit(packing: "_Packing", share: int, bins: int) -> int:
    """The lowest limit between one and two shares that needs at most `bins` bins."""
    low, high = share, 2 * share
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(packing.groups(middle)) <= bins else (middle + 1, high)
    return low


class _Packing:
    """Cells in their order, filled into bins up to a limit of light rows. Heavy cells weigh nothing: with `apart` each
    is alone, otherwise a bin has at most one. Filling from the left is then the fewest bins that a limit allows."""

    def __init__(self, counts: Sequence[int], heavy: frozenset[int], *, apart: bool) -> None:
        self._heavy = sorted(heavy)
        self._cells = len(counts)
        self._apart = apart
        self._before = list(accumulate((0 if cell in heavy else count for cell, count in enumerate(counts)), initial=0))

    def groups(self, limit: int) -> Groups:
        found: Groups = []
        start = 0
        while start < self._cells:
            stop = min(bisect_right(self._before, self._before[start] + limit) - 1, self._border(start))
            stop = max(stop, start + 1)
            found.append((start, stop))
            start = stop
        return found

    def _border(self, start: int) -> int:
        """The first cell that may not be in one bin with cell `start`, because of heavy ones."""
        place = bisect_right(self._heavy, start - 1)
        first, second = [*self._heavy[place : place + 2], self._cells, self._cells][:2]
        if not self._apart:
            return second
        return start + 1 if first == start else first


def _without_small(counts: Sequence[int], groups: Groups) -> Groups:
    """Bins of fewer than `LEAST_ROWS` join their lighter neighbour, the lightest first."""
    groups = list(groups)
    weights = [sum(counts[start:stop]) for start, stop in groups]
    while len(groups) > 1 and min(weights) < LEAST_ROWS:
        place = weights.index(min(weights))
        beside = [near for near in (place - 1, place + 1) if 0 <= near < len(groups)]
        first = min(place, min(beside, key=lambda near: weights[near]))
        groups[first : first + 2] = [(groups[first][0], groups[first + 1][1])]
        weights[first : first + 2] = [weights[first] + weights[first + 1]]
    return groups
