"""Masks: AES-256-CTR key streams added to or taken from ring words (section 1.6).

The cost of a secure sum is the bytes of its key streams, so the work goes in slices that stay in the second-level
cache: encrypt a slice of zeros into a scratch buffer, add it to the words, next stream.
"""

from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

Words: TypeAlias = npt.NDArray[np.unsignedinteger]
"""Ring words: uint16 for rings of 8, 12 and 16 bits, uint32 and uint64 for theirs."""

BLOCK = 16
SLICE_BYTES: Final = 1 << 18
"""2^17 words of 16 bits."""
_ZEROS: Final = bytes(SLICE_BYTES)


@dataclass(frozen=True, slots=True)
class MaskStream:
    """The key stream of one mask: AES-256-CTR from counter block zero (NIST SP 800-38A), readable at any offset."""

    key: bytes = field(repr=False)

    def at(self, start: int) -> CipherContext:
        """An encryptor whose next key-stream byte is byte `start`."""
        block, skip = divmod(start, BLOCK)
        context = Cipher(AES(self.key), CTR(block.to_bytes(BLOCK, "big"))).encryptor()
        if skip:
            context.update(_ZEROS[:skip])
        return context

    def keystream(self, start: int, length: int) -> bytes:
        """`length` bytes from byte `start` on."""
        return self.at(start).update(bytes(length))


@dataclass(frozen=True, slots=True)
class MaskPlan:
    """The masks to add to and to subtract from one vector."""

    plus: tuple[MaskStream, ...] = field(repr=False)
    minus: tuple[MaskStream, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Threads:
    """An executor and how many of its threads one call may use. Most of the work is done without the GIL."""

    executor: Executor
    count: int


def add_masks(words: Words, masks: MaskPlan, byte_offset: int) -> None:
    """Add and subtract all masks, in place and modulo the word size. `words` is contiguous; its first word meets byte
    `byte_offset` of each stream."""
    plus = [stream.at(byte_offset) for stream in masks.plus]
    minus = [stream.at(byte_offset) for stream in masks.minus]
    scratch = np.empty(SLICE_BYTES + BLOCK, dtype=np.uint8)
    step = SLICE_BYTES // words.itemsize
    zeros = memoryview(_ZEROS)
    for start in range(0, len(words), step):
        part = words[start : start + step]
        mask = scratch[: part.nbytes].view(words.dtype)
        for context in plus:
            context.update_into(zeros[: part.nbytes], scratch.data)
            np.add(part, mask, out=part)
        for context in minus:
            context.update_into(zeros[: part.nbytes], scratch.data)
            np.subtract(part, mask, out=part)


def add_masks_threaded(words: Words, masks: MaskPlan, byte_offset: int, threads: Threads | None) -> None:
    """`add_masks` over disjoint ranges in several threads; in this one where `threads` is None or the work is small."""
    least = SLICE_BYTES // words.itemsize
    count = 1 if threads is None else min(threads.count, max(1, len(words) // least))
    if threads is None or count == 1:
        add_masks(words, masks, byte_offset)
        return
    share = -(-len(words) // count)
    futures = [
        threads.executor.submit(add_masks, words[start : start + share], masks, byte_offset + start * words.itemsize)
        for start in range(0, len(words), share)
    ]
    for future in futures:
        future.result()
