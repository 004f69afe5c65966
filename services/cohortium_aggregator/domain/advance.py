"""The one function that moves a window on."""

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from typing import assert_never

from cohortium_aggregator.domain.states import (
    TRANSITIONS,
    Aborting,
    AskAbort,
    Collecting,
    Command,
    EchoArrived,
    Echoing,
    Ended,
    Event,
    FaultFound,
    Index,
    Indices,
    MemberLeft,
    MembershipChanged,
    Opening,
    OpenSum,
    RunOver,
    SetAside,
    SharesArrived,
    SharesUnusable,
    ShowAbortCertificate,
    ShowCertificate,
    ShowSurvivors,
    State,
    Step,
    SumRefused,
    SumReleased,
    Terms,
    TimePassed,
    Timers,
    Unmasking,
    UploadArrived,
    UploadSeen,
    VoteArrived,
    WindowOver,
)
from cohortium_aggregator.domain.strict import SITE_LEFT, assembling, stepping
from cohortium_aggregator.domain.strict_states import Assembling, Progress, Stepping
from cohortium_messages.secure_sum import StrictSpec, WindowParams
from cohortium_protocol.survivors import survivor_set
from cohortium_protocol.window import RosterView


def terms_of(view: RosterView, params: WindowParams, expires_at: datetime, step: int = 0) -> Terms:
    """What was agreed with this window. The noise of a private sum was shared out so that it is enough from
    `least_cohort` sites on; sites confirm no smaller set, though the protocol would open one of `k_min`."""
    deadlines = params.deadlines
    timers = Timers(deadlines.upload_s, deadlines.echo_s, deadlines.unmask_s)
    least = view.k_min if params.noise is None else max(view.k_min, params.least_cohort)
    return Terms(view, step, timers, expires_at, least)


def open_window(view: RosterView, params: WindowParams, now: datetime) -> tuple[Terms, Collecting]:
    """The roster is fixed: uploads may come until `upload_s` from now, and once more as long."""
    terms = terms_of(view, params, now + timedelta(seconds=params.deadlines.expire_s))
    return terms, Collecting(deadline=_later(now, terms.timers.upload_s))


def open_session(view: RosterView, params: WindowParams, spec: StrictSpec, now: datetime) -> tuple[Terms, Stepping]:
    """The roster of a strict session is fixed: sites load their rows, grow again what stands, and begin within
    `upload_s` (one step's time if that is longer)."""
    terms, _ = open_window(view, params, now)
    begin = max(params.deadlines.upload_s, spec.step_s)
    return terms, Stepping(Progress(spec.trees_done, spec.chain), until=_later(now, begin))


def due_at(terms: Terms, state: State) -> datetime | None:
    """When `TimePassed` would next do something; None if never."""
    match state:
        case Collecting(deadline=deadline):
            return deadline
        case Echoing(ask_at=ask_at) | Unmasking(ask_at=ask_at):
            return min(ask_at, terms.expires_at)
        case Aborting(ask_at=ask_at, until=until):
            return min(ask_at, until)
        case Stepping(until=until):
            return until
        case Opening() | Assembling() | Ended():
            return None
        case _:
            assert_never(state)


def advance(terms: Terms, state: State, command: Command, now: datetime) -> Step:
    """The state after `command`, and what is to be sent. A command that comes twice, late, or where it means nothing
    changes nothing and says nothing, except that a site which comes too late is shown why."""
    match state:
        case Collecting():
            after, events = _collecting(terms, state, command, now)
        case Echoing():
            after, events = _echoing(terms, state, command, now)
        case Unmasking():
            after, events = _unmasking(terms, state, command, now)
        case Opening():
            after, events = _opening(terms, state, command, now)
        case Aborting():
            after, events = _aborting(terms, state, command, now)
        case Stepping():
            after, events = stepping(terms, state, command, now)
        case Assembling():
            after, events = assembling(state, command)
        case Ended():
            after, events = _ended(state, command)
        case _:
            assert_never(state)
    if type(after) is not type(state) and type(after) not in TRANSITIONS[type(state)]:
        raise AssertionError(f"{type(state).__name__} cannot become {type(after).__name__}")
    return after, events


def _collecting(terms: Terms, state: Collecting, command: Command, now: datetime) -> Step:
    match command:
        case UploadArrived(index=index, header_hash=header_hash, conflicts=conflicts):
            if index in state.uploads or index in state.excluded:
                return state, ()
            uploads = {**state.uploads, index: header_hash}
            pairs = state.conflicts | {(min(index, other), max(index, other)) for other in conflicts}
            faults = _conflict_faults(terms, state.conflicts, pairs)
            return _close(terms, replace(state, uploads=uploads, conflicts=pairs), now, faults)
        case MemberLeft(index=index) if index not in state.excluded:
            return _close(terms, replace(state, excluded=state.excluded | {index}), now, ())
        case MembershipChanged():
            return _abort(terms, "MANIFEST_CHANGED", now, ())
        case TimePassed() if now >= state.deadline:
            return _close(terms, state, now, ())
        case RunOver(reason=reason):
            return _end(Ended("FAILED", reason))
        case _:
            return state, ()


