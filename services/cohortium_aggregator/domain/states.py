"""What a window is at each moment: frozen states that carry their data, the commands they take, the events."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from cohortium_aggregator.domain.strict_states import (
    AssembleModel,
    Assembling,
    Progress,
    Stepping,
    StrictCommand,
)
from cohortium_protocol.survivors import SurvivorSet, abort_quorum
from cohortium_protocol.window import RosterView

Outcome = Literal["RELEASED", "CANCELLED", "PAUSED", "ABORTED", "FAILED", "FAILED_INTEGRITY"]
Index = int
"""A site's place in the roster, from 1."""
Indices = frozenset[Index]


@dataclass(frozen=True, slots=True)
class Timers:
    """Seconds that a trip may take before the next thing is tried."""

    upload_s: float
    echo_s: float
    unmask_s: float


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed when the roster was fixed, and never changes. `least`: fewest survivors that sites confirm."""

    view: RosterView
    step: int
    timers: Timers
    expires_at: datetime
    least: int

    @property
    def votes_needed(self) -> int:
        """So many promises leave fewer than t sites that could still open a sum, even if c of them lie."""
        return abort_quorum(self.view)

    @property
    def everyone(self) -> Indices:
        return frozenset(self.view.indices)


@dataclass(frozen=True, slots=True)
class Collecting:
    """ROSTER_FIXED: uploads come in, by index the hash of the header.

    `conflicts`: pairs whose two ends committed to different seeds. `excluded`: sites that may not take part any more.
    Of neither is anybody in U, but for sites that conflict with proven liars only.
    """

    deadline: datetime
    uploads: Mapping[Index, bytes] = field(default_factory=dict)
    conflicts: frozenset[tuple[Index, Index]] = frozenset()
    excluded: Indices = frozenset()
    extensions_left: int = 1


@dataclass(frozen=True, slots=True)
class Echoing:
    """SURVIVORS_FIXED: sites confirm that all were shown the same U, which is immutable from here on."""

    survivors: SurvivorSet
    ask_at: datetime
    echoes: Mapping[Index, bytes] = field(default_factory=dict)
    asked: int = 0


@dataclass(frozen=True, slots=True)
class Unmasking:
    """CERTIFIED: shares come in. `need` is t, or more once t answers did not rebuild every seed."""

    survivors: SurvivorSet
    echoes: Mapping[Index, bytes]
    ask_at: datetime
    need: int
    answered: Indices = frozenset()
    asked: int = 0


@dataclass(frozen=True, slots=True)
class Opening:
    """OPENED: enough shares are stored. The sum can be made from the records at any time, and again after a crash.
    `left`: survivors that left meanwhile, because of whom it will be thrown away."""

    survivors: SurvivorSet
    echoes: Mapping[Index, bytes]
    answered: Indices
    left: Indices = frozenset()


@dataclass(frozen=True, slots=True)
class Aborting:
    """The window will not be opened; promises come in that free the updates."""

    reason: str
    ask_at: datetime
    until: datetime
    votes: Mapping[Index, bytes] = field(default_factory=dict)
    asked: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """Final. The certificate is kept, since it answers uploads that come too late.

    `progress` and `gone` are of a strict session: what it had grown, and the sites that ended it. `blamed`: sites
    proven to have made the window fail, as long as at most c sites lie.
    """

    outcome: Outcome
    reason: str = ""
    survivors: SurvivorSet | None = None
    echoes: Mapping[Index, bytes] = field(default_factory=dict)
    votes: Mapping[Index, bytes] = field(default_factory=dict)
    progress: Progress | None = None
    gone: Indices = frozenset()
    blamed: Indices = frozenset()


State = Collecting | Echoing | Unmasking | Opening | Aborting | Stepping | Assembling | Ended

CODES: Final[Mapping[type[State], str]] = {
    Collecting: "ROSTER_FIXED",
    Echoing: "SURVIVORS_FIXED",
    Unmasking: "CERTIFIED",
    Opening: "OPENED",
    Aborting: "ABORTING",
    Stepping: "STEPPING",
    Assembling: "ASSEMBLING",
    Ended: "ENDED",
}

TRANSITIONS: Final[Mapping[type[State], frozenset[type[State]]]] = {
    Collecting: frozenset({Echoing, Aborting, Ended}),
    Echoing: frozenset({Unmasking, Aborting, Ended}),
    Unmasking: frozenset({Opening, Ended}),
    Opening: frozenset({Unmasking, Ended}),  # back only where the shares at hand do not fit their commitments
    Aborting: frozenset({Ended}),
    Stepping: frozenset({Assembling, Ended}),
    Assembling: frozenset({Ended}),
    Ended: frozenset(),
}


@dataclass(frozen=True, slots=True)
class UploadArrived:
    """Header and all chunks of a site are stored and fit each other. `conflicts`: complete uploads of other sites that
    commit to another value for the seed they have in common with this one."""

    index: Index
    header_hash: bytes
    conflicts: Indices = frozenset()


@dataclass(frozen=True, slots=True)
class UploadSeen:
    """A site asks about its upload, or sends a part of it."""

    index: Index


@dataclass(frozen=True, slots=True)
class MemberLeft:
    """The site's grant or its key has ended. A sum that is not certified yet is made without it, or aborted; one that
    is cannot leave it out any more, and is set aside."""

    index: Index


@dataclass(frozen=True, slots=True)
class MembershipChanged:
    """A roster member is not in the study's newest manifest."""


