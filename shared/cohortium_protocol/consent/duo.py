"""Does a study's request fit a hospital's data-use terms? In the manner of DUOS: each term is one rule of its own.

There is no reasoning over ontologies: a disease matches its own code only. A term that is not supported denies.
"""

import calendar
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cohortium_messages.duo import DUO_TERMS, DuoTerm, UseRequest
from cohortium_messages.ids import StudyId


@dataclass(frozen=True, slots=True)
class Request:
    """What is held against the terms: the study's request, its name, whether an ethics approval is on record, when the
    terms began, and the moment."""

    use: UseRequest
    study_id: StudyId
    ethics_on_record: bool
    since: datetime
    now: datetime


Rule = Callable[[DuoTerm, Request], bool]
RESEARCH = frozenset({"health", "disease", "ancestry", "methods", "general"})


def _aims(*allowed: str) -> Rule:
    return lambda _, request: set(request.use.aims) <= set(allowed)


def _diseases(term: DuoTerm, request: Request) -> bool:
    use = request.use
    return set(use.aims) <= {"disease", "methods"} and bool(use.diseases) and set(use.diseases) <= set(term.values)


PERMISSIONS: Final[Mapping[str, Rule]] = {
    "NRES": _aims(*RESEARCH),
    "GRU": _aims(*RESEARCH),
    "HMB": _aims("health", "disease", "methods"),
    "DS": _diseases,
    "POA": _aims("ancestry"),
}
"""One of the permissions that are there must allow the request."""

MODIFIERS: Final[Mapping[str, Rule]] = {
    "RS": lambda term, ask: _within(ask.use.research_types, term.values),
    "NMDS": lambda _, ask: "methods" not in ask.use.aims,
    "GSO": lambda _, ask: ask.use.genetic,
    "NPUNCU": lambda _, ask: not ask.use.for_profit and not ask.use.commercial,
    "PUB": lambda _, ask: ask.use.publishes,
    "COL": lambda _, ask: ask.use.collaborates,
    "IRB": lambda _, ask: ask.ethics_on_record,
    "GS": lambda term, ask: _within(ask.use.regions, term.values),
    "MOR": lambda term, ask: _embargoed(term, ask.use),
    "TS": lambda term, ask: ask.now < months_after(ask.since, term.months or 0),
    "US": lambda term, ask: _within(ask.use.users, term.values),
    "PS": lambda term, ask: ask.study_id in term.values,
    "IS": lambda term, ask: _within(ask.use.institutions, term.values),
    "RTN": lambda _, ask: ask.use.returns_results,
    "CC": lambda _term, _ask: True,  # it adds care to research; what lacks it is checked below
    "NPOA": lambda _, ask: "ancestry" not in ask.use.aims,
    "NPU": lambda _, ask: not ask.use.for_profit,
    "NCU": lambda _, ask: not ask.use.commercial,
}
"""Every modifier that is there must hold. Each table has a rule for every supported term; tests see to it."""


def mismatches(terms: tuple[DuoTerm, ...], request: Request) -> tuple[str, ...]:
    """The codes that the request does not fit, in the order of the terms; empty for a match.

    `CC` is among them where a study wants clinical care that no term allows, `NONE` where no permission is there.
    """
    unknown = [term.code for term in terms if term.code not in DUO_TERMS]
    permissions = [term for term in terms if term.code in PERMISSIONS]
    allowed = any(PERMISSIONS[term.code](term, request) for term in permissions)
    wrong = [] if allowed else [term.code for term in permissions] or ["NONE"]
    wrong += [term.code for term in terms if term.code in MODIFIERS and not MODIFIERS[term.code](term, request)]
    care = {"CC", "NRES"} & {term.code for term in terms}
    if request.use.clinical_care and not care:
        wrong.append("CC")
    return tuple(dict.fromkeys([*unknown, *wrong]))


def _within(asked: tuple[str, ...], allowed: tuple[str, ...]) -> bool:
    """What a study does not name, it does not limit: then the term denies."""
    return bool(asked) and set(asked) <= set(allowed)


def _embargoed(term: DuoTerm, use: UseRequest) -> bool:
    if not use.publishes:
        return True
    return term.until is not None and use.publishes_from is not None and use.publishes_from >= term.until


def months_after(moment: datetime, months: int) -> datetime:
    """The same day so many months later, or the last day of a month that has not as many."""
    year, month = divmod(moment.month - 1 + months, 12)
    year, month = moment.year + year, month + 1
    return moment.replace(year=year, month=month, day=min(moment.day, calendar.monthrange(year, month)[1]))
