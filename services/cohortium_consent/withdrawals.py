"""The course of a withdrawal, from the notice to the receipt, and its deadlines. Pure: all facts and the time come in.

What stops is stopped before anything is decided. What becomes of models that were made is decided by people, once, and
the case is open until it is carried out and the hospital has its receipt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from cohortium_messages.consent import Effect, PersonId, WithdrawalType
from cohortium_messages.ids import Bytes32, SiteId, StudyId
from cohortium_messages.withdrawals import (
    MOST_MODELS,
    DeadlineName,
    EffectDone,
    EffectRefused,
    Retrained,
    RunModel,
    WithdrawalFollowed,
    WithdrawalTraced,
)


@dataclass(frozen=True, slots=True)
class Received:
    """What was signed is on record."""

    since: datetime
    state: Literal["RECEIVED"] = "RECEIVED"


@dataclass(frozen=True, slots=True)
class Verified:
    """Who signed may do so, and the site's grant is over (patients: their hospital reads them no more)."""

    since: datetime
    state: Literal["VERIFIED"] = "VERIFIED"


@dataclass(frozen=True, slots=True)
class Effective:
    """No window that the site is in is open any more, and the models that learnt from it are listed. The list follows
    what is made of them, until the case is closed."""

    since: datetime
    state: Literal["EFFECTIVE"] = "EFFECTIVE"


@dataclass(frozen=True, slots=True)
class EffectDecided:
    """Two people, one of them an officer, signed what becomes of these models."""

    since: datetime
    state: Literal["EFFECT_DECIDED"] = "EFFECT_DECIDED"


@dataclass(frozen=True, slots=True)
class Executing:
    """The scheduler carries it out. Where it cannot, the case waits here for another decision."""

    since: datetime
    state: Literal["EXECUTING"] = "EXECUTING"


@dataclass(frozen=True, slots=True)
class Proven:
    """It is carried out, and a signed receipt says so."""

    since: datetime
    state: Literal["PROVEN"] = "PROVEN"


@dataclass(frozen=True, slots=True)
class Closed:
    """The receipt was handed over."""

    since: datetime
    state: Literal["CLOSED"] = "CLOSED"


State = Received | Verified | Effective | EffectDecided | Executing | Proven | Closed


@dataclass(frozen=True, slots=True)
class Decision:
    """What officers signed, and who."""

    digest: Bytes32
    effect: Effect
    people: tuple[PersonId, ...]
    at: datetime


@dataclass(frozen=True, slots=True)
class Refused:
    """A hospital that refuses its part in the run that is to take the affected ones' place, and why."""

    site_id: SiteId
    code: str


# Commands


@dataclass(frozen=True, slots=True)
class Verify:
    """Signature and role hold, and grants are stopped."""

    at: datetime


@dataclass(frozen=True, slots=True)
class Trace:
    """The scheduler's word: which rounds go without, which models learnt from the site."""

    traced: WithdrawalTraced
    at: datetime


@dataclass(frozen=True, slots=True)
class Follow:
    """The scheduler's word: these models were made since, and who left is in their lineage."""

    followed: WithdrawalFollowed
    at: datetime


@dataclass(frozen=True, slots=True)
class Decide:
    """Enough people signed a decision. The first one counts; another one only where it could not be carried out."""

    decision: Decision
    at: datetime


@dataclass(frozen=True, slots=True)
class Start:
    """The scheduler began."""

    decision: Bytes32
    retrained: Retrained | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Refuse:
    """A hospital refuses its part in a retraining that is under way."""

    refused: EffectRefused
    at: datetime


@dataclass(frozen=True, slots=True)
class Finish:
    """The scheduler's last word on a decision: carried out, or a fault."""

    done: EffectDone
    at: datetime


@dataclass(frozen=True, slots=True)
class Close:
    """The receipt was handed over."""

    at: datetime


Command = Verify | Trace | Follow | Decide | Start | Refuse | Finish | Close

TRANSITIONS: Mapping[tuple[type[State], type[Command]], tuple[type[State], ...]] = {
    (Received, Verify): (Verified,),
    (Received, Decide): (Received,),
    (Verified, Decide): (Verified,),
    (Verified, Trace): (Effective, EffectDecided),
    (Effective, Follow): (Effective,),
    (Effective, Decide): (EffectDecided,),
    (EffectDecided, Follow): (EffectDecided,),
    (EffectDecided, Start): (Executing,),
    (Executing, Follow): (Executing,),
    (Executing, Decide): (Executing, EffectDecided),
    (Executing, Refuse): (Executing,),
    (Executing, Finish): (Executing, Proven),
    (Proven, Follow): (Proven,),
    (Proven, Close): (Closed,),
    (Closed, Close): (Closed,),
}
"""Where each command may lead; a pair that is not here changes nothing. A test holds `advance` to it."""


