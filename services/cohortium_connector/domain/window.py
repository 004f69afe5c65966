"""One window as its site sees it: frozen states, one table of transitions, one function.

Everything that changes a window's state is in `advance`. What a command says was verified before it is made
(`cohortium_protocol` checks signatures, rosters, boxes and certificates); here is only decided what follows. A command
that arrives twice, or too late, changes nothing; where the other side may have lost our answer, the saved one is sent
again.

Nothing has left this site before UPLOAD_SAVED but public keys. From UPLOAD_SAVED on, the vector counts as gone out.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, assert_never

from pydantic import Field

from cohortium_messages.ids import Bytes32
from cohortium_messages.runs import WindowEnd


class Phase(StrEnum):
    IDLE = "IDLE"
    READY_SENT = "READY_SENT"
    ROSTER_OK = "ROSTER_OK"
    UPLOAD_SAVED = "UPLOAD_SAVED"
    UPLOADED = "UPLOADED"
    ECHOED = "ECHOED"
    UNMASKED = "UNMASKED"
    ABORT_VOTED = "ABORT_VOTED"
    DONE = "DONE"
    FREED = "FREED"
    SPENT = "SPENT"


FINAL = (Phase.DONE, Phase.FREED, Phase.SPENT)
OPEN_PHASES = tuple(phase for phase in Phase if phase not in FINAL)
BOUND_PHASES = tuple(phase for phase in OPEN_PHASES if phase not in (Phase.IDLE, Phase.READY_SENT))
"""A roster is accepted: the study's next window waits."""

TRANSITIONS: dict[Phase, tuple[Phase, ...]] = {
    Phase.IDLE: (Phase.READY_SENT, Phase.FREED, Phase.SPENT),
    Phase.READY_SENT: (Phase.ROSTER_OK, Phase.FREED, Phase.SPENT),
    Phase.ROSTER_OK: (Phase.UPLOAD_SAVED, Phase.ECHOED, Phase.ABORT_VOTED, Phase.FREED, Phase.SPENT),
    Phase.UPLOAD_SAVED: (Phase.UPLOADED, Phase.ECHOED, Phase.ABORT_VOTED, Phase.DONE, Phase.FREED, Phase.SPENT),
    Phase.UPLOADED: (Phase.ECHOED, Phase.ABORT_VOTED, Phase.DONE, Phase.FREED, Phase.SPENT),
    Phase.ECHOED: (Phase.UNMASKED, Phase.ABORT_VOTED, Phase.DONE, Phase.FREED, Phase.SPENT),
    Phase.UNMASKED: (Phase.DONE, Phase.FREED, Phase.SPENT),
    Phase.ABORT_VOTED: (Phase.DONE, Phase.FREED, Phase.SPENT),
    Phase.DONE: (),
    Phase.FREED: (),
    Phase.SPENT: (),
}
"""`contracts/lifecycle/site-window.md` is drawn from this table; a property test holds `advance` to it."""


# States


@dataclass(frozen=True, slots=True)
class Idle:
    """Accepted, and its work (statistics, training, evaluation) is to be done, or waits for an earlier window's end."""

    phase: Literal[Phase.IDLE] = Phase.IDLE


@dataclass(frozen=True, slots=True)
class ReadySent:
    """The vector exists, and the window's fresh keys were sent."""

    product_id: str
    phase: Literal[Phase.READY_SENT] = Phase.READY_SENT


@dataclass(frozen=True, slots=True)
class Place:
    """Where this site stands in the one roster it accepted for this window."""

    roster_hash: Bytes32
    index: int


@dataclass(frozen=True, slots=True)
class RosterOk:
    """The roster passed rule R3. The upload is being made; none of it exists outside."""

    product_id: str
    place: Place
    phase: Literal[Phase.ROSTER_OK] = Phase.ROSTER_OK


@dataclass(frozen=True, slots=True)
class UploadSaved:
    """The complete upload is on disk (rule R1) and is being sent; only these bytes are ever sent."""

    product_id: str
    place: Place
    header_hash: Bytes32
    phase: Literal[Phase.UPLOAD_SAVED] = Phase.UPLOAD_SAVED


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The aggregator has all of it."""

    product_id: str
    place: Place
    header_hash: Bytes32
    phase: Literal[Phase.UPLOADED] = Phase.UPLOADED


@dataclass(frozen=True, slots=True)
class Echoed:
    """This survivor set was confirmed, and no other will be (rule R4). `header_hash`: None if no upload left."""

    product_id: str
    place: Place
    header_hash: Bytes32 | None
    survivors_hash: Bytes32
    members: tuple[int, ...]
    phase: Literal[Phase.ECHOED] = Phase.ECHOED


@dataclass(frozen=True, slots=True)
class Unmasked:
    """The one answer of rule R5 for this survivor set is saved, and may have left."""

    product_id: str
    place: Place
    header_hash: Bytes32 | None
    survivors_hash: Bytes32
    members: tuple[int, ...]
    phase: Literal[Phase.UNMASKED] = Phase.UNMASKED


@dataclass(frozen=True, slots=True)
class AbortVoted:
    """Promised: no `Unmask` has left for this window, and none ever will."""

    product_id: str
    place: Place
    header_hash: Bytes32 | None
    phase: Literal[Phase.ABORT_VOTED] = Phase.ABORT_VOTED


@dataclass(frozen=True, slots=True)
class Done:
    """The sum was opened; the update is used up."""

    reason: str
    phase: Literal[Phase.DONE] = Phase.DONE


@dataclass(frozen=True, slots=True)
class Freed:
    """Over, and no sum of this window can ever hold this site's vector (rule R6), so the vector may be used again."""

    reason: str
    phase: Literal[Phase.FREED] = Phase.FREED


