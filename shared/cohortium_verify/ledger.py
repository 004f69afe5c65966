"""What hospitals' ledgers were charged for a run, by their own signed statements: no more than was planned, at the
price of the study's plan, and a charge for every private sum that was opened over them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cohortium_messages.ids import RunId
from cohortium_messages.ledger import FIRST_ORDER, LedgerRecorded, LedgerStatement
from cohortium_messages.privacy import NoPrivacy
from cohortium_messages.study import Study
from cohortium_privacy.statements import Group, contradictions, grouped, uses_charged
from cohortium_privacy.study_plans import accountant_installed
from cohortium_privacy.windows import usual_plan
from cohortium_verify.log import Entry
from cohortium_verify.report import Failure
from cohortium_verify.rules import said, windows_of

CLOSE = 1e-3


@dataclass(frozen=True, slots=True)
class Charges:
    """What was found, for the one check that it is a part of."""

    fact: str
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()


def wrong_charges(entries: Sequence[Entry], studies: Mapping[RunId, Study]) -> Charges:
    """`studies`: of the runs whose study is known, and is the one on record."""
    recorded = {one.message.statement.sig: one for one in said(entries, LedgerRecorded)}
    places = {sig: one.index for sig, one in recorded.items()}
    groups = grouped(one.message.statement for one in recorded.values())
    failures = []
    for (site_id, run_id, part), group in groups.items():
        found = list(contradictions(group))
        study = studies.get(run_id)
        if not found and study is not None:
            found = list(_mispriced(group, study))
        failures += [Failure(f"site {site_id} {text} ({part})", places[one.sig]) for one, text in found]
    charged = sum(uses_charged(group) for group in groups.values())
    fact = f"{charged} charges in {len(groups)} plans of hospitals" if groups else "no hospital was charged"
    return Charges(fact, tuple(failures), tuple(_unpaid(entries, groups, studies)))


def _mispriced(group: Sequence[LedgerStatement], study: Study) -> Iterator[tuple[LedgerStatement, str]]:
    """A plan that is not the study's: of other steps, or at another price."""
    plan = next(one for one in group if one.reason == "PLANNED")
    if isinstance(study.privacy, NoPrivacy) or not accountant_installed():
        return
    from cohortium_privacy.prices import planned_parts  # needs dp-accounting

    try:
        public = usual_plan(study)
        parts = () if public is None else planned_parts(public, study.rounds)
    except ValueError:
        return  # a plan that cannot be, which the promise's own check says
    part = next((one for one in parts if one.part == plan.part), None)
    if public is None or part is None:
        yield plan, "sets aside what the study does not charge"
        return
    steps, price = part.uses * part.steps_per_use, part.prices[plan.order - FIRST_ORDER]
    if plan.steps != steps:
        yield plan, f"plans {plan.steps} steps, and the study {steps}"
    if price is None or abs(plan.rdp - price * part.uses) > CLOSE * price * part.uses:
        wanted = "no bound" if price is None else f"{price * part.uses:.6g}"
        yield plan, f"sets {plan.rdp:.6g} aside at order {plan.order}, where the study's plan costs {wanted}"


def _unpaid(
    entries: Sequence[Entry], groups: Mapping[Group, Sequence[LedgerStatement]], studies: Mapping[RunId, Study]
) -> Iterator[str]:
    """Private sums opened over a site that tells of fewer charges. Its events may be on their way, so it is a note."""
    opened: dict[Group, int] = {}
    for window in windows_of(entries).values():
        for sum_ in window.opened:
            purpose = window.authorised[0].message.purpose if window.authorised else None
            run_id = sum_.message.run_id
            study = studies.get(run_id)
            if study is None or isinstance(study.privacy, NoPrivacy) or purpose not in ("update", "evaluation"):
                continue
            for site in sum_.message.survivors:
                key: Group = (site, run_id, "evaluation" if purpose == "evaluation" else "training")
                opened[key] = opened.get(key, 0) + 1
    for key, sums in sorted(opened.items()):
        site_id, run_id, part = key
        if (paid := uses_charged(groups.get(key, ()))) < sums:
            yield f"site {site_id} is in {sums} private sums of run {run_id} ({part}), and tells of {paid} charges"
