"""The federation's view of privacy budgets: what each hospital's own signed statements add up to.

A hospital tells what it set aside, began and gave back, at an order that the study fixes; the scheduler tells what each
run costs at every order. Together they say what a run still holds of a site's patients, and with the federation's own
cap whether another run can fit. The hospital's ledger has the last word: its limits are its own, and never told.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cohortium_messages.governance import PartPrice
from cohortium_messages.ids import RunId
from cohortium_messages.ledger import FIRST_ORDER, Part
from cohortium_privacy.statements import Held


@dataclass(frozen=True, slots=True)
class Cap:
    """What the federation agreed that no site's patients pay more than, held to at one fixed order."""

    epsilon: float
    delta: float
    order: int
    limit: float

    @classmethod
    def of(cls, epsilon: float, delta: float) -> "Cap":
        """Raises `BudgetImpossible`, and `ImportError` where dp-accounting is not installed."""
        from cohortium_privacy.filter import alpha_star, budget

        order = alpha_star(epsilon, delta)
        return cls(epsilon, delta, order, budget(epsilon, delta, order))

    def epsilon_of(self, rdp: float) -> float:
        """How people read a divergence at the cap's order."""
        from cohortium_privacy.filter import epsilon_of

        return epsilon_of(rdp, self.delta, self.order)


def price_at(prices: Sequence[PartPrice], order: int, share: Mapping[Part, float]) -> float:
    """Rényi divergence at `order` of a share of a run, for a patient of whichever part costs more."""
    found = 0.0
    for one in prices:
        price = one.prices[order - FIRST_ORDER]
        part = share.get(one.part, 0.0)
        if part > 0:
            found = max(found, float("inf") if price is None else price * one.uses * part)
    return found


def spent(
    held: Iterable[Held],
    prices: Mapping[RunId, Sequence[PartPrice]],
    order: int,
    counted: Callable[[Held], int] = lambda one: one.charged,
) -> float:
    """What one site's patients are charged at `order`, over all runs whose price is known. `counted`: steps that count,
    all that are charged or `begun` alone."""
    shares: dict[RunId, dict[Part, float]] = {}
    for one in held:
        shares.setdefault(one.run_id, {})[one.part] = counted(one) / one.planned
    return sum(price_at(prices.get(run_id, ()), order, share) for run_id, share in shares.items())


def begun(one: Held) -> int:
    """For `spent`: steps that were begun, and no certificate gave back."""
    return one.begun


def exhausted_at(one: Held, wanted: Sequence[PartPrice], left: float, order: int) -> int | None:
    """The round at which a cap with `left` of it would be used up if this run's training went on for ever: the rounds
    that it has, and as many more as fit. None where its price is not known, or has no bound."""
    part = next((price for price in wanted if price.part == one.part), None)
    each = None if part is None else part.prices[order - FIRST_ORDER]
    if part is None or one.part != "training" or not each:
        return None
    rounds = one.charged * part.uses // one.planned
    return rounds + math.floor(max(0.0, left) / each * (1 + 1e-12))


def affordable(
    run_id: RunId,
    wanted: Sequence[PartPrice],
    held: Sequence[Held],
    prices: Mapping[RunId, Sequence[PartPrice]],
    cap: Cap,
) -> bool:
    """Whether a site's patients can pay for the whole of this run. One that set it aside already has paid."""
    if not wanted or any(one.run_id == run_id and one.charged for one in held):
        return True
    whole: dict[Part, float] = {"training": 1.0, "evaluation": 1.0}
    return spent(held, prices, cap.order) + price_at(wanted, cap.order, whole) <= cap.limit * (1 + 1e-12)