@dataclass(frozen=True, slots=True)
class Spent:
    """Over, without proof that the vector was never opened: it is never used again (rule R6)."""

    reason: str
    phase: Literal[Phase.SPENT] = Phase.SPENT


State = Annotated[
    Idle | ReadySent | RosterOk | UploadSaved | Uploaded | Echoed | Unmasked | AbortVoted | Done | Freed | Spent,
    Field(discriminator="phase"),
]
Left = UploadSaved | Uploaded
Bound = RosterOk | UploadSaved | Uploaded | Echoed | Unmasked | AbortVoted


# Commands


@dataclass(frozen=True, slots=True)
class ReadyMade:
    product_id: str


@dataclass(frozen=True, slots=True)
class RosterAccepted:
    """A roster that passed `verify_roster`."""

    place: Place


@dataclass(frozen=True, slots=True)
class UploadStored:
    """All chunks and the signed header are on disk, synced."""

    header_hash: Bytes32


@dataclass(frozen=True, slots=True)
class UploadComplete:
    """The aggregator's receipt says so."""


@dataclass(frozen=True, slots=True)
class SurvivorsAccepted:
    """A survivor set that passed rule R4 and the hospital's policy."""

    survivors_hash: bytes
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CertAccepted:
    """A valid echo certificate."""

    survivors_hash: bytes
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AbortRequested:
    pass


@dataclass(frozen=True, slots=True)
class AbortCertified:
    """A valid abort certificate: no t shares of any self seed can ever meet."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The window's end as the platform tells it."""

    outcome: WindowEnd


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer window of the study was opened."""


@dataclass(frozen=True, slots=True)
class Declined:
    """This site will not, or cannot, take part. `code` is one of `problems.SENTENCES`."""

    code: str


@dataclass(frozen=True, slots=True)
class Expired:
    """Its time is over, and nobody said how it ended."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The spool is an older copy of itself: what happened in this window since is not known (rule R8)."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The hospital has left the study."""


Command = (
    ReadyMade
    | RosterAccepted
    | UploadStored
    | UploadComplete
    | SurvivorsAccepted
    | CertAccepted
    | AbortRequested
    | AbortCertified
    | Closed
    | Superseded
    | Declined
    | Expired
    | Abandoned
    | Withdrawn
)


# What follows


@dataclass(frozen=True, slots=True)
class Send:
    """Make the message and save it, or send the one that was saved."""

    what: Literal["ready", "upload", "echo", "unmask", "abort_vote"]


@dataclass(frozen=True, slots=True)
class FreeProduct:
    """The vector may serve in a later window."""


@dataclass(frozen=True, slots=True)
class DiscardProduct:
    """Delete the vector."""


@dataclass(frozen=True, slots=True)
class WipeSecrets:
    """Delete keys, boxes, saved answers and the masked upload (rule R8)."""


@dataclass(frozen=True, slots=True)
class Report:
    """The other side broke the protocol; the code goes to the audit log."""

    code: str


Effect = Send | FreeProduct | DiscardProduct | WipeSecrets | Report
Outcome = tuple[State, tuple[Effect, ...]]


def advance(state: State, command: Command) -> Outcome:
    """The state after the command, and what must happen with it, in the same transaction where it is written down."""
    if isinstance(state, Done | Freed | Spent):
        return state, ()
    match command:
        case ReadyMade(product_id=product_id):
            return (ReadySent(product_id), (Send("ready"),)) if isinstance(state, Idle) else (state, ())
        case RosterAccepted(place=place):
            return _roster(state, place)
        case UploadStored(header_hash=header_hash):
            if isinstance(state, RosterOk):
                return UploadSaved(state.product_id, state.place, header_hash), (Send("upload"),)
            return state, ()
        case UploadComplete():
            if isinstance(state, UploadSaved):
                return Uploaded(state.product_id, state.place, state.header_hash), ()
            return state, ()
        case SurvivorsAccepted():
            return _survivors(state, command)
        case CertAccepted():
            return _certificate(state, command)
        case AbortRequested():
            return _abort_requested(state)
        case AbortCertified():
            return _free("ABORTED") if _bound(state) else (state, ())
        case Closed() | Superseded() | Declined() | Expired() | Abandoned() | Withdrawn():
            return _end(state, command)
        case _:
            assert_never(command)


def included(state: Echoed | Unmasked) -> bool:
    """Whether this site's own vector is in the set it confirmed."""
    return state.place.index in state.members