def _liars(terms: Terms, conflicts: frozenset[tuple[Index, Index]]) -> Indices:
    """Sites that conflict with more than c others. An honest one conflicts with liars only, and of these there are at
    most c by assumption: who conflicts with more is a liar, and those others need not be left out for it."""
    of = Counter(index for pair in conflicts for index in pair)
    return frozenset(index for index, count in of.items() if count > terms.view.collusion)


def _conflict_faults(
    terms: Terms, before: frozenset[tuple[Index, Index]], after: frozenset[tuple[Index, Index]]
) -> tuple[Event, ...]:
    told = {index for pair in before for index in pair}
    differ = sorted({index for pair in after for index in pair} - told)
    proven = sorted(_liars(terms, after) - _liars(terms, before))
    return (
        *(FaultFound(index, "EDGE_COMMITS_DIFFER") for index in differ),
        *(FaultFound(index, "EDGE_COMMITS_FALSE") for index in proven),
    )


def _close(terms: Terms, state: Collecting, now: datetime, faults: tuple[Event, ...]) -> Step:
    """Fix U if all that can still come is here or the time is over; give up if U can never be large enough. Until all
    are here a pair that conflicts may still turn out to be one liar's work, so it is no reason to give up."""
    view = terms.view
    liars = _liars(terms, state.conflicts)
    unclear = {index for pair in state.conflicts if liars.isdisjoint(pair) for index in pair}
    gone = state.excluded | liars
    barred = gone | unclear
    members = {index: value for index, value in state.uploads.items() if index not in barred}
    all_in = len(state.uploads.keys() | state.excluded) >= view.n
    if view.n - len(barred if all_in else gone) < terms.least:
        return _abort(terms, "NOT_ENOUGH_UPLOADS", now, faults)
    over = now >= state.deadline
    if not over and not all_in:
        return state, faults
    if len(members) >= terms.least:
        survivors = survivor_set(view, terms.step, members)
        fixed = Echoing(survivors, ask_at=_later(now, terms.timers.echo_s))
        return fixed, (*faults, ShowSurvivors(terms.everyone - state.excluded))
    if state.extensions_left > 0:
        longer = replace(state, deadline=_later(now, terms.timers.upload_s), extensions_left=state.extensions_left - 1)
        return longer, faults
    return _abort(terms, "NOT_ENOUGH_UPLOADS", now, faults)


def _echoing(terms: Terms, state: Echoing, command: Command, now: datetime) -> Step:
    match command:
        case EchoArrived(index=index, survivors_hash=survivors_hash, sig=sig):
            if survivors_hash != state.survivors.digest or index in state.echoes:
                return state, ()
            echoes = {**state.echoes, index: sig}
            if len(echoes) < terms.view.t:
                return replace(state, echoes=echoes), ()
            asking = _later(now, terms.timers.unmask_s)
            certified = Unmasking(state.survivors, echoes, ask_at=asking, need=terms.view.t)
            return certified, (ShowCertificate(terms.everyone),)
        case MemberLeft(index=index) if index in state.survivors.members:
            # Nothing was opened, and never will be. The site itself may not answer any more: without enough others that
            # promise, their updates cannot be freed, and waiting for promises would only cost time.
            if terms.view.n - 1 >= terms.votes_needed:
                return _abort(terms, SITE_LEFT, now, ())
            return _end(Ended("FAILED", SITE_LEFT, state.survivors))
        case TimePassed() if now >= terms.expires_at:
            return _abort(terms, "NOT_ENOUGH_ECHOES", now, ())
        case TimePassed() if now >= state.ask_at:
            asked = replace(state, asked=state.asked + 1, ask_at=_later(now, terms.timers.echo_s))
            return asked, (ShowSurvivors(terms.everyone - state.echoes.keys(), asked.asked),)
        case RunOver(reason=reason):
            return _end(Ended("FAILED", reason, state.survivors))
        case _:
            return state, ()


def _unmasking(terms: Terms, state: Unmasking, command: Command, now: datetime) -> Step:
    match command:
        case SharesArrived(index=index, survivors_hash=survivors_hash):
            if survivors_hash != state.survivors.digest or index in state.answered:
                return state, ()
            return _enough(replace(state, answered=state.answered | {index}))
        case MemberLeft(index=index) if index in state.survivors.members:
            left = frozenset({index})
            after, over = _end(Ended("FAILED", SITE_LEFT, state.survivors, state.echoes, gone=left))
            return after, (SetAside(left, opened=False), *over)
        case TimePassed() if now >= terms.expires_at:
            reason = "NOT_ENOUGH_SHARES" if state.need == terms.view.t else "SHARES_INCONSISTENT"
            return _end(Ended("FAILED", reason, state.survivors, state.echoes))
        case TimePassed() if now >= state.ask_at:
            asked = replace(state, asked=state.asked + 1, ask_at=_later(now, terms.timers.unmask_s))
            return asked, (ShowCertificate(terms.everyone - state.answered, asked.asked),)
        case UploadArrived(index=index) | UploadSeen(index=index):
            return state, _excluding_certificate(state, index)
        case RunOver(reason=reason):
            return _end(Ended("FAILED", reason, state.survivors, state.echoes))
        case _:
            return state, ()


