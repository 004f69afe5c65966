"""Floats on the grid and integers as they are: exactness, bounds, error, packing, streaming."""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from federation_in_memory import digest, grid_spec, integer_spec

from cohortium_messages.secure_sum import MAX_CHUNK_BYTES, VectorSpec
from cohortium_protocol.codec import GridCodec, IntegerCodec, RoundingStream, codec_for
from cohortium_protocol.errors import (
    IntegrityFault,
    Malformed,
    NotFinite,
    OutOfOrder,
    OutOfRange,
    RingTooSmall,
    SpecRefused,
)
from cohortium_protocol.floats import FloatFile
from cohortium_protocol.masking import MaskPlan, MaskStream, Words, add_masks
from cohortium_protocol.plan import TAIL_WORDS, ChunkPlan
from cohortium_protocol.rotation import read_blocks, signs, transform, write_blocks
from cohortium_protocol.tail import weight16
from cohortium_protocol.vectors import FloatVector, Uniforms

Floats = npt.NDArray[np.float32]


def rounding(seed: int) -> RoundingStream:
    return RoundingStream(digest(f"rounding {seed}"))


def encode(
    codec: GridCodec, update: FloatVector, *, rows: int = 100, staleness: int = 0, uniforms: Uniforms | None = None
) -> list[Words]:
    encoder = codec.encoder(update, staleness=staleness, rows=rows, uniforms=uniforms or rounding(rows))
    return [encoder.chunk(k) for k in range(codec.plan.chunk_count)]


def constant(value: float) -> Uniforms:
    return lambda start, count: np.full(count, value, dtype=np.float32)


def add_up(codec: GridCodec | IntegerCodec, sites: list[list[Words]]) -> list[Words]:
    """Over the wire and summed, without masks."""
    plan = codec.plan
    sums = []
    for k in range(plan.chunk_count):
        parts = [plan.unpack(k, plan.pack(k, words[k])) for words in sites]
        sums.append(np.sum(parts, axis=0, dtype=plan.dtype))
    return sums


def decode(codec: GridCodec, sums: list[Words], survivors: int) -> Floats:
    weight = codec.check_tail(sums[-1], survivors).weight
    kept = np.full(codec.kept, np.nan, dtype=np.float32)
    for k, words in enumerate(sums):
        codec.apply_chunk(k, words, weight, kept)
    if codec.kept == codec.spec.dimension:
        return kept
    out = np.full(codec.spec.dimension, np.nan, dtype=np.float32)
    codec.spread(kept, out)
    return out


