"""The life of a document: drafted, submitted, approved by enough people, suspended, ended. Pure.

State is a fold over signed acts in the order of their moments, so it does not matter in which order, or how often, they
arrive. Where acts bear the same moment, the author's comes first and one that stops comes last. Expiry is no state:
`standing` adds it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, assert_never

from cohortium_messages.consent import Act, Deed, Document, Withdrawal, WithdrawalEffect
from cohortium_protocol.consent.people import Directory, Hand, Signer, acting_as
from cohortium_protocol.consent.rules import Rule, rule_of
from cohortium_protocol.consent.signing import act_digest

SKEW: Final = timedelta(minutes=5)
"""How far the clocks of the people who sign may be ahead of ours."""
WARNED: Final = timedelta(days=60)
"""A document that ends within this time is called expiring."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Nobody has put a name to it yet."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """Its author signed it; some may have approved it, not yet enough."""

    author: Hand
    approvals: tuple[Hand, ...] = ()


@dataclass(frozen=True, slots=True)
class Active:
    """Enough distinct people approved it, none of them its author. It counts within its own period."""

    author: Hand
    approvals: tuple[Hand, ...]


@dataclass(frozen=True, slots=True)
class Suspended:
    """One person stopped it for now. As many approvals as the first time bring it back."""

    author: Hand
    since: datetime
    approvals: tuple[Hand, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A person who may approve it refused it. An edit is a new document."""

    since: datetime


@dataclass(frozen=True, slots=True)
class Terminated:
    """One person ended it for good."""

    since: datetime


State = Draft | Submitted | Active | Suspended | Rejected | Terminated


@dataclass(frozen=True, slots=True)
class Submit:
    """A person puts their name to a document as its author."""

    by: Signer
    at: datetime


@dataclass(frozen=True, slots=True)
class Approve:
    """A person who may approve it, and did not write it, approves."""

    by: Signer
    at: datetime


@dataclass(frozen=True, slots=True)
class Reject:
    """A person who may approve it refuses."""

    by: Signer
    at: datetime


@dataclass(frozen=True, slots=True)
class Suspend:
    """One person stops it for now."""

    by: Signer
    at: datetime


@dataclass(frozen=True, slots=True)
class Terminate:
    """One person ends it."""

    by: Signer
    at: datetime


Command = Submit | Approve | Reject | Suspend | Terminate
COMMANDS: Final[Mapping[Deed, Callable[[Signer, datetime], Command]]] = {
    "submit": Submit,
    "approve": Approve,
    "reject": Reject,
    "suspend": Suspend,
    "terminate": Terminate,
}

TRANSITIONS: Mapping[tuple[type[State], type[Command]], tuple[type[State], ...]] = {
    (Draft, Submit): (Draft, Submitted, Active),
    (Draft, Terminate): (Draft, Terminated),
    (Submitted, Approve): (Submitted, Active),
    (Submitted, Reject): (Submitted, Rejected),
    (Submitted, Terminate): (Submitted, Terminated),
    (Active, Suspend): (Active, Suspended),
    (Active, Terminate): (Active, Terminated),
    (Suspended, Approve): (Suspended, Active),
    (Suspended, Terminate): (Suspended, Terminated),
    (Rejected, Terminate): (Rejected,),
    (Terminated, Terminate): (Terminated,),
}
"""Where each command may lead; a pair that is not here changes nothing. A test holds `advance` to it."""


def advance(state: State, command: Command, rule: Rule) -> State:
    """The state after the command. A command that comes twice, or by somebody who may not, changes nothing."""
    if objection(state, command, rule) is not None:
        return state
    match state, command:
        case Draft(), Submit(by=by):
            author = _author(by, rule)
            assert author is not None  # noqa: S101 - objection() has seen to it
            return Active(author, ()) if rule.duties.people == 0 else Submitted(author)
        case ((Submitted(author, approvals) | Suspended(author, _, approvals)), Approve(by=by)):
            hand = acting_as(by, rule.duties.approvers, rule.sites, rule.study_id)
            assert hand is not None  # noqa: S101
            enough = (*approvals, hand)
            if rule.satisfied(enough):
                return Active(author, enough)
            return Submitted(author, enough) if isinstance(state, Submitted) else Suspended(author, state.since, enough)
        case Active(author, _), Suspend(at=at):
            return Suspended(author, at)
        case _, Reject(at=at):
            return Rejected(at)
        case _, Terminate(at=at):
            return Terminated(at)
        case _:
            return state


def objection(state: State, command: Command, rule: Rule) -> str | None:
    """Why the command would change nothing, as a code, or None if it changes something."""
    allowed = (type(state), type(command)) in TRANSITIONS and not isinstance(state, Rejected | Terminated)
    if not allowed:
        return "WRONG_STATE"
    duties = rule.duties
    match command:
        case Submit(by=by):
            if rule.author_key is not None and by.key != rule.author_key:
                return "NOT_THE_LENDER"
            return None if _author(by, rule) else "ROLE_MISSING"
        case Approve(by=by) | Reject(by=by):
            hand = acting_as(by, duties.approvers, rule.sites, rule.study_id)
            if hand is None:
                return "ROLE_MISSING"
            if isinstance(command, Reject):
                return None
            assert isinstance(state, Submitted | Suspended)  # noqa: S101 - by the table
            if hand.is_one_of((state.author,)):
                return "OWN_RECORD"
            return "SIGNED_ALREADY" if hand.is_one_of(state.approvals) else None
        case Suspend(by=by) | Terminate(by=by):
            own_draft = isinstance(state, Submitted) and bool(state.author.names & by.names)
            may = acting_as(by, duties.stoppers, rule.sites, rule.study_id)
            return None if may is not None or own_draft else "ROLE_MISSING"
        case _:
            assert_never(command)


def _author(by: Signer, rule: Rule) -> Hand | None:
    return acting_as(by, rule.duties.authors, rule.sites, rule.study_id)


def fold(document: Document, acts: Iterable[Act], directory: Directory, now: datetime) -> State:
    """The state at `now` that verified acts amount to, in whatever order they are given.

    What lets something happen and is dated in the future does not count yet; what stops something counts at once.
    """
    rule, state = rule_of(document), STARTING
    for act in in_order(acts):
        if act.at > now + SKEW and _PLACES[act.deed] != _LAST and not isinstance(document, Withdrawal):
            continue
        state = advance(state, COMMANDS[act.deed](directory.signer(act.key, act.at), act.at), rule)
    return state


def took_effect(document: Document, acts: Iterable[Act], directory: Directory, now: datetime) -> datetime | None:
    """When a document began to count, for the first time: approved by enough people, not stopped before, and within its
    own period. Later than `now` where it is approved and its period begins later; None where it never counted.

    What it did by beginning, such as taking another one's place, stays done when it is stopped later.
    """
    if isinstance(document, Withdrawal | WithdrawalEffect):
        return None
    first, last = document.period
    rule, state, since = rule_of(document), STARTING, None
    for act in in_order(acts):
        if act.at > now + SKEW and _PLACES[act.deed] != _LAST:
            continue
        if since is not None and _PLACES[act.deed] == _LAST and max(since, first) < min(act.at, now, last):
            return max(since, first)
        state = advance(state, COMMANDS[act.deed](directory.signer(act.key, act.at), act.at), rule)
        since = (since or act.at) if isinstance(state, Active) else None
    return max(since, first) if since is not None and max(since, first) < last else None


def in_order(acts: Iterable[Act]) -> list[Act]:
    """The acts as `fold` takes them, each once. Of one moment, the author's before approvals: a program that signs for
    two people within a millisecond must not leave it to chance whether the second signature counts."""
    distinct = {act_digest(act): act for act in acts}
    ordered = sorted(distinct.items(), key=lambda one: (one[1].at, _PLACES[one[1].deed], one[0]))
    return [act for _, act in ordered]


Word = Literal[
    "draft",
    "submitted",
    "active",
    "expiring",
    "not_yet",
    "expired",
    "superseded",
    "suspended",
    "rejected",
    "terminated",
]


def standing(document: Document, state: State, now: datetime) -> tuple[Word, datetime | None]:
    """The word for a document's standing at this moment, and since (or from, or until) when."""
    match state:
        case Draft():
            return "draft", None
        case Submitted():
            return "submitted", None
        case Suspended(since=since):
            return "suspended", since
        case Rejected(since=since):
            return "rejected", since
        case Terminated(since=since):
            return "terminated", since
        case Active():
            return _period(document, now)
        case _:
            assert_never(state)


def _period(document: Document, now: datetime) -> tuple[Word, datetime | None]:
    if isinstance(document, Withdrawal):
        return "active", document.received_at
    if isinstance(document, WithdrawalEffect):
        return "active", document.decided_at
    first, last = document.period
    if now < first:
        return "not_yet", first
    if now >= last:
        return "expired", last
    return ("expiring" if last - now <= WARNED else "active"), last


STARTING: Final[State] = Draft()
_LAST: Final = 2
_PLACES: Final[Mapping[Deed, int]] = {
    "submit": 0,
    "approve": 1,
    "reject": _LAST,
    "suspend": _LAST,
    "terminate": _LAST,
}
"""Which of two acts of one moment counts first; what stops is of the last place."""
