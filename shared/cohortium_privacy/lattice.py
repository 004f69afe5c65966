"""The integers that noisy sums are made of: their step, what one patient moves, a site's share of the noise, the ring.

A patient's gradient is clipped and cut off to integers of a fine step, so that a site's sum is exact: whatever the
others hold and in whatever order it is added up, no patient's part is larger than the clip (floating-point sums do not
have that). The site's sum is then rounded to the lattice and takes its noise there; the server scales what is opened.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from cohortium_privacy.sampler import exact_sigma
from cohortium_protocol.vectors import FloatVector, norm_l2, slices

Words = npt.NDArray[np.int64]
"""Lattice steps, or fine steps, one for each number of a sum."""

LATTICE: Final = 0.01
"""Lattice step over clip / √d: rounding costs one part in a hundred of the sensitivity."""
FINE_BITS: Final = 16
"""A fine step is 2^-16 lattice steps."""
SHRINK: Final = 1 - 2.0**-10
"""What is clipped ends this much inside the clip. Far less would do for norms and products in binary64. The rest is for
the others' gradients: one patient more moves them to other places in their batches, where training libraries round them
otherwise, by some 10^-7 of the clip each; so thousands of them together still stay within the clip."""
MOST_PATIENTS: Final = 1 << 24
MOST_NUMBERS: Final = 1 << 32
"""At one site, and in one sum: fine sums then stay below 2^63."""
MOST_AT_ONCE: Final = 4096
LEAST_SITE_SIGMA: Final = 10.0
"""Below this a sum of discrete Gaussians is not close enough to one Gaussian to be accounted as one (Kairouz, Liu and
Steinke 2021, arXiv 2102.06387, theorem 1: the distance has a factor of exp(−π²σ²), zero in binary64 from here on)."""
RING_BITS: Final[Literal[32]] = 32
TAIL: Final = 10.0
"""Standard deviations of a site's noise that have room in the ring: beyond lies less than 2^-75 of it."""


