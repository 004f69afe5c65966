"""Discrete Gaussian noise, fast: `cohortium_privacy.sampler`'s algorithm 3 in 64-bit integers, compiled by numba.

No floating-point number takes part. Every decision compares a uniform integer with one that is exactly right, except
for powers of exp(−1/2) and exp(−1), which are known to 128 bits, and proposals of 64 scales and more, which would be
taken with a probability below 2^-2800 and never are: a sample differs from the exact law by less than 2^-120.

The law of an integer product makes squares unnecessary: a trial of probability (x/z)²/2k is two, x/z and x/2kz; and
exp(−(n + r/z)²/2) is n² times exp(−1/2), n times exp(−r/z), and exp(−(r/z)²/2).

Compiled in each process, in memory (some seconds, once): a cache on disk would be code that someone could change.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from cohortium_privacy.sampler import GeneratorBroken, IntegerForm, exact_sigma, integer_form

try:
    import numba
except ImportError:  # said when somebody wants noise
    numba = None

Uint64s = npt.NDArray[np.uint64]
Flag = bool | np.bool
ReadWords = Callable[[int], Uint64s]
"""That many fresh uniform words. What comes does not depend on how it is split into calls."""

AT_ONCE: Final = 1 << 16
"""Samples that words are fetched for at a time."""
WORDS_A_SAMPLE: Final = 11
"""A little above what a sample takes on average for a σ of 0.8 and more."""
SPARE_WORDS: Final = 64
MOST_WORDS: Final = 1 << 22
"""Samples that take so many words are made of no chance."""
SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)
"""Its multiples are chance enough to compile with."""

_F = TypeVar("_F", bound=Callable[..., Any])


class SamplerMissing(RuntimeError):
    """numba is not installed, and no noise is drawn without it."""


def _jit(function: _F) -> _F:
    if numba is None:
        return function
    compiled: _F = numba.njit(nogil=True, error_model="numpy")(function)
    return compiled


ONE: Final = np.uint64(1)
ZERO: Final = np.uint64(0)
TWO: Final = np.uint64(2)
MOST: Final = np.uint64((1 << 64) - 1)
CUT: Final = np.uint64(64)
EXP_1: Final = (np.uint64(0x5E2D58D8B3BCDF1A), np.uint64(0xBADEC7829054F90D))
"""exp(−1) · 2^128, rounded down: high word, low word."""
EXP_HALF: Final = (np.uint64(0x9B4597E37CB04FF3), np.uint64(0xD675A35530CDD767))
"""exp(−1/2) · 2^128, rounded down."""


@_jit
def _word(words: Uint64s, at: int) -> np.uint64:
    """Word `at`; 0 past the end, where nothing counts any more."""
    return words[at] if at < len(words) else np.uint64(0)


@_jit
def _below(words: Uint64s, at: int, bound: np.uint64) -> tuple[np.uint64, int]:
    """A uniform number below `bound`, and the place after the words that it took."""
    while True:
        word = _word(words, at)
        at += 1
        rest = word % bound
        if word - rest <= MOST - (bound - ONE):  # all of bound's numbers fit from here: no remainder is favoured
            return rest, at


@_jit
def _likely(words: Uint64s, at: int, high: np.uint64, low: np.uint64) -> tuple[Flag, int]:
    """True with probability (2^64 · high + low) / 2^128."""
    word = _word(words, at)
    if word != high:
        return word < high, at + 1
    return _word(words, at + 1) < low, at + 2


@_jit
def _exp_of_ratio(words: Uint64s, at: int, x: np.uint64, z: np.uint64) -> tuple[Flag, int]:
    """True with probability exp(−x/z), x ≤ z."""
    trial = ONE
    while at <= len(words):
        drawn, at = _below(words, at, z * trial)
        if drawn >= x:
            break
        trial += ONE
    return (trial & ONE) == ONE, at


@_jit
def _exp_of_half_square(words: Uint64s, at: int, x: np.uint64, z: np.uint64) -> tuple[Flag, int]:
    """True with probability exp(−(x/z)²/2), x ≤ z."""
    trial = ONE
    while at <= len(words):
        drawn, at = _below(words, at, z)
        if drawn >= x:
            break
        drawn, at = _below(words, at, TWO * z * trial)
        if drawn >= x:
            break
        trial += ONE
    return (trial & ONE) == ONE, at


@_jit
def _proposal(words: Uint64s, at: int, t: np.uint64) -> tuple[Flag, np.uint64, np.uint64, int]:
    """Algorithm 2: taken or not, size, sign (1: negative), next place. Sign and remainder come of one number."""
    drawn, at = _below(words, at, TWO * t)
    sign, size = drawn & ONE, drawn >> ONE
    taken, at = _exp_of_ratio(words, at, size, t)
    if not taken:
        return False, size, sign, at
    whole = ZERO
    while whole < CUT:
        more, at = _likely(words, at, EXP_1[0], EXP_1[1])
        if not more:
            break
        whole += ONE
    size += whole * t
    return whole < CUT and not (sign == ONE and size == ZERO), size, sign, at


@_jit
def _accepted(words: Uint64s, at: int, x: np.uint64, z: np.uint64) -> tuple[Flag, int]:
    """True with probability exp(−(x/z)²/2)."""
    whole = x // z
    rest = x - whole * z
    for _ in range(whole * whole):
        taken, at = _likely(words, at, EXP_HALF[0], EXP_HALF[1])
        if not taken:
            return False, at
    for _ in range(whole):
        taken, at = _exp_of_ratio(words, at, rest, z)
        if not taken:
            return False, at
    return _exp_of_half_square(words, at, rest, z)


@_jit
def fill(
    words: Uint64s, out: npt.NDArray[np.int64], t: np.uint64, a: np.uint64, b: np.uint64, z: np.uint64
) -> tuple[int, int]:
    """Samples into `out` as far as `words` reach: how many, and how many words they took.

    A sample that runs out of words is not made and leaves all of its own: they are its first ones when it is tried
    again with more, so that no sample is less likely for taking many.
    """
    made, start = 0, 0
    while made < len(out):
        at = start
        while True:
            taken, size, sign, at = _proposal(words, at, t)
            if taken:
                x = size * a
                taken, at = _accepted(words, at, x - b if x > b else b - x, z)
            if at > len(words):
                return made, start
            if taken:
                break
        out[made] = -np.int64(size) if sign == ONE else np.int64(size)
        made += 1
        start = at
    return made, start


def discrete_gaussian(sigma: Fraction, count: int, read: ReadWords) -> npt.NDArray[np.int64]:
    """`count` independent samples of N_Z(0, σ²), `sigma` one of `exact_sigma`. The same words give the same samples.

    Raises `SamplerMissing` where numba is not installed, and `SigmaRefused` or `GeneratorBroken`.
    """
    if numba is None:
        raise SamplerMissing("numba is not installed, and private training needs it: pip install 'cohortium[train]'")
    numbers = _as_words(integer_form(sigma))
    out = np.empty(count, dtype=np.int64)
    left: Uint64s = np.empty(0, dtype=np.uint64)
    made, more = 0, 1
    while made < count:
        part = out[made : made + AT_ONCE]
        missing = WORDS_A_SAMPLE * len(part) + SPARE_WORDS - len(left) if more else len(left)
        left = np.concatenate([left, read(max(0, missing))])
        if len(left) > MOST_WORDS:
            raise GeneratorBroken("the generator gives words that no sample comes of; restart the process")
        more, used = fill(left, part, *numbers)
        left = left[used:]
        made += more
    return out


def warm_up() -> None:
    """Compile now, and not within the first step. Raises `SamplerMissing`."""
    discrete_gaussian(exact_sigma(1.0), 1, lambda count: np.arange(1, count + 1, dtype=np.uint64) * SPREAD)


def _as_words(form: IntegerForm) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    return np.uint64(form.t), np.uint64(form.a), np.uint64(form.b), np.uint64(form.z)
