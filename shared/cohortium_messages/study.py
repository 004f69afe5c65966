"""The study file: what is trained, on which columns, by which rules. `contracts/schemas/study.json` is made from it.

A study file is data, never code. Its digest is the SHA-256 of the RFC 8785 canonical JSON of the validated model, so
comments, order and layout of the YAML do not change it.
"""

import hashlib
from typing import Annotated, Any, Final, Literal

import rfc8785
from pydantic import Field, model_validator

from cohortium_messages.ids import STUDY_PATTERN, Wire
from cohortium_messages.lightgbm import OBJECTIVES, LightgbmParams, Objective
from cohortium_messages.privacy import NoPrivacy, Privacy

ColumnName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
Level = Annotated[str, Field(min_length=1, max_length=64)]


def _is_none(value: object) -> bool:
    return value is None


Unit = Annotated[
    Annotated[str, Field(min_length=1, max_length=40)] | None,
    Field(exclude_if=_is_none, description="what the numbers count, as UCUM writes it: mg/L, a, mm[Hg]"),
]
"""For people, who must bring their tables to it, and in the model's schema; nothing converts. A study without one keeps
its digest."""


class NumberFeature(Wire):
    """A numeric column. A value outside `range` is an error at that site; `impute` fills a missing one with the
    federated mean and adds an input that says so; `native` leaves it to the trees, which learn a side for it."""

    name: ColumnName
    type: Literal["float", "int"]
    range: Annotated[tuple[float, float], Field(description="least and greatest value that can be true")]
    unit: Unit = None
    missing: Literal["refuse", "impute", "native"] = "refuse"

    @model_validator(mode="after")
    def _ordered(self) -> "NumberFeature":
        if self.range[0] >= self.range[1]:
            raise ValueError(f"range of {self.name} must be [low, high] with low < high")
        return self


class CategoryFeature(Wire):
    """A column with named levels, one input per level (for trees: one column of codes). `level` gives a missing value a
    level of its own; `native` leaves it to the trees."""

    name: ColumnName
    type: Literal["category"]
    levels: Annotated[tuple[Level, ...], Field(min_length=2, max_length=256)]
    missing: Literal["refuse", "level", "native"] = "refuse"

    @model_validator(mode="after")
    def _distinct(self) -> "CategoryFeature":
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(f"levels of {self.name} must be distinct")
        return self


Feature = Annotated[NumberFeature | CategoryFeature, Field(discriminator="type")]


class BinaryLabel(Wire):
    """The outcome: a column of 0 and 1 (or true and false). It may not be missing."""

    name: ColumnName
    type: Literal["binary"]


class MulticlassLabel(Wire):
    """The outcome: one of at least three named levels. It may not be missing. For the tree trainers."""

    name: ColumnName
    type: Literal["multiclass"]
    levels: Annotated[tuple[Level, ...], Field(min_length=3, max_length=100)]


class NumberLabel(Wire):
    """The outcome: a number inside `range`, which is public and bounds every gradient. For the tree trainers."""

    name: ColumnName
    type: Literal["number"]
    range: Annotated[tuple[float, float], Field(description="least and greatest value that can be true")]
    unit: Unit = None

    @model_validator(mode="after")
    def _ordered(self) -> "NumberLabel":
        if self.range[0] >= self.range[1]:
            raise ValueError(f"range of {self.name} must be [low, high] with low < high")
        return self


class CountLabel(Wire):
    """The outcome: a whole number from 0 to `most`, such as days or visits. For the tree trainers."""

    name: ColumnName
    type: Literal["count"]
    most: Annotated[int, Field(ge=1, le=1_000_000)]


Label = Annotated[BinaryLabel | MulticlassLabel | NumberLabel | CountLabel, Field(discriminator="type")]


class SplitColumn(Wire):
    """The hospital's table says in a column which rows train and which test; other values are left out."""

    column: ColumnName
    train: Level
    test: Level


class SplitFraction(Wire):
    """Each site sets aside this share of its rows for testing, stratified by label, reproducibly from `seed`.

    In a private study each patient is drawn with this chance, by the patient's own name (or row) and `seed` alone: a
    patient more or less moves nobody else. Without stratification the share is about this one.
    """

    test: Annotated[float, Field(gt=0, lt=1)]
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0


