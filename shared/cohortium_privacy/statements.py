"""What a hospital's signed statements about its privacy ledger add up to, and whether they can all be true.

A hospital tells what it set aside, began and gave back, at an order that the study fixes. Statements may come in any
order, and more than once.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.ledger import LedgerStatement, Part

CERTIFIED = ("ABORT_CERT", "ECHO_CERT")
RELEASES = ("NEVER_STARTED", *CERTIFIED)
BEGINNINGS = ("STARTED", "UPLOADED")
_RANKS = {"STARTED": 1, "UPLOADED": 2, "NEVER_STARTED": 3, "ABORT_CERT": 3, "ECHO_CERT": 3}
"""What follows what within one attempt."""

Group = tuple[SiteId, RunId, Part]


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


def grouped(statements: Iterable[LedgerStatement]) -> Mapping[Group, Sequence[LedgerStatement]]:
    """What each site said of each part of each run, in the order of these."""
    groups: dict[Group, list[LedgerStatement]] = {}
    for one in statements:
        groups.setdefault((one.site_id, one.run_id, one.part), []).append(one)
    return dict(sorted(groups.items()))


def holdings(statements: Iterable[LedgerStatement]) -> tuple[Held, ...]:
    """One for each site, run and part that was ever planned, sorted. Each statement counts once."""
    return tuple(found for group in grouped(statements).values() if (found := _held(group)) is not None)


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


def uses_charged(group: Sequence[LedgerStatement]) -> int:
    """Rounds whose uploads stay charged: those that are in a vector, less those that were proven never opened."""
    return _count(group, "UPLOADED") - _count(group, *CERTIFIED)


def contradictions(group: Sequence[LedgerStatement]) -> Iterator[tuple[LedgerStatement, str]]:
    """What a site cannot truly have said of one part of one run, each with the statement that shows it.

    A plan is made once, and everything else is of its steps, at its order and its price. A step that was uploaded can
    be so again only after a certificate gave it back and it was set aside again; no more is given back than was begun.
    So at any time no more is charged than was planned, and what was begun falls by certificates alone.
    """
    plans = [one for one in group if one.reason == "PLANNED"]
    if len(plans) != 1:
        yield group[0], "charges steps of a plan that it never set aside" if not plans else "sets one plan aside twice"
        return
    plan = plans[0]
    for one in group:
        yield from _foreign(plan, one)
    first_steps = {one.first_step: one for one in group if one.reason == "UPLOADED"}
    for first, last in first_steps.items():
        of_step = [one for one in group if one.first_step == first]
        uploads, back = _count(of_step, "UPLOADED"), _count(of_step, *CERTIFIED)
        if uploads > 1 + min(back, _count(of_step, "RETRY")):
            yield last, f"charges step {first} {uploads} times, and gave it back {back} times"
        if back > uploads:
            yield last, f"gives step {first} back {back} times, and charged it {uploads} times"
    for one in group:
        if one.reason in CERTIFIED and one.first_step not in first_steps:
            yield one, f"gives step {one.first_step} back, which it never charged"
    yield from _unbegun(group)
    held = _held(group)
    if held is not None and held.begun > held.charged:
        yield plan, f"began {held.begun} steps, with {held.charged} of {held.planned} set aside"


def _unbegun(group: Sequence[LedgerStatement]) -> Iterator[tuple[LedgerStatement, str]]:
    """Steps given back as never begun that were begun, each time but with a certificate."""
    for one in group:
        if one.reason != "NEVER_STARTED":
            continue
        for first in sorted({step.first_step for step in group if step.reason in BEGINNINGS}):
            of_step = [step for step in group if step.first_step == first]
            begun = max(_count(of_step, "STARTED"), _count(of_step, "UPLOADED"))
            if one.first_step <= first < one.first_step + one.steps and begun > _count(of_step, *CERTIFIED):
                yield one, f"gives step {first} back as never begun, which it charged"


def _foreign(plan: LedgerStatement, one: LedgerStatement) -> Iterator[tuple[LedgerStatement, str]]:
    """How a statement is not about this plan."""
    if (one.study_id, one.study_digest, one.order) != (plan.study_id, plan.study_digest, plan.order):
        yield one, "speaks of another study or order than its plan"
    if one.first_step + one.steps > plan.steps:
        yield one, f"charges step {one.first_step + one.steps - 1} of a plan of {plan.steps}"
    if not math.isclose(one.rdp, plan.rdp * one.steps / plan.steps, rel_tol=1e-9):
        yield one, f"prices {one.steps} steps at {one.rdp:.6g}, and its plan of {plan.steps} at {plan.rdp:.6g}"


def _count(group: Iterable[LedgerStatement], *reasons: str) -> int:
    return sum(one.reason in reasons for one in group)
