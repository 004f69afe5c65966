"""One window as its site sees it: frozen states, one table of transitions, one function.

Everything that changes a window's state is in `advance`. What a command says was verified before it is made
(`cohortium_protocol` checks signatures, rosters, boxes and certificates); here is only decided what follows. A command
that arrives twice, or too late, changes nothing; where the other side may have lost our answer, the saved one is sent
again.

Nothing has left this site before UPLOAD_SAVED but public keys. From UPLOAD_SAVED on, the vector counts as gone out. In
a strict session it counts as gone out from the roster on: masked words may leave at any moment after it.
"""

from typing import assert_never

from cohortium_connector.domain.commands import (
    Abandoned,
    AbortCertified,
    AbortRequested,
    CertAccepted,
    Closed,
    Command,
    Declined,
    DiscardProduct,
    Effect,
    Expired,
    FreeProduct,
    LeaveSession,
    ReadyMade,
    Report,
    RosterAccepted,
    Send,
    SessionJoined,
    SessionLost,
    Superseded,
    SurvivorsAccepted,
    UploadComplete,
    UploadStored,
    WipeSecrets,
    Withdrawn,
)
from cohortium_connector.domain.window_states import (
    BOUND_PHASES,
    AbortVoted,
    Done,
    Echoed,
    Freed,
    Idle,
    InSession,
    Place,
    ReadySent,
    RosterOk,
    Spent,
    State,
    Unmasked,
    Uploaded,
    UploadSaved,
)
from cohortium_messages.runs import WindowEnd

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
        case SessionJoined(place=place):
            return _session_roster(state, place)
        case SessionLost(code=code, step=step):
            return _leave(code, step) if isinstance(state, InSession) else (state, ())
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
            return _free("ABORTED") if _bound(state) and not isinstance(state, InSession) else (state, ())
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
        case UploadSaved() | Uploaded() | InSession():
            return True
        case Echoed() | Unmasked() | AbortVoted():
            return state.header_hash is not None
        case _:
            return False


def left_out(state: State, survivors_hash: bytes, members: tuple[int, ...]) -> bool:
    """Whether a certificate of this set shows that the vector which left stays masked for ever. Not for a second one,
    after an answer: then the first may have been opened."""
    match state:
        case UploadSaved() | Uploaded() | Echoed() | AbortVoted():
            return has_left(state) and state.place.index not in members
        case Unmasked():
            return has_left(state) and state.survivors_hash == survivors_hash and state.place.index not in members
        case _:
            return False


def _bound(state: State) -> bool:
    return state.phase in BOUND_PHASES


def _free(reason: str) -> Outcome:
    return Freed(reason), (FreeProduct(), WipeSecrets())


def _spend(reason: str) -> Outcome:
    return Spent(reason), (DiscardProduct(), WipeSecrets())


def _leave(code: str, step: int = 0) -> Outcome:
    return Spent(code), (LeaveSession(code, step), DiscardProduct(), WipeSecrets())


def _roster(state: State, place: Place) -> Outcome:
    if isinstance(state, ReadySent):
        return RosterOk(state.product_id, place), ()
    return _roster_again(state, place)


def _session_roster(state: State, place: Place) -> Outcome:
    if isinstance(state, ReadySent):
        return InSession(state.product_id, place), ()
    return _roster_again(state, place)


def _roster_again(state: State, place: Place) -> Outcome:
    match state:
        case RosterOk() | UploadSaved() | Uploaded() | Echoed() | Unmasked() | AbortVoted() | InSession():
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
    if isinstance(state, InSession):
        return _session_end(state, command)
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
            return _spend(code) if isinstance(state, RosterOk | UploadSaved) else (state, ())
        case Abandoned():
            return _spend("ABANDONED")
        case Withdrawn():
            return _spend("GRANT_WITHDRAWN")
        case _:
            assert_never(command)


def _session_end(
    state: InSession, command: Closed | Superseded | Declined | Expired | Abandoned | Withdrawn
) -> Outcome:
    match command:
        case Closed(outcome=outcome):
            return _closed(state, outcome)
        case Superseded():
            return state, ()
        case Declined(code=code):
            return _leave(code)
        case Expired():
            return _leave("EXPIRED")
        case Abandoned():
            return _leave("ABANDONED")
        case Withdrawn():
            return _leave("GRANT_WITHDRAWN")
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
