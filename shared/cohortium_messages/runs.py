"""The course of a run: offers, refusals, presence, sessions between scheduler and aggregator, models on their way
down."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from cohortium_messages.governance import Manifest, Permit, Reason
from cohortium_messages.ids import Bitmap, Bytes16, Bytes32, RunIdField, Sealed, SiteIdField, StudyIdField, Wire
from cohortium_messages.registry import Message
from cohortium_messages.secure_sum import U32, ModelRef, Purpose, Roster, WindowOpen
from cohortium_messages.study import Study

RunState = Literal["RECRUITING", "PREPARING", "TRAINING", "FINISHED", "FAILED", "STOPPED"]
"""RECRUITING: waits for manifest and grants. PREPARING: the statistics sum. The last three are final."""

WindowEnd = Literal["RELEASED", "CANCELLED", "PAUSED", "ABORTED", "FAILED", "FAILED_INTEGRITY"]
"""PAUSED: a strict session lost a site; what it had grown stands, and another session may go on from there."""


class StudyOffered(Message, type_name="cohortium.study.offered.v1"):
    """Scheduler to each member: this study version asks for your grant. The hospital decides."""

    study: Study
    study_digest: Bytes32
    run_id: RunIdField
    manifest: Manifest


class TaskRefused(Message, type_name="cohortium.task.refused.v1"):
    """Site to scheduler: not this window, and why, as a code. Nothing of the data that led to it."""

    window_id: Bytes16
    run_id: RunIdField
    site_id: SiteIdField
    code: Reason
    column: Annotated[str, Field(max_length=64)] | None = None
    """The column that broke the study's contract, where one did. Its name is public; its values never are."""


class Presence(Message, type_name="cohortium.site.presence.v1"):
    """Site to scheduler, every few seconds, not kept: I am here, and this is what I am doing."""

    site_id: SiteIdField
    state: Literal["idle", "training", "evaluating", "waiting", "uploading", "paused"]
    run_id: RunIdField | None = None
    progress: Annotated[float, Field(ge=0, le=1)] | None = None
    sent_at: datetime


class RunStart(Wire):
    """A model of another run that this one begins with."""

    run_id: RunIdField
    model: ModelRef


class RunStarted(Message, type_name="cohortium.run.started.v1"):
    """Scheduler to aggregator: what will be summed, for whom. `start`: the run begins with this model, if it is still
    kept; `RunPrepared` answers."""

    run_id: RunIdField
    study: Study
    study_digest: Bytes32
    manifest: Manifest
    start: RunStart | None = None


class SessionOpened(Message, type_name="cohortium.session.opened.v1"):
    """Scheduler to aggregator: the roster is fixed. The aggregator stores it, then shows it to the sites."""

    open: WindowOpen
    roster: Roster
    manifest: Manifest
    permits: Annotated[tuple[Permit, ...], Field(max_length=200)] = ()
    """Consent's answers about the roster's sites. A site whose permission ends before the sum is fixed is left out."""


class FeatureImportance(Wire):
    """How much a model of trees uses one feature: the mean of |SHAP| over the sites' test rows (on the scale of the raw
    score, over all classes), the gain of its splits on the summed histograms, and their number."""

    name: Annotated[str, Field(max_length=64)]
    shap: Annotated[float, Field(ge=0)] | None
    gain: Annotated[float, Field(ge=0)]
    splits: Annotated[int, Field(ge=0)]


class EvaluationResult(Wire):
    """Metrics of one model version on the sites' test rows, from sums of histograms and of losses. None: not asked for,
    or not defined there. `positives` is 0 for labels that are not binary."""

    model: ModelRef
    rows: Annotated[int, Field(ge=0)]
    positives: Annotated[int, Field(ge=0)]
    auc: float | None = None
    auc_error_bound: float | None = None
    accuracy: float | None = None
    brier: float | None = None
    calibration: dict[str, float | None] | None = None
    log_loss: float | None = None
    rmse: float | None = None
    mae: float | None = None
    r2: float | None = None
    importance: Annotated[tuple[FeatureImportance, ...], Field(max_length=4096)] | None = None
    count_noise: Annotated[float, Field(ge=0)] | None = None
    """Where metrics come from noisy histograms (differential privacy): the standard deviation, in rows, of the noise in
    each of their 200 counts. `rows` and `positives` are then noisy, too."""


class SessionClosed(Message, type_name="cohortium.session.closed.v1"):
    """Aggregator to scheduler: how a window ended. Sites are listed by id; `dropped` are roster members outside U."""

    run_id: RunIdField
    window_id: Bytes16
    purpose: Purpose
    state: WindowEnd
    reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Z_]*$")] = ""
    survivors: tuple[SiteIdField, ...] = ()
    dropped: tuple[SiteIdField, ...] = ()
    bytes_up: Annotated[int, Field(ge=0)] = 0
    bytes_down: Annotated[int, Field(ge=0)] = 0
    training_rows: Annotated[int, Field(ge=0)] | None = None
    """From the statistics sum: rows that train, over all sites. The scheduler sets the weight cap from it."""
    saturated_sites: Annotated[int, Field(ge=0)] = 0
    model: ModelRef | None = None
    parameters: Annotated[int, Field(ge=0)] | None = None
    evaluation: EvaluationResult | None = None
    refine: bool = False
    """After the statistics of a study with trees: some features need the refining sum before bins can be cut."""
    trees: Annotated[int, Field(ge=0, le=5000)] | None = None
    """Of a strict session: boosting rounds that stand, over all of the run's sessions."""
    chain: Bytes32 | None = None
    """Of a strict session: the hash chain over the results that led to them."""
    steps: Annotated[int, Field(ge=0)] = 0
    blamed: Annotated[tuple[SiteIdField, ...], Field(max_length=200)] = ()
    """Sites proven to have made the window fail, as long as at most c sites lie: dealers of shares that fit nothing."""


class RunEnded(Message, type_name="cohortium.run.ended.v1"):
    """Scheduler to the aggregator and to the sites: the run is over; what was kept for it may go."""

    run_id: RunIdField
    study_id: StudyIdField
    state: Literal["FINISHED", "FAILED", "STOPPED"]
    reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Z_]*$")] = ""
    model: ModelRef | None = None


class ModelWanted(Message, type_name="cohortium.model.wanted.v1"):
    """Site to aggregator: send me this version; `have` marks the chunks already here (LSB first), empty for none.
    `seal_pk` is a fresh X25519 key; the version's content key comes back sealed to it."""

    run_id: RunIdField
    version: U32
    site_id: SiteIdField
    seal_pk: Bytes32
    have: Bitmap | None = None


class ModelOffered(Message, type_name="cohortium.model.offered.v1"):
    """Aggregator to the asking site; the chunks follow on its bulk queue. `model_hash` binds parameters and
    preprocessing."""

    run_id: RunIdField
    version: U32
    model_hash: Bytes32
    parameters_sha256: Bytes32
    size: Annotated[int, Field(ge=0, le=1 << 36)]
    chunk_bytes: Annotated[int, Field(ge=1, le=1 << 20)]
    chunks: Annotated[int, Field(ge=0, le=1 << 20)]
    preprocessing: dict[str, Any]
    wrapped_key: Sealed


class ModelUnavailable(Message, type_name="cohortium.model.unavailable.v1"):
    run_id: RunIdField
    version: U32
    reason: Reason
