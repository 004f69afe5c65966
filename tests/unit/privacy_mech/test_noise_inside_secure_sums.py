"""Shares of noise through the real protocol, masks and dropped sites included: what is opened has noise enough."""

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("numba", reason="the training extra is not installed")

from federation_in_memory import Federation, integer_spec
from private_stage import randomness
from scipy import stats

from cohortium_connector.training.dp_random import noised
from cohortium_messages.privacy import DistributedPrivacy
from cohortium_messages.study import LogisticRecipe
from cohortium_privacy.lattice import Lattice, NoiseShare, Words, noise_shares
from cohortium_privacy.plan import Course, plan_of

SITES, COLLUDING, NUMBERS = 5, 1, 3000
PRIVACY = DistributedPrivacy(
    mode="distributed", epsilon=3, delta=1e-6, sampling_rate=0.1, patients=50_000, colluding=COLLUDING
)


def opened(federation: Federation, values: dict[int, Words], survivors: tuple[int, ...]) -> Words:
    """What the server gets of the survivors' integers."""
    for index, words in values.items():
        federation.send_integers(index, words)
    frozen, headers = federation.freeze(survivors)
    everybody = range(1, federation.n + 1)  # who was left out helps to open, too
    certificate = federation.certificate(frozen, everybody)
    answers = [federation.unmask(index, frozen, certificate) for index in everybody]
    chunks = federation.open(frozen, headers, answers)
    total = np.zeros(federation.params.vector.dimension, dtype=np.int64)
    federation.codec.check_tail(chunks[-1], len(survivors))
    for place, words in enumerate(chunks):
        where, part = federation.codec.decode_chunk(place, words)
        total[where] = part
    return total


@pytest.fixture(scope="module")
def k_min() -> int:
    return Federation.of(SITES, integer_spec(8), collusion=COLLUDING).view.k_min


@pytest.fixture(scope="module")
def lattice() -> Lattice:
    return Lattice(clip=1.0, dimension=NUMBERS)


@pytest.fixture(scope="module")
def share(lattice: Lattice, k_min: int) -> NoiseShare:
    recipe = LogisticRecipe(trainer="torch.logistic")
    plan = plan_of(PRIVACY, Course(recipe, 20, NUMBERS, buffered=False, least_sites=k_min, colluding=COLLUDING))
    assert plan.site_sigma is not None
    return NoiseShare.of(plan.site_sigma, lattice.sensitivity, sites=SITES)


@pytest.fixture(scope="module")
def target(lattice: Lattice, k_min: int, share: NoiseShare) -> float:
    """z · Δ₂, as the plan promises."""
    recipe = LogisticRecipe(trainer="torch.logistic")
    plan = plan_of(PRIVACY, Course(recipe, 20, NUMBERS, buffered=False, least_sites=k_min, colluding=COLLUDING))
    return plan.noise_multiplier * lattice.sensitivity


def test_every_allowed_set_of_survivors_has_the_planned_noise_without_the_colluders(
    lattice: Lattice, share: NoiseShare, target: float, k_min: int
) -> None:
    assert 3 <= k_min < SITES
    allowed = [survivors for size in range(k_min, SITES + 1) for survivors in itertools.combinations(range(1, 6), size)]
    assert len(allowed) >= 6
    signal = np.random.default_rng(0).integers(-(10**6), 10**6, size=(SITES, NUMBERS))
    by_size: dict[int, list[Words]] = {}
    honest: dict[int, list[Words]] = {}
    for sums, survivors in enumerate(allowed * 2):
        federation = Federation.of(SITES, integer_spec(NUMBERS), collusion=COLLUDING, window_name=f"w{sums}")
        values, noise = {}, {}
        for index in range(1, SITES + 1):
            values[index] = noised(signal[index - 1], share, randomness(f"{sums} {index}").stream("noise"))
            noise[index] = values[index] - signal[index - 1]
        left = opened(federation, values, survivors) - sum(signal[index - 1] for index in survivors)
        by_size.setdefault(len(survivors), []).append(left)
        colluders = survivors[:COLLUDING]  # who know their own noise, and take it off
        honest.setdefault(len(survivors), []).append(left - sum(noise[index] for index in colluders))
    for size, sums_of_size in by_size.items():
        everything, theirs = np.concatenate(sums_of_size), np.concatenate(honest[size])
        expected = share.total_sigma(size)
        assert 1e-4 < stats.chi2.cdf(np.square(everything / expected).sum(), everything.size) < 1 - 1e-4
        shares = (size - COLLUDING) / noise_shares(k_min, COLLUDING)
        assert theirs.std() == pytest.approx(math.sqrt(shares) * target, rel=5 / math.sqrt(2 * theirs.size))
        assert theirs.std() >= target * (1 - 5 / math.sqrt(2 * theirs.size))
        if size > k_min:
            assert theirs.std() > 1.05 * target


def test_the_smallest_set_has_exactly_the_promise(share: NoiseShare, target: float, k_min: int) -> None:
    honest = math.sqrt(k_min - COLLUDING) * float(share.sigma)
    assert target <= honest < target + 1


def test_what_is_opened_is_the_sum_of_gradients_in_noise(lattice: Lattice, share: NoiseShare, target: float) -> None:
    generator = np.random.default_rng(1)
    gradients = generator.normal(size=(SITES, 40, NUMBERS))
    values, truth = {}, np.zeros(NUMBERS)
    for index in range(1, SITES + 1):
        own = gradients[index - 1]
        factors = lattice.factors(np.square(own).sum(axis=1))
        truth += (own * factors[:, None]).sum(axis=0)
        fine = lattice.fine_sum(own, factors)
        values[index] = noised(lattice.rounded(fine), share, randomness(f"g{index}").stream("noise"))
    federation = Federation.of(SITES, integer_spec(NUMBERS), collusion=COLLUDING, window_name="gradients")
    total = opened(federation, values, (1, 2, 4, 5))
    without = truth - (gradients[2] * lattice.factors(np.square(gradients[2]).sum(axis=1))[:, None]).sum(axis=0)
    error = (lattice.value(total, 1.0) - without) / (share.total_sigma(4) * lattice.step)
    assert 1e-4 < stats.chi2.cdf(np.square(error).sum(), NUMBERS) < 1 - 1e-4


def test_the_largest_inputs_of_all_sites_do_not_leave_the_ring(share: NoiseShare) -> None:
    huge = np.full(NUMBERS, 2**45)
    huge[::2] *= -1
    values = {i: noised(huge, share, randomness(f"huge {i}").stream("noise")) for i in range(1, SITES + 1)}
    federation = Federation.of(SITES, integer_spec(NUMBERS), collusion=COLLUDING, window_name="huge")
    total = opened(federation, values, tuple(range(1, SITES + 1)))
    assert (np.sign(total) == np.sign(huge)).all()
    assert np.abs(total).max() < 2**31
    assert np.abs(np.abs(total) - SITES * share.room).max() < 8 * share.total_sigma(SITES)
