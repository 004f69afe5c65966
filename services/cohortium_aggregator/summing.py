"""From stored uploads to an opened sum, chunk by chunk. All functions block: call them in a thread.

Memory is a few chunks for each worker, whatever the vector's length or the number of sites. Nothing partial is kept:
after a crash the sum is made again from the chunk files and the stored shares.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cohortium_aggregator.files import opened, read_at
from cohortium_messages.secure_sum import Unmask, UploadHeader
from cohortium_protocol.codec import FloatVector, GridCodec, IntegerCodec, TailSums
from cohortium_protocol.floats import FloatFile
from cohortium_protocol.keys import SealKey
from cohortium_protocol.masking import MaskPlan, Words
from cohortium_protocol.opening import check_unmask, reconstruct, unmask_chunk
from cohortium_protocol.plan import ChunkPlan
from cohortium_protocol.survivors import SurvivorSet
from cohortium_protocol.window import RosterView

TOGETHER = 2
"""Chunks that one worker opens and writes together: 6 MiB at 16 bits a word."""
IN_MEMORY = 1 << 21
"""A mean of up to so many numbers is kept in memory; a longer one goes through a file."""


@dataclass(frozen=True, slots=True)
class SumInputs:
    """Everything that a sum is opened from. `uploads`: the chunk file of each survivor."""

    view: RosterView
    plan: ChunkPlan
    survivors: SurvivorSet
    headers: Mapping[int, UploadHeader]
    answers: Mapping[int, Unmask]
    uploads: Mapping[int, Path]


def rebuild_masks(inputs: SumInputs, seal_key: SealKey) -> MaskPlan:
    """The masks on the sum. Raises `DealerFault` or `TooFewShares`."""
    shares = [
        check_unmask(inputs.view, inputs.survivors, answer, seal_key) for _, answer in sorted(inputs.answers.items())
    ]
    return reconstruct(inputs.view, inputs.survivors, inputs.headers, shares)


class SumReader:
    """The opened sum, one chunk at a time; any thread may ask for any chunk."""

    def __init__(self, plan: ChunkPlan, masks: MaskPlan, fds: Mapping[int, int]) -> None:
        self.plan = plan
        self._masks = masks
        self._fds = fds
        self._stride = plan.chunk(0).wire_bytes

    def words(self, index: int) -> Words:
        """The unmasked words of one chunk, with the tail if it is the last."""
        return unmask_chunk(self.plan, self._masks, index, self._uploads(index))

    def _uploads(self, index: int) -> Iterator[bytes]:
        length = self.plan.chunk(index).wire_bytes
        for fd in self._fds.values():
            yield read_at(fd, index * self._stride, length)


@contextmanager
def sum_reader(inputs: SumInputs, masks: MaskPlan) -> Iterator[SumReader]:
    """Open the survivors' chunk files for reading."""
    with ExitStack() as stack:
        fds = {
            index: stack.enter_context(opened(inputs.uploads[index], os.O_RDONLY)) for index in inputs.survivors.members
        }
        yield SumReader(inputs.plan, masks, fds)


@dataclass(frozen=True, slots=True)
class IntegerSums:
    """Exact sums over the survivors."""

    values: NDArray[np.int64]
    tail: TailSums


def open_integers(reader: SumReader, codec: IntegerCodec, dimension: int, survivors: int) -> IntegerSums:
    """All sums of an `integer` vector. Raises `IntegrityFault` before anything is decoded."""
    last = reader.plan.chunk_count - 1
    last_words = reader.words(last)
    tail = codec.check_tail(last_words, survivors)
    values = np.zeros(dimension, dtype=np.int64)
    for index in range(reader.plan.chunk_count):
        where, sums = codec.decode_chunk(index, last_words if index == last else reader.words(index))
        values[where] = sums
    return IntegerSums(values, tail)


def open_mean(reader: SumReader, codec: GridCodec, survivors: int, out: FloatVector, workers: int) -> TailSums:
    """The weighted mean of a `grid` vector into `out`, `codec.kept` long, several chunks at once.

    The last chunk goes first, because its tail tells whether the sum is whole: raises `IntegrityFault`.
    """
    last = reader.plan.chunk_count - 1
    words = reader.words(last)
    tail = codec.check_tail(words, survivors)
    codec.apply_chunk(last, words, tail.weight, out)

    together = max(1, min(TOGETHER, last // workers))

    def apply(first: int) -> None:
        chunks = [reader.words(index) for index in range(first, min(first + together, last))]
        codec.apply_chunks(first, chunks, tail.weight, out)

    if last < 2 or workers < 2:
        for first in range(0, last, together):
            apply(first)
    else:
        with ThreadPoolExecutor(workers, thread_name_prefix="sum") as pool:
            for _ in pool.map(apply, range(0, last, together)):
                pass
    return tail


@contextmanager
def float_vector(length: int, path: Path) -> Iterator[FloatVector]:
    """A float32 vector to fill: an array if it is short, else a file at `path` that is deleted at the end."""
    if length <= IN_MEMORY:
        yield np.zeros(length, dtype=np.float32)
        return
    try:
        with opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as fd:
            os.ftruncate(fd, 4 * length)
            yield FloatFile(fd, length)
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def opened_mean(
    reader: SumReader, codec: GridCodec, dimension: int, survivors: int, workspace: tuple[Path, int]
) -> Iterator[tuple[FloatVector, TailSums]]:
    """The mean over the whole dimension and what the tail says. `workspace`: directory for scratch files, workers."""
    folder, workers = workspace
    with float_vector(codec.kept, folder / "kept.scratch") as kept:
        tail = open_mean(reader, codec, survivors, kept, workers)
        if codec.kept == dimension:
            yield kept, tail
            return
        with float_vector(dimension, folder / "mean.scratch") as mean:
            codec.spread(kept, mean)
            yield mean, tail
