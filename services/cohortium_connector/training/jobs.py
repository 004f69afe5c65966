"""What a connector asks of its training process, and what it answers: JSON lines over a pipe.

Both ends are the same release, so there is no version in a line. Rows never cross the pipe; vectors are files in the
connector's own work folder, little-endian, int64 (`.i64`) or float32 (`.f32`).
"""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter, model_validator

from cohortium_messages.ids import Bytes16, Bytes32, Wire
from cohortium_messages.runs import EvaluationResult
from cohortium_messages.secure_sum import Index, NoiseSpec, StrictSpec
from cohortium_messages.study import Study
from cohortium_protocol.metrics import Metrics

MAX_LINE_BYTES = 1 << 20
"""A line that is longer ends the process: nothing legitimate comes near it, as a study file has at most 256 KiB."""


class ConsentSource(Wire):
    """Where patients' decisions are: a `table` (CSV or Parquet) or FHIR Consent resources (`fhir`, NDJSON).

    `policy` and `purpose`: only decisions about them count, beside those that name none.
    """

    kind: Literal["table", "fhir"]
    path: str
    policy: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    purpose: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    required: bool = True
    """A patient without a decision is left out. The hospital's data-use terms can demand it, and cannot relax it."""


class DataSource(Wire):
    """One hospital's table: a CSV or Parquet file, or those rows of it whose `site_column` is `site_value`.

    `person_column` names the patient of each row. With it, `consent` and `optout_path` (a file with one person a line)
    decide who may be used. `permitted_path` is set by the connector alone: a JSON list of the persons whose rows are
    read, everybody else's are left out.

    `first_record_column` has the day of each patient's first record in this hospital, the same in all of the patient's
    rows and for ever: by its quarter a private study is charged to them (`cohortium_privacy.ledger`).
    """

    path: str
    site_column: str | None = None
    site_value: str | None = None
    person_column: str | None = None
    first_record_column: str | None = None
    consent: ConsentSource | None = None
    optout_path: str | None = None
    permitted_path: str | None = None

    @model_validator(mode="after")
    def _persons_are_named(self) -> "DataSource":
        if self.person_column is None and (self.consent or self.optout_path or self.permitted_path):
            raise ValueError("consent and optout_path need person_column: the column that names each row's patient")
        if self.person_column is None and self.first_record_column is not None:
            raise ValueError("first_record_column needs person_column: the column that names each row's patient")
        return self


class PrivateWork(Wire):
    """What is done to a vector for differential privacy. `seed` is secret: who knows it can take the noise off.

    `sites`: the most that a sum of it may have, for which the ring has room. `blocks`: those that the ledger charged,
    and no patient of another one is used; None where all of the table were charged together.
    """

    noise: NoiseSpec
    seed: Annotated[Bytes32, Field(repr=False)]
    sites: Index
    blocks: tuple[str, ...] | None = None


class Ping(Wire):
    """Is the process alive? Also how the first start is checked."""

    job: Literal["ping"] = "ping"


class ComputeStatistics(Wire):
    """Sums over the training rows into `vector_path` (int64; layout in `cohortium_protocol.statistics`). For a private
    study the one word 0, and no row is read."""

    job: Literal["statistics"] = "statistics"
    study: Study
    source: DataSource
    vector_path: str


class TrainLocally(Wire):
    """One round at this site: `model_path` in (flat float32, or `.safetensors`), `update_path` out: local − base.

    The random choices follow from the study's seed, `round` and `site_index` alone, so the same task gives the same
    update again after a crash. `benchmark.noise` needs no `preprocessing_path`. For `lightgbm.random_trees` the model
    is its text, empty before the first trees, and the update the sums of its leaves (int64; `trees.random_trees`).

    `private` is there if and only if the study promises something (`private_jobs`). The update is then float32 in mode
    `local`, and integers with noise (int64) in the others.
    """

    job: Literal["train"] = "train"
    study: Study
    source: DataSource
    preprocessing_path: str | None = None
    model_path: str
    update_path: str
    round: Annotated[int, Field(ge=0, lt=1 << 32)]
    site_index: Annotated[int, Field(ge=0, lt=1 << 32)]
    private: PrivateWork | None = None


