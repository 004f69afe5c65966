"""May this site take part in this study version, in this round, at this moment? Pure: all facts and the time come in.

Expiry is never written down: it follows from the moment of the question. What is written down is what hospitals signed:
grants and withdrawals; and what officers signed: who is a member.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from cohortium_messages.governance import GrantState
from cohortium_messages.ids import SiteId, StudyId


@dataclass(frozen=True, slots=True)
class Grant:
    """What one hospital signed: this site, this study version, from then until then, so many rounds."""

    study_id: StudyId
    study_digest: bytes
    site_id: SiteId
    grant_digest: bytes
    not_before: datetime
    not_after: datetime
    max_rounds: int
    approvers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Granted:
    """The grant that counts for its site and study version."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Superseded:
    """The hospital signed a newer grant for the same study version."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Over for good. A hospital that comes back signs a new grant."""

    grant: Grant
    at: datetime
    reason: str


GrantRecord = Granted | Superseded | Withdrawn


@dataclass(frozen=True, slots=True)
class GiveAgain:
    """A newer grant of the same site for the same study version is on record."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The hospital withdrew, or its standing ended."""

    at: datetime
    reason: str


Command = GiveAgain | Stop


@dataclass(frozen=True, slots=True)
class Stopped:
    """The grant was in force until now."""

    grant: Grant
    reason: str


TRANSITIONS: Mapping[tuple[type[GrantRecord], type[Command]], type[GrantRecord]] = {
    (Granted, GiveAgain): Superseded,
    (Granted, Stop): Withdrawn,
    (Superseded, GiveAgain): Superseded,
    (Superseded, Stop): Superseded,
    (Withdrawn, GiveAgain): Withdrawn,
    (Withdrawn, Stop): Withdrawn,
}
"""Where each command leads from each state. `advance` does nothing else; a test holds it to that."""


def advance(record: GrantRecord, command: Command) -> tuple[GrantRecord, tuple[Stopped, ...]]:
    """The grant after the command, and what follows. A command that comes twice changes nothing the second time."""
    match record, command:
        case Granted(grant), GiveAgain():
            return Superseded(grant), ()
        case Granted(grant), Stop(at=at, reason=reason):
            return Withdrawn(grant, at, reason), (Stopped(grant, reason),)
        case _:
            return record, ()


def first_state(grant: Grant, withdrawn_at: datetime | None) -> GrantRecord:
    """The state in which a grant is recorded that was not known before.

    A hospital that has withdrawn comes back with a grant that begins after its withdrawal. An older one, delayed or
    sent again by somebody else, must not undo the withdrawal, so it is recorded as what it is: over.
    """
    if withdrawn_at is not None and grant.not_before < withdrawn_at:
        return Withdrawn(grant, withdrawn_at, "GRANT_WITHDRAWN")
    return Granted(grant)


def state_name(record: GrantRecord, now: datetime) -> GrantState:
    """The word for a grant's state at this moment."""
    match record:
        case Granted(grant):
            return "expired" if now >= grant.not_after else "granted"
        case Superseded():
            return "superseded"
        case Withdrawn():
            return "withdrawn"
        case _:
            assert_never(record)


@dataclass(frozen=True, slots=True)
class Membership:
    """A study's newest manifest, as far as consent needs it."""

    study_id: StudyId
    study_digest: bytes
    version: int
    members: frozenset[SiteId]


@dataclass(frozen=True, slots=True)
class Question:
    """May `site_id` take part in `round_number` of this study version at `now`? Round 0 is the statistics sum."""

    site_id: SiteId
    study_digest: bytes
    round_number: int
    now: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """What is on record about one site and one study version: the site's key, the manifest, the latest grant."""

    revoked_sites: frozenset[SiteId]
    membership: Membership | None
    record: GrantRecord | None


@dataclass(frozen=True, slots=True)
class Permitted:
    """Yes, on this grant."""

    grant_digest: bytes


@dataclass(frozen=True, slots=True)
class Denied:
    """No; `code` has its sentence in `cohortium_messages.problems`."""

    code: str


Decision = Permitted | Denied


def authorise(standing: Standing, question: Question) -> Decision:
    """The policy. The first rule that fails gives the code, from the widest (the site) to the narrowest (the round)."""
    if question.site_id in standing.revoked_sites:
        return Denied("SITE_REVOKED")
    membership = standing.membership
    if membership is None or membership.study_digest != question.study_digest:
        return Denied("NOT_A_MEMBER")
    if question.site_id not in membership.members:
        return Denied("NOT_A_MEMBER")
    match standing.record:
        case Granted(grant):
            return _within(grant, question)
        case Withdrawn(reason=reason):
            return Denied(reason)
        case _:
            return Denied("GRANT_NOT_FOUND")


def _within(grant: Grant, question: Question) -> Decision:
    if question.now < grant.not_before:
        return Denied("GRANT_NOT_YET_VALID")
    if question.now >= grant.not_after:
        return Denied("GRANT_EXPIRED")
    if question.round_number > grant.max_rounds:
        return Denied("GRANT_ROUNDS_SPENT")
    return Permitted(grant.grant_digest)


def effective(at: datetime, now: datetime) -> datetime:
    """When a withdrawal begins: at once, even if the hospital's clock is ahead or it named a later moment.

    Stopping early can be mended by a new grant; a round too many cannot be taken back.
    """
    return min(at, now)