def _enough(state: Unmasking) -> Step:
    if len(state.answered) < state.need:
        return state, ()
    return Opening(state.survivors, state.echoes, state.answered), (OpenSum(),)


def _opening(terms: Terms, state: Opening, command: Command, now: datetime) -> Step:
    match command:
        case SharesArrived(index=index, survivors_hash=survivors_hash) if survivors_hash == state.survivors.digest:
            return replace(state, answered=state.answered | {index}), ()
        case MemberLeft(index=index) if index in state.survivors.members and index not in state.left:
            return replace(state, left=state.left | {index}), ()
        case SumReleased() | SumRefused() if state.left:
            after, over = _end(Ended("FAILED", SITE_LEFT, state.survivors, state.echoes, gone=state.left))
            return after, (SetAside(state.left, opened=True), *over)
        case SumReleased():
            return _end(Ended("RELEASED", "", state.survivors, state.echoes))
        case SumRefused(outcome=outcome, reason=reason):
            return _end(Ended(outcome, reason, state.survivors, state.echoes))
        case SharesUnusable(used=used, dealer=dealer):
            if state.answered == terms.everyone == used or now >= terms.expires_at:
                faults = () if dealer is None else (FaultFound(dealer, "SHARES_INCONSISTENT"),)
                # With the answers of all there are t honest ones, and these rebuild what an honest dealer dealt.
                proven = dealer is not None and used == terms.everyone
                blamed = frozenset({dealer} if proven and dealer is not None else ())
                ended = Ended("FAILED", "SHARES_INCONSISTENT", state.survivors, state.echoes, blamed=blamed)
                after, over = _end(ended)
                return after, (*faults, *over)
            asking = _later(now, terms.timers.unmask_s)
            more = Unmasking(state.survivors, state.echoes, asking, need=len(used) + 1, answered=state.answered)
            return _enough(more)
        case UploadArrived(index=index) | UploadSeen(index=index):
            return state, _excluding_certificate(state, index)
        case RunOver(reason=reason):
            return _end(Ended("FAILED", reason, state.survivors, state.echoes))
        case _:
            return state, ()


def _abort(terms: Terms, reason: str, now: datetime, faults: tuple[Event, ...]) -> Step:
    echo_s = terms.timers.echo_s
    until = max(terms.expires_at, _later(now, echo_s))
    aborting = Aborting(reason, ask_at=_later(now, echo_s), until=until)
    return aborting, (*faults, AskAbort(terms.everyone, reason))


def _aborting(terms: Terms, state: Aborting, command: Command, now: datetime) -> Step:
    match command:
        case VoteArrived(index=index, sig=sig) if index not in state.votes:
            votes = {**state.votes, index: sig}
            if len(votes) < terms.votes_needed:
                return replace(state, votes=votes), ()
            after, over = _end(Ended("ABORTED", state.reason, votes=votes))
            return after, (ShowAbortCertificate(terms.everyone), *over)
        case TimePassed() if now >= state.until:
            return _end(Ended("FAILED", state.reason, votes=state.votes))
        case TimePassed() if now >= state.ask_at:
            asked = replace(state, asked=state.asked + 1, ask_at=_later(now, terms.timers.echo_s))
            return asked, (AskAbort(terms.everyone - state.votes.keys(), state.reason, asked.asked),)
        case RunOver(reason=reason):
            return _end(Ended("FAILED", reason, votes=state.votes))
        case _:
            return state, ()


def _ended(state: Ended, command: Command) -> Step:
    match command:
        case UploadArrived(index=index) | UploadSeen(index=index) | VoteArrived(index=index):
            if state.outcome == "ABORTED":
                return state, (ShowAbortCertificate(frozenset({index}), None),)
            return state, _excluding_certificate(state, index)
        case _:
            return state, ()


def _excluding_certificate(state: Unmasking | Opening | Ended, index: Index) -> tuple[Event, ...]:
    """A site outside U learns that its upload stays masked for ever, which frees its update (rule R6a)."""
    if state.survivors is None or not state.echoes or index in state.survivors.members:
        return ()
    return (ShowCertificate(frozenset({index}), None),)


def _end(ended: Ended) -> Step:
    return ended, (WindowOver(ended.outcome, ended.reason),)


def _later(now: datetime, seconds: float) -> datetime:
    return now + timedelta(seconds=seconds)
