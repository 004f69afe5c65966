"""The codecs by name: floats on a grid, or integers as they are (section 1.7)."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from cohortium_messages.secure_sum import MAX_CHUNK_BYTES, VectorSpec
from cohortium_protocol.errors import OutOfRange, RingTooSmall, SpecRefused
from cohortium_protocol.floats import Floats
from cohortium_protocol.grid import GridCodec, GridEncoder
from cohortium_protocol.masking import Words
from cohortium_protocol.plan import ChunkPlan
from cohortium_protocol.tail import FULL_WEIGHT, TailSums, put_tail, read_tail
from cohortium_protocol.vectors import FloatVector, RoundingStream, Uniforms

__all__ = [
    "FloatVector",
    "Floats",
    "GridCodec",
    "GridEncoder",
    "IntegerCodec",
    "RoundingStream",
    "TailSums",
    "Uniforms",
    "codec_for",
    "integer_spec",
]


class IntegerCodec:
    """Codec of one `integer` specification (rings of 32 and 64 bits) for a roster of n sites: exact sums.

    `limit`: L = floor((2^(b-1) - 1) / n), the bound on each input, so that no sum leaves the ring. Every site has
    weight 1 and no saturation, so the tail says nothing.
    """

    def __init__(self, spec: VectorSpec, n: int) -> None:
        """Raises `SpecRefused`."""
        if spec.encoding != "integer":
            raise SpecRefused("not an integer specification")
        self.spec = spec
        self.plan = ChunkPlan.of(spec)
        self.limit = (2 ** (spec.ring_bits - 1) - 1) // n
        if self.limit < 1:
            raise RingTooSmall(f"{spec.ring_bits} bits for {n} sites")

    def encode_chunk(self, values: npt.NDArray[np.int64], index: int) -> Words:
        """Ring words of one chunk of the whole vector `values`. Raises `OutOfRange` beyond ±L, `SpecRefused` for
        another length than the dimension."""
        if values.shape != (self.spec.dimension,) or values.dtype != np.int64:
            raise SpecRefused(f"the vector is {self.spec.dimension} numbers of int64")
        place = self.plan.chunk(index)
        part = values[place.start : place.start + place.count]
        if int(part.min()) < -self.limit or int(part.max()) > self.limit:
            raise OutOfRange(f"an input exceeds {self.limit} in size")
        words: Words = np.empty(place.words, dtype=self.plan.dtype)
        words[: place.count] = part.astype(f"i{self.plan.dtype.itemsize}").view(self.plan.dtype)
        if place.tail:
            put_tail(words, FULL_WEIGHT, 0)
        return words

    def check_tail(self, last_chunk: Words, survivors: int) -> TailSums:
        """Canaries of the opened last chunk. Raises `IntegrityFault`."""
        return read_tail(last_chunk, survivors)

    def decode_chunk(self, index: int, words: Words) -> tuple[slice, npt.NDArray[np.int64]]:
        """Where one opened chunk's sums belong in the vector, and the sums."""
        place = self.plan.chunk(index)
        return slice(place.start, place.start + place.count), self.plan.signed(words[: place.count]).astype(np.int64)


def integer_spec(
    dimension: int,
    ring_bits: Literal[32, 64],
    seeds: tuple[bytes, bytes] = (bytes(32), bytes(32)),
    chunk_bytes: int = MAX_CHUNK_BYTES,
) -> VectorSpec:
    """The specification of a vector of integers. Nothing of it is rotated, clipped or left out, and every site weighs
    the same, so `seeds` (for rotation and choice, 32 bytes each) stand there without a meaning."""
    return VectorSpec(
        encoding="integer",
        dimension=dimension,
        ring_bits=ring_bits,
        rotate=False,
        rotation_seed=seeds[0],
        keep=1.0,
        keep_seed=seeds[1],
        clip_norm_l2=1.0,
        range_factor=1.0,
        weight_cap=1,
        chunk_bytes=chunk_bytes,
    )


def codec_for(spec: VectorSpec, n: int) -> GridCodec | IntegerCodec:
    """The codec that the specification names. Raises `SpecRefused` or `RingTooSmall`."""
    return GridCodec(spec, n) if spec.encoding == "grid" else IntegerCodec(spec, n)