def has_left(state: State) -> bool:
    """Whether a masked vector may be outside."""
    match state:
        case UploadSaved() | Uploaded():
            return True
        case Echoed() | Unmasked() | AbortVoted():
            return state.header_hash is not None
        case _:
            return False


def _bound(state: State) -> bool:
    return state.phase in BOUND_PHASES


def _free(reason: str) -> Outcome:
    return Freed(reason), (FreeProduct(), WipeSecrets())


def _spend(reason: str) -> Outcome:
    return Spent(reason), (DiscardProduct(), WipeSecrets())


def _roster(state: State, place: Place) -> Outcome:
    match state:
        case ReadySent(product_id=product_id):
            return RosterOk(product_id, place), ()
        case RosterOk() | UploadSaved() | Uploaded() | Echoed() | Unmasked() | AbortVoted():
            # R3: at most one roster per window. Two would give two masks for one vector.
            return state, () if place.roster_hash == state.place.roster_hash else (Report("TWO_ROSTERS"),)
        case _:
            return state, ()


def _survivors(state: State, shown: SurvivorsAccepted) -> Outcome:
    match state:
        case RosterOk() | UploadSaved() | Uploaded():
            header_hash = None if isinstance(state, RosterOk) else state.header_hash
            echoed = Echoed(state.product_id, state.place, header_hash, shown.survivors_hash, shown.members)
            return echoed, (Send("echo"),)
        case Echoed() | Unmasked():
            if shown.survivors_hash != state.survivors_hash:
                return state, (Report("SURVIVORS_CHANGED"),)
            return state, (Send("echo" if isinstance(state, Echoed) else "unmask"),)
        case _:
            return state, ()


def _certificate(state: State, cert: CertAccepted) -> Outcome:
    match state:
        case Echoed() if cert.survivors_hash == state.survivors_hash:
            product_id, place, header_hash = state.product_id, state.place, state.header_hash
            unmasked = Unmasked(product_id, place, header_hash, state.survivors_hash, state.members)
            freed = () if included(state) else (FreeProduct(),)
            return unmasked, (Send("unmask"), *freed)
        case Unmasked() if cert.survivors_hash == state.survivors_hash:
            return state, (Send("unmask"),)
        case Unmasked():
            return state, (Report("CERTIFICATE_CHANGED"),)
        case RosterOk() | UploadSaved() | Uploaded() | Echoed() | AbortVoted():
            reports = (Report("SURVIVORS_SPLIT"),) if isinstance(state, Echoed) else ()
            if state.place.index in cert.members:
                return state, reports
            # R6(a): certified without us, so our self seed can never be rebuilt.
            freed_state, effects = _free("NOT_A_SURVIVOR")
            return freed_state, (*effects, *reports)
        case _:
            return state, ()


def _abort_requested(state: State) -> Outcome:
    match state:
        case RosterOk():
            return AbortVoted(state.product_id, state.place, None), (Send("abort_vote"),)
        case UploadSaved() | Uploaded() | Echoed():
            return AbortVoted(state.product_id, state.place, state.header_hash), (Send("abort_vote"),)
        case AbortVoted():
            return state, (Send("abort_vote"),)
        case _:
            return state, ()


def _end(state: State, command: Closed | Superseded | Declined | Expired | Abandoned | Withdrawn) -> Outcome:
    match command:
        case Closed(outcome=outcome):
            return _closed(state, outcome)
        case Expired():
            return _closed(state, "FAILED", reason="EXPIRED")
        case Superseded():
            return (state, ()) if _bound(state) else _free("SUPERSEDED")
        case Declined(code=code):
            if isinstance(state, Idle | ReadySent):
                return _free(code)
            return _spend(code) if isinstance(state, RosterOk) else (state, ())
        case Abandoned():
            return _spend("ABANDONED")
        case Withdrawn():
            return _spend("GRANT_WITHDRAWN")
        case _:
            assert_never(command)


def _closed(state: State, outcome: WindowEnd, *, reason: str | None = None) -> Outcome:
    reason = reason or outcome
    if isinstance(state, Unmasked) and not included(state):
        return Freed(reason), (WipeSecrets(),)  # its product was freed with the certificate
    if not has_left(state):
        return _free(reason)
    if outcome == "RELEASED":
        return Done(reason), (DiscardProduct(), WipeSecrets())
    return _spend(reason)
