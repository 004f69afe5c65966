"""What makes no sense in a study when its parts are taken together: each finding is a place, a fact and a remedy."""

import json
from collections.abc import Iterator
from typing import Any, Final

from cohortium_messages.study import (
    TREE_TRAINERS,
    CategoryFeature,
    CnnRecipe,
    Dataset,
    Metric,
    MulticlassLabel,
    NumberFeature,
    NumberLabel,
    SplitColumn,
    Study,
)
from cohortium_messages.study_checks_privacy import privacy_checks
from cohortium_messages.study_checks_trees import tree_checks

MISSING_VALUES: Final = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
"""Texts, whatever their case, that stand for a missing value in a hospital's table."""

METRICS: Final[dict[str, tuple[Metric, ...]]] = {
    "binary": ("auc", "accuracy", "brier", "calibration", "log_loss"),
    "multiclass": ("accuracy", "log_loss"),
    "number": ("rmse", "mae", "r2"),
    "count": ("rmse", "mae", "r2"),
}
"""By the type of the study's label: metrics that can be computed of it."""

Place = tuple[str | int, ...]
"""Keys and indices from the root of the document."""

Finding = tuple[Place, str, str]


def cross_checks(study: Study) -> Iterator[Finding]:
    """Everything that is wrong with a study whose parts are each well-formed."""
    yield from _dataset_checks(study.dataset)
    yield from _missing_checks(study)
    yield from _picture_checks(study)
    yield from _rounds_checks(study)
    yield from _federation_checks(study)
    yield from tree_checks(study)
    yield from _metric_checks(study)
    yield from privacy_checks(study)


def _dataset_checks(dataset: Dataset) -> Iterator[Finding]:
    for index, feature in enumerate(dataset.features):
        place: Place = ("dataset", "features", index)
        if isinstance(feature, NumberFeature):
            yield from _number_checks(feature, place)
        else:
            yield from _level_checks(feature.levels, place, way_out="Leave it out, and write missing: level.")
    label = dataset.label
    if isinstance(label, NumberLabel):
        yield from _width_check(label.range, ("dataset", "label"))
    if isinstance(label, MulticlassLabel):
        yield from _level_checks(
            label.levels, ("dataset", "label"), way_out="Leave it out: a label may not be missing."
        )
    split = dataset.split
    if isinstance(split, SplitColumn) and same_value(split.train, split.test):
        fact = f"is {shown(split.test)}, as for train: a model would be tested on what it learnt from"
        yield ("dataset", "split", "test"), fact, "Name another value, or use split: {test: 0.3, seed: 7}."


def _number_checks(feature: NumberFeature, place: Place) -> Iterator[Finding]:
    low, high = feature.range
    if feature.type == "int" and not (low.is_integer() and high.is_integer()):
        yield (*place, "range"), f"is {shown([low, high])}", "The range of an int feature has whole numbers."
    yield from _width_check(feature.range, place)


def _width_check(limits: tuple[float, float], place: Place) -> Iterator[Finding]:
    low, high = limits
    if not 1e-9 < high - low < 1e15:
        yield (*place, "range"), "is too narrow or too wide to be measured in 65536 steps", "Choose a realistic range."


def _level_checks(levels: tuple[str, ...], place: Place, way_out: str) -> Iterator[Finding]:
    for index, level in enumerate(levels):
        if level.strip().lower() in MISSING_VALUES:
            yield (*place, "levels", index), f"is {shown(level)}, which is read as a missing value", way_out
        elif level != level.strip():
            yield (*place, "levels", index), f"is {shown(level)}", "Leave out the spaces around it."
        elif any(same_value(level, earlier) for earlier in levels[:index]):
            fact = f"is {shown(level)}, the same number as a level before it"
            yield (*place, "levels", index), fact, "Name each level once."


def _missing_checks(study: Study) -> Iterator[Finding]:
    """`impute` is for networks, which need a number in every place; `native` is for trees."""
    trainer, trees = study.recipe.trainer, study.recipe.trainer in TREE_TRAINERS
    for index, feature in enumerate(study.dataset.features):
        place: Place = ("dataset", "features", index, "missing")
        if trees and feature.missing == "impute":
            fact = f"is impute, but the trainer {trainer} learns a side for missing values and needs no mean"
            yield place, fact, "Write missing: native, or missing: refuse."
        if not trees and feature.missing == "native":
            other = "level" if isinstance(feature, CategoryFeature) else "impute"
            fact = f"is native, but the trainer {trainer} needs a number in every place"
            yield place, fact, f"Write missing: {other}, or choose the trainer lightgbm."
    label = study.dataset.label
    if not trees and label.type != "binary":
        fact = f"is {label.type}, but the trainer {trainer} learns binary labels only"
        yield ("dataset", "label", "type"), fact, "Choose the trainer lightgbm, or a binary label."


