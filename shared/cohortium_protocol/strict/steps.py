"""Steps of a strict session: their kinds, what their results look like, and the chain over all results (sections
3.2, 3.3).

A step takes one payload from every site and shows one result to all:

* `SUM`: masked ring words; the result is the opened sum, one signed 64-bit number for each word without the canaries.
* `RELAY`: some bytes of each site, which the aggregator reads; the result holds those of all sites, in roster order.
* `AGREE`: bytes that must be the same at all sites; the result is their SHA-256.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from cohortium_messages.lightgbm import LightgbmParams
from cohortium_messages.study import CategoryFeature, LightgbmRecipe, MulticlassLabel, Study
from cohortium_protocol import labels
from cohortium_protocol.encoding import H, le32, sha256
from cohortium_protocol.errors import ResultRefused

CANARIES: Final = 4
"""Words of value 1 at the end of every masked vector: opened, each counts the sites."""
MAX_PAYLOAD_BYTES: Final = 32 << 20
"""No payload and no result of a step is larger."""
DIGEST_BYTES: Final = 32
START: Final = bytes(32)
"""The chain before the first result of a run."""

_LENGTH: Final = struct.Struct("<I")
_LEAST_SUM_WORDS: Final = 8192
_SPLIT_BYTES: Final = 512
_TREE_BYTES_PER_LEAF: Final = 512
_TREE_BYTES: Final = 4096

Values = npt.NDArray[np.int64]


class Kind(IntEnum):
    """What a step does with the sites' payloads."""

    SUM = 1
    RELAY = 2
    AGREE = 3


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """The largest payload of each kind that a site of this session may send: words of a sum without its canaries,
    bytes of a relay and of an agreement. Raises `ValueError` where one is below 1 or beyond `MAX_PAYLOAD_BYTES`."""

    sum_words: int
    relay_bytes: int
    agree_bytes: int

    def __post_init__(self) -> None:
        largest = max(self.up(Kind.SUM), self.relay_bytes, self.agree_bytes)
        if min(self.sum_words, self.relay_bytes, self.agree_bytes) < 1 or largest > MAX_PAYLOAD_BYTES:
            raise ValueError(f"limits of 1 to {MAX_PAYLOAD_BYTES} bytes")

    def up(self, kind: Kind) -> int:
        """Bytes of one site's payload, at most."""
        match kind:
            case Kind.SUM:
                return 8 * (self.sum_words + CANARIES)
            case Kind.RELAY:
                return self.relay_bytes
            case Kind.AGREE:
                return self.agree_bytes

    def down(self, kind: Kind, n: int) -> int:
        """Bytes of a result for `n` sites, at most."""
        match kind:
            case Kind.SUM:
                return 8 * self.sum_words
            case Kind.RELAY:
                return min(MAX_PAYLOAD_BYTES, n * (_LENGTH.size + self.relay_bytes))
            case Kind.AGREE:
                return DIGEST_BYTES


def limits_of(study: Study) -> SessionLimits:
    """Generous limits for the training session of a `lightgbm` study, from what LightGBM can send for it.

    A histogram is two numbers for each bin of each feature, with room for the bins that LightGBM adds by itself. A
    split found is a fixed record and a list of categories. The header and the trees of one round are text.
    """
    recipe = study.recipe
    params = recipe.params if isinstance(recipe, LightgbmRecipe) else LightgbmParams()
    label = study.dataset.label
    trees = len(label.levels) if isinstance(label, MulticlassLabel) else 1
    sizes = [
        len(feature.levels) if isinstance(feature, CategoryFeature) else params.max_bin
        for feature in study.dataset.features
    ]
    header = sum(256 + 8 * size for size in sizes)
    grown = trees * (_TREE_BYTES + _TREE_BYTES_PER_LEAF * params.num_leaves)
    return SessionLimits(
        sum_words=min(MAX_PAYLOAD_BYTES // 8 - CANARIES, max(_LEAST_SUM_WORDS, 2 * sum(size + 4 for size in sizes))),
        relay_bytes=2 * (_SPLIT_BYTES + 4 * params.max_cat_threshold),
        agree_bytes=min(MAX_PAYLOAD_BYTES, _TREE_BYTES + header + grown),
    )


def next_chain(chain: bytes, step: int, kind: Kind, result: bytes) -> bytes:
    """The chain after a result: binds all earlier results, the step, its kind and what all sites are shown.

    The masks of later sums are bound to it, so two sites that were shown different results share no mask any more.
    """
    return H(labels.STRICT_CHAIN, chain, le32(step), bytes([kind]), sha256(result))


def sum_bytes(values: Values) -> bytes:
    """The result of a SUM: little-endian int64."""
    return values.astype("<i8", copy=False).tobytes()


def sum_values(result: bytes) -> Values:
    """What `sum_bytes` wrote; read-only. Raises `ResultRefused` if it is not whole words."""
    if len(result) % 8:
        raise ResultRefused(f"{len(result)} bytes are no whole words")
    return np.frombuffer(result, dtype="<i8").astype(np.int64, copy=False)


def join_relay(contents: Sequence[bytes]) -> bytes:
    """The result of a RELAY: each site's bytes after their LE32 length, in roster order."""
    return b"".join(part for content in contents for part in (_LENGTH.pack(len(content)), content))


def split_relay(result: bytes, n: int) -> tuple[bytes, ...]:
    """Each site's bytes, in roster order. Raises `ResultRefused` unless `result` is exactly `n` of them."""
    contents = []
    at = 0
    for _ in range(n):
        start = at + _LENGTH.size
        if start > len(result):
            raise ResultRefused(f"a relay of fewer than {n} parts")
        at = start + _LENGTH.unpack_from(result, at)[0]
        contents.append(result[start:at])
    if at != len(result):
        raise ResultRefused(f"a relay that is not {n} parts")
    return tuple(contents)


def agreed_bytes(content: bytes) -> bytes:
    """The result of an AGREE: the SHA-256 of what all sites hold."""
    return sha256(content)
