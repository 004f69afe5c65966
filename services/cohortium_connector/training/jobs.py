"""What a connector asks of its training process, and what it answers: JSON lines over a pipe.

Both ends are the same release, so there is no version in a line. Rows never cross the pipe; vectors are files in the
connector's own work folder, little-endian, int64 (`.i64`) or float32 (`.f32`).
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter

from cohortium_messages.ids import Wire
from cohortium_messages.study import Study
from cohortium_protocol.metrics import Metrics

MAX_LINE_BYTES = 1 << 20
"""A line that is longer ends the process: nothing legitimate comes near it, as a study file has at most 256 KiB."""


class DataSource(Wire):
    """One hospital's table: a CSV or Parquet file, or those rows of it whose `site_column` is `site_value`."""

    path: str
    site_column: str | None = None
    site_value: str | None = None


class Ping(Wire):
    """Is the process alive? Also how the first start is checked."""

    job: Literal["ping"] = "ping"


class ComputeStatistics(Wire):
    """Sums over the training rows into `vector_path` (int64; layout in `cohortium_protocol.statistics`)."""

    job: Literal["statistics"] = "statistics"
    study: Study
    source: DataSource
    vector_path: str


class TrainLocally(Wire):
    """One round at this site: `model_path` in (flat float32, or `.safetensors`), `update_path` out: local − base.

    The random choices follow from the study's seed, `round` and `site_index` alone, so the same task gives the same
    update again after a crash. `benchmark.noise` needs no `preprocessing_path`.
    """

    job: Literal["train"] = "train"
    study: Study
    source: DataSource
    preprocessing_path: str | None = None
    model_path: str
    update_path: str
    round: Annotated[int, Field(ge=0, lt=1 << 32)]
    site_index: Annotated[int, Field(ge=0, lt=1 << 32)]


class Evaluate(Wire):
    """Counts over the test rows into `vector_path` (int64; layout in `cohortium_protocol.metrics`)."""

    job: Literal["evaluate"] = "evaluate"
    study: Study
    source: DataSource
    preprocessing_path: str
    model_path: str
    vector_path: str


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
    Ping | ComputeStatistics | TrainLocally | Evaluate | TrainBaselines,
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


class TrainDone(Wire):
    """`rows` is the weight of the update. `loss` is the mean training loss of the last epoch, for the local log."""

    done: Literal["train"] = "train"
    rows: int
    parameters: int
    norm_l2: float
    loss: float | None
    seconds: float
    peak_mb: float


class EvaluateDone(Wire):
    done: Literal["evaluate"] = "evaluate"
    rows: int
    seconds: float
    peak_mb: float


class Baseline(Wire):
    """A model on all sites' test rows: `exact` from raw scores, `binned` as a federation would compute it."""

    name: str
    training_rows: int
    exact_auc: float | None
    binned: Metrics


class BaselinesDone(Wire):
    """`local` has one entry per site whose table could be used; `refused` names the others with their code."""

    done: Literal["baselines"] = "baselines"
    pooled: Baseline
    local: tuple[Baseline, ...]
    refused: tuple[tuple[str, str], ...]
    seconds: float
    peak_mb: float


class Refusal(Wire):
    """The table or the model does not fit the study. Safe to send to the operator: no row number, no value."""

    done: Literal["refused"] = "refused"
    code: Annotated[str, Field(pattern=r"^[A-Z_]+$")]
    column: str
    count: int


class Failure(Wire):
    """The process itself failed; what happened is in the site's own log. It can take the next job."""

    done: Literal["failed"] = "failed"
    error: str


Answer = Annotated[
    Pong | StatisticsDone | TrainDone | EvaluateDone | BaselinesDone | Refusal | Failure,
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
