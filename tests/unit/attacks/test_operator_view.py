"""What an operator has of a secure sum: masked words that say nothing, and the mean."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

from cohortium_connector.training.attacks.wire_view import opened_integers, view_of_updates
from cohortium_messages.study import Compression

pytestmark = pytest.mark.torch

CODECS = [
    Compression(),
    Compression(ring_bits=32, rotate=False),
    Compression(ring_bits=12),
    Compression(ring_bits=16, keep=0.5),
]


def updates(sites: int, size: int = 3000) -> list[np.ndarray]:
    chance = np.random.default_rng(sites)
    return [(0.02 * chance.normal(size=size)).astype(np.float32) for _ in range(sites)]


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("sites", [3, 8])
def test_the_opened_sum_is_the_mean_of_the_updates(compression: Compression, sites: int) -> None:
    sent = updates(sites)
    mean = np.mean(sent, axis=0)
    off = view_of_updates(sent, compression).mean - mean
    coarse = 0.5 if compression.ring_bits == 12 else 0.1
    assert np.linalg.norm(off) < coarse * np.linalg.norm(mean)


@pytest.mark.parametrize("compression", CODECS[:2])
def test_a_masked_update_has_nothing_of_the_update(compression: Compression) -> None:
    """Its direction is as far from the update as any other, and again from itself when it is masked anew."""
    sent = updates(3)
    first, again = (view_of_updates(sent, compression).masked for _ in range(2))
    assert len(first) == 3
    for own, masked, anew in zip(sent, first, again, strict=True):
        for left, right in ((own, masked), (masked, anew)):
            cosine = float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))
            assert abs(cosine) < 6 / np.sqrt(len(own))


def test_integers_open_to_their_exact_sum() -> None:
    chance = np.random.default_rng(0)
    vectors = [chance.integers(-(10**6), 10**6, size=5000) for _ in range(4)]
    assert opened_integers(vectors).tolist() == np.sum(vectors, axis=0).tolist()


def test_two_sites_make_no_secure_sum() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        view_of_updates(updates(2), Compression())