NOT_YET = Received(datetime.min.replace(tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class Case:
    """One withdrawal. `digest` is of what was signed; `reached` says when each state began. `traced.models` are all
    models that learnt from who left, with those made since it was traced."""

    digest: Bytes32
    type: WithdrawalType
    site_id: SiteId
    study_id: StudyId
    study_digest: Bytes32
    requested_effect: Effect
    received_at: datetime
    from_round: int = 0
    agreed_effect: Effect | None = None
    """The least that may be decided: what the hospital's data-use terms promised when it left. None: no terms."""
    passed_over: tuple[Bytes32, ...] = ()
    """Decisions that were signed before the withdrawal was known, are weaker than that, and were warned of."""
    state: State = NOT_YET
    reached: Mapping[str, datetime] = field(default_factory=dict)
    traced: WithdrawalTraced | None = None
    decision: Decision | None = None
    started_at: datetime | None = None
    retrained: Retrained | None = None
    done: EffectDone | None = None
    fault: str | None = None
    refused: tuple[Refused, ...] = ()
    receipt: str | None = None
    """The signed statement, as it is handed out."""
    receipts: int = 0
    """How many were made: another one for each model that was followed after the first."""
    overdue_told: tuple[DeadlineName, ...] = ()

    @property
    def word(self) -> str:
        return self.state.state


def advance(case: Case, command: Command) -> Case:
    """The case after the command; the same object for one that is late, repeated or out of place."""
    state = case.state
    match command:
        case Verify(at=at) if isinstance(state, Received):
            return _to(case, Verified(at))
        case Trace(traced=traced, at=at) if isinstance(state, Verified):
            effective = _to(replace(case, traced=traced), Effective(at))
            return effective if case.decision is None else _to(effective, EffectDecided(at))
        case Follow(followed=followed) if isinstance(state, Effective | EffectDecided | Executing | Proven):
            return _followed(case, followed)
        case Decide(decision=decision, at=at):
            return _decided(case, decision, at)
        case Start(decision=digest, retrained=retrained, at=at) if isinstance(state, EffectDecided):
            if case.decision is None or digest != case.decision.digest:
                return case
            begun = replace(case, retrained=retrained, started_at=case.started_at or at, fault=None, refused=())
            return _to(begun, Executing(at))
        case Refuse(refused=refused) if isinstance(state, Executing):
            known = Refused(refused.site_id, refused.code)
            ours = case.decision is not None and refused.decision == case.decision.digest
            return replace(case, refused=(*case.refused, known)) if ours and known not in case.refused else case
        case Finish(done=done, at=at) if isinstance(state, Executing):
            if case.decision is None or done.decision != case.decision.digest:
                return case
            if done.fault is not None:
                return replace(case, fault=done.fault)
            return _to(replace(case, done=done, retrained=done.retrained, fault=None), Proven(at))
        case Close(at=at) if isinstance(state, Proven):
            return _to(case, Closed(at))
        case _:
            return case


def _followed(case: Case, followed: WithdrawalFollowed) -> Case:
    """Said twice is said once: a word without a model that is new says nothing new."""
    traced = case.traced
    fresh = () if traced is None else unlisted(followed.models, traced.models)
    if traced is None or (followed.models and not fresh):
        return case
    listed = (*traced.models, *fresh)[-MOST_MODELS:]
    case = replace(case, traced=traced.model_copy(update={"models": listed, "sums": traced.sums + followed.sums}))
    if case.done is None:
        return case
    retired = (*case.done.retired, *unlisted(followed.retired, case.done.retired))[-MOST_MODELS:]
    return replace(case, done=case.done.model_copy(update={"retired": retired}))


def unlisted(models: Sequence[RunModel], listed: Sequence[RunModel]) -> tuple[RunModel, ...]:
    """Those that are not listed yet."""
    known = set(listed)
    return tuple(one for one in models if one not in known)


def _decided(case: Case, decision: Decision, at: datetime) -> Case:
    state = case.state
    match state:
        case Received() | Verified() if case.decision is None:
            return replace(case, decision=decision)
        case Effective():
            return _to(replace(case, decision=decision), EffectDecided(at))
        case Executing() if case.fault is not None and case.decision != decision:
            return _to(replace(case, decision=decision, fault=None), EffectDecided(at))
        case _:
            return case


def _to(case: Case, state: State) -> Case:
    return replace(case, state=state, reached={**case.reached, state.state: state.since})


# Deadlines


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each thing may take from the receipt on. Settings may shorten them, never lengthen them."""

    stopped_s: float = 60.0
    effective_s: float = 300.0
    patients_s: float = 86_400.0
    decided_working_days: int = 10
    started_days: int = 30
    answered_days: int = 30


STANDARD = Limits()


@dataclass(frozen=True, slots=True)
class Deadline:
    """`met_at`: None as long as it is not met."""

    name: DeadlineName
    due: datetime
    met_at: datetime | None
    overdue: bool


def deadlines(case: Case, limits: Limits, now: datetime) -> tuple[Deadline, ...]:
    """Every deadline of a case, met or not. One that is met late stays marked as overdue."""
    begun, reached = case.received_at, case.reached
    stopped, effective = limits.stopped_s, limits.effective_s
    if case.type == "patient_set":
        stopped = effective = limits.patients_s
    wanted: tuple[tuple[DeadlineName, datetime, datetime | None], ...] = (
        ("STOPPED", begun + timedelta(seconds=stopped), reached.get("VERIFIED")),
        ("EFFECTIVE", begun + timedelta(seconds=effective), reached.get("EFFECTIVE")),
        (
            "DECIDED",
            working_days_after(begun, limits.decided_working_days),
            None if case.decision is None else case.decision.at,
        ),
        ("STARTED", begun + timedelta(days=limits.started_days), case.started_at),
        ("ANSWERED", begun + timedelta(days=limits.answered_days), reached.get("PROVEN")),
    )
    return tuple(Deadline(name, due, met, (met or now) > due) for name, due, met in wanted)


def working_days_after(moment: datetime, days: int) -> datetime:
    """So many days from Monday to Friday later. Public holidays are no part of it: they would lengthen the time."""
    while days > 0:
        moment += timedelta(days=1)
        days -= moment.weekday() < 5
    return moment
