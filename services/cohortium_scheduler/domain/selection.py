"""Which sites a round of averaging asks, where the study asks for fewer than all; and what is learnt for that.

Pure: the same standings and the same tick give the same choice, and say why of each site. Three things are weighed:

* **Nobody starves.** A site that was there and passed over `PATIENCE` times in a row goes before all others, who waited
  longest first. So no site that is there is passed over more than ⌈n/k⌉ + `PATIENCE` times in a row, whatever the
  others do (k of n members are asked; `tests/property/scheduler`).
* **Among the others** those who learnt the model least, waited longest, answered most reliably and are quickest come
  first, by `_worth`.
* **Where the study promises differential privacy**, how long a site trains says something of how many rows it has, and
  no promise covers that. There the choice rests on turns alone (`blind`), and deadlines are the study's.

Times are learnt from `Ready`: the moving quantile of the last `REMEMBERED` answers; a site that did not answer in time
counts as one that took until then, so a deadline that was too short grows. A run begins with the newest times of the
study's run before (`taken_over`), which its own soon outnumber. Until `ENOUGH` are known, what a site's report says
(`Prior`) stands for those that are missing: `expected`. What follows for deadlines is in `pace`.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cohortium_messages.ids import RunId, SiteId

PATIENCE = 3
REMEMBERED = 16
ENOUGH = 3
"""Answers from which on a site's time is known."""
STEADY = 8
"""Uploads in time, in a row, after which a site's deadline for them is tried at half its length."""
MOST_DOUBLINGS = 14
"""The least deadline for uploads (`pace.UPLOAD_LEAST_S`), doubled so often, is longer than a study may ask for."""
TAKEN_OVER = 6
"""Times that a run has from the one before it: enough to be known, few enough to be outnumbered soon."""
QUANTILE = 0.9

Reason = Literal["OVERDUE", "PREFERRED", "ABSENT_BUT_NEEDED", "PASSED_OVER", "ABSENT"]
Source = Literal["measured", "blended", "report", "declared", "unknown"]
"""Where an expected time comes from: answers to windows; these and the site's report; the report's training probe and
line; its line and number of processors, where no probe ran; nowhere."""


