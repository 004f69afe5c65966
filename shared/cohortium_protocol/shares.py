"""Shamir's secret sharing (CACM 1979) over GF(2^255 - 19), with little-endian 32-byte shares (section 1.6).

Plain Python integers, so not constant time: splitting runs on the site's own secrets and cannot be timed from outside.
Secrets are 31-byte seeds, below 2^248 and so below the prime. Shares say nothing of their own validity; the commitment
to the seed decides.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import shake_128
from itertools import combinations
from math import comb

from cohortium_protocol import labels
from cohortium_protocol.keys import SEED_BYTES

PRIME = 2**255 - 19
SHARE_BYTES = 32
MAX_SUBSETS = 200
"""Sets of t shares that are tried before the dealer is blamed."""


def split(secret: bytes, t: int, n: int, randbelow: Callable[[int], int] = secrets.randbelow) -> list[bytes]:
    """Shares at x = 1..n of a 31-byte seed: any t rebuild it, t-1 say nothing about it.

    `randbelow` gives the t-1 coefficients, uniform below the prime; another source than the default is for tests only.
    """
    if len(secret) != SEED_BYTES or not 1 <= t <= n:
        raise ValueError("a secret has 31 bytes and 1 <= t <= n")
    coefficients = [int.from_bytes(secret, "little"), *(randbelow(PRIME) for _ in range(t - 1))]
    return [evaluate(coefficients, x).to_bytes(SHARE_BYTES, "little") for x in range(1, n + 1)]


def evaluate(coefficients: Sequence[int], x: int, prime: int = PRIME) -> int:
    """The polynomial with these coefficients, lowest first, at x (Horner's rule). For small x, as indices are: reducing
    once at the end then takes two thirds of the time."""
    value = 0
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value % prime


@lru_cache(maxsize=1024)
def lagrange_at_zero(xs: tuple[int, ...], prime: int = PRIME) -> tuple[int, ...]:
    """Weights w with f(0) = Σ w_i f(x_i) for every polynomial f of degree below len(xs)."""
    weights = []
    for i in xs:
        numerator, denominator = 1, 1
        for j in xs:
            if j != i:
                numerator = numerator * j % prime
                denominator = denominator * (j - i) % prime
        weights.append(numerator * pow(denominator, -1, prime) % prime)
    return tuple(weights)


def rebuild(shares: Mapping[int, bytes], t: int, valid: Callable[[bytes], bool]) -> bytes | None:
    """The 31-byte seed that `valid` (its commitment) accepts, from some t of these shares by x.

    Tries up to 200 sets of t shares, so a few wrong ones do no harm; None if none of the sets gives a valid seed. What
    is no field element is left out: a dealer may have put it in an honest site's box.
    """
    values = {x: int.from_bytes(share, "little") for x, share in shares.items() if len(share) == SHARE_BYTES}
    values = {x: value for x, value in values.items() if value < PRIME}
    for xs in _subsets(tuple(sorted(values)), t):
        weights = lagrange_at_zero(xs)
        secret = sum(weight * values[x] for weight, x in zip(weights, xs, strict=True)) % PRIME
        if secret >> (8 * SEED_BYTES) == 0:
            seed = secret.to_bytes(SEED_BYTES, "little")
            if valid(seed):
                return seed
    return None


def _subsets(xs: tuple[int, ...], t: int) -> Iterator[tuple[int, ...]]:
    """At most 200 distinct sets of t: all of them where there are so few, else a fixed pseudo-random choice, because
    neighbouring sets would all hold the same wrong share."""
    if len(xs) < t:
        return
    if comb(len(xs), t) <= MAX_SUBSETS:
        yield from combinations(xs, t)
        return
    yield xs[:t]
    seen = {xs[:t]}
    for attempt in range(10 * MAX_SUBSETS):
        order = shake_128(labels.RETRY + attempt.to_bytes(4, "little")).digest(4 * len(xs))
        ranked = sorted(range(len(xs)), key=lambda i: order[4 * i : 4 * i + 4])
        chosen = tuple(sorted(xs[i] for i in ranked[:t]))
        if chosen not in seen:
            seen.add(chosen)
            yield chosen
        if len(seen) == MAX_SUBSETS:
            return
