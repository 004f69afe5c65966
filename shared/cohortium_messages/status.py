"""What the scheduler tells people about runs: the answers of `GET /runs` and `GET /runs/{id}`."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from cohortium_messages.ids import Bytes32, RunIdField, SiteIdField, StudyIdField, Wire
from cohortium_messages.runs import EvaluationResult, RunState
from cohortium_messages.secure_sum import ModelRef, Purpose


class BoostingStatus(Wire):
    """How far a LightGBM model has grown. `trees`: boosting rounds that stand (a round of a multiclass model grows one
    tree for each class); while a session is open, as many as its sites say they have finished."""

    trees: Annotated[int, Field(ge=0, le=5000)]
    rounds: Annotated[int, Field(ge=1, le=5000)]
    """Boosting rounds that the study asks for; early stopping, or a site lost for good, may end with fewer."""
    sessions: Annotated[int, Field(ge=0)] = 0
    """Strict sessions so far, each after a pause but the first; one that is open counts when it ends."""
    steps: Annotated[int, Field(ge=0)] = 0
    cohort_changes: Annotated[int, Field(ge=0)] = 0
    """How often training went on with fewer sites than before, which only `allow_cohort_change` permits."""


class RoundStatus(Wire):
    """One finished round: its update window, and the evaluation of the model that came of it where there was one. For
    `lightgbm` the one round is the whole training: `cohort` was in every sum of its last session, and `dropped` are
    sites of earlier ones that did not come back."""

    number: Annotated[int, Field(ge=1)]
    model_version: int
    cohort: tuple[str, ...]
    """Names of the sites whose updates are in the sum."""
    dropped: tuple[str, ...]
    """Names of roster members that are not."""
    refused: tuple[str, ...] = ()
    """Names of sites that refused the task, or whose grant ended, while the round's window was open."""
    seconds: float
    bytes_up: int
    bytes_down: int
    evaluation: EvaluationResult | None = None
    trees: Annotated[int, Field(ge=0, le=5000)] | None = None
    """For `lightgbm`: boosting rounds of the model."""


class WindowStatus(Wire):
    purpose: Purpose
    round: int
    attempt: int
    phase: str
    opened_at: datetime | None
    ready: tuple[str, ...]
    roster: tuple[str, ...]


class SiteStatus(Wire):
    """A member site as the scheduler sees it. `code` is why it refused or was denied, where it was."""

    site_id: SiteIdField
    name: str
    state: str
    last_seen: datetime | None
    progress: float | None
    code: str | None = None
    sentence: str | None = None
    updates_used: int = 0


class RunSummary(Wire):
    run_id: RunIdField
    study_id: StudyIdField
    study_digest: Bytes32
    state: RunState
    reason: str
    sentence: str | None
    round: int
    rounds: int
    created_at: datetime
    ended_at: datetime | None
    boosting: BoostingStatus | None = None
    """For `lightgbm` only."""


class SecureSumStatus(Wire):
    """The protocol's numbers for the newest cohort: sites, threshold, collusion bound, ring and cost."""

    n: int
    t: int
    c: int
    k_min: int
    ring_bits: int
    parameters: int
    bytes_per_parameter: float


class RunStatus(RunSummary):
    purpose: str
    mode: str
    model: ModelRef | None
    rounds_done: tuple[RoundStatus, ...]
    window: WindowStatus | None
    sites: tuple[SiteStatus, ...]
    secure_sum: SecureSumStatus | None
    attempts_failed: int
