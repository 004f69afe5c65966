"""The lattice: clipping, rounding, sensitivity, shares of noise, and the room in the ring."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from federation_in_memory import integer_spec

from cohortium_messages.privacy import DistributedPrivacy
from cohortium_messages.study import LogisticRecipe, Study
from cohortium_privacy.lattice import (
    FINE_BITS,
    LATTICE,
    MOST_AT_ONCE,
    SHRINK,
    Lattice,
    LatticeRefused,
    NoiseShare,
    count_scale,
    noise_shares,
    ring_limit,
    ring_room,
    sensitivity_of,
    site_sigma,
)
from cohortium_privacy.plan import Course, PlanImpossible, plan_of
from cohortium_privacy.windows import course_of, formal, sensitivity_for
from cohortium_protocol.codec import IntegerCodec

PRIVACY = DistributedPrivacy(mode="distributed", epsilon=3, delta=1e-6, sampling_rate=0.1, patients=50_000, colluding=2)
COURSE = Course(LogisticRecipe(trainer="torch.logistic"), 20, 31, buffered=False, least_sites=5, colluding=1)


def test_the_numbers_are_those_of_the_design() -> None:
    lattice = Lattice(clip=2.0, dimension=400)
    assert lattice.step == pytest.approx(0.01 * 2.0 / 20)
    assert lattice.sensitivity == pytest.approx(1.01 * 2.0 / lattice.step)
    assert lattice.fine_step == lattice.step / 2**16
    assert site_sigma(1.0, lattice.sensitivity, noise_shares(7, 3)) == pytest.approx(0.505 * 2.0 / lattice.step)
    assert noise_shares(3, 3) == 1


def test_plan_and_lattice_agree_on_a_sites_noise() -> None:
    plan = plan_of(PRIVACY, COURSE)
    assert plan.site_sigma == site_sigma(plan.noise_multiplier, Lattice(1.0, 31).sensitivity, noise_shares(5, 2))


def test_a_plan_for_leaves_takes_the_sensitivity_of_leaves() -> None:
    plan = plan_of(PRIVACY, replace(COURSE, sensitivity=3300.0))
    assert plan.site_sigma == pytest.approx(plan.noise_multiplier * 3300.0 / math.sqrt(3))


def test_a_plan_whose_noise_leaves_the_ring_is_refused() -> None:
    course = replace(COURSE, dimension=1_000_000)
    given = PRIVACY.model_copy(update={"noise_multiplier": 100.0})
    assert plan_of(given, replace(course, most_sites=20)).site_sigma is not None
    with pytest.raises(PlanImpossible, match=r"noise_multiplier gives 200 sites .* no room\. Raise epsilon"):
        plan_of(given, course)


LABELS: list[dict[str, Any]] = [
    {"type": "binary"},
    {"type": "multiclass", "levels": [f"level {number}" for number in range(20)]},
    {"type": "number", "range": [0, 1]},
    {"type": "count", "most": 1000},
]


@pytest.mark.parametrize("label", LABELS, ids=[label["type"] for label in LABELS])
def test_no_sum_of_leaves_can_leave_its_ring(label: dict[str, Any]) -> None:
    """The largest that a study file can ask for: 100 trees a sum, 200 sites, a multiplier of 10,000, noise for one
    site; and more rows at one site than there are people."""
    study = Study.model_validate(
        {
            "apiVersion": "cohortium/study/1",
            "name": "leaves",
            "purpose": "Measure the ring",
            "dataset": {
                "features": [{"name": "age", "type": "float", "range": [0, 120], "missing": "native"}],
                "label": {"name": "label", **label},
                "split": {"test": 0.5},
            },
            "recipe": {"trainer": "lightgbm.random_trees", "trees": 100, "depth": 8, "trees_per_sum": 100},
            "federation": {"min_sites": 3},
            "privacy": {
                "mode": "distributed",
                "epsilon": 1,
                "delta": 1e-9,
                "patients": 1000,
                "noise_multiplier": 10_000,
            },
        }
    )
    course = course_of(study, 200, 3, 2)
    assert (course.ring_bits, course.most_sites) == (64, 200)
    privacy = formal(study)
    assert privacy is not None
    plan = plan_of(privacy, course)
    assert plan.site_sigma is not None
    share = NoiseShare.of(plan.site_sigma, sensitivity_for(study, "update"), sites=200, ring_bits=64)
    people = 10**10
    assert people * sensitivity_for(study, "update") < share.room, "no site's sum is ever held to the ring"
    assert 200 * share.limit < 2**63
    with pytest.raises(PlanImpossible, match=r"privacy\.noise_multiplier gives 200 sites .* of 32 bits has no room"):
        plan_of(privacy, replace(course, ring_bits=32))


def test_what_is_inside_the_clip_stays_and_what_is_outside_ends_at_it() -> None:
    lattice = Lattice(clip=1.0, dimension=4)
    vectors = np.array([[0.3, -0.4, 0.0, 0.0], [30.0, 0.0, -40.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    factors = lattice.factors(np.square(vectors).sum(axis=1))
    assert factors.tolist() == [1.0, pytest.approx(SHRINK / 50), 1.0]
    each = [lattice.fine_sum(vectors[place : place + 1], factors[place : place + 1]) for place in range(3)]
    assert each[0] * lattice.fine_step == pytest.approx([0.3, -0.4, 0, 0], abs=lattice.fine_step)
    assert np.linalg.norm(each[1]) * lattice.fine_step == pytest.approx(SHRINK, rel=1e-6)
    assert np.linalg.norm(each[1]) * lattice.fine_step <= SHRINK < 1.0
    assert (lattice.fine_sum(vectors, factors) == each[0] + each[1]).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_counts_as_nothing(bad: float) -> None:
    lattice = Lattice(clip=1.0, dimension=3)
    vectors = np.array([[0.1, bad, 0.0], [0.2, 0.2, 0.2]], dtype=np.float32)
    with np.errstate(invalid="ignore"):
        factors = lattice.factors(np.square(vectors.astype(np.float64)).sum(axis=1))
    assert factors.tolist() == [0.0, 1.0]
    assert (lattice.fine_sum(vectors, factors) == lattice.fine_sum(vectors[1:], factors[1:])).all()
    assert not lattice.clipped(vectors[0]).any()


def test_rounding_is_to_the_nearest_step() -> None:
    unit = 1 << FINE_BITS
    fine = np.array([0, unit // 2 - 1, unit // 2, unit, -unit // 2, -unit // 2 - 1, -unit])
    assert Lattice(1.0, 7).rounded(fine).tolist() == [0, 0, 1, 1, 0, -1, -1]


def test_an_update_is_clipped_as_a_whole() -> None:
    lattice = Lattice(clip=0.5, dimension=1000)
    update = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    words = lattice.clipped(update)
    assert np.linalg.norm(words) <= lattice.sensitivity
    assert lattice.value(words, 1.0) == pytest.approx(update * (0.5 / np.linalg.norm(update)), abs=lattice.step)
    small = update * np.float32(0.001)
    assert lattice.value(lattice.clipped(small), 1.0) == pytest.approx(small, abs=lattice.step * 0.5000001)
    with pytest.raises(LatticeRefused, match="999 numbers"):
        lattice.clipped(update[1:])


def test_opened_sums_are_scaled_by_a_public_divisor() -> None:
    lattice = Lattice(clip=1.0, dimension=4)
    assert lattice.value(np.array([0, 200, -400, 1]), 2.0) == pytest.approx([0, 0.5, -1.0, 0.0025])
    with pytest.raises(LatticeRefused, match="positive"):
        lattice.value(np.zeros(4, dtype=np.int64), 0.0)


@pytest.mark.parametrize("numbers", [(0.0, 3), (math.nan, 3), (1.0, 0), (1.0, 1 << 33)])
def test_a_lattice_needs_a_clip_and_numbers(numbers: tuple[float, int]) -> None:
    with pytest.raises(LatticeRefused, match="is "):
        Lattice(*numbers)


def test_too_many_vectors_for_an_exact_sum_are_refused() -> None:
    with pytest.raises(LatticeRefused, match="4097"):
        Lattice(1.0, 1).fine_sum(np.zeros((MOST_AT_ONCE + 1, 1)), np.ones(MOST_AT_ONCE + 1))


def test_the_largest_sum_of_a_physical_batch_is_exact() -> None:
    lattice = Lattice(1.0, 1 << 32)
    vectors = np.zeros((MOST_AT_ONCE, 1))
    vectors[:] = SHRINK
    one = int(lattice.fine_sum(vectors[:1], np.ones(1))[0])
    assert one == math.floor(SHRINK / lattice.fine_step)
    assert int(lattice.fine_sum(vectors, np.ones(MOST_AT_ONCE))[0]) == MOST_AT_ONCE * one < 2**53


def test_room_is_what_the_ring_leaves_after_the_noise() -> None:
    for sites in (3, 20, 200):
        limit = IntegerCodec(integer_spec(10), sites).limit
        assert ring_limit(sites) == limit
        assert ring_room(1000.0, sites) == limit - 10_000
        assert sites * limit < 2**31


def test_a_share_holds_every_number_within_the_codecs_limit() -> None:
    share = NoiseShare.of(50.3, 101.0, sites=20)
    assert share.sigma * 64 == math.ceil(50.3 * 64)
    extreme = np.array([2**40, -(2**40), share.room, 5])
    noise = np.array([10**9, -(10**9), 7, -9])
    assert share.add(extreme, noise).tolist() == [share.limit, -share.limit, share.room + 7, -4]
    assert share.room + 10 * share.sigma <= share.limit
    assert share.total_sigma(16) == 4 * float(share.sigma)


def test_too_little_noise_and_too_narrow_a_ring_are_refused() -> None:
    with pytest.raises(LatticeRefused, match=r"9\.9 lattice steps is below 10; lower epsilon"):
        NoiseShare.of(9.9, 101.0, sites=3)
    with pytest.raises(LatticeRefused, match="no room for the noise of 200 sites"):
        NoiseShare.of(1.1e6, sensitivity_of(10**6), sites=200)
    assert NoiseShare.of(1.1e6, sensitivity_of(10**6), sites=200, ring_bits=64).room > 2**40


@pytest.mark.parametrize("z", [0.3, 1.0, 4.7, 60.0])
def test_counts_are_scaled_until_their_noise_is_fine(z: float) -> None:
    scale = count_scale(z, 5)
    assert site_sigma(z, scale, 5) >= 10.0
    assert scale == 1 or site_sigma(z, scale / 2, 5) < 10.0


def test_rounding_costs_one_percent() -> None:
    assert sensitivity_of(10_000) * Lattice(1.0, 10_000).step == pytest.approx(1 + LATTICE)
