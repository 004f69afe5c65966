"""A strict session as a window: one state while it steps, one while its model is written.

A step takes milliseconds and is never on record; what is on record are the boosting rounds that stand. So these states
say which process has the session in its memory, and how far it had come when it last said so.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Stop = Literal["PAUSED", "FAILED"]
"""How a session ends early. PAUSED: what it has grown stands, and another session may go on from there."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a strict session has come.

    `trees`: boosting rounds of the run, over all its sessions, that stand; `chain`: the hash chain over the results
    that led to them. `steps`, `sums` and bytes are of this session alone.
    """

    trees: int
    chain: bytes
    steps: int = 0
    sums: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, slots=True)
class Stepping:
    """STEPPING: a strict session runs. Its steps are in the memory of one aggregator process, the `owner`.

    `owner` is empty until the first frame has come. `until`: when the session is lost unless its owner renews its word;
    without an owner, until when some site must have begun.
    """

    progress: Progress
    until: datetime
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Assembling:
    """ASSEMBLING: the session is over, and a model version is made of the rounds that stand, at any time and again
    after a crash.

    `keep`: so many of the rounds are the model, the best ones where training stopped early. `gone`: sites that ended
    the session.
    """

    outcome: Literal["RELEASED", "PAUSED"]
    reason: str
    progress: Progress
    keep: int
    gone: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class SessionTaken:
    """`owner` has a frame of this session in hand and will hold its steps. Whoever held them before has lost them."""

    owner: str
    until: datetime


@dataclass(frozen=True, slots=True)
class SessionLives:
    """The owner still holds the session, and has come so far."""

    owner: str
    until: datetime
    progress: Progress


@dataclass(frozen=True, slots=True)
class SessionBroken:
    """The owner ends the session: a site is silent, or broke the protocol. `gone`: which ones."""

    owner: str
    outcome: Stop
    reason: str
    progress: Progress
    gone: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class TrainingDone:
    """All sites agreed that training is over and that the first `keep` rounds are the model."""

    owner: str
    progress: Progress
    keep: int


@dataclass(frozen=True, slots=True)
class SiteStopped:
    """A site says that it cannot go on in this session."""

    index: int
    outcome: Stop
    reason: str


@dataclass(frozen=True, slots=True)
class ModelAssembled:
    """The model version of the rounds that stand is stored, or it was there already."""


StrictCommand = SessionTaken | SessionLives | SessionBroken | TrainingDone | SiteStopped | ModelAssembled


@dataclass(frozen=True, slots=True)
class AssembleModel:
    """Make the model version of the rounds that stand."""
