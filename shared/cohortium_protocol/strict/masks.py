"""Masks of strict steps: pairwise only, bound to the roster, the step and every result so far (section 3.4).

Without self masks and recovery boxes nothing exists from which less than the sum of all n could be opened, so a step
needs one trip and no echo; a site that does not answer ends the session. A server that shows two sites different
results gets words that stay masked for ever, since the two no longer share a mask.
"""

import hashlib
import hmac
from typing import Final

import numpy as np
import numpy.typing as npt

from cohortium_protocol import labels
from cohortium_protocol.encoding import le32, pae
from cohortium_protocol.errors import IntegrityFault, OwnEntryChanged, StepReused
from cohortium_protocol.keys import WindowKeys, hkdf, pair_identities, pair_secret, seed_of_pair
from cohortium_protocol.masking import MaskPlan, MaskStream, add_masks
from cohortium_protocol.strict.steps import CANARIES, Values
from cohortium_protocol.window import RosterView

_KIND: Final = b"strict"


def strict_key(seed: bytes, roster_hash: bytes, step: int, chain: bytes) -> bytes:
    """K(s_uv, "strict"), 32 bytes: the AES-256 key of one pairwise mask. Binds the roster (salt), the step and the
    chain of all results that the site was shown before it."""
    return hkdf(seed, roster_hash, pae(labels.PRG, _KIND, le32(step), chain), 32)


class StrictSite:
    """What one site masks in one strict session. Holds the pairs' secrets: drop it when the session ends.

    Rule R1: each step masks one vector. The last step and a digest of its vector are remembered; another vector for it,
    or anything for an earlier step, raises `StepReused`, since two vectors under one mask show their difference. That
    memory ends with the process, so a session must end with it too.
    """

    def __init__(self, view: RosterView, index: int, keys: WindowKeys) -> None:
        """`view`: the session's roster after all its checks. `keys`: those of this site's `Ready`. Raises
        `OwnEntryChanged` if entry `index` does not hold their public halves, `NotAMember`, `WeakKey`."""
        own = view.entry(index)
        if (own.mask_pk, own.seal_pk) != (keys.mask_pk, keys.seal_pk):
            raise OwnEntryChanged(f"the keys are not those of entry {index}")
        self.view = view
        self.index = index
        self._pairs = {}
        for other in view.others(index):
            lower, higher = (own, view.entry(other)) if index < other else (view.entry(other), own)
            self._pairs[other] = pair_secret(keys.mask, lower, higher), pair_identities(lower, higher)
        self._last_step = -1
        self._last_digest = b""

    def mask(self, step: int, chain: bytes, values: Values) -> bytes:
        """The masked words of one SUM, little-endian, canaries last: safe to send, and to send again as they are.

        `chain`: over all results that this site was shown before this step (32 bytes). `values`: one dimension, int64;
        the caller makes sure that the sum over all sites stays within int64. The same call again gives the same bytes.
        Raises `StepReused`.
        """
        if values.dtype != np.int64 or values.ndim != 1 or len(chain) != 32:
            raise ValueError("a step masks one dimension of int64 after a chain of 32 bytes")
        self._spend(step, chain, values)
        words = np.ones(len(values) + CANARIES, dtype="<u8")
        words[:-CANARIES] = values.view(np.uint64)
        add_masks(words, self._masks(step, chain), 0)
        return words.tobytes()

    def _spend(self, step: int, chain: bytes, values: Values) -> None:
        """Rule R1: remember the step before anything is masked for it."""
        digest = hashlib.sha256(chain)
        digest.update(np.ascontiguousarray(values).data)
        found = digest.digest()
        if step == self._last_step and hmac.compare_digest(found, self._last_digest):
            return
        if step <= self._last_step:
            raise StepReused(f"step {step}; step {self._last_step} is masked already")
        self._last_step, self._last_digest = step, found

    def _masks(self, step: int, chain: bytes) -> MaskPlan:
        roster_hash = self.view.roster_hash
        streams = {
            other: MaskStream(strict_key(seed_of_pair(*pair, roster_hash, step), roster_hash, step, chain))
            for other, pair in self._pairs.items()
        }
        return MaskPlan(
            plus=tuple(stream for other, stream in streams.items() if other > self.index),
            minus=tuple(stream for other, stream in streams.items() if other < self.index),
        )

    def __repr__(self) -> str:
        return f"StrictSite(index={self.index}, ***)"


def open_sum(words: npt.NDArray[np.uint64], n: int) -> Values:
    """The signed sums of the masked words of all `n` sites, added modulo 2^64. Raises `IntegrityFault` unless every
    canary counts n: somebody's masks were for another roster, step or chain, or are missing."""
    if len(words) <= CANARIES or not np.all(words[-CANARIES:] == n):
        raise IntegrityFault(f"the canaries do not count {n} sites")
    return words[:-CANARIES].view(np.int64)
