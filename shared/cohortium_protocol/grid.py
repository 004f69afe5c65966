"""The grid codec: float32 updates on a common fixed-point grid (sections 1.7 and 1.13).

Everything is public and the same for all sites but the update, its weight and the rounding numbers: a shared grid is
what lets ring sums be sums of updates. |Σq| <= n·L < 2^(b-1), so the sum cannot leave the ring whatever honest sites
hold.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cohortium_messages.secure_sum import VectorSpec
from cohortium_protocol import choice, rotation
from cohortium_protocol.errors import NotFinite, OutOfOrder, RingTooSmall, SpecRefused
from cohortium_protocol.floats import FloatFile, Floats
from cohortium_protocol.masking import Words
from cohortium_protocol.plan import BLOCK_WORDS, ChunkPlan, ChunkRange, kept_count
from cohortium_protocol.tail import FULL_WEIGHT, TailSums, put_tail, read_tail, weight16
from cohortium_protocol.vectors import FloatVector, Uniforms, norm_l2, slices

STRIP_BLOCKS = 2048
"""Blocks that are read at once: 8 MiB."""
SATURATED_SHARE = 1e-3
"""A site that has more than this share of its numbers at ±L says so in its tail."""


class GridCodec:
    """Codec of one `grid` specification for a roster of n sites.

    `kept`: coordinates that are sent, all of them unless keep < 1. `limit`: L, the most that one site puts in a word.
    `delta`: Δ, the step of the grid.
    """

    def __init__(self, spec: VectorSpec, n: int) -> None:
        """Raises `SpecRefused`, or `RingTooSmall` if n sites leave no room for anything but zeros."""
        if spec.encoding != "grid":
            raise SpecRefused("not a grid specification")
        self.spec = spec
        self.plan = ChunkPlan.of(spec)
        self.kept = kept_count(spec)
        self.limit = (2 ** (spec.ring_bits - 1) - 1) // n
        if self.limit < 1:
            raise RingTooSmall(f"{spec.ring_bits} bits for {n} sites")
        self.delta = self._range() / self.limit

    def _range(self) -> float:
        """R: the largest number that fits. After a rotation the numbers are close to normal with deviation C/√words, so
        the range follows from the norm; without one it is a declared multiple of C."""
        if not self.spec.rotate:
            return self.spec.range_factor * self.spec.clip_norm_l2
        share = self.kept / self.spec.dimension
        return self.spec.range_factor * self.spec.clip_norm_l2 * math.sqrt(share / self.plan.words)

    @property
    def columns(self) -> int:
        """m: how many blocks a rotated vector has."""
        return self.plan.words // BLOCK_WORDS

    def encoder(
        self,
        update: FloatVector,
        *,
        staleness: int,
        rows: int,
        uniforms: Uniforms,
        scratch: FloatVector | None = None,
        quiet: bool = False,
    ) -> "GridEncoder":
        """Discount by staleness, clip, weigh, and (keep < 1) choose. `quiet`: the tail never says that numbers hit the
        range, as where updates are private nothing is told besides them.

        Reads `update` once for its norm, then slice by slice: it must not change meanwhile. `scratch`, `kept` long,
        takes the chosen coordinates where keep < 1; left out, an array is made. Raises `NotFinite` or `SpecRefused`.
        """
        if len(update) != self.spec.dimension:
            raise SpecRefused(f"an update of {len(update)} numbers for a dimension of {self.spec.dimension}")
        norm = norm_l2(update)
        if not math.isfinite(norm):
            raise NotFinite("the update holds a NaN or an infinity")
        discounted = norm / math.sqrt(1 + staleness)
        clip = min(1.0, self.spec.clip_norm_l2 / discounted) if discounted > 0 else 1.0
        source = update
        if self.kept < self.spec.dimension:
            source = np.empty(self.kept, dtype=np.float32) if scratch is None else scratch
            for block, places, coordinates in self._chosen():
                source[places] = update[block][coordinates]
        weight = weight16(rows, self.spec.weight_cap)
        return GridEncoder(self, (update, source), (clip / math.sqrt(1 + staleness), weight), uniforms, quiet=quiet)

    def _chosen(self) -> Iterator[tuple[slice, slice, npt.NDArray[np.intp]]]:
        return choice.chosen(self.spec.keep_seed, self.spec.dimension, self.kept)

    def check_tail(self, last_chunk: Words, survivors: int) -> TailSums:
        """Canaries and weights of the opened LAST chunk: open it first. Raises `IntegrityFault`."""
        return read_tail(last_chunk, survivors)

    def apply_chunk(self, index: int, words: Words, weight: float, out: FloatVector) -> None:
        """Write the weighted mean that this opened chunk holds into `out`, a float32 vector of `kept` places.

        `weight` is `TailSums.weight`. Chunks may come in any order and from several threads: they write different
        places.
        """
        self.apply_chunks(index, [words], weight, out)

    def apply_chunks(self, first: int, chunks: Sequence[Words], weight: float, out: FloatVector) -> None:
        """`apply_chunk` for the chunks from `first` on, written together: they lie all over a rotated vector."""
        places = [self.plan.chunk(first + number) for number in range(len(chunks))]
        numbers = [self.plan.signed(words[: place.count]) for place, words in zip(places, chunks, strict=True)]
        if not self.spec.rotate:
            for place, part in zip(places, numbers, strict=True):
                stop = min(place.start + place.count, self.kept)
                out[place.start : stop] = (part[: stop - place.start] * (self.delta / weight)).astype(np.float32)
            return
        start, columns = places[0].start // BLOCK_WORDS, sum(place.count for place in places) // BLOCK_WORDS
        joined = np.concatenate(numbers, dtype=np.float32, casting="unsafe")
        blocks = rotation.transform(joined.reshape(columns, BLOCK_WORDS))
        bits = rotation.signs(self.spec.rotation_seed, start, columns)
        blocks *= rotation.signed_scale(bits, self.delta / weight / 32)
        rotation.write_blocks(out, self.columns, start, blocks)

    def kept_slices(self) -> Iterator[tuple[npt.NDArray[np.int64], slice]]:
        """Where kept places belong in the model vector: ascending coordinates and their slice of kept places, block by
        block."""
        for block, places, coordinates in self._chosen():
            yield coordinates.astype(np.int64) + block.start, places

    def spread(self, kept: FloatVector, out: FloatVector) -> None:
        """keep < 1: the mean over the whole dimension, zero at coordinates that were not chosen.

        Not scaled by 1/keep: with error feedback at the sites that would count what was left out twice.
        """
        for block, places, coordinates in self._chosen():
            values = np.zeros(block.stop - block.start, dtype=np.float32)
            values[coordinates] = kept[places]
            out[block] = values


class GridEncoder:
    """One site's update on its way to ring words. Made by `GridCodec.encoder`."""

    def __init__(
        self,
        codec: GridCodec,
        vectors: tuple[FloatVector, FloatVector],
        factors: tuple[float, int],
        uniforms: Uniforms,
        *,
        quiet: bool = False,
    ) -> None:
        self._quiet = quiet
        self._codec = codec
        self._update, self._source = vectors
        self._shrink, self.weight16 = factors
        self._uniforms = uniforms
        self._saturated: dict[int, int] = {}
        self._strip: tuple[int, Floats] = (0, np.empty((0, BLOCK_WORDS), dtype=np.float32))

    @property
    def weight(self) -> float:
        """ω: this site's weight, above 0 and at most 1."""
        return self.weight16 / FULL_WEIGHT

    def chunk(self, index: int) -> Words:
        """Ring words of one chunk, unmasked. Again gives the same words.

        In any order, but the last chunk after all others, because its tail says whether the numbers hit the range:
        `OutOfOrder` otherwise.
        """
        plan = self._codec.plan
        place = plan.chunk(index)
        numbers = self._numbers(place)
        limit = self._float_limit(numbers.dtype)
        numbers += self._uniforms(place.start, place.count)
        np.floor(numbers, out=numbers)
        np.clip(numbers, -limit, limit, out=numbers)
        self._saturated[index] = int(np.count_nonzero(np.abs(numbers) >= limit))
        signed = numbers.astype(f"i{plan.dtype.itemsize}")
        words: Words = np.empty(place.words, dtype=plan.dtype)
        words[: place.count] = signed.view(plan.dtype)
        if place.tail:
            put_tail(words, self.weight16, self._saturation_flag())
        return words

    def _numbers(self, place: ChunkRange) -> npt.NDArray[np.floating]:
        """x/Δ of one chunk: scaled, and rotated if asked. Binary64 where binary32 cannot hold a ring word."""
        codec = self._codec
        wide: np.dtype[np.floating] = np.dtype(np.float64 if codec.spec.ring_bits > 16 else np.float32)
        scale = self._shrink * self.weight
        if not codec.spec.rotate:
            part: npt.NDArray[np.floating] = self._source[place.start : place.start + place.count].astype(wide)
            part *= wide.type(scale / codec.delta)
            return part
        first, columns = place.start // BLOCK_WORDS, place.count // BLOCK_WORDS
        blocks = self._blocks(first, columns)
        # Scaled before the transform: sums of 1024 large numbers could overflow.
        blocks *= rotation.signed_scale(rotation.signs(codec.spec.rotation_seed, first, columns), scale)
        numbers: npt.NDArray[np.floating] = rotation.transform(blocks).reshape(-1).astype(wide, copy=False)
        numbers *= wide.type(1 / (32 * codec.delta))
        return numbers

    def _blocks(self, first: int, columns: int) -> Floats:
        """Blocks of the source, to change at will. Of a file those of several chunks are read at once: they lie all
        over the vector, and a read of 2 KiB costs as much as one of 8."""
        if not isinstance(self._source, FloatFile):
            return rotation.read_blocks(self._source, self._codec.columns, first, columns)
        have, strip = self._strip
        if not have <= first <= first + columns <= have + len(strip):
            have, wanted = first, min(max(columns, STRIP_BLOCKS), self._codec.columns - first)
            strip = rotation.read_blocks(self._source, self._codec.columns, first, wanted)
            self._strip = have, strip
        return strip[first - have : first - have + columns].copy()

    def _float_limit(self, dtype: np.dtype[np.floating]) -> float:
        """The largest float of this type that is at most L."""
        limit = dtype.type(self._codec.limit)
        return float(limit if int(limit) <= self._codec.limit else np.nextafter(limit, dtype.type(0)))

    def _saturation_flag(self) -> int:
        if len(self._saturated) < self._codec.plan.chunk_count:
            raise OutOfOrder("the last chunk comes after all others")
        return 0 if self._quiet else int(sum(self._saturated.values()) > SATURATED_SHARE * self._codec.plan.words)

    def decode_own(self, index: int, words: Words, out: FloatVector) -> None:
        """For error feedback: what a server would decode from this site's words (unmasked) alone, into `out`, `kept`
        long."""
        self._codec.apply_chunk(index, words, self.weight, out)

    def write_residual(self, own: FloatVector, out: FloatVector) -> None:
        """For error feedback (1.13): the discounted, clipped update less `own`, over the whole dimension.

        The site adds it to its next update. Only without differential privacy: memory breaks per-window sensitivity.
        """
        codec = self._codec
        if codec.kept == codec.spec.dimension:
            for where in slices(codec.kept):
                out[where] = self._update[where] * np.float32(self._shrink) - own[where]
            return
        for block, places, coordinates in choice.chosen(codec.spec.keep_seed, codec.spec.dimension, codec.kept):
            values: Floats = self._update[block] * np.float32(self._shrink)
            values[coordinates] -= own[places]
            out[block] = values
