"""The tail of a vector: canaries, weight and saturation flag (section 1.7, step 8)."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from cohortium_protocol.errors import IntegrityFault
from cohortium_protocol.masking import Words
from cohortium_protocol.plan import TAIL_WORDS

CANARIES: Final = 4
FULL_WEIGHT: Final = 65535


@dataclass(frozen=True, slots=True)
class TailSums:
    """What the tail of an opened sum says: Σ weights (each above 0 and at most 1), and how many sites had more than one
    in a thousand numbers at the edge of the range."""

    weight: float
    saturated: int


def weight16(rows: int, weight_cap: int) -> int:
    """ω16: 65535 · min(rows, cap) / cap, rounded, at least 1."""
    return max(1, (2 * FULL_WEIGHT * min(rows, weight_cap) + weight_cap) // (2 * weight_cap))


def put_tail(words: Words, weight: int, saturated: int) -> None:
    """Write one site's tail over the last seven words."""
    words[-TAIL_WORDS:] = (*[1] * CANARIES, weight & 0xFF, weight >> 8, saturated)


def check_canaries(last_chunk: Words, survivors: int) -> None:
    """Each canary of an opened sum counts the survivors. One mask left on or taken off wrongly passes with probability
    2^-64 in a ring of 16 bits. Raises `IntegrityFault`."""
    if not np.all(last_chunk[-TAIL_WORDS:][:CANARIES] == survivors):
        raise IntegrityFault(f"canaries do not count {survivors} survivors")


def read_tail(last_chunk: Words, survivors: int) -> TailSums:
    """Canaries checked, Σ weights and saturation count of an opened sum. Raises `IntegrityFault`."""
    check_canaries(last_chunk, survivors)
    low, high, saturated = (int(word) for word in last_chunk[-TAIL_WORDS:][CANARIES:])
    weight = low + 256 * high
    if not survivors <= weight <= survivors * FULL_WEIGHT or saturated > survivors:
        raise IntegrityFault("weights or flags are not those of this many sites")
    return TailSums(weight / FULL_WEIGHT, saturated)
