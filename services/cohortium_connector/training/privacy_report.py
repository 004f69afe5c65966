"""What a privacy benchmark and a utility calibration are asked, and what they found: plain data.

No row, score or gradient of a patient is in a report: rates over many, and counts. But a report on real rows is itself
made from those rows without noise, so `ABOUT_ROWS` goes with each: publish reports on public data, and keep others.
Imports no training library.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter

from cohortium_connector.training.jobs import NamedSource
from cohortium_messages.ids import StudyIdField, Wire
from cohortium_messages.privacy import Delta, DistributedPrivacy, Epsilon, LocalPrivacy
from cohortium_messages.study import Study

BENCHMARK_FORMAT: Literal["cohortium/privacy-benchmark/1"] = "cohortium/privacy-benchmark/1"
CALIBRATION_FORMAT: Literal["cohortium/privacy-calibration/1"] = "cohortium/privacy-calibration/1"

ABOUT_ROWS = (
    "The figures are computed from the rows without any noise. No patient can be read off them, but nothing formal is "
    "promised about them either: publish a report on public data, and keep one on patients' data in the house."
)

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 31)]
Sites = Annotated[tuple[NamedSource, ...], Field(min_length=1, max_length=200)]
Epsilons = Annotated[tuple[Epsilon, ...], Field(min_length=1, max_length=12)]


# ------------------------------------------------------------------------------------------------------- what is asked


class BenchmarkJob(Wire):
    """Attack models of this study's rows. `models`: how many are fitted of each kind. `runs`: trainings with the
    canary, and as many without, for each promise; 0 leaves canaries out. `most_rows`: of more, a choice by the seed.
    `model`: the folder of a model of this study that is attacked itself besides, with all rows."""

    job: Literal["benchmark"] = "benchmark"
    study: Study
    sites: Sites
    epsilons: Epsilons = (1.0, 8.0)
    delta: Delta = 1e-5
    models: Annotated[int, Field(ge=4, le=256)] = 16
    runs: Annotated[int, Field(ge=0, le=20_000)] = 200
    trials: Annotated[int, Field(ge=1, le=64)] = 6
    most_rows: Annotated[int, Field(ge=60, le=20_000)] = 600
    seed: Seed = 0
    model: str | None = None


class CalibrateJob(Wire):
    """Train the study's recipe at each ε, `repeats` times. `privacy` says the rest: mode, δ, clip, rate, patients; its
    own ε is not used."""

    job: Literal["calibrate"] = "calibrate"
    study: Study
    sites: Sites
    privacy: Annotated[LocalPrivacy | DistributedPrivacy, Field(discriminator="mode")]
    epsilons: Epsilons = (0.5, 1.0, 2.0, 4.0, 8.0)
    repeats: Annotated[int, Field(ge=1, le=50)] = 3
    seed: Seed = 0


PrivacyJob = Annotated[BenchmarkJob | CalibrateJob, Field(discriminator="job")]


# ------------------------------------------------------------------------------------------------------ what was found


class Promise(Wire):
    """(ε, δ) and how it was kept. `epsilon` is promised; `epsilon_pld` is what the steps cost by the tightest
    account."""

    epsilon: float
    delta: float
    epsilon_pld: float
    noise_multiplier: float
    sampling_rate: float
    steps: Count


class AttackFigures(Wire):
    """One membership attack on all models of a kind. `auc_low` and `auc_high`: 99 % interval of the mean AUC over the
    models. `hits_at_1_percent`: members found where one in a hundred others is taken for one. The limits are what the
    promise allows any attacker, None without one. `curve`: (false positive rate, true positive rate)."""

    attack: Literal["loss", "likelihood"]
    auc: Share
    auc_low: float
    auc_high: float
    advantage: Share
    hits_at_1_percent: Share
    auc_limit: float | None
    advantage_limit: float | None
    curve: tuple[tuple[Share, Share], ...]

    @property
    def beats_guessing(self) -> bool:
        """Whether chance is ruled out, at the level of the interval."""
        return self.auc_low > 0.5


class MembershipFigures(Wire):
    """One kind of model: `recipe`, the study's own; `overfitted`, a wide network trained to know its rows by heart;
    `private`, the same network trained with a promise. AUC of the models on members and on others."""

    kind: Literal["recipe", "overfitted", "private"]
    promise: Promise | None
    models: Count
    member_auc: Share
    other_auc: Share
    attacks: tuple[AttackFigures, ...]

    @property
    def strongest(self) -> AttackFigures:
        """The attack with the largest AUC."""
        return max(self.attacks, key=lambda attack: attack.auc)


Seen = Literal["update", "masked", "sum", "local", "distributed"]


class InversionFigures(Wire):
    """Rows reconstructed from one step's gradient, by what the attacker sees: `update`, one hospital's update as it is;
    `masked`, what the operator gets of it in the secure sum; `sum`, what the secure sum opens to; `local` and
    `distributed`, the update and the sum with noise.

    `patients`: at each of `sites` hospitals. `error`: squared distance from a true row to the nearest reconstruction,
    over that of a guess (0 exact, 1 no better). `identified`: of the `wanted` patients behind what is seen, over
    all steps that were tried, those whose row is the nearest in the whole table to a reconstruction; `guessed`: which
    share of them rows picked at random would be.
    """

    seen: Seen
    promise: Promise | None
    patients: Count
    sites: Count
    error: Annotated[float, Field(ge=0)]
    identified: Count
    wanted: Count
    guessed: Share


class CanaryFigures(Wire):
    """Runs with a made-up patient and without, guessed apart. `bound`: the mechanism's ε is above it at this δ, but for
    a chance of `error`. `control`: the noise was cut to a fraction on purpose, to show that a broken promise is found;
    the promise is then the one that was broken."""

    mode: Literal["local", "distributed"]
    control: bool
    promise: Promise
    hits: Count
    present: Count
    alarms: Count
    absent: Count
    bound: Annotated[float, Field(ge=0)]
    error: float

    @property
    def refuted(self) -> bool:
        """Whether the runs show that the promise is not kept."""
        return self.bound > self.promise.epsilon


class ModelFigures(Wire):
    """The loss attack on one given model: its own training rows among these tables' rows, told from the test rows by
    the loss. `auc_low` and `auc_high`: 95 % interval."""

    method: str
    auc: Share
    auc_low: Share
    auc_high: Share
    members: Annotated[int, Field(ge=1)]
    others: Annotated[int, Field(ge=1)]


class BenchmarkReport(Wire):
    """`cohortium privacy benchmark`: all attacks on one study's rows."""

    format: Literal["cohortium/privacy-benchmark/1"] = BENCHMARK_FORMAT
    study: StudyIdField
    study_digest: str
    sites: Count
    rows: Count
    seed: Seed
    membership: tuple[MembershipFigures, ...]
    inversion: tuple[InversionFigures, ...]
    canaries: tuple[CanaryFigures, ...]
    seconds: float
    versions: dict[str, str]
    model: ModelFigures | None = None
    """Of the model that was named, if one was."""


