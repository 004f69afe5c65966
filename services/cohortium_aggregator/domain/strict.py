"""What moves a strict session on."""

from datetime import datetime

from cohortium_aggregator.domain.states import (
    Command,
    Ended,
    MemberLeft,
    MembershipChanged,
    RunOver,
    SetAside,
    Step,
    SumRefused,
    Terms,
    TimePassed,
    WindowOver,
)
from cohortium_aggregator.domain.strict_states import (
    AssembleModel,
    Assembling,
    ModelAssembled,
    Progress,
    SessionBroken,
    SessionLives,
    SessionTaken,
    SiteStopped,
    Stepping,
    TrainingDone,
)

SITE_SILENT = "SITE_SILENT"
SESSION_LOST = "SESSION_LOST"
SITE_LEFT = "SITE_LEFT"


def stepping(terms: Terms, state: Stepping, command: Command, now: datetime) -> Step:
    """Only the owner's word about the steps counts. Anyone else who holds a frame proves that the owner has lost its
    memory, or the session: its sums cannot go on."""
    match command:
        case SessionTaken(owner=owner, until=until):
            if state.owner and state.owner != owner:
                return _pause(state.progress, SESSION_LOST)
            return (state, ()) if state.owner else (Stepping(state.progress, until, owner), ())
        case SessionLives(owner=owner, until=until, progress=progress) if owner == state.owner:
            return Stepping(progress, until, owner), ()
        case SessionBroken(owner=owner) if owner == state.owner:
            if command.outcome == "PAUSED":
                return _pause(command.progress, command.reason, command.gone)
            return _over(Ended("FAILED", command.reason, progress=command.progress, gone=command.gone))
        case TrainingDone(owner=owner, progress=progress, keep=keep) if owner == state.owner:
            return Assembling("RELEASED", "", progress, keep), (AssembleModel(),)
        case SiteStopped(index=index, outcome=outcome, reason=reason):
            if outcome == "PAUSED":
                return _pause(state.progress, reason, frozenset({index}))
            return _over(Ended("FAILED", reason, progress=state.progress, gone=frozenset({index})))
        case MemberLeft(index=index):
            return _set_aside(state.progress, index)
        case MembershipChanged():
            return _pause(state.progress, "MANIFEST_CHANGED")
        case TimePassed() if now >= state.until:
            if state.owner:
                return _pause(state.progress, SESSION_LOST)
            return _pause(state.progress, SITE_SILENT, terms.everyone)
        case RunOver(reason=reason):
            return _over(Ended("FAILED", reason, progress=state.progress))
        case _:
            return state, ()


def assembling(state: Assembling, command: Command) -> Step:
    match command:
        case MemberLeft(index=index):
            return _set_aside(state.progress, index, state.gone)
        case ModelAssembled():
            return _over(Ended(state.outcome, state.reason, progress=state.progress, gone=state.gone))
        case SumRefused(outcome=outcome, reason=reason):
            return _over(Ended(outcome, reason, progress=state.progress, gone=state.gone))
        case RunOver(reason=reason):
            return _over(Ended("FAILED", reason, progress=state.progress, gone=state.gone))
        case _:
            return state, ()


def _pause(progress: Progress, reason: str, gone: frozenset[int] = frozenset()) -> Step:
    if progress.trees == 0:
        return _over(Ended("PAUSED", reason, progress=progress, gone=gone))
    return Assembling("PAUSED", reason, progress, progress.trees, gone), (AssembleModel(),)


def _set_aside(progress: Progress, left: int, gone: frozenset[int] = frozenset()) -> Step:
    """What the session opened holds the part of who left, and no model came of it yet: none will. Its trees are
    forgotten, and training may go on where the last model version stands."""
    ended, over = _over(Ended("PAUSED", SITE_LEFT, progress=progress, gone=gone | {left}))
    return ended, (SetAside(frozenset({left}), opened=progress.sums > 0), *over)


def _over(ended: Ended) -> Step:
    return ended, (WindowOver(ended.outcome, ended.reason),)
