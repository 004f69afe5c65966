"""From a vector specification to chunks: how many, which words, how many bytes, and where the tail is (1.5, 1.7, 1.13).

A vector is `words` ring words and a tail of seven. Chunk k holds the words from k times `words_per_chunk` on; the tail
is at the end of the last chunk. Rings of 8 and 12 bits are masked as uint16, reduced and packed; reduction modulo 2^8
or 2^12 is a ring homomorphism, so masks still cancel. Their tail words keep all 16 bits.
"""

from dataclasses import dataclass
from math import ceil, floor
from typing import Final

import numpy as np
import numpy.typing as npt

from cohortium_messages.secure_sum import VectorSpec
from cohortium_protocol.errors import Malformed, SpecRefused
from cohortium_protocol.masking import Words

BLOCK_WORDS: Final = 1024
"""A rotation block; a chunk of a rotated vector holds whole ones."""
ALIGNED_WORDS: Final = 256
"""A chunk of any other vector holds a multiple of this."""
TAIL_WORDS: Final = 7
"""Four canaries of value 1, weight low byte, weight high byte, saturation flag."""
_DTYPES: Final[dict[int, type[np.unsignedinteger]]] = {
    8: np.uint16,
    12: np.uint16,
    16: np.uint16,
    32: np.uint32,
    64: np.uint64,
}


def kept_count(spec: VectorSpec) -> int:
    """How many coordinates are sent: floor(keep · dimension), at least one."""
    return max(1, floor(spec.keep * spec.dimension)) if spec.keep < 1 else spec.dimension


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """Chunk `index` holds the vector's words `start` to `start + count`, and after them `tail` tail words (7 or 0)."""

    index: int
    start: int
    count: int
    tail: int
    wire_bytes: int

    @property
    def words(self) -> int:
        """All words of the chunk, with the tail."""
        return self.count + self.tail


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """How one vector is cut. Make it with `ChunkPlan.of`. `words` counts the padding, not the tail."""

    ring_bits: int
    words: int
    words_per_chunk: int
    tail_words: int = TAIL_WORDS

    @classmethod
    def of(cls, spec: VectorSpec) -> "ChunkPlan":
        """The plan that follows from a specification. Raises `SpecRefused` if the specification makes no sense."""
        if spec.encoding == "integer" and (spec.rotate or spec.keep < 1 or spec.ring_bits < 32):
            raise SpecRefused("integers need a ring of 32 or 64 bits, no rotation, and keep 1")
        if spec.ring_bits < 16 and not spec.rotate:
            raise SpecRefused("packed rings need rotation")
        unit = BLOCK_WORDS if spec.rotate else ALIGNED_WORDS
        per_chunk = spec.chunk_bytes * 8 // spec.ring_bits // unit * unit
        if per_chunk == 0:
            raise SpecRefused(f"a chunk of {spec.chunk_bytes} bytes does not hold one block")
        words = kept_count(spec)
        if spec.rotate:
            words = ceil(words / BLOCK_WORDS) * BLOCK_WORDS
        return cls(spec.ring_bits, words, per_chunk)

    @property
    def chunk_count(self) -> int:
        """How many chunks the vector has."""
        return -(-self.words // self.words_per_chunk)

    @property
    def vec_len(self) -> int:
        """Wire bytes of the whole vector, as in the upload header."""
        return self._wire_bytes(self.words) + self._tail_bytes

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Type of a word while it is masked and summed."""
        return np.dtype(_DTYPES[self.ring_bits])

    @property
    def _tail_bytes(self) -> int:
        return self.tail_words * self.dtype.itemsize

    def _wire_bytes(self, words: int) -> int:
        return words * self.ring_bits // 8

    def chunk(self, index: int) -> ChunkRange:
        """The place and size of one chunk. Raises `Malformed` for an index out of range."""
        if not 0 <= index < self.chunk_count:
            raise Malformed(f"chunk {index} of {self.chunk_count}")
        start = index * self.words_per_chunk
        count = min(self.words_per_chunk, self.words - start)
        tail = self.tail_words if index == self.chunk_count - 1 else 0
        return ChunkRange(index, start, count, tail, self._wire_bytes(count) + tail * self.dtype.itemsize)

    def mask_offset(self, index: int) -> int:
        """Byte offset of the chunk's first word in every mask stream: word j is at byte j times the word size."""
        return self.chunk(index).start * self.dtype.itemsize

    def pack(self, index: int, words: Words) -> bytes:
        """Masked words of one chunk (tail included) to its wire bytes. Raises `Malformed` for a wrong count."""
        place = self.chunk(index)
        if len(words) != place.words or words.dtype != self.dtype:
            raise Malformed(f"chunk {index} has {place.words} words of {self.dtype}")
        if self.ring_bits >= 16:
            return words.tobytes()
        main = words[: place.count].astype(np.uint16, copy=False)
        packed = _pack12(main) if self.ring_bits == 12 else main.astype(np.uint8).tobytes()
        return packed + words[place.count :].tobytes()

    def unpack(self, index: int, wire: bytes | memoryview) -> Words:
        """Wire bytes of one chunk to words, read-only where they need no unpacking. Raises `Malformed` for a wrong
        length."""
        place = self.chunk(index)
        if len(wire) != place.wire_bytes:
            raise Malformed(f"chunk {index} has {place.wire_bytes} bytes")
        if self.ring_bits >= 16:
            words: Words = np.frombuffer(wire, dtype=self.dtype)
            return words
        split = self._wire_bytes(place.count)
        octets = np.frombuffer(wire[:split], dtype=np.uint8)
        out = np.empty(place.words, dtype=np.uint16)
        if self.ring_bits == 12:
            _unpack12(octets, out[: place.count])
        else:
            out[: place.count] = octets
        out[place.count :] = np.frombuffer(wire[split:], dtype=np.uint16)
        return out

    def signed(self, words: Words) -> npt.NDArray[np.signedinteger]:
        """Opened words of the vector (no tail) read as two's complement of the ring."""
        match self.ring_bits:
            case 12:
                return (words.view(np.int16) << 4) >> 4
            case 8:
                return words.astype(np.uint8).view(np.int8)
            case bits:
                return words.view(np.dtype(f"i{bits // 8}"))


def _pack12(words: npt.NDArray[np.uint16]) -> bytes:
    """Two words a, b to three bytes: a's low eight bits; a's high four below b's low four; b's high eight."""
    first, second = words[0::2], words[1::2]
    out = np.empty((len(first), 3), dtype=np.uint8)
    out[:, 0] = first
    out[:, 1] = ((first >> 8) & 0xF) | (second << 4)
    out[:, 2] = second >> 4
    return out.tobytes()


def _unpack12(octets: npt.NDArray[np.uint8], out: npt.NDArray[np.uint16]) -> None:
    triples = octets.reshape(-1, 3)
    middle = triples[:, 1].astype(np.uint16)
    np.bitwise_or(triples[:, 0], (middle & 0xF) << 8, out=out[0::2])
    np.bitwise_or(middle >> 4, triples[:, 2].astype(np.uint16) << 4, out=out[1::2])
