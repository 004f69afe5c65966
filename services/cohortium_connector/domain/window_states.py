"""States of one window as its site sees it, and which may follow which. Each carries what is true in it, no more."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from cohortium_messages.ids import Bytes32


class Phase(StrEnum):
    IDLE = "IDLE"
    READY_SENT = "READY_SENT"
    ROSTER_OK = "ROSTER_OK"
    UPLOAD_SAVED = "UPLOAD_SAVED"
    UPLOADED = "UPLOADED"
    ECHOED = "ECHOED"
    UNMASKED = "UNMASKED"
    ABORT_VOTED = "ABORT_VOTED"
    IN_SESSION = "IN_SESSION"
    DONE = "DONE"
    FREED = "FREED"
    SPENT = "SPENT"


FINAL = (Phase.DONE, Phase.FREED, Phase.SPENT)
OPEN_PHASES = tuple(phase for phase in Phase if phase not in FINAL)
BOUND_PHASES = tuple(phase for phase in OPEN_PHASES if phase not in (Phase.IDLE, Phase.READY_SENT))
"""A roster is accepted: the study's next window waits."""

TRANSITIONS: dict[Phase, tuple[Phase, ...]] = {
    Phase.IDLE: (Phase.READY_SENT, Phase.FREED, Phase.SPENT),
    Phase.READY_SENT: (Phase.ROSTER_OK, Phase.IN_SESSION, Phase.FREED, Phase.SPENT),
    Phase.ROSTER_OK: (Phase.UPLOAD_SAVED, Phase.ECHOED, Phase.ABORT_VOTED, Phase.FREED, Phase.SPENT),
    Phase.UPLOAD_SAVED: (Phase.UPLOADED, Phase.ECHOED, Phase.ABORT_VOTED, Phase.DONE, Phase.FREED, Phase.SPENT),
    Phase.UPLOADED: (Phase.ECHOED, Phase.ABORT_VOTED, Phase.DONE, Phase.FREED, Phase.SPENT),
    Phase.ECHOED: (Phase.UNMASKED, Phase.ABORT_VOTED, Phase.DONE, Phase.FREED, Phase.SPENT),
    Phase.UNMASKED: (Phase.DONE, Phase.FREED, Phase.SPENT),
    Phase.ABORT_VOTED: (Phase.DONE, Phase.FREED, Phase.SPENT),
    Phase.IN_SESSION: (Phase.DONE, Phase.SPENT),
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
class InSession:
    """The roster passed rule R3, and the steps of a strict session are masked under it, in the memory of this process
    alone. So the state does not outlive the process: after a restart the session is left, whatever became of it."""

    product_id: str
    place: Place
    phase: Literal[Phase.IN_SESSION] = Phase.IN_SESSION


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
    Idle
    | ReadySent
    | RosterOk
    | UploadSaved
    | Uploaded
    | Echoed
    | Unmasked
    | AbortVoted
    | InSession
    | Done
    | Freed
    | Spent,
    Field(discriminator="phase"),
]
Bound = RosterOk | UploadSaved | Uploaded | Echoed | Unmasked | AbortVoted
"""A roster is accepted, for one sum. A strict session (`InSession`) has nothing in common with these but the roster."""
