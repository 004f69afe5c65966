"""What the same trees give without a federation: on the pooled rows, at each site alone, and the sites' models added
up.

Only for simulations, as `baselines`. All have the bins that the federation would have, from the sums over all sites,
and the recipe's rounds, early stopping included; all are tested on all sites' test rows. `lightgbm` is trained by
LightGBM on one machine; random trees by the federation's own step, on one vector of sums.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training import lightgbm_
from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.data import Table
from cohortium_connector.training.jobs import Baseline
from cohortium_connector.training.stopping import Stopping
from cohortium_connector.training.trees_work import check_trainable
from cohortium_connector.training.weights import row_weights, validation_rows
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.study import BinaryLabel, LightgbmRecipe, Study
from cohortium_protocol.metrics import Metrics, evaluation_length, exact_auc, metrics_from_sums
from cohortium_protocol.statistics import Rows
from cohortium_protocol.trees.binning import (
    binning_from_sums,
    needs_refinement,
    refined,
    refinement_vector,
    tree_columns,
)
from cohortium_protocol.trees.bins import Binning
from cohortium_protocol.trees.evaluation import evaluation_from_sums, evaluation_vector
from cohortium_protocol.trees.grid import tree_statistics_vector
from cohortium_protocol.trees.predict import response
from cohortium_protocol.trees.random_trees import check_random_trees, leaf_vector, next_model

Floats = NDArray[np.float64]
NOWHERE = ModelRef(version=0, model_hash=bytes(32))


@dataclass(frozen=True, slots=True)
class TreeBaselines:
    """`refused`: sites whose rows cannot be trained on alone, with their code. `bagging` only for `lightgbm`."""

    pooled: Baseline
    local: tuple[Baseline, ...]
    bagging: Baseline | None
    refused: tuple[tuple[str, str], ...]


def train_tree_baselines(study: Study, tables: Mapping[str, Table], *, threads: int) -> TreeBaselines:
    """All of them; the local ones in the order of `tables`."""
    binning = _binning(study, list(tables.values()))
    grow = _grower(study, binning, threads)
    tests = [table.test for table in tables.values()]
    columns = tree_columns(binning, _joined(tests))
    labels = np.concatenate([rows.labels for rows in tests])
    raw: dict[str, tuple[int, Floats]] = {}
    refused: list[tuple[str, str]] = []
    for name, table in tables.items():
        try:
            check = isinstance(study.recipe, LightgbmRecipe)
            raw[name] = len(table.train), grow([table.train], columns, check=check)
        except SiteRefusal as refusal:
            refused.append((name, refusal.code))
    trained = [table.train for table in tables.values()]
    pooled = _baseline(study, "pooled", sum(map(len, trained)), grow(trained, columns, check=False), labels)
    local = tuple(_baseline(study, name, rows, scores, labels) for name, (rows, scores) in raw.items())
    added_up = isinstance(study.recipe, LightgbmRecipe) and raw
    bagging = _bagging(study, list(raw.values()), labels) if added_up else None
    return TreeBaselines(pooled, local, bagging, tuple(refused))


Grow = Callable[..., Floats]


def _grower(study: Study, binning: Binning, threads: int) -> Grow:
    """Raw scores of `columns` by a model of some sites' rows."""
    if not isinstance(study.recipe, LightgbmRecipe):
        return lambda parts, columns, *, check: _random_scores(study, binning, parts, columns)  # noqa: ARG005
    recipe, bins = study.recipe, lightgbm_.make_bins(binning)

    def grow(parts: Sequence[Rows], columns: Floats, *, check: bool) -> Floats:
        for rows in parts if check else ():
            check_trainable(study, binning, rows)
        booster, rounds = _booster(study, recipe, binning, bins, parts, threads)
        return lightgbm_.raw_scores(booster, columns, rounds=rounds)

    return grow


def _booster(
    study: Study,
    recipe: LightgbmRecipe,
    binning: Binning,
    bins: lightgbm_.Bins,
    parts: Sequence[Rows],
    threads: int,
) -> tuple[Any, int]:
    """A booster, and how many of its rounds the model keeps."""
    held_out = np.concatenate([validation_rows(study, recipe, len(rows)) for rows in parts])
    rows = _joined(parts)
    train, validation = rows.take(~held_out), rows.take(held_out)
    labels = train.labels.astype(np.float64)
    data = lightgbm_.training_set(
        bins, tree_columns(binning, train), labels, weights=row_weights(study, recipe, labels)
    )
    booster = lightgbm_.make_booster(lightgbm_.booster_parameters(study, recipe, bins, threads=threads), data)
    columns, classes = tree_columns(binning, validation), study.trees_per_round
    start = np.zeros((len(validation), classes) if classes > 1 else len(validation))
    stopping = Stopping(study, recipe, validation.labels.astype(np.float64), start)
    grown = 0
    while grown < study.boosting_rounds:
        exhausted = booster.update()
        if exhausted and grown:
            break
        grown += 1
        if Stopping.is_wanted(recipe.params) and len(validation):
            stopping.add(lightgbm_.raw_scores(booster, columns, start=grown - 1, rounds=1))
            if stopping.is_over(grown, stopping.words()):
                break
        if exhausted:
            break
    return booster, stopping.best_round(grown)


def _random_scores(study: Study, binning: Binning, parts: Sequence[Rows], columns: Floats) -> Floats:
    rows = _joined(parts)
    own, text = tree_columns(binning, rows), b""
    for round_ in range(1, study.rounds + 1):
        base = check_random_trees(study, text, round_ - 1) if text else None
        text = next_model(study, round_, text, leaf_vector(study, round_, base, own, rows.labels))
    check_random_trees(study, text, study.rounds)
    return lightgbm_.raw_scores(lightgbm_.open_booster(text), columns)


def _bagging(study: Study, models: Sequence[tuple[int, Floats]], labels: NDArray[Any]) -> Baseline:
    total = sum(rows for rows, _ in models)
    mean = np.sum([scores * (rows / total) for rows, scores in models], axis=0)
    return _baseline(study, "bagging", total, mean, labels)


def _binning(study: Study, tables: Sequence[Table]) -> Binning:
    sums = np.sum([tree_statistics_vector(study, table.train, table.test) for table in tables], axis=0)
    binning = binning_from_sums(study, sums, len(tables))
    if needs_refinement(binning):
        binning = refined(binning, np.sum([refinement_vector(binning, table.train) for table in tables], axis=0))
    return binning


def _joined(parts: Sequence[Rows]) -> Rows:
    columns = {name: np.concatenate([rows.columns[name] for rows in parts]) for name in parts[0].columns}
    return Rows(columns, np.concatenate([rows.labels for rows in parts]))


def _baseline(study: Study, name: str, rows: int, raw: Floats, labels: NDArray[Any]) -> Baseline:
    assert study.objective is not None  # noqa: S101 - a study of trees has one
    scores = response(study.objective, raw)
    sums = evaluation_vector(study, scores, labels)
    binary = isinstance(study.dataset.label, BinaryLabel)
    own = sums[: evaluation_length()]
    return Baseline(
        name=name,
        training_rows=rows,
        exact_auc=exact_auc(scores, labels) if binary and 0 < labels.sum() < labels.size else None,
        binned=metrics_from_sums(own, study.metrics) if binary else Metrics(rows=labels.size, positives=0),
        evaluation=evaluation_from_sums(study, sums, None, NOWHERE),
    )
