"""The Rényi filter: whether one more entry fits an account's budget, however later studies choose their parameters.

An account is bound to one order α* when it is made. Entries add up in Rényi divergence at that order, and the sum
must stay at or below B(ε_max, δ, α*); then everything together is (ε_max, δ)-private, adaptive choices and interleaved
studies included (Feldman and Zrnic 2020, arXiv 2008.11193; Haney et al. 2023, arXiv 2309.05901). "Whichever order fits
best" is not sound, so the order never changes.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from cohortium_privacy.accounting import GaussianSteps, rdp_at
from cohortium_privacy.renyi import budget as budget
from cohortium_privacy.renyi import epsilon_of as epsilon_of

REFERENCE = (
    GaussianSteps(1.5, 0.01, 1),
    GaussianSteps(2.0, 0.05, 1),
    GaussianSteps(4.0, 0.1, 1),
    GaussianSteps(20.0, 1.0, 1),
)
"""Mechanisms that an order must serve: from small batches with little noise to whole sums with much. Of a budget below
ε = 1 they are what would spend it, with more noise in proportion: with so little noise as here, no order that is good
for it would allow a step at small batches, and the order that does takes twice the noise from everybody."""

MEASURED_ORDERS: dict[tuple[float, float], int] = {
    (1.0, 1e-5): 16,
    (2.0, 1e-5): 10,
    (2.0, 1e-6): 12,
    (3.0, 1e-5): 7,
    (3.0, 1e-6): 8,
    (8.0, 1e-5): 4,
    (8.0, 1e-6): 4,
    (10.0, 1e-5): 4,
    (10.0, 1e-6): 4,
}
"""Orders for usual budgets: each keeps at least 98 % of what the best order would allow, for every mechanism of
`REFERENCE`, and is not the larger of two that do, since too large an order loses nearly everything at small batches."""

CANDIDATES = range(2, 65)
SLACK = 1e-12
"""Of B: a plan that was solved to use a budget up must not fail by a last bit."""


class BudgetImpossible(ValueError):
    """No order leaves anything of this (ε_max, δ)."""


@lru_cache(maxsize=256)
def alpha_star(epsilon_max: float, delta: float) -> int:
    """The order of a new account: the one whose worst loss over `REFERENCE`, against the best order, is least.

    Raises `BudgetImpossible` where no order leaves a budget.
    """
    if not (epsilon_max > 0 and 0 < delta < 1):
        raise BudgetImpossible(f"epsilon_max {epsilon_max} and delta {delta} are no budget: epsilon > 0, 0 < delta < 1")
    known = MEASURED_ORDERS.get((epsilon_max, delta))
    if known is not None:
        return known
    kept = kept_shares(epsilon_max, delta)
    if not kept:
        raise BudgetImpossible(f"epsilon_max {epsilon_max} at delta {delta} leaves nothing at any order; raise either")
    best = max(kept.values())
    return min(order for order, share in kept.items() if share >= best - 0.01)


def kept_shares(epsilon_max: float, delta: float) -> dict[int, float]:
    """By order with a budget: the least share, over `REFERENCE`, of the steps that the best order would allow."""
    references = [replace(one, noise_multiplier=one.noise_multiplier / min(1.0, epsilon_max)) for one in REFERENCE]
    budgets = {order: budget(epsilon_max, delta, order) for order in CANDIDATES}
    steps = {
        order: [left / rdp_at((event,), order) for event in references] for order, left in budgets.items() if left > 0
    }
    if not steps:
        return {}
    best = [max(column) for column in zip(*steps.values(), strict=True)]
    return {order: min(own / top for own, top in zip(row, best, strict=True)) for order, row in steps.items()}


def fits(spent: Iterable[float], wanted: float, limit: float) -> bool:
    """Whether `wanted` fits after all that is `spent`, in Rényi divergence at the account's order.

    An entry without a finite bound fits nowhere.
    """
    total = math.fsum((*spent, wanted))
    return math.isfinite(total) and wanted >= 0 and total <= limit * (1 + SLACK)
