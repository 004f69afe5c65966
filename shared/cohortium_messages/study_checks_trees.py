"""What makes no sense in a study whose model is trees, taken together: see `cohortium_messages.study_checks`."""

from collections.abc import Iterator
from typing import Any

from cohortium_messages.lightgbm import EARLY_METRICS, OBJECTIVES, LightgbmParams, Objective
from cohortium_messages.study import (
    TREE_TRAINERS,
    CategoryFeature,
    LightgbmRecipe,
    MulticlassLabel,
    RandomTreesRecipe,
    ServerOptimizer,
    Study,
)

Finding = tuple[tuple[str | int, ...], str, str]
_PARAMS = ("recipe", "params")


def tree_checks(study: Study) -> Iterator[Finding]:
    """Everything that is wrong with a study of trees whose parts are each well-formed; nothing for other studies."""
    recipe = study.recipe
    if recipe.trainer not in TREE_TRAINERS:
        return
    yield from _averaging_checks(study)
    if isinstance(recipe, RandomTreesRecipe):
        yield from _random_tree_rounds(study)
    if isinstance(recipe, LightgbmRecipe):
        yield from _boosting_rounds(study, recipe)
        yield from _objective_checks(study, recipe.params)
        yield from _early_stopping_checks(study, recipe.params)
        yield from _constraint_checks(study, recipe.params)
        yield from _class_weight_checks(study, recipe)


def _averaging_checks(study: Study) -> Iterator[Finding]:
    """Settings of federated averaging, which would be read as if they did something."""
    federation, trainer = study.federation, study.recipe.trainer
    if federation.mode != "synchronous":
        fact = f"is buffered, but the trainer {trainer} grows each tree on the sums of all the others"
        yield ("federation", "mode"), fact, "Write mode: synchronous."
    if federation.rounds is not None:
        way_out = "its trees" if isinstance(study.recipe, RandomTreesRecipe) else "recipe.rounds"
        fact = f"is {federation.rounds}, but the trainer {trainer} counts in trees"
        yield ("federation", "rounds"), fact, f"Leave it out: {way_out} say how much is trained."
    if federation.compression.keep < 1:
        fact = f"is {federation.compression.keep:g}, but sums for trees have no coordinates to leave out"
        yield ("federation", "compression", "keep"), fact, "Leave out compression: trees send whole sums."
    if federation.proximal_mu > 0:
        fact = f"is {federation.proximal_mu:g}, but trees are not averaged"
        yield ("federation", "proximal_mu"), fact, "Leave it out."
    if federation.server != ServerOptimizer():
        fact = "is set, but trees are not averaged"
        yield ("federation", "server"), fact, "Leave it out; the recipe's learning_rate says how far a tree moves it."


def _random_tree_rounds(study: Study) -> Iterator[Finding]:
    if study.federation.trees is not None:
        fact = f"is {study.federation.trees}, but the recipe itself says how many trees there are"
        yield ("federation", "trees"), fact, "Leave it out: recipe.trees is the number of trees."


def _boosting_rounds(study: Study, recipe: LightgbmRecipe) -> Iterator[Finding]:
    rounds, trees = recipe.rounds, study.federation.trees
    if rounds is None and trees is None:
        yield ("recipe", "rounds"), "is missing", "Add rounds: with the number of boosting rounds."
    elif rounds is not None and trees is not None and rounds != trees:
        fact = f"is {trees}, but recipe.rounds is {rounds}: they are the same number"
        yield ("federation", "trees"), fact, "Keep one of them."
    if study.federation.evaluate_every != 1:
        fact = f"is {study.federation.evaluate_every}, but the model is evaluated once, when it is grown"
        yield ("federation", "evaluate_every"), fact, "Leave it out."


def _objective_checks(study: Study, params: LightgbmParams) -> Iterator[Finding]:
    kind = study.dataset.label.type
    fitting, objective = OBJECTIVES[kind], study.objective
    if params.objective is not None and params.objective not in fitting:
        fact = f"is {params.objective}, which does not fit a {kind} label"
        yield (*_PARAMS, "objective"), fact, f"Leave it out, or write {' or '.join(fitting)}."
    for name, only in _ONLY_FOR.items():
        if getattr(params, name) != _default(name) and objective != only:
            fact = f"is set, but the objective is {objective}"
            yield (*_PARAMS, name), fact, f"Leave it out: it is for the objective {only} only."
    if params.is_unbalance and params.scale_pos_weight != _default("scale_pos_weight"):
        fact = "is true, and scale_pos_weight is set: both weigh the label's 1"
        yield (*_PARAMS, "is_unbalance"), fact, "Keep one of them."


_ONLY_FOR: dict[str, Objective] = {
    "scale_pos_weight": "binary",
    "is_unbalance": "binary",
    "poisson_max_delta_step": "poisson",
}


def _default(name: str) -> Any:
    return LightgbmParams.model_fields[name].default


def _early_stopping_checks(study: Study, params: LightgbmParams) -> Iterator[Finding]:
    objective = study.objective
    if params.metric is not None and objective is not None and params.metric not in EARLY_METRICS[objective]:
        fact = f"is {params.metric}, which the objective {objective} cannot be stopped by"
        yield (*_PARAMS, "metric"), fact, f"Leave it out, or write {' or '.join(EARLY_METRICS[objective])}."
    if params.early_stopping_round:
        return
    if params.metric is not None:
        remedy = "Leave it out, or add early_stopping_round. What is reported stands under metrics, outside the recipe."
        yield (*_PARAMS, "metric"), f"is {params.metric}, but early_stopping_round is 0: it decides nothing", remedy
    if params.early_stopping_min_delta:
        fact = "is set, but early_stopping_round is 0: it decides nothing"
        yield (*_PARAMS, "early_stopping_min_delta"), fact, "Leave it out, or add early_stopping_round."


def _constraint_checks(study: Study, params: LightgbmParams) -> Iterator[Finding]:
    features = {feature.name: feature for feature in study.dataset.features}
    for name, direction in (params.monotone_constraints or {}).items():
        place = (*_PARAMS, "monotone_constraints", name)
        if name not in features:
            yield place, "is not a feature of this study", f"Features are {_some(tuple(features))}."
        elif direction and isinstance(features[name], CategoryFeature):
            yield place, "is a category: its levels have no order to rise with", "Leave it out."


def _class_weight_checks(study: Study, recipe: LightgbmRecipe) -> Iterator[Finding]:
    if recipe.class_weight is None:
        return
    label = study.dataset.label
    if label.type in ("number", "count"):
        fact = f"is set, but a {label.type} label has no classes"
        yield ("recipe", "class_weight"), fact, "Leave it out."
        return
    levels = label.levels if isinstance(label, MulticlassLabel) else ("0", "1")
    for level in recipe.class_weight:
        if level not in levels:
            fact = f"is not a level of the label {label.name}"
            written = ", ".join(f'"{one}"' for one in levels)
            yield ("recipe", "class_weight", level), fact, f"Its levels are {written}."


def _some(names: tuple[str, ...], most: int = 30) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
