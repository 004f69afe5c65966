"""Binomial bounds, an ε from below, and what (ε, δ) allows any attacker."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cohortium_connector.training.attacks.bounds import (
    Guesses,
    advantage_limit,
    auc_interval,
    auc_limit,
    hit_rate_limit,
    least_rate,
    mean_interval,
    most_rate,
    roc_of,
)
from examples import examples


@settings(max_examples=examples(60), deadline=None)
@given(trials=st.integers(1, 3000), share=st.floats(0, 1), error=st.sampled_from([0.05, 0.01, 0.0005]))
def test_rates_are_those_of_clopper_and_pearson(trials: int, share: float, error: float) -> None:
    successes = round(share * trials)
    least = stats.beta.ppf(error, successes, trials - successes + 1) if successes else 0.0
    most = stats.beta.ppf(1 - error, successes + 1, trials - successes) if successes < trials else 1.0
    assert least_rate(successes, trials, error) == pytest.approx(least, abs=1e-9)
    assert most_rate(successes, trials, error) == pytest.approx(most, abs=1e-9)


@pytest.mark.parametrize(("successes", "trials", "error"), [(4, 3, 0.1), (-1, 3, 0.1), (0, 0, 0.1), (1, 3, 0.0)])
def test_counts_that_cannot_be_are_refused(successes: int, trials: int, error: float) -> None:
    with pytest.raises(ValueError, match=r"cannot be|is a probability"):
        most_rate(successes, trials, error)


@settings(max_examples=examples(100), deadline=None)
@given(
    present=st.integers(1, 500),
    absent=st.integers(1, 500),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    delta=st.sampled_from([0.0, 1e-5, 0.01]),
)
def test_the_bound_is_below_what_the_counts_themselves_say(
    present: int, absent: int, shares: tuple[float, float], delta: float
) -> None:
    guesses = Guesses(round(shares[0] * present), present, round(shares[1] * absent), absent)
    bound = guesses.epsilon_bound(delta, 0.05)
    tpr, fpr = guesses.hits / present, guesses.alarms / absent
    naive = [0.0]
    naive += [math.log((tpr - delta) / fpr)] if tpr > delta and fpr > 0 else []
    naive += [math.log((1 - fpr - delta) / (1 - tpr))] if fpr < 1 - delta and tpr < 1 else []
    unbounded = (tpr > delta and fpr == 0) or (tpr == 1 and fpr < 1 - delta)
    assert bound >= 0
    assert unbounded or bound <= max(naive) + 1e-9
    stricter = guesses.epsilon_bound(delta, 0.005)
    assert stricter <= bound + 1e-9


def test_randomised_response_is_bounded_by_its_epsilon_and_nearly_reaches_it() -> None:
    """Truth with probability e/(1 + e) is exactly (1, 0)-private: with many runs the bound comes close, and over many
    audits it passes 1 as seldom as was promised."""
    truth = math.e / (1 + math.e)
    chance = np.random.default_rng(1)
    bounds = [
        Guesses(int(chance.binomial(2000, truth)), 2000, int(chance.binomial(2000, 1 - truth)), 2000).epsilon_bound(
            0.0, 0.05
        )
        for _ in range(300)
    ]
    assert np.mean(np.array(bounds) > 1.0) <= 0.05
    assert np.mean(bounds) > 0.85


def test_an_attacker_who_says_the_contrary_is_bounded_too() -> None:
    assert Guesses(500, 500, 300, 500).epsilon_bound(1e-5, 0.05) > 1.5
    assert Guesses(0, 500, 0, 500).epsilon_bound(1e-5, 0.05) == 0.0
    assert Guesses(500, 500, 500, 500).epsilon_bound(1e-5, 0.05) == 0.0


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0, 8.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 0.05])
def test_the_limits_agree_with_the_curve_that_they_are_limits_of(epsilon: float, delta: float) -> None:
    alarms = np.linspace(0, 1, 200_001)
    curve = np.array([hit_rate_limit(epsilon, delta, float(rate)) for rate in alarms[::100]])
    assert auc_limit(epsilon, delta) == pytest.approx(np.trapezoid(curve, alarms[::100]), abs=1e-3)
    assert advantage_limit(epsilon, delta) == pytest.approx(np.max(curve - alarms[::100]), abs=2e-3)
    assert 0.5 <= auc_limit(epsilon, delta) <= 1


def test_no_gaussian_attacker_passes_the_limit_of_its_epsilon() -> None:
    """One noisy sum with noise σ is (ε, δ)-private with the δ of Balle and Wang (2018): the best attacker's curve stays
    below the limit at every false positive rate."""
    sigma, epsilon = 2.0, 1.0
    delta = float(
        stats.norm.cdf(0.5 / sigma - epsilon * sigma)
        - math.exp(epsilon) * stats.norm.cdf(-0.5 / sigma - epsilon * sigma)
    )
    for alarms in np.linspace(0.001, 0.999, 500):
        hits = float(stats.norm.cdf(stats.norm.ppf(alarms) + 1 / sigma))
        assert hits <= hit_rate_limit(epsilon, delta, float(alarms)) + 1e-12
    assert stats.norm.cdf(1 / sigma / math.sqrt(2)) <= auc_limit(epsilon, delta)


def test_a_roc_of_known_scores() -> None:
    member = np.array([True, True, False, True, False, False])
    roc = roc_of(np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]), member)
    assert roc.auc == pytest.approx(8 / 9)
    assert roc.advantage == pytest.approx(2 / 3)
    assert roc.hits_at_1_percent == pytest.approx(2 / 3)
    assert roc.points[0] == (0.0, 0.0)
    assert roc.points[-1] == (1.0, 1.0)


def test_equal_scores_tell_nothing() -> None:
    roc = roc_of(np.zeros(10), np.arange(10) < 4)
    assert (roc.auc, roc.advantage, roc.hits_at_1_percent) == (0.5, 0.0, 0.0)


@pytest.mark.parametrize("count", [2, 3, 6, 7, 8, 16, 64])
def test_the_interval_is_students(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    found = mean_interval(values)
    low, high = stats.t.interval(0.99, count - 1, values.mean(), values.std(ddof=1) / math.sqrt(count))
    assert (found.low, found.high) == (pytest.approx(low, rel=2e-3, abs=2e-3), pytest.approx(high, rel=2e-3, abs=2e-3))


def test_one_value_has_no_interval() -> None:
    assert (mean_interval(np.array([0.9])).low, mean_interval(np.array([0.9])).high) == (0.0, 1.0)


def test_an_area_and_its_interval_are_those_of_the_ranks() -> None:
    """By hand: three members, four others, one tie; DeLong's variance of the placements."""
    members, others = np.array([0.9, 0.6, 0.4]), np.array([0.1, 0.4, 0.5, 0.2])
    found = auc_interval(members, others)
    wins = [[1.0 if m > o else 0.5 if m == o else 0.0 for o in others] for m in members]
    above, below = np.mean(wins, axis=1), np.mean(wins, axis=0)
    half = 1.959964 * math.sqrt(above.var(ddof=1) / 3 + below.var(ddof=1) / 4)
    assert found.mean == pytest.approx(10.5 / 12)
    assert found.low == pytest.approx(found.mean - half)
    assert found.high == 1.0


def test_a_coins_interval_covers_one_half_as_often_as_it_says() -> None:
    chance = np.random.default_rng(11)
    covered = 0
    for _ in range(400):
        found = auc_interval(chance.normal(size=60), chance.normal(size=40))
        covered += found.low <= 0.5 <= found.high
    assert 0.90 <= covered / 400 <= 0.985


def test_one_row_alone_says_nothing() -> None:
    found = auc_interval(np.array([1.0]), np.array([0.0, 0.5]))
    assert (found.low, found.high) == (0.0, 1.0)