def layered_updates(n: int, dimension: int) -> list[Floats]:
    """Heavy-tailed updates with layers of different scale and a common direction, norm just above the clip of 1."""
    rng = np.random.default_rng(7)
    scales = np.repeat(10.0 ** rng.uniform(-3, 0, 16), dimension // 16)
    common = rng.standard_t(3, dimension)
    updates = [scales * (common + rng.standard_t(3, dimension)) for _ in range(n)]
    return [(1.01 * update / np.linalg.norm(update)).astype(np.float32) for update in updates]


def nmse(estimate: Floats, truth: npt.NDArray[np.float64]) -> float:
    return float(np.sum((estimate - truth) ** 2) / np.sum(truth**2))


class TestError:
    @pytest.mark.parametrize(
        ("ring_bits", "n", "range_factor", "bound"),
        [
            (16, 20, 6.0, 3.3e-7),
            (16, 64, 6.0, 2.7e-6),
            (16, 200, 6.0, 3.2e-6),
            (12, 20, 6.0, 6e-5),
            (12, 64, 6.0, 2.3e-4),
            (12, 200, 6.0, 7e-4),
            (8, 20, 3.0, 5e-3),
        ],
    )
    def test_normalised_error_of_the_mean(self, ring_bits: int, n: int, range_factor: float, bound: float) -> None:
        spec = grid_spec(1 << 15, ring_bits=ring_bits, range_factor=range_factor, chunk_bytes=16384)
        codec = GridCodec(spec, n)
        updates = layered_updates(n, spec.dimension)
        sums = add_up(codec, [encode(codec, x, uniforms=rounding(i)) for i, x in enumerate(updates)])
        truth = np.mean([x / np.linalg.norm(x) for x in updates], axis=0, dtype=np.float64)
        assert nmse(decode(codec, sums, n), truth) < 1.5 * bound

    def test_striding_matters(self) -> None:
        """One layer of a different scale, contiguous: without strided blocks its error would be that of its block."""
        update = np.zeros(1 << 15, dtype=np.float32)
        update[:1024] = 1 / 32
        codec = GridCodec(grid_spec(1 << 15), 16)
        assert nmse(decode(codec, add_up(codec, [encode(codec, update)]), 1), update.astype(np.float64)) < 1e-5

    def test_rounding_is_unbiased(self) -> None:
        codec = GridCodec(grid_spec(1024, ring_bits=8), 8)
        update = np.linspace(-0.05, 0.05, 1024, dtype=np.float32)
        sites = [decode(codec, encode(codec, update, uniforms=rounding(i)), 1) for i in range(400)]
        deviation = np.mean(sites, axis=0) - update
        assert np.abs(deviation).max() < 5 * codec.delta / 2 / 20

    @pytest.mark.parametrize("ring_bits", [16, 32, 64])
    def test_without_rotation_each_number_is_within_a_step(self, ring_bits: int) -> None:
        codec = GridCodec(grid_spec(1000, ring_bits=ring_bits, rotate=False, range_factor=1.0), 5)
        update = np.sin(np.arange(1000)).astype(np.float32) / 40
        decoded = decode(codec, encode(codec, update), 1)
        assert np.abs(decoded - update).max() <= codec.delta + 1e-8


class TestSteps:
    def test_staleness_clip_and_weight(self) -> None:
        codec = GridCodec(grid_spec(3000, ring_bits=32, rotate=False, range_factor=1.0, weight_cap=100), 4)
        x = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
        small, large = 0.5 * x / np.linalg.norm(x), 30 * x / np.linalg.norm(x)
        discounted = decode(codec, encode(codec, small, staleness=3), 1)
        np.testing.assert_allclose(discounted, small / 2, atol=1e-6)
        clipped = decode(codec, encode(codec, large), 1)
        np.testing.assert_allclose(np.linalg.norm(clipped), 1, atol=1e-5)
        sites = ((small, 25), (-small, 75), (small, 900))
        sums = add_up(codec, [encode(codec, update, rows=rows) for update, rows in sites])
        assert codec.check_tail(sums[-1], 3).weight == pytest.approx(2, abs=1e-4)
        np.testing.assert_allclose(decode(codec, sums, 3), small * (0.25 - 0.75 + 1) / 2, atol=2e-5)

    def test_weights(self) -> None:
        assert [weight16(rows, 100) for rows in (1, 50, 100, 10**9)] == [655, 32768, 65535, 65535]
        assert weight16(1, 10**12) == 1

    def test_a_nan_or_infinity_is_refused(self) -> None:
        codec = GridCodec(grid_spec(2000), 4)
        for bad in (np.nan, np.inf, -np.inf):
            update = np.zeros(2000, dtype=np.float32)
            update[1234] = bad
            with pytest.raises(NotFinite):
                encode(codec, update)

    def test_huge_and_zero_updates_are_fine(self) -> None:
        codec = GridCodec(grid_spec(2000), 4)
        huge = np.full(2000, 3e38, dtype=np.float32)
        np.testing.assert_allclose(decode(codec, encode(codec, huge), 1), 2000**-0.5, rtol=0.02)
        zeros = encode(codec, np.zeros(2000, dtype=np.float32), uniforms=constant(0.0))
        assert not decode(codec, zeros, 1).any()

    def test_saturation_is_flagged(self) -> None:
        codec = GridCodec(grid_spec(4096, range_factor=0.01), 4)
        update = np.random.default_rng(1).standard_normal(4096).astype(np.float32)
        assert codec.check_tail(encode(codec, update)[-1], 1).saturated == 1
        calm = GridCodec(grid_spec(4096), 4)
        assert calm.check_tail(encode(calm, update)[-1], 1).saturated == 0

    def test_the_last_chunk_comes_last_and_the_same_chunk_is_the_same(self) -> None:
        codec = GridCodec(grid_spec(20_000, chunk_bytes=4096), 4)
        update = np.ones(20_000, dtype=np.float32)
        encoder = codec.encoder(update, staleness=0, rows=10, uniforms=rounding(1))
        last = codec.plan.chunk_count - 1
        with pytest.raises(OutOfOrder):
            encoder.chunk(last)
        backwards = [encoder.chunk(k) for k in range(last - 1, -1, -1)][::-1]
        again = [encoder.chunk(k) for k in range(last + 1)]
        assert all(np.array_equal(a, b) for a, b in zip(backwards, again, strict=False))


class TestRing:
    @pytest.mark.parametrize(
        ("ring_bits", "n"), [(8, 3), (8, 8), (8, 127), (12, 20), (16, 3), (16, 200), (32, 200), (64, 200)]
    )
    @pytest.mark.parametrize("sign", [1, -1])
    def test_n_sites_at_the_limit_stay_in_the_ring(self, ring_bits: int, n: int, sign: int) -> None:
        codec = GridCodec(grid_spec(1024, ring_bits=ring_bits, rotate=ring_bits <= 16, range_factor=1e-6), n)
        # The range is a millionth of the clip, so every number is beyond it.
        update = sign * np.random.default_rng(5).standard_normal(1024).astype(np.float32)
        words = encode(codec, update)
        numbers = [codec.plan.signed(part[: codec.plan.chunk(k).count]) for k, part in enumerate(words)]
        if ring_bits <= 16:
            assert {abs(int(q)) for part in numbers for q in part} == {codec.limit}
        sums = add_up(codec, [words] * n)
        for k, part in enumerate(sums):
            total = codec.plan.signed(part[: codec.plan.chunk(k).count]).astype(np.float64)
            assert np.array_equal(total, n * numbers[k].astype(np.float64))
        assert n * codec.limit <= 2 ** (ring_bits - 1) - 1

    @pytest.mark.parametrize("ring_bits", [32, 64])
    @pytest.mark.parametrize("n", [3, 7, 200])
    def test_integers_at_the_limit_sum_exactly(self, ring_bits: int, n: int) -> None:
        codec = IntegerCodec(integer_spec(600, ring_bits), n)
        values = np.where(np.arange(600) % 2, codec.limit, -codec.limit).astype(np.int64)
        words = [codec.encode_chunk(values, k) for k in range(codec.plan.chunk_count)]
        sums = add_up(codec, [words] * n)
        assert codec.check_tail(sums[-1], n).weight == n
        opened = np.empty(600, dtype=np.int64)
        for k, part in enumerate(sums):
            where, numbers = codec.decode_chunk(k, part)
            opened[where] = numbers
        assert [int(number) for number in opened] == [n * int(value) for value in values]

    def test_an_integer_beyond_the_limit_is_refused(self) -> None:
        codec = IntegerCodec(integer_spec(600, 32), 3)
        for value in (codec.limit + 1, -codec.limit - 1, -(2**63)):
            values = np.zeros(600, dtype=np.int64)
            values[-1] = value
            with pytest.raises(OutOfRange):
                codec.encode_chunk(values, codec.plan.chunk_count - 1)

    def test_too_many_sites_for_a_small_ring(self) -> None:
        with pytest.raises(RingTooSmall):
            GridCodec(grid_spec(1024, ring_bits=8), 200)

    @pytest.mark.parametrize("ring_bits", [8, 12, 16, 32, 64])
    def test_masks_cancel_in_every_ring(self, ring_bits: int) -> None:
        codec = GridCodec(grid_spec(3000, ring_bits=ring_bits, chunk_bytes=8192), 3)
        plan, mask = codec.plan, MaskStream(digest("mask"))
        updates = layered_updates(2, 3008)
        sites = [encode(codec, update[:3000]) for update in updates]
        sums = add_up(codec, sites)
        masked = [[part.copy() for part in words] for words in sites]
        for k in range(plan.chunk_count):
            add_masks(masked[0][k], MaskPlan((mask,), ()), plan.mask_offset(k))
            add_masks(masked[1][k], MaskPlan((), (mask,)), plan.mask_offset(k))
            assert plan.pack(k, masked[0][k]) != plan.pack(k, sites[0][k])
        opened = add_up(codec, masked)
        codec.check_tail(opened[-1], 2)
        for k in range(plan.chunk_count):
            count = plan.chunk(k).count
            assert np.array_equal(plan.signed(opened[k][:count]), plan.signed(sums[k][:count]))


class TestTail:
    def words(self, *tail: int) -> Words:
        return np.array([0, 0, *tail], dtype=np.uint16)

    def test_canaries_weights_and_flags_are_checked(self) -> None:
        codec = GridCodec(grid_spec(1024), 4)
        assert codec.check_tail(self.words(3, 3, 3, 3, 3 * 255, 3 * 255, 2), 3).weight == 3
        for tail in (
            (3, 3, 3, 2, 3 * 255, 3 * 255, 0),
            (4, 3, 3, 3, 3 * 255, 3 * 255, 0),
            (3, 3, 3, 3, 3 * 255 + 1, 3 * 255, 0),
            (3, 3, 3, 3, 2, 0, 0),
            (3, 3, 3, 3, 3 * 255, 3 * 255, 4),
        ):
            with pytest.raises(IntegrityFault):
                codec.check_tail(self.words(*tail), 3)


class TestRandomK:
    @pytest.mark.parametrize("dimension", [999, 70_000, 200_001])
    def test_chosen_coordinates_come_back_and_the_others_are_zero(self, dimension: int) -> None:
        spec = grid_spec(dimension, ring_bits=32, rotate=False, keep=0.1, range_factor=1.0)
        codec = GridCodec(spec, 4)
        update = np.random.default_rng(2).standard_normal(dimension).astype(np.float32)
        update /= np.linalg.norm(update)
        decoded = decode(codec, encode(codec, update), 1)
        coordinates = np.concatenate([places for places, _ in codec.kept_slices()])
        assert len(coordinates) == codec.kept == dimension // 10
        assert (np.diff(coordinates) > 0).all()
        np.testing.assert_allclose(decoded[coordinates], update[coordinates], atol=1e-7)
        decoded[coordinates] = 0
        assert not decoded.any()

    def test_all_sites_choose_alike_and_another_seed_chooses_otherwise(self) -> None:
        def choice(seed: str, n: int) -> npt.NDArray[np.int64]:
            codec = GridCodec(grid_spec(100_000, keep=0.05, keep_seed=digest(seed)), n)
            return np.concatenate([places for places, _ in codec.kept_slices()])

        first, again, other = choice("a", 4), choice("a", 20), choice("b", 4)
        assert np.array_equal(first, again)
        assert len(np.intersect1d(first, other)) < 2 * 0.05 * len(first)

    @pytest.mark.parametrize("ring_bits", [16, 12, 8])
    def test_with_rotation_and_error_feedback_the_mean_is_learnt(self, ring_bits: int) -> None:
        """A constant update of norm 1 sent for 60 steps: what was left out comes later (1.13)."""
        codec = GridCodec(grid_spec(5000, ring_bits=ring_bits, keep=0.2, clip_norm_l2=20.0), 3)
        constant = np.random.default_rng(3).standard_normal(5000).astype(np.float32)
        constant /= np.linalg.norm(constant)
        residual, arrived = np.zeros(5000, dtype=np.float32), np.zeros(5000)
        for step in range(60):
            spec = codec.spec.model_copy(update={"keep_seed": digest(f"keep {step}")})
            codec = GridCodec(spec, 3)
            encoder = codec.encoder(constant + residual, staleness=0, rows=40, uniforms=rounding(step))
            own = np.empty(codec.kept, dtype=np.float32)
            for k in range(codec.plan.chunk_count):
                encoder.decode_own(k, encoder.chunk(k), own)
            encoder.write_residual(own, residual)
            full = np.empty(5000, dtype=np.float32)
            codec.spread(own, full)
            arrived += full
        np.testing.assert_allclose(arrived + residual, 60 * constant, atol=1e-4)
        assert np.linalg.norm(arrived / 60 - constant) < 0.25

    def test_the_residual_without_choice_is_what_rounding_lost(self) -> None:
        codec = GridCodec(grid_spec(3000, ring_bits=8), 3)
        update = layered_updates(1, 3008)[0][:3000]
        encoder = codec.encoder(update, staleness=1, rows=100, uniforms=rounding(0))
        own, residual = np.empty(3000, dtype=np.float32), np.empty(3000, dtype=np.float32)
        for k in range(codec.plan.chunk_count):
            encoder.decode_own(k, encoder.chunk(k), own)
        encoder.write_residual(own, residual)
        np.testing.assert_allclose(own + residual, update * 0.5**0.5, atol=1e-6)


class TestStreaming:
    @pytest.mark.parametrize("ring_bits", [8, 12, 16])
    @pytest.mark.parametrize("dimension", [1, 1000, 1024, 1025, 10_241, 50_000])
    def test_small_chunks_and_one_chunk_hold_the_same_words(self, ring_bits: int, dimension: int) -> None:
        update = np.random.default_rng(4).standard_normal(dimension).astype(np.float32)
        small = GridCodec(grid_spec(dimension, ring_bits=ring_bits, chunk_bytes=2048), 5)
        whole = GridCodec(grid_spec(dimension, ring_bits=ring_bits, chunk_bytes=MAX_CHUNK_BYTES), 5)
        assert whole.plan.chunk_count == 1
        uniforms = rounding(5)
        one = encode(whole, update, uniforms=uniforms)[0]
        parts = np.concatenate(encode(small, update, uniforms=uniforms))
        signed = [plan.signed(words[:-TAIL_WORDS]) for plan, words in ((small.plan, parts), (whole.plan, one))]
        # A matrix product of another size may sum in another order: at most one word in a thousand rounds otherwise.
        difference = np.abs(signed[0].astype(int) - signed[1].astype(int))
        assert difference.max() <= 1
        assert difference.mean() < 1e-3
        assert sum(small.plan.chunk(k).wire_bytes for k in range(small.plan.chunk_count)) == small.plan.vec_len

    def test_words_follow_the_written_definition(self) -> None:
        """Signs, strided blocks, H32 x H32 / 32, step, floor(x + u): by plain matrices in binary64."""
        codec = GridCodec(grid_spec(5000, chunk_bytes=2048), 5)
        update = np.random.default_rng(6).standard_normal(5000).astype(np.float32)
        update *= 0.7 / np.linalg.norm(update)
        h2 = np.array([[1, 1], [1, -1]])
        h1024 = h2
        for _ in range(9):
            h1024 = np.kron(h1024, h2)
        padded = np.zeros(5 * 1024)
        padded[:5000] = update
        blocks = padded.reshape(1024, 5).T * (1.0 - 2.0 * signs(codec.spec.rotation_seed, 0, 5))
        expected = np.floor((blocks @ h1024 / 32).reshape(-1) / codec.delta + 0.5)
        words = np.concatenate(encode(codec, update, uniforms=constant(0.5)))
        difference = np.abs(words[:-TAIL_WORDS].view(np.int16) - expected)
        assert difference.max() <= 1
        assert difference.mean() < 0.01
        assert codec.delta == pytest.approx(6 / np.sqrt(5120) / (32767 // 5))

    @pytest.mark.parametrize("spec", [grid_spec(10_000), grid_spec(10_000, rotate=False), grid_spec(70_001, keep=0.3)])
    def test_files_and_memmaps_are_as_good_as_arrays(self, spec: VectorSpec, tmp_path: Path) -> None:
        codec = GridCodec(spec, 4)
        update = np.random.default_rng(8).standard_normal(spec.dimension).astype(np.float32)
        path = tmp_path / "update.f32"
        path.write_bytes(b"header.." + update.tobytes())
        expected = encode(codec, update)
        memmap = np.memmap(path, dtype=np.float32, mode="r", offset=8)
        fd = os.open(path, os.O_RDONLY)
        scratch = os.open(tmp_path / "scratch.f32", os.O_RDWR | os.O_CREAT)
        try:
            encoder = codec.encoder(
                FloatFile(fd, spec.dimension, 8),
                staleness=0,
                rows=100,
                uniforms=rounding(100),
                scratch=FloatFile(scratch, codec.kept),
            )
            from_file = [encoder.chunk(k) for k in range(codec.plan.chunk_count)]
            kept = FloatFile(scratch, codec.kept)
            reference = np.empty(codec.kept, dtype=np.float32)
            for k, words in enumerate(from_file):
                codec.apply_chunk(k, words, 1.0, kept)
                codec.apply_chunk(k, words, 1.0, reference)
            assert np.array_equal(kept[0 : codec.kept], reference)
        finally:
            os.close(fd)
            os.close(scratch)
        for other in (encode(codec, memmap), from_file):
            assert all(np.array_equal(a, b) for a, b in zip(expected, other, strict=True))

    @pytest.mark.parametrize(("length", "m"), [(1, 1), (1024, 1), (1025, 2), (5000, 5), (5119, 5), (5120, 5)])
    def test_strided_blocks_are_read_and_written_alike(self, length: int, m: int) -> None:
        vector = np.arange(1, length + 1, dtype=np.float32)
        padded = np.zeros(1024 * m, dtype=np.float32)
        padded[:length] = vector
        columns = padded.reshape(1024, m).T
        copy = np.zeros(length, dtype=np.float32)
        for first in range(m):
            count = min(2, m - first)
            blocks = read_blocks(vector, m, first, count)
            assert np.array_equal(blocks, columns[first : first + count])
            write_blocks(copy, m, first, blocks)
        assert np.array_equal(copy, vector)

    def test_the_transform_is_its_own_inverse(self) -> None:
        blocks = np.random.default_rng(9).standard_normal((7, 1024)).astype(np.float32)
        np.testing.assert_allclose(transform(transform(blocks)) / 1024, blocks, atol=1e-4)


class TestPlan:
    def test_chunks_cover_the_vector_and_only_the_last_has_the_tail(self) -> None:
        for spec in (grid_spec(100_000), grid_spec(100_000, ring_bits=12), integer_spec(1000, 64)):
            plan = ChunkPlan.of(spec)
            ranges = [plan.chunk(k) for k in range(plan.chunk_count)]
            assert [r.start for r in ranges] == [sum(q.count for q in ranges[:k]) for k in range(len(ranges))]
            assert sum(r.count for r in ranges) == plan.words
            assert [r.tail for r in ranges] == [0] * (len(ranges) - 1) + [TAIL_WORDS]
            assert sum(r.wire_bytes for r in ranges) == plan.vec_len
            assert all(r.wire_bytes <= spec.chunk_bytes + 8 * TAIL_WORDS for r in ranges)
            assert all(plan.mask_offset(k) % 16 == 0 for k in range(plan.chunk_count))

    @pytest.mark.parametrize(
        "spec",
        [
            integer_spec(10, 16),
            integer_spec(10).model_copy(update={"rotate": True}),
            integer_spec(10).model_copy(update={"keep": 0.5}),
            grid_spec(10, ring_bits=12, rotate=False),
            grid_spec(10, ring_bits=32, chunk_bytes=2048),
        ],
    )
    def test_specifications_without_sense_are_refused(self, spec: VectorSpec) -> None:
        with pytest.raises(SpecRefused):
            ChunkPlan.of(spec)

    def test_wrong_lengths_and_places_are_refused(self) -> None:
        plan = ChunkPlan.of(grid_spec(5000, chunk_bytes=2048))
        with pytest.raises(Malformed):
            plan.chunk(plan.chunk_count)
        with pytest.raises(Malformed):
            plan.unpack(0, bytes(2047))
        with pytest.raises(Malformed):
            plan.pack(0, np.zeros(1023, dtype=np.uint16))

    def test_each_codec_has_its_encoding(self) -> None:
        assert isinstance(codec_for(grid_spec(10), 3), GridCodec)
        assert isinstance(codec_for(integer_spec(10), 3), IntegerCodec)
        with pytest.raises(SpecRefused):
            GridCodec(integer_spec(10), 3)
        with pytest.raises(SpecRefused):
            IntegerCodec(grid_spec(10), 3)
        with pytest.raises(SpecRefused):
            encode(GridCodec(grid_spec(10), 3), np.zeros(11, dtype=np.float32))
        with pytest.raises(SpecRefused):
            IntegerCodec(integer_spec(10), 3).encode_chunk(np.zeros(11, dtype=np.int64), 0)