class CountPatients(Wire):
    """Patients in the table, persons and not rows, for the site's own privacy ledger."""

    job: Literal["count_patients"] = "count_patients"
    study: Study
    source: DataSource


class Evaluate(Wire):
    """Counts over the test rows into `vector_path` (int64; layout in `cohortium_protocol.trees.evaluation`). With
    `private`, which private studies have: two histograms with noise."""

    job: Literal["evaluate"] = "evaluate"
    study: Study
    source: DataSource
    preprocessing_path: str
    model_path: str
    vector_path: str
    private: PrivateWork | None = None


class TakeCohort(Wire):
    """Who may be used at this moment (`consents`): their list into `folder`, and the tags that commit to them. Of a
    source without `person_column` every row counts, and there is no list.

    `required`: a patient without a decision is left out. `salt` and `context`: `cohortium_protocol.cohorts`.
    """

    job: Literal["take_cohort"] = "take_cohort"
    source: DataSource
    required: bool
    at: datetime
    context: Bytes16
    salt: Annotated[Bytes32, Field(repr=False)]
    folder: str


class ComputeRefinement(Wire):
    """The second sum of a study with trees, over the training rows, into `vector_path` (int64; `trees.binning`)."""

    job: Literal["refinement"] = "refinement"
    study: Study
    source: DataSource
    preprocessing_path: str
    vector_path: str


class PrepareTrees(Wire):
    """Before a strict session: read and check the table, and say what the training would see."""

    job: Literal["prepare_trees"] = "prepare_trees"
    study: Study
    source: DataSource
    preprocessing_path: str


class TrainTrees(Wire):
    """LightGBM's part at one site of a strict session. Needs a live line (`live_wire`) for as long as it runs.

    `index` is the site's place in the roster of `sites`, from 1. `base_model_path` is the model that
    `strict.from_model` names, and None without it. `journal_path` is this run's journal: made when it is missing, gone
    on with where `strict.trees_done` is not 0. `data_digest` is what `PrepareTrees` said when the run's first session
    began. `timeout_s` bounds each wait for an answer; the connector is expected to end the line long before.
    """

    job: Literal["train_trees"] = "train_trees"
    study: Study
    source: DataSource
    preprocessing_path: str
    base_model_path: str | None = None
    journal_path: str
    strict: StrictSpec
    sites: Index
    index: Index
    data_digest: Bytes32
    timeout_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 86400.0


class NamedSource(Wire):
    name: str
    source: DataSource


class TrainBaselines(Wire):
    """For `simulate --compare`, where all tables are on one machine: pooled and per-site models by the same recipe."""

    job: Literal["baselines"] = "baselines"
    study: Study
    sites: Annotated[tuple[NamedSource, ...], Field(min_length=1, max_length=200)]
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0


Job = Annotated[
    Ping
    | ComputeStatistics
    | ComputeRefinement
    | CountPatients
    | TakeCohort
    | TrainLocally
    | PrepareTrees
    | TrainTrees
    | Evaluate
    | TrainBaselines,
    Field(discriminator="job"),
]


class Pong(Wire):
    """`isolated` is true when the process has no network. `peak_mb` is its largest resident size so far."""

    done: Literal["ping"] = "ping"
    isolated: bool
    peak_mb: float


class StatisticsDone(Wire):
    """Counts stay inside the hospital; they go out only as a part of the summed vector."""

    done: Literal["statistics"] = "statistics"
    train_rows: int
    test_rows: int
    seconds: float
    peak_mb: float


class CountDone(Wire):
    """Stays inside the hospital. `blocks`: patients by the quarter of their first record, or all together as `all`."""

    done: Literal["count_patients"] = "count_patients"
    patients: int
    blocks: dict[str, int]
    seconds: float
    peak_mb: float


