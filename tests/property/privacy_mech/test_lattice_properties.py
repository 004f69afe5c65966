"""What a patient can do to a site's integers, for any gradients at all."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cohortium_privacy.lattice import FINE_BITS, Lattice, NoiseShare, Words, ring_limit
from examples import examples

FLOATS = st.floats(min_value=-(2.0**100), max_value=2.0**100, width=32) | st.sampled_from(
    [np.nan, np.inf, -np.inf, 0.0]
)


@st.composite
def sites(draw: st.DrawFn) -> tuple[Lattice, np.ndarray, np.ndarray]:
    """A lattice, the gradients of a site's patients, and those of one patient more."""
    rows, numbers = draw(st.integers(0, 6)), draw(st.integers(1, 12))
    clip = draw(st.floats(min_value=2.0**-30, max_value=2.0**30))
    everybody = draw(arrays(np.float32, (rows + 1, numbers), elements=FLOATS))
    return Lattice(clip, numbers), everybody[:-1], everybody[-1:]


def fine(lattice: Lattice, vectors: np.ndarray) -> Words:
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.square(vectors.astype(np.float64)).sum(axis=1)
    return lattice.fine_sum(vectors, lattice.factors(squares))


def square(words: Words) -> int:
    """Without rounding."""
    return sum(int(word) ** 2 for word in words)


@given(sites())
def test_one_patient_moves_the_fine_sum_by_at_most_the_clip_exactly(
    made: tuple[Lattice, np.ndarray, np.ndarray],
) -> None:
    lattice, others, patient = made
    moved = fine(lattice, np.concatenate([others, patient])) - fine(lattice, others)
    assert square(moved) <= math.floor(lattice.clip / lattice.fine_step) ** 2
    assert (moved == fine(lattice, patient)).all()
    sizes = np.abs(np.where(np.isfinite(patient[0]).all(), patient[0], 0.0).astype(np.float64))
    assert (np.abs(moved) * lattice.fine_step <= sizes).all()


@given(sites())
def test_one_patient_moves_what_is_sent_by_at_most_the_sensitivity(
    made: tuple[Lattice, np.ndarray, np.ndarray],
) -> None:
    lattice, others, patient = made
    share = NoiseShare.of(20.0, lattice.sensitivity, sites=200)
    noise = np.zeros(lattice.dimension, dtype=np.int64)
    one = share.add(lattice.rounded(fine(lattice, others)), noise)
    more = share.add(lattice.rounded(fine(lattice, np.concatenate([others, patient]))), noise)
    assert square(more - one) <= lattice.sensitivity**2


@given(sites(), st.permutations(range(7)))
def test_the_sum_depends_on_no_order_and_no_split(
    made: tuple[Lattice, np.ndarray, np.ndarray], order: list[int]
) -> None:
    lattice, others, patient = made
    everybody = np.concatenate([others, patient])
    order = [place for place in order if place < len(everybody)]
    parts = [fine(lattice, everybody[[place]]) for place in order]
    assert (fine(lattice, everybody[order]) == sum(parts)).all()
    assert (fine(lattice, everybody) == sum(parts)).all()


@given(arrays(np.int64, st.integers(1, 20), elements=st.integers(-(2**60), 2**60)))
def test_rounding_is_off_by_at_most_half_a_step(words: Words) -> None:
    rounded = Lattice(1.0, len(words)).rounded(words)
    assert all(2 * abs(int(a) * 2**FINE_BITS - int(b)) <= 2**FINE_BITS for a, b in zip(rounded, words, strict=True))


@given(arrays(np.float32, st.integers(1, 30), elements=FLOATS), st.floats(2.0**-20, 2.0**20))
def test_a_sites_update_is_within_the_sensitivity(update: np.ndarray, clip: float) -> None:
    lattice = Lattice(clip, len(update))
    assert square(lattice.clipped(update)) <= lattice.sensitivity**2


@settings(max_examples=examples(50))
@given(
    st.integers(3, 200),
    st.floats(10.0, 1e5),
    arrays(np.int64, 8, elements=st.integers(-(2**61), 2**61)),
    arrays(np.int64, 8, elements=st.integers(-(2**40), 2**40)),
)
def test_no_sum_of_a_roster_leaves_the_ring(roster: int, sigma: float, values: Words, noise: Words) -> None:
    share = NoiseShare.of(sigma, 101.0, sites=roster)
    sent = share.add(values, noise)
    assert max(abs(int(word)) for word in sent) <= share.limit == ring_limit(roster)
    assert roster * share.limit < 2**31
    calm = np.clip(noise, -int(10 * share.sigma), int(10 * share.sigma))
    held = np.clip(values, -share.room, share.room)
    assert (share.add(values, calm) == held + calm).all(), "noise within ten deviations is sent as it is"
