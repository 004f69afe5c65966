"""Models of trees as files: LightGBM's model text, made from what sites agreed to or from sums. Blocking: call in a
thread."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cohortium_aggregator.files import MODEL_TEXT
from cohortium_aggregator.modelling import MadeModel
from cohortium_messages.study import LightgbmRecipe, RandomTreesRecipe, Study
from cohortium_protocol.parameters import model_hash
from cohortium_protocol.trees.binning import Binning, CategoryBins
from cohortium_protocol.trees.random_trees import check_random_trees
from cohortium_protocol.trees.text import (
    ModelText,
    Tree,
    TreeModelRefused,
    check_blocks,
    check_header,
    check_model_text,
    render,
)

NO_TREES = b""
"""The model file of a version before the first tree."""


def _codes(rules: Binning) -> dict[str, int]:
    """By category feature: how many codes its column has."""
    return {feature.name: feature.codes for feature in rules.features if isinstance(feature, CategoryBins)}


def check_round(study: Study, rules: Binning, content: bytes) -> tuple[Tree, ...]:
    """The trees of one boosting round. Raises `TreeModelRefused`."""
    names, codes = rules.feature_names(), _codes(rules)
    places = {place: codes[name] for place, name in enumerate(names) if name in codes}
    recipe = _lightgbm(study)
    classes = study.trees_per_round
    trees = check_blocks(
        content, features=len(names), max_trees=classes, max_leaves=recipe.params.num_leaves, codes=places
    )
    if len(trees) != classes:
        raise TreeModelRefused("tree_count", None, f"{len(trees)} trees are no round of {classes}")
    return trees


def check_first(study: Study, rules: Binning, content: bytes) -> str:
    """The text before the first tree. Raises `TreeModelRefused`."""
    names, classes = rules.feature_names(), study.trees_per_round
    return check_header(content, features=names, classes=classes, objective=_objective(study))


def assembled(study: Study, rules: Binning, header: bytes, rounds: Sequence[bytes]) -> bytes:
    """The model text of these boosting rounds. Raises `TreeModelRefused`."""
    head = check_first(study, rules, header)
    blocks = [tree.block for content in rounds for tree in check_round(study, rules, content)]
    return render(head, blocks, _parameters(study))


def check_text(study: Study, rules: Binning, text: bytes) -> ModelText:
    """A whole model text of this study. Raises `TreeModelRefused`."""
    if isinstance(study.recipe, RandomTreesRecipe):
        return check_random_trees(study, text)
    recipe, classes = _lightgbm(study), study.trees_per_round
    return check_model_text(
        text,
        features=rules.feature_names(),
        classes=classes,
        max_trees=study.boosting_rounds * classes,
        max_leaves=recipe.params.num_leaves,
        objective=_objective(study),
        categories=_codes(rules),
    )


def _parameters(study: Study) -> Mapping[str, Any]:
    """What the text says of its making: the study's own parameters, and no path or machine."""
    recipe = _lightgbm(study)
    params, classes = recipe.params, study.trees_per_round
    said: dict[str, Any] = {"boosting": "gbdt", "objective": _objective(study)}
    if classes > 1:
        said["num_class"] = classes
    if params.monotone_constraints:
        signs = params.monotone_constraints
        said["monotone_constraints"] = [signs.get(feature.name, 0) for feature in study.dataset.features]
    return said | {"num_iterations": study.boosting_rounds} | params.given()


def _objective(study: Study) -> str:
    if study.objective is None:
        raise TypeError(f"{study.recipe.trainer} has no objective")
    return study.objective


def _lightgbm(study: Study) -> LightgbmRecipe:
    if not isinstance(study.recipe, LightgbmRecipe):
        raise TypeError(f"{study.recipe.trainer} grows no rounds in sessions")
    return study.recipe


def write_text(study: Study, rules: Binning, text: bytes, folder: Path) -> MadeModel:
    """A version's file into `folder`. Raises `TreeModelRefused` for a text that may not be given to LightGBM."""
    checked = check_text(study, rules, text) if text else None
    (folder / MODEL_TEXT).write_bytes(text)
    digest = hashlib.sha256(text).digest()
    return MadeModel(
        parameters=sum(tree.leaves for tree in checked.trees) if checked else 0,
        file_bytes=len(text),
        parameters_sha256=digest,
        model_hash=model_hash(digest, rules.canonical()),
        trees=checked.rounds if checked else 0,
    )
