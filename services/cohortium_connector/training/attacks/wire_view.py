"""What an operator has of updates: each site's masked words, and the opened sum.

Encoding, masking, packing, adding up and opening are the protocol's own functions, as in production; only the keys of
the masks, on which sites agree there, are drawn here.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training.base import Floats
from cohortium_messages.secure_sum import MAX_CHUNK_BYTES, VectorSpec
from cohortium_messages.study import Compression
from cohortium_protocol.codec import GridCodec, IntegerCodec, RoundingStream, integer_spec
from cohortium_protocol.masking import MaskPlan, MaskStream, Words
from cohortium_protocol.opening import unmask_chunk
from cohortium_protocol.plan import ChunkPlan
from cohortium_protocol.upload import SiteMasker

RANGE_FACTOR = 6.0
"""As the scheduler has it."""

LEAST_SITES = 3


@dataclass(frozen=True, slots=True)
class OperatorView:
    """`masked`: what each site sent, read as if it were no more than the update; `mean`: what all of them open to."""

    masked: tuple[Floats, ...]
    mean: Floats


def view_of_updates(updates: Sequence[Floats], compression: Compression) -> OperatorView:
    """Updates of equal weight through one secure sum of the study's codec. `keep` is taken as 1: what is chosen for a
    round is public, and an attacker is better off without."""
    codec = GridCodec(_spec(len(updates[0]), compression), len(updates))
    sites = [_grid_words(codec, update) for update in updates]
    wires = _masked(codec.plan, sites)
    total = _opened(codec.plan, wires)
    weight = codec.check_tail(total[-1], len(updates)).weight
    masked = tuple(_decoded(codec, _unpacked(codec.plan, chunks), 1.0) for chunks in wires.chunks)
    return OperatorView(masked, _decoded(codec, total, weight))


def opened_integers(vectors: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Integer vectors of sites through one secure sum in a ring of 32 bits, as distributed noise is added in."""
    codec = IntegerCodec(integer_spec(len(vectors[0]), 32), len(vectors))
    chunks = range(codec.plan.chunk_count)
    total = _opened(codec.plan, _masked(codec.plan, [[codec.encode_chunk(v, k) for k in chunks] for v in vectors]))
    codec.check_tail(total[-1], len(vectors))
    return np.concatenate([codec.decode_chunk(k, words)[1] for k, words in enumerate(total)])


def _spec(dimension: int, compression: Compression) -> VectorSpec:
    return VectorSpec(
        encoding="grid",
        dimension=dimension,
        ring_bits=compression.ring_bits,
        rotate=compression.rotate,
        rotation_seed=secrets.token_bytes(32),
        keep=1.0,
        keep_seed=bytes(32),
        clip_norm_l2=compression.clip_norm_l2,
        range_factor=RANGE_FACTOR,
        weight_cap=1,
        chunk_bytes=MAX_CHUNK_BYTES,
    )


def _grid_words(codec: GridCodec, update: Floats) -> list[Words]:
    uniforms = RoundingStream(secrets.token_bytes(32))
    encoder = codec.encoder(update, staleness=0, rows=1, uniforms=uniforms)
    return [encoder.chunk(index) for index in range(codec.plan.chunk_count)]


@dataclass(frozen=True, slots=True)
class _Wires:
    """Wire bytes by site and chunk, and what takes the masks off their sum."""

    chunks: tuple[tuple[bytes, ...], ...]
    opening: MaskPlan


def _masked(plan: ChunkPlan, sites: Sequence[Sequence[Words]]) -> _Wires:
    """Double masking: each site adds a stream of its own, and one for each pair, which the other takes off."""
    if len(sites) < LEAST_SITES:
        raise ValueError(f"{len(sites)} sites make no secure sum; it takes at least {LEAST_SITES}")
    own = [MaskStream(secrets.token_bytes(32)) for _ in sites]
    pairs = {(u, v): MaskStream(secrets.token_bytes(32)) for v in range(len(sites)) for u in range(v)}
    sent = []
    for place, words in enumerate(sites):
        plus = tuple(stream for (u, _), stream in pairs.items() if u == place)
        minus = tuple(stream for (_, v), stream in pairs.items() if v == place)
        masker = SiteMasker(plan, MaskPlan((own[place], *plus), minus))
        sent.append(tuple(masker.mask_chunk(index, part.copy()) for index, part in enumerate(words)))
    return _Wires(tuple(sent), MaskPlan((), tuple(own)))


def _opened(plan: ChunkPlan, wires: _Wires) -> list[Words]:
    return [
        unmask_chunk(plan, wires.opening, index, (chunks[index] for chunks in wires.chunks))
        for index in range(plan.chunk_count)
    ]


def _unpacked(plan: ChunkPlan, chunks: Sequence[bytes]) -> list[Words]:
    return [plan.unpack(index, wire) for index, wire in enumerate(chunks)]


def _decoded(codec: GridCodec, words: Sequence[Words], weight: float) -> Floats:
    """Chunks as floats; the masked ones of one site as well as the sum."""
    out = np.zeros(codec.kept, dtype=np.float32)
    for index, part in enumerate(words):
        codec.apply_chunk(index, part, weight, out)
    return out