@dataclass(frozen=True, slots=True)
class EchoArrived:
    """The signature was checked against this window's survivor set."""

    index: Index
    survivors_hash: bytes
    sig: bytes


@dataclass(frozen=True, slots=True)
class SharesArrived:
    """The signature was checked, the shares open and have the form of rule R5, and are stored."""

    index: Index
    survivors_hash: bytes


@dataclass(frozen=True, slots=True)
class VoteArrived:
    index: Index
    sig: bytes


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Time has gone on; the state knows which of its moments are over."""


@dataclass(frozen=True, slots=True)
class SumReleased:
    """The sum was opened, its check words are right, and what came of it is stored."""


@dataclass(frozen=True, slots=True)
class SumRefused:
    """The sum was opened and thrown away."""

    outcome: Literal["FAILED", "FAILED_INTEGRITY"]
    reason: str


@dataclass(frozen=True, slots=True)
class SharesUnusable:
    """The shares of `used` rebuild no seed that fits the commitment of `dealer`."""

    used: Indices
    dealer: Index | None


@dataclass(frozen=True, slots=True)
class RunOver:
    """The run has ended; nothing of this window is wanted any more."""

    reason: str


Command = (
    UploadArrived
    | UploadSeen
    | MemberLeft
    | MembershipChanged
    | EchoArrived
    | SharesArrived
    | VoteArrived
    | TimePassed
    | SumReleased
    | SumRefused
    | SharesUnusable
    | RunOver
    | StrictCommand
)


@dataclass(frozen=True, slots=True)
class ShowSurvivors:
    """Send `Survivors` to these sites, for the `attempt`-th time."""

    indices: Indices
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class ShowCertificate:
    """Send `EchoCert` to these sites; `attempt` is None for an answer to a site that came too late."""

    indices: Indices
    attempt: int | None = 0


@dataclass(frozen=True, slots=True)
class AskAbort:
    indices: Indices
    reason: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class ShowAbortCertificate:
    indices: Indices
    attempt: int | None = 0


@dataclass(frozen=True, slots=True)
class OpenSum:
    """Rebuild the seeds, add, unmask."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """Put on record that this sum holds sites which left, and that no model comes of it."""

    indices: Indices
    opened: bool


@dataclass(frozen=True, slots=True)
class FaultFound:
    """This site broke the protocol; the code says how."""

    index: Index
    code: str


@dataclass(frozen=True, slots=True)
class WindowOver:
    """Tell roster and scheduler, write the events, wipe the uploads."""

    outcome: Outcome
    reason: str


Event = (
    ShowSurvivors
    | ShowCertificate
    | AskAbort
    | ShowAbortCertificate
    | OpenSum
    | AssembleModel
    | FaultFound
    | SetAside
    | WindowOver
)
Step = tuple[State, tuple[Event, ...]]
