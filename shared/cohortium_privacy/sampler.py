"""The discrete Gaussian, sampled exactly (Canonne, Kamath and Steinke 2020, arXiv 2004.00010, algorithms 1 to 3).

N_Z(0, σ²) gives x ∈ Z with a probability proportional to exp(−x²/2σ²). Here it is drawn in rational arithmetic, slowly:
this is the text that the compiled sampler of the connector is held against, and the choice of numbers that both take.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Protocol

STEPS_OF_SIGMA: Final = 64
"""Small deviations are multiples of 1/64, large ones integers: then 64-bit integers hold all that sampling needs."""
LARGE_SIGMA: Final = 1 << 16
LARGEST_SIGMA: Final = 1 << 40
TRIES: Final = 10_000
"""Far more rejections in a row than can happen: each has a probability of less than 0.6."""


class SigmaRefused(ValueError):
    """No sampler here takes this standard deviation."""


class GeneratorBroken(ArithmeticError):
    """Uniform numbers that cannot be uniform: thousands of rejections in a row."""


class Uniforms(Protocol):
    """Where chance comes from."""

    def below(self, bound: int) -> int:
        """A uniform integer of 0 … bound − 1; `bound` is positive and may be of any size."""
        ...


class ByteUniforms:
    """`Uniforms` by rejection, from a reader of uniform bytes."""

    __slots__ = ("_read",)

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def below(self, bound: int) -> int:
        """Raises `GeneratorBroken` where bytes are not uniform at all."""
        bits = (bound - 1).bit_length()
        for _ in range(TRIES):
            number = int.from_bytes(self._read(-(-bits // 8)), "little") & ((1 << bits) - 1)
            if number < bound:
                return number
        raise GeneratorBroken("the generator gives the same bytes again and again; restart the process")


def exact_sigma(sigma: float) -> Fraction:
    """The least standard deviation, not below `sigma`, that the samplers take: a multiple of 1/64, or an integer from
    65,536 on. Never less than was asked for, so what is accounted stays true.

    Raises `SigmaRefused` outside (0, 2^40].
    """
    if not 0 < sigma <= LARGEST_SIGMA:
        raise SigmaRefused(f"a standard deviation of {sigma} lattice steps; it lies above 0 and at most at 2^40")
    steps = STEPS_OF_SIGMA if sigma < LARGE_SIGMA else 1
    return Fraction(math.ceil(Fraction(sigma) * steps), steps)


def bernoulli_exp(gamma: Fraction, uniforms: Uniforms) -> bool:
    """True with probability exp(−γ), γ ≥ 0 (algorithm 1)."""
    for _ in range(math.floor(gamma)):
        if not _bernoulli_exp_of_part(Fraction(1), uniforms):
            return False
    return _bernoulli_exp_of_part(gamma - math.floor(gamma), uniforms)


def _bernoulli_exp_of_part(gamma: Fraction, uniforms: Uniforms) -> bool:
    for trial in range(1, TRIES):
        if uniforms.below(gamma.denominator * trial) >= gamma.numerator:
            return trial % 2 == 1
    raise GeneratorBroken("the generator gives the same bytes again and again; restart the process")


def discrete_laplace(scale: int, uniforms: Uniforms) -> int:
    """x ∈ Z with a probability proportional to exp(−|x|/scale) (algorithm 2 with s = 1)."""
    for _ in range(TRIES):
        below = uniforms.below(scale)
        if not bernoulli_exp(Fraction(below, scale), uniforms):
            continue
        whole = next(tries for tries in range(TRIES) if not bernoulli_exp(Fraction(1), uniforms))
        size = below + scale * whole
        negative = uniforms.below(2) == 1
        if not (negative and size == 0):
            return -size if negative else size
    raise GeneratorBroken("the generator gives the same bytes again and again; restart the process")


def discrete_gaussian(variance: Fraction, uniforms: Uniforms) -> int:
    """x ∈ Z with a probability proportional to exp(−x²/2σ²), σ² = `variance` > 0 (algorithm 3)."""
    scale = math.isqrt(variance.numerator // variance.denominator) + 1
    for _ in range(TRIES):
        drawn = discrete_laplace(scale, uniforms)
        if bernoulli_exp((abs(drawn) - variance / scale) ** 2 / (2 * variance), uniforms):
            return drawn
    raise GeneratorBroken("the generator gives the same bytes again and again; restart the process")


@dataclass(frozen=True, slots=True)
class IntegerForm:
    """Algorithm 3 for σ = s/q in small integers: propose y from the discrete Laplace distribution of scale t, take it
    with probability exp(−(x/z)²/2), x = | |y|·a − b |.

    That is the algorithm's exp(−(|y| − σ²/t)²/2σ²), since (|y| − s²/q²t)·q/s = (|y|·t·q² − s²) / sqt; a, b and z are
    t·q², s² and s·q·t over their common divisor. Any t is right; near σ the most proposals are taken.
    """

    t: int
    a: int
    b: int
    z: int


def integer_form(sigma: Fraction) -> IntegerForm:
    """The numbers for a `sigma` of `exact_sigma`. Raises `SigmaRefused` for another."""
    if sigma != exact_sigma(float(sigma)):
        raise SigmaRefused(f"{sigma} is no standard deviation of exact_sigma")
    s, q = sigma.numerator, sigma.denominator
    t = max(1, round(sigma))
    a, b, z = t * q * q, s * s, s * q * t
    common = math.gcd(a, b, z)
    return IntegerForm(t, a // common, b // common, z // common)
