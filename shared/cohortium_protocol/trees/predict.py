"""Scores of a checked model text, in numpy alone: the same numbers as LightGBM's own prediction.

The rules of LightGBM 4.7. A number goes left when `x <= threshold`; a missing one (NaN) goes to the split's default
side where the split knows missing values, and counts as 0 where it does not. A code of a category goes left when it is
in the split's set; a missing or unknown one goes right. The trees of a class are added in their order, so sums round
alike.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohortium_protocol.trees.text import ModelText, Tree
from cohortium_protocol.trees.tree_text import CATEGORY, DEFAULT_LEFT, MISSING_NAN

Matrix = NDArray[np.float64]


def raw_scores(model: ModelText, matrix: NDArray[Any]) -> NDArray[np.float64]:
    """Raw scores, of length n, or n × classes where there are several.

    `matrix`: n × features, as `tree_columns` gives it: raw numbers, codes of categories, NaN for missing. Raises
    `ValueError` for another shape.
    """
    columns = feature_columns(matrix, len(model.features))
    scores = np.zeros((model.classes, columns.shape[1]), dtype=np.float64)
    for place, tree in enumerate(model.trees):
        scores[place % model.classes] += tree.leaf_value[leaf_places(tree, columns)]
    return scores[0] if model.classes == 1 else np.ascontiguousarray(scores.T)


def response(objective: str, raw: NDArray[np.float64]) -> NDArray[np.float64]:
    """What LightGBM's `predict` makes of raw scores: probabilities (binary; multiclass, by row), the number itself
    (regression), the expected count (poisson). Raises `ValueError` for another objective."""
    with np.errstate(over="ignore"):
        match objective:
            case "binary":
                return np.asarray(1.0 / (1.0 + np.exp(-raw)))
            case "multiclass":
                parts = np.exp(raw - raw.max(axis=1, keepdims=True))
                return np.asarray(parts / parts.sum(axis=1, keepdims=True))
            case "regression":
                return raw
            case "poisson":
                return np.asarray(np.exp(raw))
    raise ValueError(f"no response of objective {objective}")


def feature_columns(matrix: NDArray[Any], features: int) -> Matrix:
    """The transposed matrix, a contiguous line for each feature. Raises `ValueError` unless it has `features`."""
    if matrix.ndim != 2 or matrix.shape[1] != features:
        raise ValueError(f"expected rows of {features} features, got an array of shape {matrix.shape}")
    return np.ascontiguousarray(matrix.T, dtype=np.float64)


def leaf_places(tree: Tree, columns: Matrix) -> NDArray[np.int64]:
    """The leaf that each row ends in. `columns` comes from `feature_columns`."""
    places = np.zeros(columns.shape[1], dtype=np.int64)
    if tree.leaves == 1:
        return places
    left, right = tree.left_child.tolist(), tree.right_child.tolist()
    rows_of = {0: np.arange(columns.shape[1])}
    for node in range(tree.leaves - 1):  # parents stand before their children
        rows = rows_of.pop(node)
        goes_left = _goes_left(tree, node, columns[tree.split_feature[node]][rows])
        for child, part in ((left[node], rows[goes_left]), (right[node], rows[~goes_left])):
            if child >= 0:
                rows_of[child] = part
            else:
                places[part] = ~child
    return places


def _goes_left(tree: Tree, node: int, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    decision, threshold = int(tree.decision_type[node]), float(tree.threshold[node])
    if decision & CATEGORY:
        return _in_set(tree, int(threshold), values)
    goes_left = values <= threshold
    missing_left = decision & DEFAULT_LEFT if decision & MISSING_NAN else threshold >= 0.0
    return goes_left | np.isnan(values) if missing_left else goes_left


def _in_set(tree: Tree, place: int, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """LightGBM cuts a code to a whole number before it looks it up; our own codes are whole."""
    start, end = tree.cat_boundaries[place : place + 2].tolist()
    words = tree.cat_threshold[start:end].astype("<u4")
    members = np.unpackbits(words.view(np.uint8), bitorder="little").astype(np.bool_)
    found = np.zeros(len(values), dtype=np.bool_)
    known = (values > -1.0) & (values < len(members))
    found[known] = members[values[known].astype(np.int64)]
    return found
