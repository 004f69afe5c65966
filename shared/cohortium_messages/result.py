"""`result.json`: what came of a simulated federation. `contracts/schemas/result.json` is made from it.

It holds only what the platform published or what the simulation measured on itself: sums over the cohort, identifiers,
counts, seconds and bytes. No number in it describes a single hospital's rows, except where `--compare` was asked for:
`metrics.pooled`, `metrics.bagging` and `metrics.local` come from tables that only a simulation has in one place.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from cohortium_messages.governance import Reason
from cohortium_messages.ids import RunIdField, StudyIdField, Wire
from cohortium_messages.privacy import PrivacyStatement
from cohortium_messages.runs import EvaluationResult, FeatureImportance, RunState
from cohortium_messages.secure_sum import PrivacyMode
from cohortium_messages.status import BoostingStatus, RoundStatus, SecureSumStatus, SiteStatus

RESULT_SCHEMA: Literal["cohortium/result/1"] = "cohortium/result/1"

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Loss = Annotated[float, Field(ge=0)]


class CalibrationResult(Wire):
    """Do scores mean what they say? Slope and intercept of log-odds(outcome) on log-odds(score): 1 and 0 at best."""

    ece: float | None = None
    """Expected calibration error."""
    slope: float | None = None
    intercept: float | None = None
    observed_expected: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, float | None]) -> "CalibrationResult":
        """From an evaluation. A number that this version has no place for is left out."""
        return cls(**{name: value for name, value in values.items() if name in cls.model_fields})


class MetricsResult(Wire):
    """Metrics of one model on test rows. None: the study did not ask for it, or it is not defined there.

    `auc_error_bound` is the most by which the AUC of unbinned scores can differ; 0 where raw scores were at hand.
    `positives` is 0 for labels that are not binary. `rmse` and `mae` are in the label's own unit.
    """

    rows: Count
    positives: Count
    auc: Share | None = None
    auc_error_bound: Share | None = None
    accuracy: Share | None = None
    brier: Share | None = None
    calibration: CalibrationResult | None = None
    log_loss: Loss | None = None
    rmse: Loss | None = None
    mae: Loss | None = None
    r2: Annotated[float, Field(le=1)] | None = None
    importance: Annotated[tuple[FeatureImportance, ...], Field(max_length=4096)] | None = None
    """For a federated model of trees: its features in the order of the study."""
    count_noise: Loss | None = None
    """All of it comes from noisy counts, each with a deviation of so many rows: differential privacy."""

    @classmethod
    def of(cls, evaluation: EvaluationResult) -> "MetricsResult":
        """From the evaluation that the aggregator opened."""
        calibration = evaluation.calibration
        return cls(
            rows=evaluation.rows,
            positives=evaluation.positives,
            auc=evaluation.auc,
            auc_error_bound=evaluation.auc_error_bound,
            accuracy=evaluation.accuracy,
            brier=evaluation.brier,
            calibration=None if calibration is None else CalibrationResult.of(calibration),
            log_loss=evaluation.log_loss,
            rmse=evaluation.rmse,
            mae=evaluation.mae,
            r2=evaluation.r2,
            importance=evaluation.importance,
            count_noise=evaluation.count_noise,
        )


class MetricsTable(Wire):
    """All on the test rows of all sites together. `pooled`, `bagging` and `local` are there with `--compare` only."""

    federated: MetricsResult | None = None
    """Of the last model that was evaluated; None if none was."""
    pooled: MetricsResult | None = None
    """Of the same recipe trained on all sites' training rows in one place."""
    bagging: MetricsResult | None = None
    """For LightGBM: of the mean of the local models' scores, weighted by their rows."""
    local: dict[str, MetricsResult] = Field(default_factory=dict)
    """By site name: of the same recipe trained on that site's rows alone."""


class RoundResult(Wire):
    """One finished round. A member in none of the three lists was not asked, or was not ready in time."""

    number: Annotated[int, Field(ge=1)]
    model_version: Count
    cohort: tuple[str, ...]
    """Names of the sites whose updates are in the sum."""
    dropped: tuple[str, ...]
    """Names of roster members that are not."""
    refused: tuple[str, ...] = ()
    """Names of sites that declined this round's task, or had no valid grant for it."""
    seconds: Seconds
    bytes_up: Count
    bytes_down: Count
    metrics: MetricsResult | None = None

    @classmethod
    def of(cls, status: RoundStatus, refused: tuple[str, ...] = ()) -> "RoundResult":
        """From the scheduler's record."""
        return cls(
            number=status.number,
            model_version=status.model_version,
            cohort=status.cohort,
            dropped=status.dropped,
            refused=refused,
            seconds=max(0.0, status.seconds),
            bytes_up=status.bytes_up,
            bytes_down=status.bytes_down,
            metrics=None if status.evaluation is None else MetricsResult.of(status.evaluation),
        )


class SiteResult(Wire):
    """One member at the run's end, as the platform knows it; nothing of its rows."""

    name: str
    state: str
    updates_used: Count
    code: Reason | None = None
    sentence: str | None = None

    @classmethod
    def of(cls, status: SiteStatus) -> "SiteResult":
        """From the scheduler's record."""
        return cls(
            name=status.name,
            state=status.state,
            updates_used=status.updates_used,
            code=status.code,
            sentence=status.sentence,
        )


