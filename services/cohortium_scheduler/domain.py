"""Windows and runs as the scheduler sees them: frozen states, one table of transitions, pure decisions.

Everything that changes a window's state is in `advance`. It never asks for the time, the network or randomness: those
come in with the command. A command that arrives twice, or too late, changes nothing and says nothing.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Literal, assert_never

from pydantic import Field

from cohortium_messages.governance import Permit
from cohortium_messages.ids import Bytes16, RunId, SiteId
from cohortium_messages.runs import SessionClosed, WindowEnd
from cohortium_messages.secure_sum import Purpose, Ready, Roster, WindowOpen


class Phase(StrEnum):
    PLANNED = "PLANNED"
    OPEN = "OPEN"
    ROSTER_FIXED = "ROSTER_FIXED"
    ENDED = "ENDED"


TRANSITIONS: dict[Phase, tuple[Phase, ...]] = {
    Phase.PLANNED: (Phase.OPEN, Phase.ENDED),
    Phase.OPEN: (Phase.ROSTER_FIXED, Phase.ENDED),
    Phase.ROSTER_FIXED: (Phase.ENDED,),
    Phase.ENDED: (),
}
"""`contracts/lifecycle/window.md` is drawn from this table."""


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
class Open:
    """Sites work, and say when they are ready. `enough_since`: when `least_cohort` sites had become ready."""

    open: WindowOpen
    permits: tuple[Permit, ...]
    opened_at: datetime
    deadline: datetime
    readies: tuple[Ready, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    extended: bool = False
    enough_since: datetime | None = None
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
    state: WindowEnd
    reason: str
    ended_at: datetime
    opened_at: datetime | None = None
    refusals: tuple[Refusal, ...] = ()
    roster: Roster | None = None
    closed: SessionClosed | None = None
    phase: Literal[Phase.ENDED] = Phase.ENDED


State = Annotated[Planned | Open | RosterFixed | Ended, Field(discriminator="phase")]


@dataclass(frozen=True, slots=True)
class Window:
    """One attempt at one sum. `sequence` counts a run's windows."""

    window_id: Bytes16
    run_id: RunId
    sequence: int
    purpose: Purpose
    round: int
    attempt: int
    state: State


# Commands


@dataclass(frozen=True, slots=True)
class Opened:
    """Consent answered and enough sites are permitted: the signed parameters are ready to go."""

    open: WindowOpen
    permits: tuple[Permit, ...]
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
    """The window is over, by the aggregator's word or because it never became a session."""

    state: WindowEnd
    reason: str
    now: datetime
    closed: SessionClosed | None = None


Command = Opened | ReadyReceived | SiteLeft | Bound | Extended | Finished


def advance(window: Window, command: Command) -> Window:
    """The window after the command; the same object if the command is late, repeated or out of place."""
    state = window.state
    match command:
        case Opened() if isinstance(state, Planned):
            deadlines = command.open.params.deadlines
            opened = Open(
                command.open, command.permits, command.now, command.now + timedelta(seconds=deadlines.ready_s)
            )
            return replace(window, state=opened)
        case ReadyReceived() if isinstance(state, Open):
            return replace(window, state=_with_ready(state, command))
        case SiteLeft() if isinstance(state, Open):
            return replace(window, state=_without(state, command.refusal))
        case Bound() if isinstance(state, Open):
            fixed = RosterFixed(state.open, command.roster, state.opened_at, command.now, state.refusals)
            return replace(window, state=fixed)
        case Extended() if isinstance(state, Open) and not state.extended:
            longer = timedelta(seconds=state.open.params.deadlines.ready_s)
            return replace(window, state=replace(state, deadline=command.now + longer, extended=True))
        case Finished() if not isinstance(state, Ended):
            return replace(window, state=_ended(state, command))
        case Opened() | ReadyReceived() | SiteLeft() | Bound() | Extended() | Finished():
            return window
        case _:
            assert_never(command)


def _with_ready(state: Open, command: ReadyReceived) -> Open:
    ready = command.ready
    if ready.site_id not in state.permitted or any(entry.site_id == ready.site_id for entry in state.readies):
        return state
    readies = (*state.readies, ready)
    refusals = tuple(refusal for refusal in state.refusals if refusal.site != ready.site_id)
    enough = state.enough_since
    if enough is None and len(readies) >= state.open.params.least_cohort:
        enough = command.now
    return replace(state, readies=readies, refusals=refusals, enough_since=enough)


def _without(state: Open, refusal: Refusal) -> Open:
    readies = tuple(entry for entry in state.readies if entry.site_id != refusal.site)
    refusals = (*(known for known in state.refusals if known.site != refusal.site), refusal)
    enough = state.enough_since if len(readies) >= state.open.params.least_cohort else None
    return replace(state, readies=readies, refusals=refusals, enough_since=enough)


def _ended(state: Planned | Open | RosterFixed, command: Finished) -> Ended:
    opened_at = None if isinstance(state, Planned) else state.opened_at
    refusals = () if isinstance(state, Planned) else state.refusals
    roster = state.roster if isinstance(state, RosterFixed) else None
    return Ended(command.state, command.reason, command.now, opened_at, refusals, roster, command.closed)


# Decisions


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


def cohort_now(state: Open, present: frozenset[SiteId], now: datetime) -> Decision:
    """Whether an open window's cohort is bound now; `present` are the sites seen lately.

    Synchronous: as soon as every expected site (permitted, present, not refusing) is ready and `least_cohort` are; or
    at the deadline with `least_cohort`. Buffered: as soon as `target_cohort` sites are ready, first come first
    served; or when `least_cohort` have waited for the ready time. Too few at the deadline: extended once, then
    cancelled. When so many permitted sites refused that `least_cohort` cannot be reached, the window is cancelled at
    once.
    """
    params = state.open.params
    refused = {refusal.site for refusal in state.refusals}
    if len(state.permitted) - len(refused) < params.least_cohort:
        return Cancel("NOT_ENOUGH_READY")
    enough = len(state.readies) >= params.least_cohort
    if params.kind == "sync":
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
        return Bind(state.readies) if params.kind == "sync" else Wait()
    return Cancel("NOT_ENOUGH_READY") if state.extended else Extend()


@dataclass(frozen=True, slots=True)
class NextWindow:
    purpose: Purpose
    round: int
    attempt: int


@dataclass(frozen=True, slots=True)
class EndRun:
    state: Literal["FINISHED", "FAILED"]
    reason: str


def next_step(
    ended: Window | None, *, rounds: int, evaluate_every: int, evaluates: bool, max_attempts: int
) -> NextWindow | EndRun:
    """What follows a run's last window: statistics first, then per round an update and, where due, an evaluation.

    `ended` is the newest window, None for a run that has none. A window that was not released is tried again until
    `max_attempts`. The evaluation of a round is due every `evaluate_every` rounds and after the last one.
    """
    if ended is None:
        return NextWindow("statistics", 0, 1)
    if not isinstance(ended.state, Ended):
        raise ValueError(f"window {ended.window_id.hex()} has not ended")
    if ended.state.state != "RELEASED":
        if ended.attempt >= max_attempts:
            return EndRun("FAILED", ended.state.reason or "TOO_MANY_ATTEMPTS")
        return NextWindow(ended.purpose, ended.round, ended.attempt + 1)
    last = ended.round >= rounds
    due = evaluates and (last or ended.round % evaluate_every == 0)
    if ended.purpose == "update" and due:
        return NextWindow("evaluation", ended.round, 1)
    if last and ended.purpose != "statistics":
        return EndRun("FINISHED", "")
    return NextWindow("update", ended.round + 1, 1)


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
