"""What can happen to a window, and what must follow from it. `domain.window.advance` says which follows from which."""

from dataclasses import dataclass
from typing import Literal

from cohortium_connector.domain.window_states import Place
from cohortium_messages.ids import Bytes32
from cohortium_messages.runs import WindowEnd

# Commands


@dataclass(frozen=True, slots=True)
class ReadyMade:
    product_id: str


@dataclass(frozen=True, slots=True)
class RosterAccepted:
    """A roster that passed `verify_roster`."""

    place: Place


@dataclass(frozen=True, slots=True)
class SessionJoined:
    """A roster of a strict session that passed `verify_roster` and the hospital's policy."""

    place: Place


@dataclass(frozen=True, slots=True)
class SessionLost:
    """A strict session cannot go on at this site, or may not: `step` is the one that it stood at."""

    code: str
    step: int


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
    | SessionJoined
    | SessionLost
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
class LeaveSession:
    """Tell the aggregator that no more steps of this session will come, and why."""

    code: str
    step: int


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


Effect = Send | LeaveSession | FreeProduct | DiscardProduct | WipeSecrets | Report