COHORT_TOLERANCE: Final = 0.2


def _is_usual_tolerance(value: float) -> bool:
    return value == COHORT_TOLERANCE


class Dataset(Wire):
    unit: Literal["person"] = "person"
    cohort_tolerance: Annotated[float, Field(ge=0, le=1, exclude_if=_is_usual_tolerance)] = COHORT_TOLERANCE
    """By what share of the cohort that it approved a site's number of patients may change, up or down, before the site
    pauses and asks its people. The usual share is not written into the canonical JSON, so that older studies keep their
    digest."""
    features: Annotated[tuple[Feature, ...], Field(min_length=1, max_length=4096)]
    label: Label
    split: SplitColumn | SplitFraction

    @model_validator(mode="after")
    def _distinct_columns(self) -> "Dataset":
        names = [feature.name for feature in self.features] + [self.label.name]
        if isinstance(self.split, SplitColumn):
            names.append(self.split.column)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"columns are named twice: {', '.join(twice)}")
        return self


class LocalTraining(Wire):
    """What one site does with a model in one round."""

    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 32
    optimizer: Literal["sgd", "adam"] = "adam"
    lr: Annotated[float, Field(gt=0, le=10)] = 0.01
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0


class LogisticRecipe(Wire):
    """Logistic regression by gradient descent in PyTorch."""

    trainer: Literal["torch.logistic"]
    local: LocalTraining = LocalTraining()


class MlpRecipe(Wire):
    """A fully connected network with ReLU between the layers."""

    trainer: Literal["torch.mlp"]
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(min_length=1, max_length=16)]
    local: LocalTraining = LocalTraining()


class ImageShape(Wire):
    """Pixels of a record's picture. The study's features are their columns: channel by channel, row by row."""

    height: Annotated[int, Field(ge=2, le=2048)]
    width: Annotated[int, Field(ge=2, le=2048)]
    channels: Annotated[int, Field(ge=1, le=64)] = 1

    @property
    def inputs(self) -> int:
        """Columns that make one picture."""
        return self.height * self.width * self.channels


class CnnRecipe(Wire):
    """A convolutional network over a picture whose pixels are the numeric features. For each of `channels`: 3x3
    convolutions with a border of zeros, ReLU, means of 2x2 pixels; then one linear layer. No layer mixes records."""

    trainer: Literal["torch.cnn"]
    image: ImageShape
    channels: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=5)]
    local: LocalTraining = LocalTraining()

    @model_validator(mode="after")
    def _can_be_halved(self) -> "CnnRecipe":
        times, image = len(self.channels), self.image
        if image.height % (1 << times) or image.width % (1 << times):
            raise ValueError(
                f"image of {image.height} x {image.width} pixels cannot be halved {times} times, once for each of "
                f"channels: name fewer channels, or sides that {1 << times} divides"
            )
        return self


GradientRecipe = LogisticRecipe | MlpRecipe | CnnRecipe
"""What is trained by gradients, in every privacy mode."""


class NoiseRecipe(Wire):
    """For `make bench`: a model of `parameters` numbers, and a trainer that adds noise to them and reads no row."""

    trainer: Literal["benchmark.noise"]
    parameters: Annotated[int, Field(ge=1, le=2_000_000_000)]


class LightgbmRecipe(Wire):
    """LightGBM itself, its own distributed learner, every collective a secure sum. `rounds`: boosting rounds; a round
    grows one tree, or one for each class. `federation.trees` says the same in another place."""

    trainer: Literal["lightgbm"]
    rounds: Annotated[int, Field(ge=1, le=5000)] | None = None
    params: LightgbmParams = LightgbmParams()
    class_weight: dict[Level, Annotated[float, Field(gt=0, le=1000)]] | None = None
    """Weight of a row by its label's level (`"0"` and `"1"` for a binary label)."""
    validation: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    """Share of each site's training rows that early stopping is decided on; all rows train without early stopping."""


