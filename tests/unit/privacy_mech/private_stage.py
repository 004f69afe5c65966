"""What the tests of private training share: networks, rows, chance from fixed seeds, and the exact law of the noise."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cohortium_connector.training.dp_random import Randomness


def randomness(name: str = "") -> Randomness:
    return Randomness(hashlib.sha256(b"private stage " + name.encode()).digest())


def law(sigma: float | Fraction, reach: int) -> NDArray[np.float64]:
    """Probabilities of −reach … reach under N_Z(0, σ²)."""
    places = np.arange(-reach, reach + 1, dtype=np.float64)
    weights = np.exp(-(places**2) / (2 * float(sigma) ** 2))
    return weights / weights.sum()


def chi_square(samples: Iterable[int], sigma: float | Fraction) -> float:
    """p-value of samples against the exact law; rare places are put together."""
    reach = math.ceil(12 * float(sigma)) + 2
    expected_shares = law(sigma, reach)
    found = Counter(int(sample) for sample in samples)
    total = sum(found.values())
    assert max(abs(place) for place in found) <= reach
    observed, expected, rest_seen, rest = [], [], 0.0, 0.0
    for place, share in zip(range(-reach, reach + 1), expected_shares, strict=True):
        rest_seen += found.get(place, 0)
        rest += share * total
        if rest >= 20:
            observed.append(rest_seen)
            expected.append(rest)
            rest_seen, rest = 0.0, 0.0
    observed[-1] += rest_seen
    expected[-1] += rest
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in zip(observed, expected, strict=True))
    return float(stats.chi2.sf(statistic, len(observed) - 1))
