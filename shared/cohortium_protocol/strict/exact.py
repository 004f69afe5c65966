"""Real numbers as ring words: single ones exactly, histograms in fixed point (section 3.7).

A single float64 becomes an integer multiple of 2^-1074, the smallest float64, in 66 limbs of 32 bits, each in a 64-bit
word of its own. Words of up to 256 sites add up without a carry between limbs, so the sum is the exact sum of the
numbers, whatever their order and size, and is rounded once, at the end (a superaccumulator after Kulisch).
"""

from collections.abc import Iterable
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from cohortium_protocol.errors import NotFinite, OutOfBounds

Values = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LIMBS: Final = 66
"""Words of one number: (1024 + 8 + 1074 + 1) bits in limbs of 32, rounded up, for sums of at most 2^8 numbers."""
LIMB_BITS: Final = 32
_UNIT: Final = 1074
"""Every finite float64 is a whole multiple of 2^-1074."""
_TOP: Final = LIMB_BITS * (LIMBS - 1)
_LOW: Final = np.int64((1 << LIMB_BITS) - 1)

HEADROOM_BITS: Final = 62
MOST_EXPONENT: Final = 60
_SLACK: Final = 1 + 2.0**-20
"""A sum of r floats of at most b can exceed r * b by its own rounding."""


def scalar_words(numbers: Iterable[float]) -> Values:
    """The words of some numbers, `LIMBS` for each, to be added up over at most 256 sites. Raises `NotFinite` for a NaN
    or an infinity."""
    words = [_limbs(_whole(number)) for number in numbers]
    return np.concatenate(words) if words else np.zeros(0, dtype=np.int64)


def scalar_sums(words: Values) -> tuple[float, ...]:
    """The sums of the numbers whose words were added, each the float64 nearest to the exact sum (ties to even); zero is
    +0.0. Raises `OutOfBounds` if one is beyond float64, `ValueError` if `words` are not whole numbers of `LIMBS`."""
    return tuple(_rounded(total) for total in _totals(words))


def same_everywhere(words: Values, own: Iterable[float], parties: int) -> tuple[bool, ...]:
    """For each number: is the exact sum `parties` times our own? So it is where all sites hold the same number.

    Raises what `scalar_words` and `scalar_sums` raise, and `ValueError` where `own` has another length.
    """
    pairs = zip(_totals(words), own, strict=True)
    return tuple(total == parties * _whole(number) for total, number in pairs)


def _whole(number: float) -> int:
    """number * 2^1074, exactly."""
    try:
        numerator, denominator = float(number).as_integer_ratio()
    except (OverflowError, ValueError):
        raise NotFinite("a number that is to be summed is not finite") from None
    return numerator << (_UNIT + 1 - denominator.bit_length())


def _limbs(whole: int) -> Values:
    """Two's complement over all limbs: the lower ones unsigned, the highest signed."""
    raw = whole.to_bytes(LIMBS * 4, "little", signed=True)
    words = np.frombuffer(raw, dtype="<u4").astype(np.int64)
    words[-1] = int.from_bytes(raw[-4:], "little", signed=True)
    return words


def _totals(words: Values) -> tuple[int, ...]:
    if words.ndim != 1 or len(words) % LIMBS:
        raise ValueError(f"words of numbers come in groups of {LIMBS}")
    return tuple(_total(group) for group in words.reshape(-1, LIMBS))


def _total(group: Values) -> int:
    """The integer whose limbs have been added: what a limb has beyond its 32 bits carries into the next."""
    lower = group[:-1]
    rest = int.from_bytes((lower & _LOW).astype("<u4").tobytes(), "little")
    carries = sum(int(carry) << (LIMB_BITS * place) for place, carry in enumerate(lower >> LIMB_BITS, 1) if carry)
    return rest + carries + (int(group[-1]) << _TOP)


def _rounded(total: int) -> float:
    try:
        return total / (1 << _UNIT)  # integers divide with one rounding, to nearest even
    except OverflowError:
        raise OutOfBounds("a sum of numbers is beyond float64") from None


def histogram_scale(total_rows: int, bound: float) -> int:
    """The exponent s of a histogram's fixed point: numbers travel as multiples of 2^-s.

    `total_rows`: training rows of all sites. `bound`: no row adds more than this to a cell, in absolute value; both are
    public. s is the largest exponent at which no cell's sum can exceed 2^62, but at most 60. Raises `ValueError` unless
    both are positive and finite.
    """
    if total_rows < 1 or not 0 < bound < float("inf"):
        raise ValueError(f"no scale for {total_rows} rows of at most {bound}")
    largest = Fraction(bound) * total_rows
    exponent = largest.numerator.bit_length() - largest.denominator.bit_length()
    while Fraction(2) ** exponent < largest:
        exponent += 1
    while Fraction(2) ** (exponent - 1) >= largest:
        exponent -= 1
    return min(MOST_EXPONENT, HEADROOM_BITS - exponent)


def to_fixed(values: Floats, exponent: int, limit: float) -> Values:
    """`values` as multiples of 2^-exponent, rounded to nearest, ties to even.

    `limit`: the largest absolute value that this site can have in a cell, its own training rows times the bound of
    `histogram_scale`. Where every site keeps to its limit, no sum can overflow. Raises `OutOfBounds` for a value beyond
    the limit and for a limit beyond the scale, `NotFinite` for a NaN or an infinity.
    """
    if not np.all(np.isfinite(values)):
        raise NotFinite("a histogram cell is not finite")
    if not 0 <= float(np.ldexp(limit, exponent)) <= 2.0**HEADROOM_BITS * _SLACK:
        raise OutOfBounds("this site's rows are more than the scale was made for")
    if values.size and float(np.max(np.abs(values))) > limit * _SLACK:
        raise OutOfBounds("a histogram cell is larger than this site's rows times the bound")
    return np.rint(np.ldexp(values, exponent)).astype(np.int64)


def from_fixed(sums: Values, exponent: int) -> Floats:
    """The real numbers of summed cells: each the float64 nearest to sum * 2^-exponent."""
    return np.ldexp(sums.astype(np.float64), -exponent)
