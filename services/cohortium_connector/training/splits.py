"""LightGBM's record of a split (`SplitInfo`), as sites relay it: two of them, for the smaller and the larger leaf.

A record is found on opened sums, so it may be shown; but LightGBM copies it into the buffer in which the site's own
histogram lay before, and sends that buffer to its end. What stands behind the last category of a record is therefore
a piece of the histogram of one site, and is wiped before anything leaves. And a record from elsewhere steers memory:
LightGBM trusts its feature and its bins, so they are checked before it sees them.
"""

import math
import struct
from dataclasses import dataclass

from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.course import UnknownCollective

_RECORD = struct.Struct("<iiidIddddqddqBbi")
"""feature, left and right count, gain, threshold bin, left and right output, left Σg, left Σh, left quantised, right
Σg, right Σh, right quantised, default left, monotone, number of categories. `SplitInfo::CopyTo`, without padding."""

NO_FEATURE = -1
_CATEGORY_BYTES = 4


class SplitRefused(SiteRefusal):
    """A split that another site is said to have found is none that LightGBM may be given."""

    def __init__(self, detail: str) -> None:
        super().__init__("SPLIT_REFUSED", local=f"a relayed split was refused: {detail}")


@dataclass(frozen=True, slots=True)
class Column:
    """What a split of one feature may name: bins of the training set (0 where LightGBM does not use it)."""

    bins: int
    category: bool


class Splits:
    """Reads, wipes, checks and compares pairs of records for one training set."""

    def __init__(self, columns: tuple[Column, ...], max_categories: int) -> None:
        self._columns = columns
        self._max_categories = max_categories
        self._size = _RECORD.size + _CATEGORY_BYTES * max_categories
        none = _RECORD.pack(NO_FEATURE, 0, 0, -math.inf, 0, *(0.0,) * 4, 0, 0.0, 0.0, 0, 1, 0, 0)
        self.none = 2 * none.ljust(self._size, b"\0")
        """No split, for both leaves."""

    @property
    def pair_bytes(self) -> int:
        return 2 * self._size

    def wiped(self, pair: bytes) -> bytes:
        """Our own pair, without what LightGBM left behind it. Raises `UnknownCollective` if it is no pair of
        records."""
        try:
            self._check(pair)
        except SplitRefused as refused:
            raise UnknownCollective(f"its own split is none: {refused.local}") from None
        return b"".join(self._trimmed(record) for record in self._records(pair))

    def best(self, pairs: tuple[bytes, ...]) -> bytes:
        """Of each leaf the best record: largest gain, then smallest feature, as LightGBM compares. Raises
        `SplitRefused` unless every pair is one that LightGBM may be given."""
        for pair in pairs:
            self._check(pair)
        halves = zip(*(self._records(pair) for pair in pairs), strict=True)
        return b"".join(self._trimmed(min(records, key=_rank)) for records in halves)

    def _records(self, pair: bytes) -> tuple[bytes, bytes]:
        return pair[: self._size], pair[self._size :]

    def _trimmed(self, record: bytes) -> bytes:
        categories = _RECORD.unpack_from(record)[-1]
        return record[: _RECORD.size + _CATEGORY_BYTES * categories].ljust(self._size, b"\0")

    def _check(self, pair: bytes) -> None:
        if len(pair) != self.pair_bytes:
            raise SplitRefused(f"{len(pair)} bytes, not {self.pair_bytes}")
        for record in self._records(pair):
            self._check_record(record)

    def _check_record(self, record: bytes) -> None:
        fields = _RECORD.unpack_from(record)
        feature, left, right, gain, threshold = fields[:5]
        default_left, monotone, categories = fields[-3:]
        if not 0 <= categories <= self._max_categories:
            raise SplitRefused("its number of categories")
        if feature == NO_FEATURE or gain == -math.inf:
            if gain > 0 or categories:
                raise SplitRefused("a gain without a feature")
            return
        if not 0 <= feature < len(self._columns) or self._columns[feature].bins < 1:
            raise SplitRefused("its feature")
        column = self._columns[feature]
        chosen = struct.unpack_from(f"<{categories}I", record, _RECORD.size) if column.category else (threshold,)
        if not chosen or max(chosen) >= column.bins or (categories and not column.category):
            raise SplitRefused(f"its bins of feature {feature}")
        numbers = (gain, *fields[5:9], *fields[10:12])
        if not all(map(math.isfinite, numbers)) or min(left, right) < 0 or left + right >= 1 << 31:
            raise SplitRefused(f"its sums or counts at feature {feature}")
        if default_left > 1 or monotone not in (-1, 0, 1):
            raise SplitRefused(f"its direction at feature {feature}")


def _rank(record: bytes) -> tuple[float, int]:
    feature, _, _, gain = _RECORD.unpack_from(record)[:4]
    return -gain, feature if feature != NO_FEATURE else 1 << 31
