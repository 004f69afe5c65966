"""Whom a window asks and how long it waits, and what it teaches: `domain/selection.py` and `domain/pace.py` on what is
on record."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cohortium_messages.governance import MAX_ROSTER, Permit
from cohortium_messages.ids import SiteId
from cohortium_messages.runs import SessionClosed
from cohortium_messages.study import TREE_TRAINERS, GradientRecipe, RandomTreesRecipe
from cohortium_privacy.windows import formal
from cohortium_protocol.trees.vectors import integer_length
from cohortium_scheduler.domain.pace import NO_REPORTS, Capacities, Pace, Work, pace, prior_of, waited_for
from cohortium_scheduler.domain.selection import (
    Choice,
    Prior,
    after_choice,
    after_uploads,
    after_window,
    select,
    taken_over,
)
from cohortium_scheduler.domain.windows import Ended, Open, RosterFixed, Window
from cohortium_scheduler.store import Run

TIMES_LAST = timedelta(days=90)
"""So long after a run its times say something of the next one's."""
LEFT_OUT = "SHARES_INCONSISTENT"
"""Why a site is not asked in an attempt after one that failed through it."""
TOO_FEW_UPLOADS = "NOT_ENOUGH_UPLOADS"
FLOAT_BYTES, INTEGER_BYTES = 4, 8


@dataclass(frozen=True, slots=True)
class Asking:
    """`permits` of the sites that are asked and of those that consent denied; `pace` None: the study's deadlines."""

    permits: tuple[Permit, ...]
    choices: tuple[Choice, ...] = ()
    pace: Pace | None = None


def _adapts(run: Run, window: Window) -> bool:
    return window.purpose == "update" and run.study.federation.mode == "synchronous"


def work_of(run: Run) -> Work:
    """What a round of averaging costs one site, once the statistics are known: the mean site's rows, by what the recipe
    does with them; the model down, and the update up as the study packs it."""
    study, recipe = run.study, run.study.recipe
    rows = (run.training_rows or 0) / max(1, len(run.training.counted))
    if recipe.trainer in TREE_TRAINERS:
        size = INTEGER_BYTES * integer_length(study, "update")
        work = recipe.trees_per_sum * recipe.depth if isinstance(recipe, RandomTreesRecipe) else 1
        return Work(size, size, rows * work)
    parameters, packing = run.parameters or 0, study.federation.compression
    passes = recipe.local.epochs if isinstance(recipe, GradientRecipe) else 1
    up_bytes = math.ceil(packing.keep * parameters) * packing.ring_bits // 8
    return Work(FLOAT_BYTES * parameters, up_bytes, max(1.0, rows) * passes * parameters)


def _priors(capacities: Capacities, work: Work) -> dict[SiteId, Prior]:
    found = {site: prior_of(capacity, work) for site, capacity in capacities.items()}
    return {site: prior for site, prior in found.items() if prior is not None}


def ask(
    run: Run,
    window: Window,
    permits: tuple[Permit, ...],
    present: Iterable[SiteId],
    least: int,
    capacities: Capacities = NO_REPORTS,
) -> Asking:
    """Whom of the permitted sites a window asks: a round of averaging those that the study has chosen for it; every
    other window all of them, or where one roster cannot hold them as many as a round asks, in turns."""
    federation, adapts = run.study.federation, _adapts(run, window)
    blind = not adapts or formal(run.study) is not None
    permitted = [permit.site_id for permit in permits if permit.permitted]
    few = federation.participants if adapts or len(permitted) > MAX_ROSTER else None
    work, known = (Work(0, 0, 0.0), {}) if blind else (work_of(run), capacities)
    choices: tuple[Choice, ...] = ()
    if few is not None or len(permitted) > MAX_ROSTER:
        want, tick = max(least, few or MAX_ROSTER), (run.run_id, window.sequence)
        priors = _priors(known, work)
        choices = select(run.standings, permitted, frozenset(present), want, tick=tick, blind=blind, priors=priors)
        asked = {choice.site for choice in choices if choice.asked}
        permitted = [site for site in permitted if site in asked]
        permits = tuple(permit for permit in permits if not permit.permitted or permit.site_id in asked)
    if blind:
        return Asking(permits, choices)
    limits = federation.deadlines
    return Asking(permits, choices, pace(run.standings, permitted, known, work, (limits.ready_s, limits.upload_s)))


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


def having_uploaded(run: Run, window: Window, closed: SessionClosed) -> Run:
    """The run after a sum: whose uploads arrived in time. Where so few did that nothing was opened, nobody says whose,
    and each of the cohort counts as missing. Nothing is kept where privacy is promised."""
    if not isinstance(window.state, RosterFixed) or not _adapts(run, window) or formal(run.study) is not None:
        return run
    if closed.state == "RELEASED":
        arrived = () if window.pace is None else waited_for(window.pace, closed.survivors)
        standings = after_uploads(run.standings, arrived, closed.dropped)
    elif closed.reason == TOO_FEW_UPLOADS:
        standings = after_uploads(run.standings, (), (entry.site_id for entry in window.state.roster.entries))
    else:
        return run
    return replace(run, standings=standings)
