"""Windows as the scheduler sees them: frozen states, one table of transitions.

Everything that changes a window's state is in `advance`. It never asks for the time, the network or randomness: those
come in with the command. A command that arrives twice, or too late, changes nothing and says nothing.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import compress
from typing import Annotated, Literal, assert_never

from pydantic import Field

from cohortium_messages.governance import Permit
from cohortium_messages.ids import Bytes16, RunId, SiteId
from cohortium_messages.runs import SessionClosed, WindowEnd
from cohortium_messages.secure_sum import Purpose, Ready, Roster, WindowOpen
from cohortium_scheduler.domain.pace import Pace
from cohortium_scheduler.domain.selection import Choice


class Phase(StrEnum):
    PLANNED = "PLANNED"
    AUTHORISED = "AUTHORISED"
    OPEN = "OPEN"
    ROSTER_FIXED = "ROSTER_FIXED"
    ENDED = "ENDED"


TRANSITIONS: dict[Phase, tuple[Phase, ...]] = {
    Phase.PLANNED: (Phase.AUTHORISED, Phase.ENDED),
    Phase.AUTHORISED: (Phase.OPEN, Phase.ENDED),
    Phase.OPEN: (Phase.ROSTER_FIXED, Phase.ENDED),
    Phase.ROSTER_FIXED: (Phase.ENDED,),
    Phase.ENDED: (),
}
"""`contracts/lifecycle/window.md` is drawn from this table."""


# Who may be in a window's cohort


@dataclass(frozen=True, slots=True)
class Anyone:
    """Any member that consent permits."""

    kind: Literal["anyone"] = "anyone"


@dataclass(frozen=True, slots=True)
class Among:
    """As `Anyone`, of these sites only: a run's first strict session, over sites whose rows its numbers were fixed for.

    The scale of a session's fixed-point sums comes from the rows that the statistics counted; a site that they did not
    count could make a sum overflow unseen.
    """

    sites: tuple[SiteId, ...]
    kind: Literal["among"] = "among"


@dataclass(frozen=True, slots=True)
class Rejoining:
    """Exactly these sites: a strict session goes on with the cohort that it began with, or not at all."""

    sites: tuple[SiteId, ...]
    kind: Literal["rejoining"] = "rejoining"


@dataclass(frozen=True, slots=True)
class Remaining:
    """As many of these as come, where the study allows another cohort: those that are left of a session's sites."""

    sites: tuple[SiteId, ...]
    kind: Literal["remaining"] = "remaining"


ANYONE = Anyone()
Cohort = Annotated[Anyone | Among | Rejoining | Remaining, Field(discriminator="kind")]


# States


@dataclass(frozen=True, slots=True)
class Planned:
    """Consent was asked who may take part."""

    question_id: Bytes16
    asked_at: datetime
    phase: Literal[Phase.PLANNED] = Phase.PLANNED


@dataclass(frozen=True, slots=True)
class Refusal:
    site: SiteId
    code: str
    column: str | None = None


@dataclass(frozen=True, slots=True)
class AwaitingLog:
    """Consent answered; no site is asked before the audit log has proven that it holds the authorisation."""

    open: WindowOpen
    permits: tuple[Permit, ...]
    asked_at: datetime
    wait_s: float | None = None
    since: datetime | None = None
    """When it was authorised; `asked_at` is when audit was asked last. None in a window of before this was kept."""
    phase: Literal[Phase.AUTHORISED] = Phase.AUTHORISED


