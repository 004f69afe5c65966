"""A small study of random trees for each kind of label, rows that fit it, and whole runs of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cohortium_messages.study import Study
from cohortium_protocol.trees.random_trees import check_random_trees, leaf_vector, next_model
from cohortium_protocol.trees.text import ModelText

LEVELS = 40
FEATURES: list[dict[str, Any]] = [
    {"name": "age", "type": "float", "range": [-4, 4], "missing": "native"},
    {"name": "visits", "type": "int", "range": [0, 9]},
    {"name": "ward", "type": "category", "levels": [f"w{place}" for place in range(LEVELS)], "missing": "level"},
    {"name": "sex", "type": "category", "levels": ["f", "m"], "missing": "native"},
    {"name": "bmi", "type": "float", "range": [-4, 4]},
]
LABELS: dict[str, dict[str, Any]] = {
    "binary": {"name": "y", "type": "binary"},
    "multiclass": {"name": "y", "type": "multiclass", "levels": ["low", "mid", "high"]},
    "number": {"name": "y", "type": "number", "range": [-20, 30]},
    "count": {"name": "y", "type": "count", "most": 60},
}


def random_study(
    label: str = "binary", features: Sequence[dict[str, Any]] = FEATURES, seed: int = 3, **recipe: Any
) -> Study:
    split = {"test": 0.2}
    dataset = {"features": list(features), "label": LABELS[label], "split": split}
    return Study.model_validate(
        {
            "apiVersion": "cohortium/study/1",
            "governance": "trial",
            "name": "random",
            "purpose": "a test",
            "dataset": dataset,
            "recipe": {"trainer": "lightgbm.random_trees", "trees": 20, "depth": 4} | recipe,
            "federation": {"seed": seed},
        }
    )


def random_rows(label: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Columns as `tree_columns` gives them, with missing values where the study allows them, and labels."""
    random = np.random.default_rng(seed)
    rows = np.stack(
        [
            random.normal(size=count).clip(-4, 4),
            random.integers(0, 10, size=count),
            random.integers(0, LEVELS + 1, size=count),
            random.integers(0, 2, size=count),
            random.normal(size=count).clip(-4, 4),
        ],
        axis=1,
    ).astype(float)
    signal = rows[:, 0] + 0.3 * rows[:, 1] - 1.5 + np.sin(rows[:, 2]) + rows[:, 3] * rows[:, 4]
    signal += 0.5 * random.normal(size=count)
    rows[random.random(count) < 0.1, 0] = np.nan
    rows[random.random(count) < 0.1, 3] = np.nan
    match label:
        case "binary":
            return rows, (signal > 0).astype(np.uint8)
        case "multiclass":
            return rows, np.digitize(signal, [-1, 1]).astype(np.int32)
        case "number":
            return rows, np.clip(3.0 * signal, -20, 30)
    return rows, np.minimum(random.poisson(np.exp(np.clip(0.7 * signal, -2, 2.5))), 60).astype(float)


def course(study: Study, sites: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[bytes, ModelText]:
    """The run of a study over these sites, all of them in every round."""
    text, model = b"", None
    for round_ in range(1, study.rounds + 1):
        vectors = [leaf_vector(study, round_, model, rows, labels) for rows, labels in sites]
        text = next_model(study, round_, text, np.sum(vectors, axis=0))
        model = check_random_trees(study, text, round_)
    assert model is not None
    return text, model