class Quality(Wire):
    """AUC on all sites' test rows, over the repeats."""

    auc: Share
    auc_least: Share
    auc_most: Share


class UtilityPoint(Wire):
    """One ε. `noise_to_signal`: noise of one released mean over the largest mean that could be, in L2."""

    promise: Promise
    noise_to_signal: float
    quality: Quality


class CalibrationReport(Wire):
    """`cohortium privacy calibrate`: what a recipe reaches at each ε. `without`: the same recipe, rounds and inputs
    without clip and noise."""

    format: Literal["cohortium/privacy-calibration/1"] = CALIBRATION_FORMAT
    study: StudyIdField
    study_digest: str
    trainer: str
    mode: Literal["local", "distributed"]
    sites: Count
    training_rows: Count
    test_rows: Count
    patients: Count
    clip: float
    repeats: Count
    seed: Seed
    without: Quality
    points: tuple[UtilityPoint, ...]
    seconds: float
    versions: dict[str, str]


class Said(Wire):
    """A line on how far it is, for whoever waits."""

    answer: Literal["said"] = "said"
    text: str


class Refused(Wire):
    """It cannot be done: why, and the way out. For the one who asked, on the same machine."""

    answer: Literal["refused"] = "refused"
    text: str


class Benchmarked(Wire):
    """The end of a benchmark."""

    answer: Literal["benchmarked"] = "benchmarked"
    report: BenchmarkReport


class Calibrated(Wire):
    """The end of a calibration."""

    answer: Literal["calibrated"] = "calibrated"
    report: CalibrationReport


Answer = Annotated[Said | Refused | Benchmarked | Calibrated, Field(discriminator="answer")]


