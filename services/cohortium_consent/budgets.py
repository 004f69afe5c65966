"""The federation's view of privacy budgets: what each hospital's own signed statements add up to.

A hospital tells what it set aside, began and gave back, at an order that the study fixes; the scheduler tells what each
run costs at every order. Together they say what a run still holds of a site's patients, and with the federation's own
cap whether another run can fit. The hospital's ledger has the last word: its limits are its own, and never told.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cohortium_messages.governance import PartPrice
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.ledger import FIRST_ORDER, LedgerStatement, Part

RELEASES = ("NEVER_STARTED", "ABORT_CERT", "ECHO_CERT")
BEGINNINGS = ("STARTED", "UPLOADED")
_RANKS = {"STARTED": 1, "UPLOADED": 2, "NEVER_STARTED": 3, "ABORT_CERT": 3, "ECHO_CERT": 3}
"""What follows what within one attempt."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one run has of one site's patients: steps planned, still charged (planned less given back), and begun.

    `order` and `rdp`: Rényi divergence of the steps that are charged, at the study's own order.
    """

    site_id: SiteId
    study_id: StudyId
    run_id: RunId
    part: Part
    planned: int
    charged: int
    begun: int
    order: int
    rdp: float


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


def holdings(statements: Iterable[LedgerStatement]) -> tuple[Held, ...]:
    """One for each site, run and part that was ever planned, sorted. Each statement counts once."""
    groups: dict[tuple[SiteId, RunId, Part], list[LedgerStatement]] = {}
    for one in statements:
        groups.setdefault((one.site_id, one.run_id, one.part), []).append(one)
    return tuple(found for _, group in sorted(groups.items()) if (found := _held(group)) is not None)


def _held(group: Sequence[LedgerStatement]) -> Held | None:
    plan = next((one for one in group if one.reason == "PLANNED"), None)
    if plan is None:
        return None
    released = [one for one in group if one.reason in RELEASES]
    retried = [one for one in group if one.reason == "RETRY"]
    back = sum(one.steps for one in released) - sum(one.steps for one in retried)
    charged = max(0, plan.steps - back)
    return Held(
        site_id=plan.site_id,
        study_id=plan.study_id,
        run_id=plan.run_id,
        part=plan.part,
        planned=plan.steps,
        charged=charged,
        begun=_begun(group),
        order=plan.order,
        rdp=plan.rdp * charged / plan.steps,
    )


def _begun(group: Sequence[LedgerStatement]) -> int:
    """Steps whose last word is that they were begun: a proof that they were never opened takes it back."""
    last: dict[int, tuple[tuple[int, int], LedgerStatement]] = {}
    for one in group:
        rank = (one.attempt, _RANKS.get(one.reason, 0))
        if one.first_step not in last or rank > last[one.first_step][0]:
            last[one.first_step] = (rank, one)
    return sum(one.steps for _, one in last.values() if one.reason in BEGINNINGS)


def price_at(prices: Sequence[PartPrice], order: int, share: Mapping[Part, float]) -> float:
    """Rényi divergence at `order` of a share of a run, for a patient of whichever part costs more."""
    found = 0.0
    for one in prices:
        price = one.prices[order - FIRST_ORDER]
        part = share.get(one.part, 0.0)
        if part > 0:
            found = max(found, float("inf") if price is None else price * one.uses * part)
    return found


def spent(held: Iterable[Held], prices: Mapping[RunId, Sequence[PartPrice]], order: int) -> float:
    """What one site's patients are charged at `order`, over all runs whose price is known."""
    shares: dict[RunId, dict[Part, float]] = {}
    for one in held:
        shares.setdefault(one.run_id, {})[one.part] = one.charged / one.planned
    return sum(price_at(prices.get(run_id, ()), order, share) for run_id, share in shares.items())


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
