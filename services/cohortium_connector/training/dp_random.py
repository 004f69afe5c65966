"""Chance for private training: keyed streams, Poisson samples, Gaussian and discrete Gaussian noise.

All of it comes from AES-256-CTR under keys that are derived from one secret seed, the purpose, the step and what the
step is made over (`Randomness.bound`). So a step that is made again after a crash over the same model and rows is the
same step, while over anything else its noise is another: noise is never taken twice for two different sums, whose
difference would show what it hides. Who knows the seed can take the noise off: it stays in the hospital, like the data.
"""

import math
import secrets
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from cohortium_privacy.lattice import NoiseShare
from cohortium_privacy.sampler import exact_sigma
from cohortium_protocol import labels
from cohortium_protocol.encoding import H, le64
from cohortium_protocol.masking import MaskStream

SEED_BYTES: Final = 32
AT_ONCE: Final = 1 << 18
"""Words that are made at a time."""
GRID_BITS: Final = 20
"""What Gaussian noise is added to is rounded to about 2^-20 σ."""

Words = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]


class Stream:
    """Uniform words of one purpose, each given once, in order."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = MaskStream(key).at(0)

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """The next `count` words."""
        return np.frombuffer(self._cipher.update(bytes(8 * count)), dtype="<u8").astype(np.uint64, copy=False)

    def __repr__(self) -> str:
        return "Stream(***)"


class Randomness:
    """Streams of one run at one site. `seed`: 32 bytes from the operating system, kept as long as a step may have to be
    made again."""

    __slots__ = ("_seed",)

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed of {len(seed)} bytes; it has {SEED_BYTES}, from the operating system")
        self._seed = seed

    @classmethod
    def fresh(cls) -> "Randomness":
        """With a seed that nobody keeps."""
        return cls(secrets.token_bytes(SEED_BYTES))

    def bound(self, *context: bytes) -> "Randomness":
        """Streams of their own for what is told apart by `context`, such as digests of a model and of rows."""
        return Randomness(H(labels.PRIVATE_CONTEXT, self._seed, *context))

    def stream(self, purpose: str, step: int = 0) -> Stream:
        """From its beginning, so for each purpose and step it is asked for once."""
        return Stream(H(labels.PRIVATE_RANDOM, self._seed, purpose.encode(), le64(step)))

    def __repr__(self) -> str:
        return "Randomness(***)"


def poisson_sample(stream: Stream, population: int, rate: float) -> npt.NDArray[np.int64]:
    """Which of `population` patients take part: each on its own with probability `rate`, or less by under 2^-64.

    Ascending, and possibly empty. Raises `ValueError` for a rate outside (0, 1].
    """
    if not 0 < rate <= 1:
        raise ValueError(f"a sampling rate of {rate}; it lies above 0 and at most at 1")
    if rate == 1:
        return np.arange(population, dtype=np.int64)
    below = np.uint64(math.floor(Fraction(rate) * (1 << 64)))
    parts = [
        np.flatnonzero(stream.words(min(AT_ONCE, population - start)) < below) + start
        for start in range(0, population, AT_ONCE)
    ]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def choose_records(stream: Stream, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each patient with `counts` records one of them, 0 … count − 1, uniformly to within 2^-40 (which record stands
    for a patient is no matter of privacy)."""
    return np.asarray(stream.words(len(counts)) % counts.astype(np.uint64)).astype(np.int64)


def discrete_noise(stream: Stream, sigma: Fraction | float, count: int) -> Words:
    """Discrete Gaussian noise, exactly, of the least standard deviation not below `sigma` that `exact_sigma` has.

    Raises `SamplerMissing` where numba is not installed.
    """
    from cohortium_connector.training.dp_sampler import discrete_gaussian

    return discrete_gaussian(exact_sigma(float(sigma)), count, stream.words)


class SiteNoise:
    """A site's noise on integers, drawn from one stream: the source that `random_trees.leaf_vector` takes."""

    __slots__ = ("_sigma", "_stream")

    def __init__(self, stream: Stream, sigma: Fraction | float) -> None:
        self._stream = stream
        self._sigma = sigma

    def integers(self, count: int) -> Words:
        """The next `count` samples."""
        return discrete_noise(self._stream, self._sigma, count)


def normals(stream: Stream, count: int) -> npt.NDArray[np.float64]:
    """Standard normal numbers, by the inverse of their distribution function at uniform numbers of 53 bits."""
    import torch

    uniforms = (stream.words(count) >> np.uint64(11)).astype(np.float64)
    uniforms += 0.5
    uniforms *= 2.0**-53
    drawn: npt.NDArray[np.float64] = torch.special.ndtri(torch.from_numpy(uniforms)).numpy()
    return drawn


def grid_step(sigma: float) -> float:
    """The power of two that Gaussian sums are rounded to: at most 2^-20 σ, above half of that."""
    return math.ldexp(1.0, math.frexp(sigma)[1] - 1 - GRID_BITS)


def add_gaussian(values: Floats, sigma: float, stream: Stream) -> None:
    """Add N(0, σ²) to each number, in place, and round the result to `grid_step`: for large models.

    Rounding is a step after the mechanism, so it costs nothing, and takes off the low-order bits by which noise in
    floating point can be told (Mironov 2012). It is no proof, as the mechanism with exact noise is one: normals of 53
    bits and sums in binary64 only come close to the law.
    """
    step = grid_step(sigma)
    for start in range(0, len(values), AT_ONCE):
        part = values[start : start + AT_ONCE]
        noised = part.astype(np.float64) + sigma * normals(stream, len(part))
        part[:] = np.rint(noised / step) * step


def noised(values: Words, share: NoiseShare, stream: Stream) -> Words:
    """A site's integers with its share of the noise: a clipped gradient sum, a clipped update, or scaled counts, ready
    for the integer codec."""
    return share.add(values, discrete_noise(stream, share.sigma, len(values)))
