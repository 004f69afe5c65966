"""What the same recipe gives without a federation: one model on all rows, and one for each site alone.

Only for simulations, where all tables are on one machine. Each model has its own statistics, by the same rules, and
sees its rows as often as a federated model does: rounds × epochs. All are tested on all sites' test rows. Trees have
theirs in `tree_baselines`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training.base import Examples, trainer_for
from cohortium_connector.training.data import Table
from cohortium_connector.training.jobs import Baseline
from cohortium_messages.study import GradientRecipe, Study
from cohortium_protocol.metrics import evaluation_vector, exact_auc, metrics_from_sums
from cohortium_protocol.parameters import initial_parameters
from cohortium_protocol.statistics import Preprocessing, Rows, design_matrix, preprocessing_from_sums, statistics_vector


def train_baselines(study: Study, tables: Mapping[str, Table], seed: int) -> tuple[Baseline, tuple[Baseline, ...]]:
    """The pooled model, and the local ones in the order of `tables`."""
    tests = [table.test for table in tables.values()]
    pooled = _baseline(study, "pooled", list(tables.values()), tests, seed)
    local = tuple(_baseline(study, name, [table], tests, seed) for name, table in tables.items())
    return pooled, local


def _baseline(study: Study, name: str, tables: Sequence[Table], tests: Sequence[Rows], seed: int) -> Baseline:
    sums = np.sum([statistics_vector(study, table.train, table.test) for table in tables], axis=0)
    preprocessing = preprocessing_from_sums(study, sums, len(tables))
    examples = _examples(preprocessing, [table.train for table in tables])
    scores = _scores(study, preprocessing, examples, tests, seed)
    labels = np.concatenate([rows.labels for rows in tests])
    return Baseline(
        name=name,
        training_rows=len(examples.labels),
        exact_auc=exact_auc(scores, labels) if 0 < labels.sum() < labels.size else None,
        binned=metrics_from_sums(evaluation_vector(scores, labels), study.metrics),
    )


def _examples(preprocessing: Preprocessing, parts: Sequence[Rows]) -> Examples:
    inputs = np.concatenate([design_matrix(preprocessing, rows) for rows in parts])
    return Examples(inputs, np.concatenate([rows.labels for rows in parts]).astype(np.float32))


def _scores(
    study: Study, preprocessing: Preprocessing, examples: Examples, tests: Sequence[Rows], seed: int
) -> NDArray[np.float64]:
    assert isinstance(study.recipe, GradientRecipe)  # noqa: S101 - trees have their own, noise has none
    trainer = trainer_for(study, preprocessing.inputs)
    epochs = study.rounds * study.recipe.local.epochs
    start = initial_parameters(trainer.layout, study.federation.seed + seed)
    model = np.concatenate(list(trainer.train(start, examples, epochs=epochs, seed=seed).slices))
    return np.concatenate([trainer.scores(model, design_matrix(preprocessing, rows)) for rows in tests])