class SecureSumResult(Wire):
    """The protocol's numbers for the newest cohort."""

    n: Annotated[int, Field(ge=1, le=200)]
    """Sites in the cohort."""
    t: Annotated[int, Field(ge=1, le=200)]
    """Sites that must answer to open a sum: n - t may vanish after their upload."""
    c: Annotated[int, Field(ge=0, le=198)]
    """Sites that may collude, with each other and the operator."""
    k_min: Annotated[int, Field(ge=1, le=200)]
    """Fewest sites in a sum that is opened."""
    ring: Literal[8, 12, 16, 32, 64]
    """Bits of one word: sums are taken modulo 2^ring."""
    parameters: Count
    bytes_per_parameter: Annotated[float, Field(ge=0)]
    """Uploaded by one site in one round, over the number of parameters."""

    @classmethod
    def of(cls, status: SecureSumStatus) -> "SecureSumResult":
        """From the scheduler's record."""
        values = status.model_dump()
        return cls.model_validate(values | {"ring": values.pop("ring_bits")})


class TrainingResult(Wire):
    """How a LightGBM model was grown: in how many strict sessions, by how many steps."""

    trees: Count
    """Boosting rounds of the model."""
    rounds: Annotated[int, Field(ge=1)]
    """Boosting rounds that the study asked for."""
    sessions: Count
    steps: Count
    """Sums and exchanges, over all sessions: each is waited for at every site."""
    cohort_changes: Count
    """How often training went on with fewer sites than before."""
    seconds: Seconds
    """From the first session's opening to the last one's end, waiting for lost sites included."""

    @classmethod
    def of(cls, boosting: BoostingStatus, rounds: tuple[RoundStatus, ...]) -> "TrainingResult":
        """From the scheduler's record."""
        return cls(**boosting.model_dump(), seconds=sum(max(0.0, done.seconds) for done in rounds))


class AuditCheck(Wire):
    """One question to the audit bundle and its answer. `skipped`: an earlier failure left nothing to ask it of."""

    name: str
    state: Literal["passed", "failed", "skipped"]
    fact: str


class AuditResult(Wire):
    """What the offline check of the audit bundle found."""

    tree_size: Count
    root: str
    verified: bool
    keys_pinned: bool = False
    """Whether the officers' keys were given from outside, or taken from the bundle itself."""
    checks: tuple[AuditCheck, ...] = ()


class Timing(Wire):
    """Seconds by phase. None: the phase did not take place."""

    setup_s: Seconds
    """From the start to a federation that could begin: parts, services, enrolment, grants."""
    run_s: Seconds
    """From the study's submission to the run's final state."""
    compare_s: Seconds | None = None
    verify_s: Seconds | None = None
    total_s: Seconds | None = None


class RunOptions(Wire):
    """How the simulation was started: enough to start it again. Addresses and credentials are not in it."""

    parts: Literal["embedded", "real"]
    """In-memory broker and SQLite, or RabbitMQ and PostgreSQL."""
    processes: Literal["one", "many"]
    seed: Count | None = None
    drop: dict[str, str] = Field(default_factory=dict)
    """`--drop` by site name: `7:before` or `7:after`."""
    slow: dict[str, Seconds] = Field(default_factory=dict)
    """`--slow` by site name: seconds added to its training."""
    compare: bool = False
    trainer: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the libraries that shape the result, by distribution name."""


class Result(Wire):
    """The whole of `result.json`. `reason` and `sentence` say why a run ended otherwise than planned."""

    model_config = ConfigDict(serialize_by_alias=True)

    schema_: Literal["cohortium/result/1"] = Field(default=RESULT_SCHEMA, alias="schema")
    study: StudyIdField
    run_id: RunIdField
    state: RunState
    reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Z0-9_]*$")] = ""
    sentence: str | None = None
    mode: Literal["synchronous", "buffered"]
    governance: Literal["required", "trial"] = "trial"
    """`trial`: hospitals' grants alone were asked for, no agreements, ethics approvals or data-use terms."""
    privacy_mode: PrivacyMode = "none"
    privacy: PrivacyStatement | None = None
    """What the run promises: the same as in the model card, the attestation and the log."""
    rounds_planned: Count
    rounds: tuple[RoundResult, ...]
    metrics: MetricsTable
    sites: tuple[SiteResult, ...]
    training: TrainingResult | None = None
    """For the trainer `lightgbm` only."""
    secure_sum: SecureSumResult | None
    """None: no cohort was ever formed, or its sums have no parameters (`lightgbm`)."""
    audit: AuditResult | None
    """None: no bundle could be fetched."""
    timing: Timing
    processes: dict[str, Annotated[float, Field(ge=0)]]
    """Peak resident megabytes (10^6 bytes) by role; of one process, if all roles share one."""
    options: RunOptions

    def to_json(self) -> str:
        """The file's text: indented, and ended by a newline."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Result":
        """Read it back; raises pydantic's `ValidationError`."""
        return cls.model_validate_json(text)


def federated_metrics(rounds: tuple[RoundResult, ...]) -> MetricsResult | None:
    """Metrics of the last model that was evaluated."""
    return next((round_.metrics for round_ in reversed(rounds) if round_.metrics is not None), None)
