"""Whom a window asks and how long it waits, and what it teaches: `domain/selection.py` on what is on record."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cohortium_messages.governance import MAX_ROSTER, Permit
from cohortium_messages.ids import SiteId
from cohortium_privacy.windows import formal
from cohortium_scheduler.domain.selection import (
    NOTHING,
    Choice,
    after_choice,
    after_window,
    select,
    taken_over,
    wait_for,
)
from cohortium_scheduler.domain.windows import Ended, Open, Window
from cohortium_scheduler.store import Run

TIMES_LAST = timedelta(days=90)
"""So long after a run its times say something of the next one's."""
LEFT_OUT = "SHARES_INCONSISTENT"
"""Why a site is not asked in an attempt after one that failed through it."""


@dataclass(frozen=True, slots=True)
class Asking:
    """`permits` of the sites that are asked and of those that consent denied; `wait_s` None: as long as the study
    says."""

    permits: tuple[Permit, ...]
    choices: tuple[Choice, ...] = ()
    wait_s: float | None = None


def _adapts(run: Run, window: Window) -> bool:
    return window.purpose == "update" and run.study.federation.mode == "synchronous"


def ask(
    run: Run,
    window: Window,
    permits: tuple[Permit, ...],
    present: Iterable[SiteId],
    least: int,
    declared: Mapping[SiteId, float] = NOTHING,
) -> Asking:
    """Whom of the permitted sites a window asks: a round of averaging those that the study has chosen for it; every
    other window all of them, or where one roster cannot hold them as many as a round asks, in turns."""
    federation, adapts = run.study.federation, _adapts(run, window)
    blind = not adapts or formal(run.study) is not None
    permitted = [permit.site_id for permit in permits if permit.permitted]
    few = federation.participants if adapts or len(permitted) > MAX_ROSTER else None
    choices: tuple[Choice, ...] = ()
    if few is not None or len(permitted) > MAX_ROSTER:
        want, tick = max(least, few or MAX_ROSTER), (run.run_id, window.sequence)
        choices = select(run.standings, permitted, frozenset(present), want, tick=tick, blind=blind, declared=declared)
        asked = {choice.site for choice in choices if choice.asked}
        permitted = [site for site in permitted if site in asked]
        permits = tuple(permit for permit in permits if not permit.permitted or permit.site_id in asked)
    wait_s = None if blind else wait_for(run.standings, permitted, federation.deadlines.ready_s)
    return Asking(permits, choices, wait_s)


def without_blamed(
    window: Window, earlier: Iterable[Window], permits: tuple[Permit, ...], least: int
) -> tuple[Permit, ...]:
    """The permits, less those of sites that made an earlier attempt at this sum fail, by proof: with them it would fail
    again. As they were, where too few would be left: then it is tried with all."""
    same = (one for one in earlier if (one.purpose, one.round) == (window.purpose, window.round))
    ends = (one.state for one in same if isinstance(one.state, Ended) and one.state.closed is not None)
    blamed = {site for end in ends if end.closed is not None for site in end.closed.blamed}
    left = sum(permit.permitted and permit.site_id not in blamed for permit in permits)
    if not blamed or left < least:
        return permits
    return tuple(
        Permit(site_id=permit.site_id, permitted=False, deny_code=LEFT_OUT)
        if permit.permitted and permit.site_id in blamed
        else permit
        for permit in permits
    )


def with_turns(run: Run, choices: tuple[Choice, ...]) -> Run:
    """The run after a selection."""
    return replace(run, standings=after_choice(run.standings, choices)) if choices else run


def with_earlier_times(run: Run, before: Run | None, now: datetime) -> Run:
    """A run that begins, with the times that sites needed in the study's run before, if the work is the same. None are
    kept where privacy is promised."""
    if before is None or formal(run.study) is not None or formal(before.study) is not None:
        return run
    same = (run.study.recipe, run.study.dataset) == (before.study.recipe, before.study.dataset)
    if not same or now - (before.ended_at or before.created_at) > TIMES_LAST:
        return run
    return replace(run, standings=taken_over(before.standings))


def having_learnt(run: Run, window: Window, now: datetime) -> Run:
    """The run after a window has stopped waiting: who got ready, and in which time. Nothing of it is kept where privacy
    is promised."""
    state = window.state
    if not isinstance(state, Open) or not _adapts(run, window) or formal(run.study) is not None:
        return run
    answers = {entry.site_id: after for entry, after in zip(state.readies, state.ready_after, strict=False)}
    refused = {refusal.site for refusal in state.refusals}
    late_after_s = (now - state.opened_at).total_seconds() if now >= state.deadline else None
    waited_for = [site for site in state.permitted if site not in refused]
    standings = after_window(run.standings, waited_for, answers, late_after_s)
    return replace(run, standings=after_window(standings, refused & set(state.permitted), {}, None))
