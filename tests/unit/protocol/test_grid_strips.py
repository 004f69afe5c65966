"""A vector in a file is read and written in strips of several chunks: same words, same mean as one chunk at a time."""

import os
from pathlib import Path

import numpy as np
import pytest

from cohortium_messages.secure_sum import VectorSpec
from cohortium_protocol import grid
from cohortium_protocol.codec import RoundingStream
from cohortium_protocol.floats import FloatFile, Floats
from cohortium_protocol.grid import GridCodec
from cohortium_protocol.masking import Words
from cohortium_protocol.vectors import FloatVector, norm_l2

DIMENSION = 23_456


def codec_of(*, rotate: bool) -> GridCodec:
    spec = VectorSpec(
        encoding="grid",
        dimension=DIMENSION,
        ring_bits=16,
        rotate=rotate,
        rotation_seed=bytes(range(32)),
        keep=1.0,
        keep_seed=bytes(32),
        clip_norm_l2=1.0,
        range_factor=6.0,
        weight_cap=1,
        chunk_bytes=8192,
    )
    return GridCodec(spec, 4)


@pytest.fixture
def update() -> Floats:
    return np.random.default_rng(5).normal(0, 0.001, DIMENSION).astype(np.float32)


def words_of(codec: GridCodec, source: FloatVector, order: list[int]) -> dict[int, Words]:
    encoder = codec.encoder(source, staleness=0, rows=1, uniforms=RoundingStream(bytes(32)))
    return {index: encoder.chunk(index) for index in order}


@pytest.mark.parametrize("strip", [1, 9, 2048])
def test_words_from_a_file_are_those_from_memory(
    update: Floats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strip: int
) -> None:
    codec = codec_of(rotate=True)
    chunks = codec.plan.chunk_count
    assert chunks > 4
    monkeypatch.setattr(grid, "STRIP_BLOCKS", strip)
    (tmp_path / "vector").write_bytes(update.tobytes())
    handle = os.open(tmp_path / "vector", os.O_RDONLY)
    try:
        order = [*reversed(range(chunks - 1)), 1, chunks - 1]
        read = words_of(codec, FloatFile(handle, DIMENSION), order)
    finally:
        os.close(handle)
    expected = words_of(codec, update, list(range(chunks)))
    assert all(np.array_equal(read[index], expected[index]) for index in range(chunks))


@pytest.mark.parametrize("rotate", [True, False])
def test_chunks_written_together_are_those_written_one_by_one(update: Floats, rotate: bool) -> None:
    codec = codec_of(rotate=rotate)
    chunks = codec.plan.chunk_count
    words = words_of(codec, update, list(range(chunks)))
    single, joined = np.zeros(codec.kept, dtype=np.float32), np.zeros(codec.kept, dtype=np.float32)
    for index in range(chunks):
        codec.apply_chunk(index, words[index], 0.25, single)
    for first in range(0, chunks, 3):
        codec.apply_chunks(first, [words[i] for i in range(first, min(first + 3, chunks))], 0.25, joined)
    assert np.array_equal(single, joined)
    assert np.count_nonzero(single) > 100


def test_norm_of_a_long_vector() -> None:
    vector = np.full((1 << 20) + (1 << 16) + 5, 2.0, dtype=np.float32)
    assert norm_l2(vector) == pytest.approx(2.0 * np.sqrt(len(vector)), rel=1e-14)
    vector[-1] = np.nan
    assert np.isnan(norm_l2(vector))
