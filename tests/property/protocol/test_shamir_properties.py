"""Sharing agrees with another implementation, any t shares rebuild, and t-1 say nothing."""

import itertools
import random
from collections import Counter

import pytest
import shamirs
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium_protocol.shares import MAX_SUBSETS, PRIME, evaluate, lagrange_at_zero, rebuild, split

SECRETS = st.binary(min_size=31, max_size=31)


@st.composite
def dealt(draw: st.DrawFn) -> tuple[bytes, int, dict[int, bytes]]:
    secret = draw(SECRETS)
    n = draw(st.integers(1, 20))
    t = draw(st.integers(1, n))
    rng = random.Random(draw(st.integers(0, 2**32)))  # noqa: S311 - reproducible coefficients for a test
    shares = split(secret, t, n, rng.randrange)
    return secret, t, dict(enumerate(shares, start=1))


@given(dealt(), st.randoms())
def test_any_t_shares_rebuild_the_secret(case: tuple[bytes, int, dict[int, bytes]], rng: random.Random) -> None:
    secret, t, shares = case
    some = dict(rng.sample(sorted(shares.items()), t))
    assert rebuild(some, t, lambda seed: seed == secret) == secret


@given(dealt())
def test_fewer_than_t_shares_rebuild_nothing(case: tuple[bytes, int, dict[int, bytes]]) -> None:
    secret, t, shares = case
    few = dict(list(shares.items())[: t - 1])
    assert rebuild(few, t, lambda seed: seed == secret) is None


@given(dealt())
def test_the_other_implementation_reads_our_shares(case: tuple[bytes, int, dict[int, bytes]]) -> None:
    secret, t, shares = case
    theirs = [shamirs.share(x, int.from_bytes(y, "little"), PRIME) for x, y in list(shares.items())[-t:]]
    assert shamirs.interpolate(theirs, threshold=t) == int.from_bytes(secret, "little")


@settings(max_examples=25)
@given(SECRETS, st.integers(2, 12), st.integers(0, 8))
def test_we_read_the_shares_of_the_other_implementation(secret: bytes, t: int, more: int) -> None:
    value = int.from_bytes(secret, "little")
    theirs = shamirs.shares(value, quantity=t + more, modulus=PRIME, threshold=t)
    shares = {share.index: share.value.to_bytes(32, "little") for share in theirs}
    assert rebuild(shares, t, lambda seed: seed == secret) == secret


@given(dealt(), st.data())
def test_wrong_shares_beyond_t_do_no_harm(case: tuple[bytes, int, dict[int, bytes]], data: st.DataObject) -> None:
    secret, t, shares = case
    wrong = data.draw(st.integers(0, min(2, len(shares) - t)))
    for x in data.draw(st.permutations(sorted(shares)))[:wrong]:
        # A field element that is wrong, or no field element at all.
        shares[x] = data.draw(st.sampled_from([bytes(32), b"\xff" * 32]))
    assert rebuild(shares, t, lambda seed: seed == secret) == secret


def test_a_dealer_whose_shares_fit_nothing_is_given_up_after_200_sets() -> None:
    shares = {x: x.to_bytes(32, "little") for x in range(1, 31)}
    tried = []

    def refuse(seed: bytes) -> bool:
        tried.append(seed)
        return False

    assert rebuild(shares, 15, refuse) is None
    assert len(tried) == MAX_SUBSETS


@pytest.mark.parametrize(("prime", "t", "n"), [(5, 2, 3), (5, 3, 4), (7, 2, 4), (7, 3, 4)])
def test_t_minus_1_shares_are_equally_likely_for_every_secret(prime: int, t: int, n: int) -> None:
    for xs in itertools.combinations(range(1, n + 1), t - 1):
        seen = []
        for secret in range(prime):
            polynomials = itertools.product([secret], *[range(prime)] * (t - 1))
            seen.append(Counter(tuple(evaluate(poly, x, prime) for x in xs) for poly in polynomials))
        assert all(counter == seen[0] for counter in seen)
        assert len(set(seen[0].values())) == 1


@pytest.mark.parametrize("prime", [5, 7, 11])
def test_weights_rebuild_every_polynomial_of_a_small_field(prime: int) -> None:
    for poly in itertools.product(range(prime), repeat=3):
        weights = lagrange_at_zero((1, 3, 4), prime)
        values = (evaluate(poly, x, prime) for x in (1, 3, 4))
        assert sum(w * y for w, y in zip(weights, values, strict=True)) % prime == poly[0]


def test_a_secret_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError):
        split(bytes(32), 2, 3)
    with pytest.raises(ValueError):
        split(bytes(31), 4, 3)
