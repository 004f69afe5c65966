"""Who takes part: when recruiting ends, when a window's cohort is bound, how much one site may weigh."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cohortium_messages.governance import Permit
from cohortium_messages.ids import SiteId
from cohortium_messages.privacy import SitePrivacy
from cohortium_messages.secure_sum import Ready
from cohortium_messages.study import Study
from cohortium_scheduler.domain.windows import Anyone, Cohort, Open, Refusal, Rejoining, Remaining

NOT_ENOUGH_READY = "NOT_ENOUGH_READY"
SITES_LOST = "SITES_LOST"
"""The sites that a strict session cannot go on without were waited for in vain."""
RECRUITING_EXPIRED = "RECRUITING_EXPIRED"
"""Too few members granted before the study's recruiting deadline."""
TOO_FEW_MEMBERS = "TOO_FEW_MEMBERS"
"""The study promises to hide a hospital among more than the membership has; every hospital would refuse."""
SITE_REFUSED = "SITE_REFUSED"
"""One of them refused, or may not take part any more: it will not be ready in this window."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do yet."""


@dataclass(frozen=True, slots=True)
class Bind:
    """Close the roster over these sites' `Ready` messages."""

    readies: tuple[Ready, ...]


@dataclass(frozen=True, slots=True)
class Extend:
    """Give the sites the ready time once more."""


@dataclass(frozen=True, slots=True)
class Cancel:
    reason: str


Decision = Wait | Bind | Extend | Cancel


def asked(cohort: Cohort, members: Iterable[SiteId]) -> tuple[SiteId, ...]:
    """The sites whose consent a window needs: all members, or those that its cohort can consist of."""
    return tuple(members) if isinstance(cohort, Anyone) else cohort.sites


def cannot_open(cohort: Cohort, permits: tuple[Permit, ...], least: int) -> tuple[str, tuple[Refusal, ...]] | None:
    """Why a window is not even opened with these permits, and whom consent denied; None if it can be."""
    denied = tuple(Refusal(one.site_id, one.deny_code or "GRANT_NOT_FOUND") for one in permits if not one.permitted)
    if isinstance(cohort, Rejoining) and denied:
        return SITE_REFUSED, denied
    if len(permits) - len(denied) < least:
        return SITES_LOST if isinstance(cohort, Remaining) else NOT_ENOUGH_READY, denied
    return None


def cohort_now(state: Open, cohort: Cohort, present: frozenset[SiteId], now: datetime) -> Decision:
    """Whether an open window's cohort is bound now; `present` are the sites seen lately.

    Synchronous and strict: as soon as every expected site (permitted, present, not refusing) is ready and
    `least_cohort` are; or at the deadline with `least_cohort`. Buffered: as soon as `target_cohort` sites are ready,
    first come first served; or when `least_cohort` have waited for the ready time. Too few at the deadline: extended
    once, then cancelled. When so many permitted sites refused that `least_cohort` cannot be reached, the window is
    cancelled at once. A session that goes on (`Rejoining`) waits for each of its sites, seen lately or not, and is
    bound with all of them or never.
    """
    if isinstance(cohort, Rejoining):
        return _all_of(cohort, state, now)
    params = state.open.params
    refused = {refusal.site for refusal in state.refusals}
    if len(state.permitted) - len(refused) < params.least_cohort:
        return _too_few(cohort)
    enough = len(state.readies) >= params.least_cohort
    if params.kind != "buffered":
        ready = {entry.site_id for entry in state.readies}
        expected = [site for site in state.permitted if site in present and site not in refused]
        if enough and all(site in ready for site in expected):
            return Bind(state.readies)
    elif len(state.readies) >= params.target_cohort:
        return Bind(state.readies[: params.target_cohort])
    elif state.enough_since is not None and now >= state.enough_since + timedelta(seconds=params.deadlines.ready_s):
        return Bind(state.readies)
    if now < state.deadline:
        return Wait()
    if enough:
        return Bind(state.readies) if params.kind != "buffered" else Wait()
    return _too_few(cohort) if state.extended or isinstance(cohort, Remaining) else Extend()


def _all_of(cohort: Rejoining, state: Open, now: datetime) -> Decision:
    if any(refusal.site in cohort.sites for refusal in state.refusals):
        return Cancel(SITE_REFUSED)
    readies = tuple(entry for entry in state.readies if entry.site_id in cohort.sites)
    if len(readies) == len(cohort.sites):
        return Bind(readies)
    return Wait() if now < state.deadline else Cancel(SITES_LOST)


def _too_few(cohort: Cohort) -> Cancel:
    return Cancel(SITES_LOST if isinstance(cohort, Remaining) else NOT_ENOUGH_READY)


def too_few_members(study: Study, members: int) -> bool:
    """Whether the membership is smaller than the number of hospitals among which the study promises to hide one."""
    return isinstance(study.privacy, SitePrivacy) and members < study.privacy.sites


def may_start(
    members: int, granted: int, min_sites: int, first_enough: datetime | None, now: datetime, grace_s: float
) -> bool:
    """Whether recruiting ends: all members granted, or `min_sites` did and `grace_s` has passed since."""
    if granted >= members:
        return granted >= min_sites
    return first_enough is not None and granted >= min_sites and now >= first_enough + timedelta(seconds=grace_s)


def weight_cap(training_rows: int, sites: int) -> int:
    """W of the codec's weights: rows above which a site counts no more.

    A site may weigh up to eight times the mean; for eight sites or fewer that is no bound at all, and the 16 bits of
    the weight still resolve 1/8192 of the mean site.
    """
    return max(1, -(-training_rows * min(8, sites) // sites))