class CohortTaken(Wire):
    """Stays inside the hospital: exact counts. `persons` are candidates with a row, `rows_unnamed` rows that name none,
    which are left out. `root` commits to `permitted` persons; `tags_path` holds their sorted tags, 32 bytes each. Where
    the table names nobody, all of this counts rows, and `permitted_path` is None."""

    done: Literal["take_cohort"] = "take_cohort"
    persons: int
    permitted: int
    excluded: dict[str, int]
    rows_unnamed: int
    root: Bytes32
    permitted_path: str | None
    tags_path: str
    seconds: float
    peak_mb: float


class TrainDone(Wire):
    """`rows` is the weight of the update: 1 in a private study. `loss` is the mean training loss of the last epoch, for
    the local log; of a private study's work neither it nor `norm_l2` is said."""

    done: Literal["train"] = "train"
    rows: int
    parameters: int
    norm_l2: float | None
    loss: float | None
    seconds: float
    peak_mb: float


class PrepareDone(Wire):
    """`data_digest`: SHA-256 over the training rows as the study reads them, labels and order included."""

    done: Literal["prepare_trees"] = "prepare_trees"
    rows: int
    data_digest: Bytes32
    seconds: float
    peak_mb: float


class TreesDone(Wire):
    """The session was played to its end. Of `rounds` boosted ones, the model keeps `best_round`; of all, `replayed`
    came out of the journal. `steps` counts the questions that were asked."""

    done: Literal["train_trees"] = "train_trees"
    rounds: int
    best_round: int
    replayed: int
    steps: int
    seconds: float
    peak_mb: float


class EvaluateDone(Wire):
    done: Literal["evaluate"] = "evaluate"
    rows: int
    seconds: float
    peak_mb: float


class Baseline(Wire):
    """A model on all sites' test rows: `exact` from raw scores, `binned` as a federation would compute it. For trees
    `evaluation` has all that a federation would publish; `binned` then holds what there is of it for binary labels."""

    name: str
    training_rows: int
    exact_auc: float | None
    binned: Metrics
    evaluation: EvaluationResult | None = None


class BaselinesDone(Wire):
    """`local` has one entry per site whose table could be used; `refused` names the others with their code. `bagging`,
    for `lightgbm`: the sites' own models added up, each by its share of the rows."""

    done: Literal["baselines"] = "baselines"
    pooled: Baseline
    local: tuple[Baseline, ...]
    bagging: Baseline | None = None
    refused: tuple[tuple[str, str], ...]
    seconds: float
    peak_mb: float


class Refusal(Wire):
    """The table or the model does not fit the study. Safe to send to the operator: no row number, no value."""

    done: Literal["refused"] = "refused"
    code: Annotated[str, Field(pattern=r"^[A-Z_]+$")]
    column: str
    count: int


class Stopped(Wire):
    """The connector ended the session with STOP and this code; the journal holds what was agreed until then."""

    done: Literal["stopped"] = "stopped"
    code: str
    rounds: int


class Failure(Wire):
    """The process itself failed; what happened is in the site's own log. It can take the next job."""

    done: Literal["failed"] = "failed"
    error: str


Answer = Annotated[
    Pong
    | StatisticsDone
    | CountDone
    | CohortTaken
    | TrainDone
    | PrepareDone
    | TreesDone
    | EvaluateDone
    | BaselinesDone
    | Stopped
    | Refusal
    | Failure,
    Field(discriminator="done"),
]


class Started(Wire):
    """The first line of the process. `network` is `none` when it has been cut off, else why it was not."""

    ready: Literal[True] = True
    isolated: bool
    network: str


class StartRefused(Wire):
    """The first and only line of a process that may not run without isolation here."""

    ready: Literal[False] = False
    reason: str


class Lines:
    """How the lines are read."""

    jobs: ClassVar[TypeAdapter[Job]] = TypeAdapter(Job)
    answers: ClassVar[TypeAdapter[Answer]] = TypeAdapter(Answer)
    first: ClassVar[TypeAdapter[Started | StartRefused]] = TypeAdapter(Started | StartRefused)