class RandomTreesRecipe(Wire):
    """Totally random trees: splits drawn from the study's public ranges, leaf values from secure sums. The only trees
    that the system offers with differential privacy."""

    trainer: Literal["lightgbm.random_trees"]
    trees: Annotated[int, Field(ge=1, le=5000)]
    depth: Annotated[int, Field(ge=1, le=8)] = 4
    trees_per_sum: Annotated[int, Field(ge=1, le=100)] = 1
    """Trees whose leaves are filled in one secure sum, from the same gradients. Fewer sums, a little less accuracy."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    lambda_l2: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    grid: Annotated[int, Field(ge=2, le=1024)] = 64
    """Thresholds that a numeric feature's range is divided by."""


TREE_TRAINERS = ("lightgbm", "lightgbm.random_trees")

Recipe = Annotated[
    LogisticRecipe | MlpRecipe | CnnRecipe | LightgbmRecipe | RandomTreesRecipe | NoiseRecipe,
    Field(discriminator="trainer"),
]


class ServerOptimizer(Wire):
    """How the mean update moves the global model: FedAvg (McMahan et al. 2017), FedAvgM (Hsu et al. 2019), FedAdam,
    FedYogi and FedAdagrad (Reddi et al. 2021, algorithm 2). `tau` is their degree of adaptivity."""

    optimizer: Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"] = "fedavg"
    lr: Annotated[float, Field(gt=0, le=100)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Annotated[float, Field(gt=0, le=1)] = 1e-3


def _four_times_the_trips(deadlines: dict[str, float]) -> float:
    return 4 * sum(deadlines.get(trip, 0.0) for trip in ("upload_s", "echo_s", "unmask_s"))


class Deadlines(Wire):
    """Seconds that each trip of a window may take (the protocol's timers T_ready, T_upload, T_echo, T_unmask,
    T_expire); `step_s` is for one step of a strict session."""

    ready_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 3600
    upload_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 900
    echo_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 300
    unmask_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 900
    step_s: Annotated[float, Field(gt=0, le=86400)] = 30
    expire_s: Annotated[float, Field(gt=0, le=30 * 86400)] = Field(default_factory=_four_times_the_trips)
    """After this a window that too few sites completed is given up, and with their votes its updates are free for the
    next one. Left out: four times the trips after the roster."""


class Compression(Wire):
    """How an update is put on the ring. `ring_bits` 16 with rotation costs 2 bytes a parameter; 12 and 8 pack tighter
    for small cohorts; `keep` below 1 sends a shared random choice of coordinates (random-k, the same at all
    sites)."""

    ring_bits: Literal[8, 12, 16, 32] = 16
    rotate: bool = True
    keep: Annotated[float, Field(gt=0, le=1)] = 1.0
    clip_norm_l2: Annotated[float, Field(gt=0, le=1e6)] = 10.0

    @model_validator(mode="after")
    def _rotate_small_rings(self) -> "Compression":
        if self.ring_bits <= 16 and not self.rotate:
            raise ValueError("ring_bits of 16 or less needs rotate: true; without rotation use ring_bits: 32")
        return self


class Federation(Wire):
    mode: Literal["synchronous", "buffered"] = "synchronous"
    rounds: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Rounds of averaging, for the torch trainers."""
    trees: Annotated[int, Field(ge=1, le=5000)] | None = None
    """For `lightgbm`: boosting rounds, instead of `recipe.rounds`."""
    min_sites: Annotated[int, Field(ge=3, le=200)] = 3
    participants: Annotated[int, Field(ge=3, le=200)] | None = None
    """Sites that are asked in each round of averaging; left out: all. Who is asked when is the scheduler's choice:
    nobody is left out for long, and those who are quick and reliable are preferred (not with a privacy mode: then all
    take turns)."""
    buffer: Annotated[int, Field(ge=3, le=200)] = 3
    max_staleness: Annotated[int, Field(ge=0, le=1000)] = 5
    collusion: Annotated[int, Field(ge=0, le=198)] | None = None
    """Most sites assumed to collude with the operator; left out: max(1, floor((members - 1) / 3))."""
    server: ServerOptimizer = ServerOptimizer()
    proximal_mu: Annotated[float, Field(ge=0, le=100)] = 0.0
    compression: Compression = Compression()
    deadlines: Deadlines = Deadlines()
    recruiting_deadline_s: Annotated[float, Field(gt=0, le=366 * 86400)] = 90 * 86400
    """How long a run waits for `min_sites` members to grant before it fails; people grant at their own pace."""
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    rejoin_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 600
    """Of a strict session: how long the others wait for a site that has dropped out."""
    allow_cohort_change: bool = False
    """Of a strict session: may the others go on without it? Two sums over the same rows whose cohorts differ by one
    site show that site's part to whoever sees both. So false is the default: then the trees so far are published."""
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0


Metric = Literal["auc", "accuracy", "brier", "calibration", "log_loss", "rmse", "mae", "r2"]
"""For binary labels: auc, accuracy, brier, calibration, log_loss. Multiclass: accuracy, log_loss. Numbers and counts:
rmse, mae, r2."""

DEFAULT_METRICS: dict[str, tuple[Metric, ...]] = {
    "binary": ("auc", "accuracy", "brier"),
    "multiclass": ("accuracy", "log_loss"),
    "number": ("rmse", "mae", "r2"),
    "count": ("rmse", "mae", "r2"),
}


def _usual_metrics(fields: dict[str, Any]) -> tuple[Metric, ...]:
    dataset = fields.get("dataset")
    return DEFAULT_METRICS[dataset.label.type] if isinstance(dataset, Dataset) else ()


class Study(Wire):
    """One version of a study."""

    apiVersion: Literal["cohortium/study/1"]  # noqa: N815 - the field's usual spelling in YAML documents
    name: Annotated[str, Field(pattern=STUDY_PATTERN)]
    purpose: Annotated[str, Field(min_length=1, max_length=2000)]
    dataset: Dataset
    recipe: Recipe
    federation: Federation
    metrics: Annotated[tuple[Metric, ...], Field(max_length=5)] = Field(default_factory=_usual_metrics)
    """Left out: those of `DEFAULT_METRICS` for the label's type."""
    privacy: Privacy = NoPrivacy()
    governance: Literal["required", "trial"] = "required"
    """`required`: every hospital takes part only on signed agreements, ethics approvals and data-use terms (see
    `contracts/consent.md`). `trial`: a hospital's grant alone is enough, as in a simulation; results say so."""
    release_sites: Annotated[int, Field(ge=0, le=200)] = 0
    """Member hospitals that must sign the release of the model, beside a governance officer. Before that it is a
    candidate."""

    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON of all fields, defaults written out: what a hospital approves."""
        return hashlib.sha256(self.canonical()).digest()

    def canonical(self) -> bytes:
        """RFC 8785 canonical JSON of all fields, defaults written out but for the usual `dataset.cohort_tolerance`."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @property
    def rounds(self) -> int:
        """Windows that change the model: rounds of averaging, sums of random trees, or the one session of LightGBM."""
        match self.recipe:
            case LightgbmRecipe():
                return 1
            case RandomTreesRecipe(trees=trees, trees_per_sum=batch):
                return -(-trees // batch)
            case _:
                return self.federation.rounds or 1

    @property
    def boosting_rounds(self) -> int:
        """For `lightgbm`: how many rounds are boosted at most. 0 for other trainers."""
        if not isinstance(self.recipe, LightgbmRecipe):
            return 0
        return self.recipe.rounds or self.federation.trees or 0

    @property
    def objective(self) -> Objective | None:
        """Of a study with trees: the loss they are grown for, by default that of the label's type. None for others."""
        match self.recipe:
            case LightgbmRecipe(params=params):
                return params.objective or OBJECTIVES[self.dataset.label.type][0]
            case RandomTreesRecipe():
                return OBJECTIVES[self.dataset.label.type][0]
            case _:
                return None

    @property
    def trees_per_round(self) -> int:
        """Trees that one boosting round grows: one for each class of a multiclass label, one for any other."""
        label = self.dataset.label
        return len(label.levels) if isinstance(label, MulticlassLabel) else 1
