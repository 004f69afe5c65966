"""What the scheduler tells people about runs: the answers of `GET /runs` and `GET /runs/{id}`."""

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import Field

from cohortium_messages.governance import MAX_ROSTER
from cohortium_messages.ids import Bytes32, RunIdField, SiteIdField, StudyIdField, Wire
from cohortium_messages.paging import MOST_ON_A_PAGE
from cohortium_messages.privacy import PrivacyStatement
from cohortium_messages.runs import EvaluationResult, RunState
from cohortium_messages.secure_sum import ModelRef, Purpose

MOST_ROUNDS: Final = 1000
"""Rounds that the status of one run tells."""


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


TimeSource = Literal["measured", "blended", "report", "declared", "unknown"]
"""Where the time that a site is expected to need comes from. measured: its answers, three or more. blended: fewer
answers, and its report for those that are missing. report: its trial's training probe and line. declared: its line and
its number of processors, where no probe ran. unknown: nowhere."""


class SiteChoice(Wire):
    """Why a round asked a site or did not, where the study asks for fewer than all. `passed`: rounds in a row before
    this one in which it was there and not asked; `usual_s`: the time in which it nearly always gets ready;
    `expected_s`: the time that it was expected to need, by `source`. No times are kept where the study has a privacy
    mode.

    OVERDUE: it had waited long enough to go before all others. PREFERRED: by what it gave so far, how long it waited,
    how reliably and how quickly it answers. ABSENT_BUT_NEEDED: too few others were there. PASSED_OVER: others came
    first. ABSENT: not heard lately.
    """

    site: str
    asked: bool
    reason: Literal["OVERDUE", "PREFERRED", "ABSENT_BUT_NEEDED", "PASSED_OVER", "ABSENT"]
    passed: Annotated[int, Field(ge=0)]
    usual_s: float | None = None
    expected_s: float | None = None
    source: TimeSource | None = None


class SitePace(Wire):
    """An asked site's part in a round's deadlines: the time that it was expected to need until it is ready, where that
    comes from, and how long it alone would be waited for, until it is ready and for its upload. None: not known, so the
    study's time. `answers`: windows whose times are behind it."""

    site: str
    source: TimeSource
    answers: Annotated[int, Field(ge=0)]
    expected_s: float | None = None
    ready_s: float | None = None
    upload_s: float | None = None


class RoundPace(Wire):
    """How long a round waits until its sites are ready and for their uploads: as the slowest of them needs, and never
    longer than the study says."""

    ready_s: float
    upload_s: float
    sites: Annotated[tuple[SitePace, ...], Field(max_length=MAX_ROSTER)]


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
    choices: tuple[SiteChoice, ...] = ()
    """Of the newest 50 rounds, where the study asks for fewer sites than all."""
    pace: RoundPace | None = None
    """Of the newest 50 rounds; None where deadlines are the study's: buffered rounds, privacy modes, LightGBM."""


class WindowStatus(Wire):
    purpose: Purpose
    round: int
    attempt: int
    phase: str
    opened_at: datetime | None
    ready: tuple[str, ...]
    roster: tuple[str, ...]
    deadline: datetime | None = None
    """Of an open window: until when sites are waited for."""
    choices: tuple[SiteChoice, ...] = ()
    pace: RoundPace | None = None


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
    asked: int = 0
    """Rounds of averaging that asked it, and of these `answered`; `usual_s`: the time in which it nearly always gets
    ready, and `usual_from_earlier`: how many of the answers behind it are of the study's run before. Not kept where the
    study has a privacy mode, nor with `mode: buffered`."""
    answered: int = 0
    usual_s: float | None = None
    usual_from_earlier: int = 0


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


class VersionLineage(Wire):
    """One model version: the round that it came of, and the sites in that round's sum. `flagged`: withdrawals (their
    digests) of sites, or of patients of sites, that it learnt from."""

    model: ModelRef
    round: int | None
    sites: tuple[str, ...]
    flagged: tuple[Bytes32, ...] = ()


class RunLineage(Wire):
    """A run's versions, oldest first. `retrains`: the run whose place it takes; `start`: the model it begins with."""

    run_id: RunIdField
    study_id: StudyIdField
    retrains: RunIdField | None = None
    start: ModelRef | None = None
    versions: Annotated[tuple[VersionLineage, ...], Field(max_length=MOST_ON_A_PAGE)]
    next: int | None = None
    """The version to ask for with `after`, where there are more."""


class SecureSumStatus(Wire):
    """The protocol's numbers for the newest cohort: sites, threshold, collusion bound, ring and cost."""

    n: int
    t: int
    c: int
    k_min: int
    ring_bits: int
    parameters: int
    bytes_per_parameter: float


class PrivacyStatus(Wire):
    """What a run promises, and what of it is used. In `mode: none` only the statement, whose sentences say so.

    `sums_charged`: noisy sums that hospitals were charged for and have no certificate to take back: those released, and
    those that failed. `epsilon_spent` is what these cost a training patient (`mode: site`: a hospital), by the
    statement's accountant at its δ. Each hospital's own ledger has the last word, and may hold more for other studies.
    """

    statement: PrivacyStatement
    sums_planned: Annotated[int, Field(ge=0)] = 0
    sums_charged: Annotated[int, Field(ge=0)] = 0
    epsilon_spent: Annotated[float, Field(ge=0)] = 0.0


class RunStatus(RunSummary):
    purpose: str
    mode: str
    model: ModelRef | None
    rounds_done: Annotated[tuple[RoundStatus, ...], Field(max_length=MOST_ROUNDS)]
    """The newest of them."""
    window: WindowStatus | None
    sites: tuple[SiteStatus, ...]
    secure_sum: SecureSumStatus | None
    attempts_failed: int
    privacy: PrivacyStatus | None = None