class LatticeRefused(ValueError):
    """These numbers make no sum that could be promised anything about."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """Of sums of vectors of `dimension` numbers, each patient's of an L2 norm of at most `clip`."""

    clip: float
    dimension: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise LatticeRefused(f"clip is {self.clip}; it is a positive number")
        if not 1 <= self.dimension <= MOST_NUMBERS:
            raise LatticeRefused(f"dimension is {self.dimension}; it lies between 1 and {MOST_NUMBERS}")

    @property
    def step(self) -> float:
        """γ: what one lattice step stands for."""
        return LATTICE * self.clip / math.sqrt(self.dimension)

    @property
    def fine_step(self) -> float:
        """γ · 2^-16."""
        return math.ldexp(self.step, -FINE_BITS)

    @property
    def sensitivity(self) -> float:
        """Δ₂: see `sensitivity_of`."""
        return sensitivity_of(self.dimension)

    def factors(self, squares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What each vector is multiplied by, from the squares of their norms: min(1, C/norm), just below it.

        0 for a vector that is not finite: to leave it out is a matter of that patient alone, to fail over it is not.
        """
        norms = np.sqrt(squares)
        with np.errstate(divide="ignore"):
            factors = np.minimum(1.0, self.clip * SHRINK / norms)
        return np.where(np.isfinite(norms), factors, 0.0)

    def fine_sum(self, vectors: npt.NDArray[np.floating], factors: npt.NDArray[np.float64]) -> Words:
        """Σ of vectors (at most 4096 patients × numbers) times their factors, each cut off to fine steps towards 0.

        Cut off, no number grows, so neither does a norm. Sums of so few stay below 2^51, where binary64 is exact. May
        be called for parts of the numbers. Raises `LatticeRefused` for more patients at once.
        """
        if len(vectors) > MOST_AT_ONCE:
            raise LatticeRefused(f"{len(vectors)} vectors at once; at most {MOST_AT_ONCE} have an exact sum")
        with np.errstate(invalid="ignore", over="ignore"):  # of vectors whose factor is 0
            scaled = vectors.astype(np.float64) * (factors / self.fine_step)[:, None]
        scaled[factors == 0] = 0.0
        return np.asarray(np.trunc(scaled, out=scaled).sum(axis=0).astype(np.int64))

    def rounded(self, fine: Words) -> Words:
        """A sum in fine steps to the nearest lattice steps, halves up.

        One patient more or less moves each number by at most one step more than before, the vector by `sensitivity`.
        """
        return (fine + (1 << (FINE_BITS - 1))) >> FINE_BITS

    def clipped(self, update: FloatVector) -> Words:
        """One vector as a whole, such as a site's update, clipped and rounded: of a norm of at most `sensitivity`.

        Zeros for a vector that is not finite. Raises `LatticeRefused` for another length.
        """
        if len(update) != self.dimension:
            raise LatticeRefused(f"a vector of {len(update)} numbers for a dimension of {self.dimension}")
        scale = float(self.factors(np.array([norm_l2(update) ** 2]))[0]) / self.step
        words = np.zeros(self.dimension, dtype=np.int64)
        for where in slices(self.dimension) if scale > 0 else ():
            words[where] = np.rint(update[where].astype(np.float64) * scale)
        return words

    def value(self, sums: Words, divisor: float) -> npt.NDArray[np.float64]:
        """What opened sums stand for, over `divisor`: the public expected batch q·N, or the number of sites."""
        if not divisor > 0:
            raise LatticeRefused(f"a sum is divided by a positive number, not by {divisor}")
        return np.asarray(sums * (self.step / divisor))


def sensitivity_of(dimension: int) -> float:
    """Δ₂ = (C + γ√d)/γ: lattice steps, in L2, by which one patient more or less moves a rounded sum.

    C for the patient, and for rounding up to half a step in each number of either sum.
    """
    return (1 + LATTICE) * math.sqrt(dimension) / LATTICE


def noise_shares(least_sites: int, colluding: int) -> int:
    """k_min − c: sites whose noise counts in the smallest sum that can open, at least one."""
    return max(1, least_sites - colluding)


def site_sigma(multiplier: float, sensitivity: float, shares: int) -> float:
    """σ_i = z·Δ₂/√(k_min − c): what each site adds, so that the noise of `shares` of them is z·Δ₂."""
    return multiplier * sensitivity / math.sqrt(shares)


def ring_limit(sites: int, ring_bits: int = RING_BITS) -> int:
    """L = floor((2^(b−1) − 1)/n): the most that a site's word may be, as the codec has it."""
    return ((1 << (ring_bits - 1)) - 1) // sites


def ring_room(sigma: float, sites: int, ring_bits: int = RING_BITS) -> int:
    """How large a number of one site may be before its noise, so that no sum of `sites` leaves the ring; below 1 there
    is no room. n·(room + 10σ) < 2^(b−1), which is stricter than 8σ√n for all noise together: a site that had to stop
    because its own noise does not fit would tell something."""
    return ring_limit(sites, ring_bits) - math.ceil(TAIL * sigma)


def count_scale(multiplier: float, shares: int) -> int:
    """By what counts are multiplied, a power of two, so that a site's noise has a deviation of at least 10: the
    sensitivity of a patient who adds 1 to one count."""
    least = LEAST_SITE_SIGMA / site_sigma(multiplier, 1.0, shares)
    return int(1 << max(0, math.ceil(math.log2(least))))


@dataclass(frozen=True, slots=True)
class NoiseShare:
    """What one site adds to its integers. `room`: what a number is held to before; `limit`: after, the codec's L."""

    sigma: Fraction
    room: int
    limit: int

    @classmethod
    def of(cls, sigma: float, sensitivity: float, *, sites: int, ring_bits: int = RING_BITS) -> "NoiseShare":
        """For a roster of `sites`, and sums that one patient moves by `sensitivity`.

        Raises `LatticeRefused` for a sigma below 10, or a ring too narrow for the noise and one patient.
        """
        if sigma < LEAST_SITE_SIGMA:
            raise LatticeRefused(
                f"a site's noise of {sigma:.1f} lattice steps is below {LEAST_SITE_SIGMA:g}; lower epsilon"
            )
        exact = exact_sigma(sigma)
        room = ring_room(float(exact), sites, ring_bits)
        if room < sensitivity:
            raise LatticeRefused(
                f"a ring of {ring_bits} bits has no room for the noise of {sites} sites; raise epsilon, or allow fewer"
            )
        return cls(exact, room, ring_limit(sites, ring_bits))

    def add(self, values: Words, noise: Words) -> Words:
        """A site's numbers held to ±room, and its noise: within ±limit.

        To hold numbers to a range brings no two vectors further apart, so the sensitivity stays what it was.
        """
        held = np.clip(values, -self.room, self.room) + noise
        return np.asarray(np.clip(held, -self.limit, self.limit))

    def total_sigma(self, sites: int) -> float:
        """Standard deviation of the noise in a sum of so many sites."""
        return float(self.sigma) * math.sqrt(sites)
