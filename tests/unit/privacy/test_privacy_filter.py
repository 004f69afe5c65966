"""The order of an account, and what fits its budget."""

import math

import pytest

from cohortium_privacy.accounting import GaussianSteps, epsilon, rdp_at, step_rdp
from cohortium_privacy.filter import (
    MEASURED_ORDERS,
    REFERENCE,
    BudgetImpossible,
    alpha_star,
    budget,
    epsilon_of,
    fits,
    kept_shares,
)


@pytest.mark.parametrize(
    ("epsilon_max", "delta", "order"),
    [(1, 1e-5, 16), (2, 1e-5, 10), (2, 1e-6, 12), (3, 1e-5, 7), (3, 1e-6, 8), (8, 1e-5, 4), (10, 1e-5, 4)],
)
def test_usual_budgets_have_the_published_orders(epsilon_max: float, delta: float, order: int) -> None:
    assert alpha_star(float(epsilon_max), delta) == order


@pytest.mark.parametrize("known", sorted(MEASURED_ORDERS))
def test_a_published_order_keeps_nearly_all_of_the_budget(known: tuple[float, float]) -> None:
    assert kept_shares(*known)[MEASURED_ORDERS[known]] >= 0.98


@pytest.mark.parametrize(("epsilon_max", "delta"), [(0.5, 1e-5), (1.0, 1e-7), (4.0, 1e-5), (5.0, 1e-8), (20.0, 1e-4)])
def test_a_computed_order_keeps_nearly_all_of_the_budget(epsilon_max: float, delta: float) -> None:
    order = alpha_star(epsilon_max, delta)
    shares = kept_shares(epsilon_max, delta)
    assert shares[order] >= max(shares.values()) - 0.01
    assert shares[order] > 0.6  # below 1, one order serves small batches and whole sums less well


@pytest.mark.parametrize(("epsilon_max", "delta"), [(0.5, 1e-5), (0.5, 1e-6), (0.2, 1e-5)])
@pytest.mark.parametrize(("rate", "steps"), [(0.02, 300), (1.0, 10)])
def test_a_small_budget_takes_no_more_noise_than_another_order_would(
    epsilon_max: float, delta: float, rate: float, steps: int
) -> None:
    """At ε = 0.5 and δ = 1e-6 an order of 22, as for mechanisms of a larger budget, took twice the noise."""
    noise = {order: _least_noise(epsilon_max, delta, order, rate, steps) for order in range(8, 65, 2)}
    noise[alpha_star(epsilon_max, delta)] = own = _least_noise(
        epsilon_max, delta, alpha_star(epsilon_max, delta), rate, steps
    )
    assert own <= 1.03 * min(noise.values())


def _least_noise(epsilon_max: float, delta: float, order: int, rate: float, steps: int) -> float:
    limit, low, high = budget(epsilon_max, delta, order), 0.5, 256.0
    while high - low > 2e-3 * high:
        middle = (low + high) / 2
        fitting = steps * step_rdp(GaussianSteps(middle, rate, 1), order) <= limit
        low, high = (low, middle) if fitting else (middle, high)
    return high


@pytest.mark.parametrize(("order", "steps"), [(6, 2121), (8, 1998), (9, 1096), (10, 54), (12, 2)])
def test_too_large_an_order_loses_small_batches(order: int, steps: int) -> None:
    """q = 0.01, z = 1, ε = 3, δ = 1e-5: the warning of the design, number by number."""
    allowed = budget(3.0, 1e-5, order) / step_rdp(GaussianSteps(1.0, 0.01, 1), order)
    assert math.floor(allowed) == steps


def test_a_full_account_takes_nothing_more() -> None:
    order = alpha_star(3.0, 1e-5)
    limit = budget(3.0, 1e-5, order)
    one = step_rdp(GaussianSteps(2.0, 0.05, 1), order)
    most = math.floor(limit / one)
    assert fits([one * (most - 1)], one, limit)
    assert not fits([one * most], one, limit)
    assert not fits([], math.inf, limit)
    assert not fits([], -one, limit)


def test_what_fits_is_private_and_read_as_epsilon() -> None:
    """Anything that the filter lets through has an ε by PLD below the cap."""
    order, delta = alpha_star(3.0, 1e-5), 1e-5
    limit = budget(3.0, delta, order)
    for event in REFERENCE:
        most = math.floor(limit / rdp_at((event,), order))
        whole = GaussianSteps(event.noise_multiplier, event.sampling_rate, most)
        assert epsilon((whole,), delta) < 3.0
        assert epsilon_of(rdp_at((whole,), order), delta, order) <= 3.0 + 1e-9
    assert epsilon_of(limit, delta, order) == pytest.approx(3.0)


@pytest.mark.parametrize(("epsilon_max", "delta"), [(0.0, 1e-5), (-1.0, 1e-5), (1.0, 0.0), (1e-4, 1e-300)])
def test_a_budget_that_allows_nothing_is_refused(epsilon_max: float, delta: float) -> None:
    with pytest.raises(BudgetImpossible):
        alpha_star(epsilon_max, delta)