def _picture_checks(study: Study) -> Iterator[Finding]:
    """The features of `torch.cnn` are the pixels of its picture, and nothing else."""
    recipe, features = study.recipe, study.dataset.features
    if not isinstance(recipe, CnnRecipe):
        return
    for index, feature in enumerate(features):
        place: Place = ("dataset", "features", index)
        if isinstance(feature, CategoryFeature):
            fact = f"is category, but for the trainer {recipe.trainer} every feature is a pixel, a number"
            yield (*place, "type"), fact, "Leave the column out, or choose the trainer torch.mlp."
        elif feature.missing == "impute":
            fact = f"is impute, but the trainer {recipe.trainer} has no input that says which pixel is missing"
            yield (*place, "missing"), fact, "Write missing: refuse, or choose the trainer torch.mlp."
    image = recipe.image
    if len(features) != image.inputs:
        size = f"{image.height} x {image.width} x {image.channels}"
        fact = f"has {size} = {image.inputs} pixels, but the study has {len(features)} features"
        yield ("recipe", "image"), fact, "Name one numeric feature for each pixel, or correct the sides."


def _rounds_checks(study: Study) -> Iterator[Finding]:
    """Who counts in rounds and who in trees."""
    federation, trainer = study.federation, study.recipe.trainer
    if trainer in TREE_TRAINERS:
        return
    if federation.trees is not None:
        fact = f"is {federation.trees}, but the trainer {trainer} grows no trees"
        yield ("federation", "trees"), fact, "Write rounds: with their number instead."
    if federation.rounds is None:
        yield ("federation", "rounds"), "is missing", "Add rounds: with the number of rounds of averaging."


def _federation_checks(study: Study) -> Iterator[Finding]:
    federation = study.federation
    if federation.mode == "buffered" and federation.buffer < federation.min_sites:
        fact = f"is {federation.buffer}: a window would close before min_sites ({federation.min_sites}) are in it"
        yield ("federation", "buffer"), fact, f"Use {federation.min_sites} or more, or lower min_sites."
    if federation.participants is not None:
        yield from _participants_checks(study, federation.participants)
    if federation.collusion is not None and federation.collusion > federation.min_sites - 2:
        fact = f"is {federation.collusion}: of min_sites ({federation.min_sites}) at least two must be honest"
        yield ("federation", "collusion"), fact, f"Use at most {federation.min_sites - 2}, or raise min_sites."
    counted = study.recipe.trainer == "lightgbm.random_trees" or federation.rounds is not None
    if counted and federation.evaluate_every > study.rounds:
        fact = f"is {federation.evaluate_every}, more than the {study.rounds} rounds"
        yield ("federation", "evaluate_every"), fact, f"Use at most {study.rounds}."
    if federation.allow_cohort_change and study.recipe.trainer != "lightgbm":
        fact = f"is true, but rounds of the trainer {study.recipe.trainer} go on without a lost site anyway"
        yield ("federation", "allow_cohort_change"), fact, "Leave it out."


def _participants_checks(study: Study, participants: int) -> Iterator[Finding]:
    federation, place = study.federation, ("federation", "participants")
    if participants < federation.min_sites:
        fact = f"is {participants}: a round needs min_sites ({federation.min_sites}) of those that it asks"
        yield place, fact, f"Use {federation.min_sites} or more, with a few to spare, or lower min_sites."
    if federation.mode == "buffered":
        fact = f"is {participants}, but with mode: buffered a round takes the first sites that are ready"
        yield place, fact, "Write buffer: with their number instead, or mode: synchronous."
    if study.recipe.trainer == "lightgbm":
        fact = f"is {participants}, but a session of the trainer lightgbm keeps the sites that it began with"
        yield place, fact, "Leave it out: all take part."


def _metric_checks(study: Study) -> Iterator[Finding]:
    if study.recipe.trainer == "benchmark.noise" and study.metrics:
        fact = "cannot be computed: the trainer benchmark.noise reads no rows"
        yield ("metrics",), fact, "Write metrics: []."
    if len(set(study.metrics)) != len(study.metrics):
        yield ("metrics",), "names a metric twice", "Name each once."
    kind = study.dataset.label.type
    for index, metric in enumerate(study.metrics):
        if metric not in METRICS[kind]:
            fact = f"is {shown(metric)}, which a {kind} label does not have"
            yield ("metrics", index), fact, f"Use {listed(METRICS[kind])}, or leave out metrics."


def listed(names: tuple[str, ...]) -> str:
    """`a, b or c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def shown(value: Any) -> str:
    """A value as it stands in a file, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def same_value(first: str, second: str) -> bool:
    """Whether two texts of a table are the same value: equal, or equal as numbers (`1` and `1.0`)."""
    if first == second:
        return True
    try:
        return float(first) == float(second)
    except ValueError:
        return False
