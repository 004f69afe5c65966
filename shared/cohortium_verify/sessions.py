"""What the log says of strict sessions, in which LightGBM grows trees: over whom, how far, in which order."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from cohortium_messages import events
from cohortium_messages.ids import RunId
from cohortium_verify.log import Entry
from cohortium_verify.report import Check, Failure
from cohortium_verify.rules import Said, Window, said, verdict

Summed = Said[events.StrictSessionSummed]

ONE_SITE_OUT = "whoever sees sums over both cohorts sees that site's part in them"


def check_sessions(entries: Sequence[Entry], windows: dict[bytes, Window]) -> Check:
    """Every strict session was over all of its cohort and nobody else, in a window authorised for training, and a run's
    trees only grow from one session to the next. What a session that was set aside had grown is forgotten."""
    failures: list[Failure] = []
    notes: list[str] = []
    runs: dict[RunId, list[Summed]] = {}
    for session in said(entries, events.StrictSessionSummed):
        runs.setdefault(session.message.run_id, []).append(session)
        failures += _check_window(session, windows[session.message.window_id])
    for window_id, window in windows.items():
        failures += _check_kind(window_id, window)
    for sessions in runs.values():
        # One emitter's signed times tell the order even where an outage shuffled the log.
        ordered = sorted(sessions, key=lambda session: (session.entry.envelope.time, session.index))
        failures += _check_growth([one for one in ordered if not windows[one.message.window_id].aside])
        notes += _changes(ordered)
    count = sum(len(sessions) for sessions in runs.values())
    sums = sum(session.message.sums for sessions in runs.values() for session in sessions)
    fact = f"{count} sessions with {sums} sums, each over all sites of its cohort; trees only grew"
    return verdict("strict sessions", fact if count else "no strict session is on record", failures, notes)


def _check_window(session: Summed, window: Window) -> Iterator[Failure]:
    message, name = session.message, session.message.window_id.hex()
    if not window.fixed:
        yield Failure(f"a session was summed in window {name}, whose cohort is not on record", session.index)
        return
    cohort = window.fixed[0].message
    if len(set(message.sites)) != len(message.sites) or set(message.sites) != set(cohort.sites):
        yield Failure("the session's sites are not the cohort that was fixed for its window", session.index)
    if message.roster_hash != cohort.roster_hash:
        yield Failure("the session was held with another roster than the one that was fixed", session.index)
    if message.run_id != cohort.run_id:
        yield Failure("the session is told of another run than its cohort", session.index)
    if any(grounds.message.purpose != "training" for grounds in window.authorised):
        yield Failure(f"a session was held in window {name}, which was not authorised for training", session.index)
    if window.summed[0].index != session.index:
        yield Failure(f"the session of window {name} is told of twice", session.index)
    if message.sums > message.steps:
        yield Failure(f"{message.sums} sums were opened in {message.steps} steps", session.index)


def _check_kind(window_id: bytes, window: Window) -> Iterator[Failure]:
    """In training no sum is opened over a part of the cohort, and what ended with a model was a session."""
    if not any(grounds.message.purpose == "training" for grounds in window.authorised):
        return
    for opened in window.opened:
        yield Failure(f"a sum over survivors was opened in the training window {window_id.hex()}", opened.index)
    for ended in window.ended:
        if ended.message.state in ("RELEASED", "PAUSED") and not window.summed:
            text = f"training window {window_id.hex()} ended {ended.message.state}, and no session is on record"
            yield Failure(text, ended.index)


def _check_growth(sessions: Sequence[Summed]) -> Iterator[Failure]:
    before = 0
    for session in sessions:
        message = session.message
        if message.trees < before:
            yield Failure(f"{message.trees} trees stand, and {before} stood before this session", session.index)
        elif message.trees > before and message.sums == 0:
            yield Failure(f"{message.trees - before} trees were grown without a sum", session.index)
        before = max(before, message.trees)
    for first, second in pairwise(sessions):
        known, message = first.message, second.message
        if known.trees and known.trees == message.trees and known.chain != message.chain:
            yield Failure("the same trees stand on two different chains of results", second.index)


def _changes(sessions: Sequence[Summed]) -> Iterator[str]:
    """Sessions with other sites than the one before: the study may allow it, and a reader should know."""
    for first, second in pairwise(sessions):
        gone = sorted(set(first.message.sites) - set(second.message.sites))
        come = sorted(set(second.message.sites) - set(first.message.sites))
        if gone or come:
            words = [f"without {', '.join(gone)}"] if gone else []
            words += [f"with {', '.join(come)}"] if come else []
            warning = f"; {ONE_SITE_OUT}" if len(gone) + len(come) == 1 else ""
            yield f"entry {second.index}: training went on {' and '.join(words)}{warning}"
