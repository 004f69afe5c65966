"""The study file: what is trained, on which columns, by which rules. `contracts/schemas/study.json` is made from it.

A study file is data, never code. Its digest is the SHA-256 of the RFC 8785 canonical JSON of the validated model, so
comments, order and layout of the YAML do not change it.
"""

import hashlib
from typing import Annotated, Literal

import rfc8785
from pydantic import Field, model_validator

from cohortium_messages.ids import STUDY_PATTERN, Wire

ColumnName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
Level = Annotated[str, Field(min_length=1, max_length=64)]


class NumberFeature(Wire):
    """A numeric column. A value outside `range` is an error at that site; `impute` fills a missing one with the
    federated mean and adds an input that says so."""

    name: ColumnName
    type: Literal["float", "int"]
    range: Annotated[tuple[float, float], Field(description="least and greatest value that can be true")]
    missing: Literal["refuse", "impute"] = "refuse"

    @model_validator(mode="after")
    def _ordered(self) -> "NumberFeature":
        if self.range[0] >= self.range[1]:
            raise ValueError(f"range of {self.name} must be [low, high] with low < high")
        return self


class CategoryFeature(Wire):
    """A column with named levels, one input per level. `level` gives a missing value a level of its own."""

    name: ColumnName
    type: Literal["category"]
    levels: Annotated[tuple[Level, ...], Field(min_length=2, max_length=256)]
    missing: Literal["refuse", "level"] = "refuse"

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


class SplitColumn(Wire):
    """The hospital's table says in a column which rows train and which test; other values are left out."""

    column: ColumnName
    train: Level
    test: Level


class SplitFraction(Wire):
    """Each site sets aside this share of its rows for testing, stratified by label, reproducibly from `seed`."""

    test: Annotated[float, Field(gt=0, lt=1)]
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0


class Dataset(Wire):
    unit: Literal["person"] = "person"
    features: Annotated[tuple[Feature, ...], Field(min_length=1, max_length=4096)]
    label: BinaryLabel
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


class NoiseRecipe(Wire):
    """For `make bench`: a model of `parameters` numbers, and a trainer that adds noise to them and reads no row."""

    trainer: Literal["benchmark.noise"]
    parameters: Annotated[int, Field(ge=1, le=2_000_000_000)]


Recipe = Annotated[LogisticRecipe | MlpRecipe | NoiseRecipe, Field(discriminator="trainer")]


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
    T_expire)."""

    ready_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 3600
    upload_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 900
    echo_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 300
    unmask_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 900
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
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    min_sites: Annotated[int, Field(ge=3, le=200)] = 3
    buffer: Annotated[int, Field(ge=3, le=200)] = 3
    max_staleness: Annotated[int, Field(ge=0, le=1000)] = 5
    collusion: Annotated[int, Field(ge=0, le=198)] | None = None
    """Most sites assumed to collude with the operator; left out: max(1, floor((members - 1) / 3))."""
    server: ServerOptimizer = ServerOptimizer()
    proximal_mu: Annotated[float, Field(ge=0, le=100)] = 0.0
    compression: Compression = Compression()
    deadlines: Deadlines = Deadlines()
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0


class NoPrivacy(Wire):
    """The secure sum alone: confidential between hospitals, no formal guarantee about the published model."""

    mode: Literal["none"] = "none"


Metric = Literal["auc", "accuracy", "brier", "calibration"]


class Study(Wire):
    """One version of a study."""

    apiVersion: Literal["cohortium/study/1"]  # noqa: N815 - the field's usual spelling in YAML documents
    name: Annotated[str, Field(pattern=STUDY_PATTERN)]
    purpose: Annotated[str, Field(min_length=1, max_length=2000)]
    dataset: Dataset
    recipe: Recipe
    federation: Federation
    metrics: Annotated[tuple[Metric, ...], Field(max_length=4)] = ("auc", "accuracy", "brier")
    privacy: NoPrivacy = NoPrivacy()

    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON of all fields, defaults written out: what a hospital approves."""
        return hashlib.sha256(rfc8785.dumps(self.model_dump(mode="json"))).digest()
