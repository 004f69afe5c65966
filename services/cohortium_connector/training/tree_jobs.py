"""The jobs of studies whose model is trees, but for the session itself (`trees_work`): sums in, sums out."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training import lightgbm_
from cohortium_connector.training.trees_work import checked_model
from cohortium_messages.study import RandomTreesRecipe, Study
from cohortium_protocol.parameters import ModelRefused
from cohortium_protocol.statistics import Rows
from cohortium_protocol.trees.binning import needs_refinement, refinement_vector, tree_columns
from cohortium_protocol.trees.bins import Binning
from cohortium_protocol.trees.evaluation import evaluation_vector
from cohortium_protocol.trees.random_trees import NoiseSource, check_random_trees, leaf_vector
from cohortium_protocol.trees.text import ModelText

Words = NDArray[np.int64]


def open_binning(study: Study, path: str) -> Binning:
    """The published bins. Raises `ModelRefused` if they cannot be read or are another study's."""
    try:
        binning = Binning.from_canonical(Path(path).read_bytes())
    except ValueError as error:
        raise ModelRefused("the bins cannot be read") from error
    names = tuple(feature.name for feature in study.dataset.features)
    if binning.study_digest != study.digest() or binning.feature_names() != names:
        raise ModelRefused("the bins were made for another study version")
    return binning


def refinement(study: Study, path: str, train: Rows) -> Words:
    """This site's part of the second sum. Raises `ModelRefused` where none is needed."""
    binning = open_binning(study, path)
    if not needs_refinement(binning):
        raise ModelRefused("the bins are final")
    return refinement_vector(binning, train)


def leaf_sums(
    study: Study, path: str, model: Path, train: Rows, *, round_: int, noise: NoiseSource | None = None
) -> Words:
    """This site's part of round `round_` of random trees, counted from 1. `model`: the text so far, or an empty
    file."""
    binning = open_binning(study, path)
    text = model.read_bytes()
    base = check_random_trees(study, text, round_ - 1) if round_ > 1 else None
    if (base is None) != (not text):
        raise ModelRefused(f"a model of {len(text)} bytes is not the one before round {round_}")
    return leaf_vector(study, round_, base, tree_columns(binning, train), train.labels, noise)


def checked_text(study: Study, binning: Binning, data: bytes) -> ModelText:
    """A model text of this study, by either trainer. Raises `TreeModelRefused`."""
    if isinstance(study.recipe, RandomTreesRecipe):
        return check_random_trees(study, data)
    return checked_model(study, binning, data)


def evaluation(study: Study, path: str, model: Path, test: Rows) -> Words:
    """Counts over the test rows, with the sums of |SHAP|. Raises `ModelRefused`."""
    binning = open_binning(study, path)
    data = model.read_bytes()
    checked_text(study, binning, data)
    return evaluated(study, lightgbm_.open_booster(data), tree_columns(binning, test), test)


def scores(study: Study, path: str, model: Path, test: Rows) -> NDArray[np.float64]:
    """What the model says of each test row. Raises `ModelRefused`."""
    binning = open_binning(study, path)
    data = model.read_bytes()
    checked_text(study, binning, data)
    return lightgbm_.predictions(lightgbm_.open_booster(data), tree_columns(binning, test))


def evaluated(study: Study, booster: object, columns: NDArray[np.float64], test: Rows) -> Words:
    """`evaluation` of a booster that is open. Raises `ModelRefused` for scores that are no numbers."""
    scores = lightgbm_.predictions(booster, columns)
    if not np.isfinite(scores).all():
        raise ModelRefused("the model gives scores that are not finite")
    shap = lightgbm_.shap_sums(booster, columns, classes=study.trees_per_round)
    return evaluation_vector(study, scores, test.labels, shap)
