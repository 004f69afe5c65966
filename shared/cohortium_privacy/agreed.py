"""What a hospital's signed documents let one study cost its patients, in all its runs together.

The ledger's own limits are the hospital's secret. This cap is not: it is signed, and what is held against it is what
the hospital tells of each plan in its signed statements. So the connector, which refuses a plan that would pass it, and
anybody with the audit bundle come to the same number.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cohortium_messages.ids import RunId
from cohortium_privacy.renyi import epsilon_of

SLACK = 1e-9
"""Of the cap: the same plans, added up in another order, must not pass it by a last bit."""


@dataclass(frozen=True, slots=True)
class AgreedCap:
    """At most `epsilon` at `delta` for all runs of one study together. `document`: what says so, for people."""

    epsilon: float
    delta: float
    document: str


@dataclass(frozen=True, slots=True)
class PlanCost:
    """What is charged for one part of one run, planned or begun and not given back: Rényi divergence at `order`, the
    one at which it is told outside."""

    run_id: RunId
    order: int
    rdp: float


def agreed_epsilon(costs: Iterable[PlanCost], delta: float) -> float:
    """The ε at `delta` that the runs of one study come to.

    A run's training and its evaluation are paid by different patients, so of both the larger counts; runs add up.
    Divergence grows with the order, so where study versions tell theirs at several orders, the sum bounds what it is
    at the lowest of them.
    """
    dearest: dict[RunId, float] = {}
    orders = []
    for one in costs:
        if one.rdp > 0:
            dearest[one.run_id] = max(dearest.get(one.run_id, 0.0), one.rdp)
            orders.append(one.order)
    return epsilon_of(math.fsum(dearest.values()), delta, min(orders)) if orders else 0.0


def is_above(epsilon: float, cap: AgreedCap) -> bool:
    """Whether so much ε at the cap's δ is more than was agreed."""
    return epsilon > cap.epsilon * (1 + SLACK)