class PrivacyLines:
    """How the child's lines are read: one job in, answers out, the last of which is no `Said`."""

    job: ClassVar[TypeAdapter[PrivacyJob]] = TypeAdapter(PrivacyJob)
    answers: ClassVar[TypeAdapter[Answer]] = TypeAdapter(Answer)


# ----------------------------------------------------------------------------------------------------------- in words


def benchmark_words(report: BenchmarkReport) -> Iterator[str]:
    """What was found, in plain sentences: attack by attack, without praise."""
    yield from (_membership_words(figures) for figures in report.membership)
    yield from _inversion_words(report)
    yield from (_canary_words(figures) for figures in report.canaries)
    if report.model is not None:
        yield _model_words(report.model)


def _model_words(figures: ModelFigures) -> str:
    shown = f"AUC {figures.auc:.3f}, 95 % interval {figures.auc_low:.3f} to {figures.auc_high:.3f}; 0.5 is a coin"
    told = "can be told" if figures.auc_low > 0.5 else "could not be told"
    return f"This model itself: {figures.members:,} training rows {told} from {figures.others:,} test rows ({shown})."


def kind_words(figures: MembershipFigures) -> str:
    """What a kind of model is called."""
    if figures.promise is not None:
        return f"the same network with ε = {figures.promise.epsilon:g}"
    return {"recipe": "the study's recipe, no privacy"}.get(figures.kind, "an overfitted network, no privacy")


CLEARLY = 0.6
"""AUC of an attack from which on it is more than a little."""


def _membership_words(figures: MembershipFigures) -> str:
    best = figures.strongest
    name = kind_words(figures)
    shown = f"AUC {best.auc:.3f}, 99 % interval {best.auc_low:.3f} to {best.auc_high:.3f}; 0.5 is a coin"
    if not best.beats_guessing:
        return f"{_capital(name)}: who was in the training could not be told from a coin ({shown})."
    how = "can be told" if best.auc >= CLEARLY else "can be told a little better than by a coin"
    return (
        f"{_capital(name)}: who was in the training {how} ({shown}); where one in a hundred others is taken for "
        f"a member, {best.hits_at_1_percent:.1%} of the members are found."
    )


SEEN_WORDS: dict[Seen, str] = {
    "update": "one hospital's update as it is",
    "masked": "the same update as the operator gets it in the secure sum",
    "sum": "what the secure sum opens to",
    "local": "one hospital's update with local noise",
    "distributed": "what the secure sum opens to with distributed noise",
}


def _inversion_words(report: BenchmarkReport) -> Iterator[str]:
    for figures in report.inversion:
        each = "patient" if figures.patients == 1 else "patients"
        yield (
            f"From {SEEN_WORDS[figures.seen]}, {figures.patients} {each} a hospital{_with(figures.promise)}: "
            f"{figures.identified} of {figures.wanted} patients behind it were identified among {report.rows:,} rows; "
            f"picking at random finds {figures.guessed:.1%}."
        )


def _with(promise: Promise | None) -> str:
    return "" if promise is None else f", ε = {promise.epsilon:g}"


def _canary_words(figures: CanaryFigures) -> str:
    runs = figures.present + figures.absent
    bound = f"ε is at least {figures.bound:.2f} (at {1 - figures.error:.1%} confidence, {runs:,} runs counted)"
    if figures.control:
        verdict = (
            "is refuted, as it should be" if figures.refuted else "was not refuted: too few runs to find even this"
        )
        return (
            f"Control, {figures.mode} noise with most of it left out: {bound}. The promise of "
            f"{figures.promise.epsilon:g} {verdict}."
        )
    verdict = "IS REFUTED" if figures.refuted else "is not contradicted"
    return f"Canaries, {figures.mode} noise: {bound}. The promise of {figures.promise.epsilon:g} {verdict}."


FEW_STEPS = 100


def calibration_words(report: CalibrationReport) -> Iterator[str]:
    """The curve in plain sentences."""
    without = report.without.auc
    yield f"Without privacy the recipe reaches an AUC of {without:.3f} on {report.test_rows:,} test rows."
    for point in report.points:
        lost = without - point.quality.auc
        word = "less" if lost >= 0 else "more"
        yield f"At ε = {point.promise.epsilon:g}: {point.quality.auc:.3f}, {abs(lost):.3f} {word}."
    steps = report.points[0].promise.steps
    if report.mode == "distributed" and steps < FEW_STEPS:
        yield (
            f"With distributed noise a round is one step: these are models of {steps} steps. A part of what they lack "
            "is training; plan more rounds, of which each costs little noise."
        )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