@dataclass(frozen=True, slots=True)
class Prior:
    """In which time a site gets ready by what it says of itself, before it has answered."""

    ready_s: float
    source: Literal["report", "declared"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a run has come to know of one site. `passed`: how often in a row it was there and not asked. `asked` and
    `answered`: in how many windows. `seconds`: from the opening of a window to its `Ready`, the newest last."""

    passed: int = 0
    asked: int = 0
    answered: int = 0
    seconds: tuple[float, ...] = ()
    earlier: int = 0
    """How many of `seconds`, the oldest, are of the study's run before."""
    doublings: int = 0
    """How often its deadline for uploads is doubled: once for each that did not arrive in time, less one for every
    `STEADY` in a row that did."""
    arrivals: int = 0
    """How many in a row have arrived since `doublings` changed."""

    @property
    def usual_s(self) -> float | None:
        """The time in which it nearly always answers; None while too little is known."""
        return self.quantile_s if len(self.seconds) >= ENOUGH else None

    @property
    def quantile_s(self) -> float | None:
        """The same of however few answers; None before the first."""
        if not self.seconds:
            return None
        ordered = sorted(self.seconds)
        return ordered[math.ceil(QUANTILE * len(ordered)) - 1]


NEW = Standing()
Standings = Mapping[SiteId, Standing]
Priors = Mapping[SiteId, Prior]
NOTHING: Priors = {}


@dataclass(frozen=True, slots=True)
class Choice:
    """One site's part in a selection, as people are told: `passed` rounds in a row before this one; the time it was
    expected to need, and where that comes from (None: times did not count, or are not on record)."""

    site: SiteId
    asked: bool
    reason: Reason
    passed: int
    usual_s: float | None = None
    expected_s: float | None = None
    source: Source | None = None


def expected(standing: Standing, prior: Prior | None) -> tuple[float | None, Source]:
    """The time that a site is expected to need, and where that is known from. Of `ENOUGH` answers it is their quantile;
    with fewer, each missing answer counts as one that took what the report says."""
    known, taken = standing.quantile_s, len(standing.seconds)
    if known is not None and (prior is None or taken >= ENOUGH):
        return (known, "measured") if taken >= ENOUGH else (None, "unknown")
    if prior is None:
        return None, "unknown"
    if known is None:
        return prior.ready_s, prior.source
    return blended(prior.ready_s, known, taken), "blended"


def blended(by_report: float, by_answers: float, taken: int) -> float:
    """Between two figures of a site, by how many answers are known: the report's alone at none, from `ENOUGH` on the
    answers' alone, and in proportion between."""
    share = min(taken, ENOUGH) / ENOUGH
    return (1 - share) * by_report + share * by_answers


def select(
    standings: Standings,
    permitted: Sequence[SiteId],
    present: frozenset[SiteId],
    want: int,
    *,
    tick: tuple[RunId, int],
    blind: bool = False,
    priors: Priors = NOTHING,
) -> tuple[Choice, ...]:
    """Ask `want` of the permitted sites (all, if there are no more), absent ones only where too few are there.

    `priors`: the times that sites' reports let expect. They count until times are learnt.

    `tick` names this selection and breaks ties, so that no order of names is an advantage.
    """
    here = [site for site in permitted if site in present]
    away = [site for site in permitted if site not in present]
    top = max((standings.get(site, NEW).answered for site in permitted), default=0)
    fastest = min((usual for site in here if (usual := standings.get(site, NEW).usual_s) is not None), default=0.0)

    quickest = min((priors[site].ready_s for site in here if site in priors), default=0.0)

    def place(site: SiteId) -> tuple[int, float, bytes]:
        standing = standings.get(site, NEW)
        turn = _lot(tick, site)
        if blind or standing.passed >= PATIENCE:
            return -standing.passed, 0.0, turn
        by_report = quickest / priors[site].ready_s if site in priors and priors[site].ready_s > 0 else 1.0
        return 0, -_worth(standing, top, fastest, by_report), turn

    def times(site: SiteId) -> tuple[float | None, float | None, Source | None]:
        standing = standings.get(site, NEW)
        return (None, None, None) if blind else (standing.usual_s, *expected(standing, priors.get(site)))

    ranked = sorted(here, key=place)
    chosen = frozenset(ranked[:want])
    needed = frozenset(sorted(away, key=place)[: max(0, want - len(ranked))])
    return tuple(
        Choice(
            site,
            site in chosen or site in needed,
            _reason(site, standings.get(site, NEW), chosen, needed, present),
            standings.get(site, NEW).passed,
            *times(site),
        )
        for site in permitted
    )


def _worth(standing: Standing, top: int, fastest: float, by_report: float) -> float:
    """How much a site that is not overdue is preferred: 2 for having given nothing yet, and up to 1 each for answering
    when asked and for being as quick as the quickest, all of it weighed by how likely it answers; and up to 1 for
    waiting. Its report says how quick it is until that is known (`by_report`); without one it counts as good."""
    rare = 1 - standing.answered / top if top else 1.0
    fresh = standing.passed / PATIENCE
    reliable = (standing.answered + 1) / (standing.asked + 1)
    usual = standing.usual_s
    quick = by_report if usual is None else fastest / usual if usual > 0 else 1.0
    return reliable * (2 * rare + 1 + quick) + fresh


def _lot(tick: tuple[RunId, int], site: SiteId) -> bytes:
    return hashlib.sha256(f"{tick[0]}/{tick[1]}/{site}".encode()).digest()


def _reason(
    site: SiteId, standing: Standing, chosen: frozenset[SiteId], needed: frozenset[SiteId], present: frozenset[SiteId]
) -> Reason:
    if site in chosen:
        return "OVERDUE" if standing.passed >= PATIENCE else "PREFERRED"
    if site in needed:
        return "ABSENT_BUT_NEEDED"
    return "PASSED_OVER" if site in present else "ABSENT"


def after_choice(standings: Standings, choices: Iterable[Choice]) -> dict[SiteId, Standing]:
    """Turns after a selection: who was asked begins anew, who was there and passed over has waited once more."""
    changed = dict(standings)
    for choice in choices:
        known = changed.get(choice.site, NEW)
        passed = 0 if choice.asked else known.passed + (choice.reason == "PASSED_OVER")
        changed[choice.site] = replace(known, passed=passed)
    return changed


def after_window(
    standings: Standings, asked: Iterable[SiteId], answers: Mapping[SiteId, float], late_after_s: float | None
) -> dict[SiteId, Standing]:
    """What a window taught when its cohort was bound, or given up: `answers` are the seconds of those who got ready.
    Where it was waited to the deadline, the others that were asked need at least that long; else nothing is known."""
    changed = dict(standings)
    for site in asked:
        known = changed.get(site, NEW)
        took = answers.get(site, late_after_s)
        seconds = known.seconds if took is None else (*known.seconds, round(max(0.0, took), 3))
        forgotten = max(0, len(seconds) - REMEMBERED)
        changed[site] = replace(
            known,
            asked=known.asked + 1,
            answered=known.answered + (site in answers),
            seconds=seconds[forgotten:],
            earlier=max(0, known.earlier - forgotten),
        )
    return changed


def after_uploads(standings: Standings, arrived: Iterable[SiteId], missing: Iterable[SiteId]) -> dict[SiteId, Standing]:
    """What the end of a sum taught: whose uploads arrived in time, and whose did not.

    One arrival forgets no miss: the deadline that it kept would be given up for the one that was too short. It is tried
    at half its length after `STEADY` arrivals in a row, so it costs a site that always takes as long at most one of
    `STEADY` + 1 updates. For that `arrived` must be of sites whose own time the round waited (`pace.waited_for`).
    """
    changed = dict(standings)
    for site in arrived:
        known = changed.get(site, NEW)
        if not known.doublings:
            continue
        steady = known.arrivals + 1 >= STEADY
        changed[site] = replace(known, doublings=known.doublings - steady, arrivals=0 if steady else known.arrivals + 1)
    for site in missing:
        known = changed.get(site, NEW)
        changed[site] = replace(known, doublings=min(known.doublings + 1, MOST_DOUBLINGS), arrivals=0)
    return changed


def taken_over(standings: Standings) -> dict[SiteId, Standing]:
    """What a new run knows from the one before: times alone. Turns and what a site has given begin anew."""
    times = {site: known.seconds[-TAKEN_OVER:] for site, known in standings.items() if known.seconds}
    return {site: Standing(seconds=seconds, earlier=len(seconds)) for site, seconds in times.items()}
