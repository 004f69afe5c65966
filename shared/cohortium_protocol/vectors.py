"""Long float32 vectors that are read and written in slices, and the uniform numbers for stochastic rounding."""

from collections.abc import Iterator
from typing import Final, Protocol, TypeAlias

import numpy as np

from cohortium_protocol import labels
from cohortium_protocol.encoding import H
from cohortium_protocol.floats import FloatFile, Floats
from cohortium_protocol.masking import MaskStream

SLICE: Final = 1 << 20
"""Floats that one pass over a vector holds at a time."""
NORM_SLICE: Final = 1 << 16
"""Floats that are widened at a time: both widths stay in the second-level cache."""


FloatVector: TypeAlias = Floats | FloatFile
"""A float32 vector: an array, a memmap, or one in a file."""


class Uniforms(Protocol):
    """Uniform float32 numbers in [0, 1): `count` of them, from place `start` on. Same places, same numbers."""

    def __call__(self, start: int, count: int) -> Floats: ...


class RoundingStream:
    """`Uniforms` of 24 bits from AES-256-CTR. `seed`: 32 bytes from the operating system, fresh for each upload."""

    __slots__ = ("_stream",)

    def __init__(self, seed: bytes) -> None:
        self._stream = MaskStream(H(labels.ROUNDING, seed))

    def __call__(self, start: int, count: int) -> Floats:
        bits = np.frombuffer(self._stream.keystream(4 * start, 4 * count), dtype="<u4")
        uniforms: Floats = (bits >> np.uint32(8)).astype(np.float32)
        uniforms *= np.float32(2**-24)
        return uniforms

    def __repr__(self) -> str:
        return "RoundingStream(***)"


def slices(length: int, step: int = SLICE) -> Iterator[slice]:
    """0..length in steps."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def norm_l2(vector: FloatVector) -> float:
    """Euclidean norm, summed in binary64. NaN or infinite if any number is."""
    total = 0.0
    for where in slices(len(vector)):
        part = vector[where]
        for few in slices(len(part), NORM_SLICE):
            wide = part[few].astype(np.float64)
            # Not `wide @ wide`: for that the linear algebra library wakes threads, which spin while they wait.
            total += float(np.einsum("i,i->", wide, wide))
    return float(np.sqrt(total))