@dataclass(frozen=True, slots=True)
class Open:
    """Sites work, and say when they are ready. `enough_since`: when `least_cohort` sites had become ready;
    `ready_after`: for each of `readies`, seconds since the opening."""

    open: WindowOpen
    permits: tuple[Permit, ...]
    opened_at: datetime
    deadline: datetime
    readies: tuple[Ready, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    extended: bool = False
    enough_since: datetime | None = None
    ready_after: tuple[float, ...] = ()
    phase: Literal[Phase.OPEN] = Phase.OPEN

    @property
    def permitted(self) -> tuple[SiteId, ...]:
        return tuple(permit.site_id for permit in self.permits if permit.permitted)


@dataclass(frozen=True, slots=True)
class RosterFixed:
    """The cohort is bound; the aggregator has it."""

    open: WindowOpen
    roster: Roster
    opened_at: datetime
    fixed_at: datetime
    refusals: tuple[Refusal, ...] = ()
    phase: Literal[Phase.ROSTER_FIXED] = Phase.ROSTER_FIXED


@dataclass(frozen=True, slots=True)
class Ended:
    """Final. `ready`: the sites that were ready when a window ended that never became a session."""

    state: WindowEnd
    reason: str
    ended_at: datetime
    opened_at: datetime | None = None
    refusals: tuple[Refusal, ...] = ()
    roster: Roster | None = None
    closed: SessionClosed | None = None
    ready: tuple[SiteId, ...] = ()
    phase: Literal[Phase.ENDED] = Phase.ENDED


State = Annotated[Planned | AwaitingLog | Open | RosterFixed | Ended, Field(discriminator="phase")]


@dataclass(frozen=True, slots=True)
class Window:
    """One attempt at one sum, or at one strict session. `sequence` counts a run's windows. `choices`: why each site was
    asked or not, where the study asks for fewer than all; `pace`: its deadlines and what they rest on, where they are
    not simply the study's."""

    window_id: Bytes16
    run_id: RunId
    sequence: int
    purpose: Purpose
    round: int
    attempt: int
    state: State
    cohort: Cohort = ANYONE
    choices: tuple[Choice, ...] = ()
    pace: Pace | None = None


# Commands


@dataclass(frozen=True, slots=True)
class Permitted:
    """Consent answered and enough sites are permitted: the signed parameters are ready to go. `permits`: of the sites
    that are asked, and of those denied; `pace`: how long these are waited for, by default the parameters' time."""

    open: WindowOpen
    permits: tuple[Permit, ...]
    now: datetime
    choices: tuple[Choice, ...] = ()
    pace: Pace | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The authorisation is in the log: the sites are asked."""

    now: datetime


@dataclass(frozen=True, slots=True)
class ReadyReceived:
    """A `Ready` whose signature and base were checked."""

    ready: Ready
    now: datetime


@dataclass(frozen=True, slots=True)
class SiteLeft:
    """A site refused the task, or its grant ended."""

    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Bound:
    """The decision of `cohort_now` was carried out: the roster was made from these sites' entries."""

    roster: Roster
    now: datetime


@dataclass(frozen=True, slots=True)
class Extended:
    """The deadline passed with too few sites, for the first time."""

    now: datetime


@dataclass(frozen=True, slots=True)
class Finished:
    """The window is over, by the aggregator's word or because it never became a session. `denied`: of a window that
    was not even opened, the sites that consent did not permit."""

    state: WindowEnd
    reason: str
    now: datetime
    closed: SessionClosed | None = None
    denied: tuple[Refusal, ...] = ()


Command = Permitted | Opened | ReadyReceived | SiteLeft | Bound | Extended | Finished


def advance(window: Window, command: Command) -> Window:
    """The window after the command; the same object if the command is late, repeated or out of place."""
    state = window.state
    match command:
        case Permitted() if isinstance(state, Planned):
            wait_s = None if command.pace is None else command.pace.ready_s
            waiting = AwaitingLog(command.open, command.permits, command.now, wait_s, command.now)
            return replace(window, state=waiting, choices=command.choices, pace=command.pace)
        case Opened() if isinstance(state, AwaitingLog):
            wait_s = state.open.params.deadlines.ready_s if state.wait_s is None else state.wait_s
            opened = Open(state.open, state.permits, command.now, command.now + timedelta(seconds=wait_s))
            return replace(window, state=opened)
        case ReadyReceived() if isinstance(state, Open):
            return replace(window, state=_with_ready(state, command))
        case SiteLeft() if isinstance(state, Open):
            return replace(window, state=_without(state, command.refusal))
        case SiteLeft() if isinstance(state, AwaitingLog):
            return replace(window, state=replace(state, permits=_denied(state.permits, command.refusal)))
        case Bound() if isinstance(state, Open):
            fixed = RosterFixed(state.open, command.roster, state.opened_at, command.now, state.refusals)
            return replace(window, state=fixed)
        case Extended() if isinstance(state, Open) and not state.extended:
            longer = timedelta(seconds=state.open.params.deadlines.ready_s)
            return replace(window, state=replace(state, deadline=command.now + longer, extended=True))
        case Finished() if not isinstance(state, Ended):
            return replace(window, state=_ended(state, command))
        case Permitted() | Opened() | ReadyReceived() | SiteLeft() | Bound() | Extended() | Finished():
            return window
        case _:
            assert_never(command)


def _with_ready(state: Open, command: ReadyReceived) -> Open:
    ready = command.ready
    if ready.site_id not in state.permitted or any(entry.site_id == ready.site_id for entry in state.readies):
        return state
    readies = (*state.readies, ready)
    after = (*state.ready_after, (command.now - state.opened_at).total_seconds())
    refusals = tuple(refusal for refusal in state.refusals if refusal.site != ready.site_id)
    enough = state.enough_since
    if enough is None and len(readies) >= state.open.params.least_cohort:
        enough = command.now
    return replace(state, readies=readies, refusals=refusals, enough_since=enough, ready_after=after)


def _denied(permits: tuple[Permit, ...], refusal: Refusal) -> tuple[Permit, ...]:
    denied = Permit(site_id=refusal.site, permitted=False, deny_code=refusal.code)
    return tuple(denied if permit.site_id == refusal.site and permit.permitted else permit for permit in permits)


def _without(state: Open, refusal: Refusal) -> Open:
    stay = [entry.site_id != refusal.site for entry in state.readies]
    readies = tuple(compress(state.readies, stay))
    after = tuple(compress(state.ready_after, stay))
    refusals = (*(known for known in state.refusals if known.site != refusal.site), refusal)
    enough = state.enough_since if len(readies) >= state.open.params.least_cohort else None
    return replace(state, readies=readies, refusals=refusals, enough_since=enough, ready_after=after)


def _ended(state: Planned | AwaitingLog | Open | RosterFixed, command: Finished) -> Ended:
    over = Ended(command.state, command.reason, command.now, closed=command.closed)
    match state:
        case Planned() | AwaitingLog():
            return replace(over, refusals=command.denied)
        case Open():
            ready = tuple(entry.site_id for entry in state.readies)
            return replace(over, opened_at=state.opened_at, refusals=state.refusals, ready=ready)
        case RosterFixed():
            return replace(over, opened_at=state.opened_at, refusals=state.refusals, roster=state.roster)
        case _:
            assert_never(state)
