"""Totally random trees: leaf values from secure sums of gradients (Maddock et al., CCS 2022, arXiv 2210.02910).

The splits of the trees are public before any row is read (`random_structure`). So one sum over the sites for each round
is all that is asked of the data: for each tree of the round, each leaf and each class, Σ g and Σ h over the training
rows in the leaf, at the scores of the model so far. All trees of a round are filled from the same gradients.

What a row adds, by the label (s: its raw score so far; y: its label; both cut to the label's public range):

    binary       g = p − y, h = p (1 − p), p = 1 / (1 + e^−s)              vector (g, 4h) / √2
    multiclass   for each class k: g = p_k − [y = k], h = p_k (1 − p_k)    vectors (g, 4h) / √2, p = softmax(s)
    number       g = (s − y) / (high − low), h = 1                         vector (g, h) / √2
    count        g = (e^s − y) / most, h = e^s / most                      vector (g, h) / √2

A row's vector over all classes is shortened to the L2 norm `CLIP` where it is longer, multiplied by 2^bits and rounded
to integers. One row is taken for one person; where a person has several rows, the bound holds for each of them. A row
touches one leaf of each tree, so one row more or less moves a round's integer vector by at most `sensitivity`.

Layout: word ((tree · 2^depth + leaf) · classes + class) · 2 is Σ g, the next one Σ h; trees that the last round does
not have stay 0. Leaf values are Newton steps −Σg / (Σh + λ), cut to `LARGEST_STEP`, times the learning rate (or one
over the trees of a round, where that is less: the steps of one round together must not pass the point that they aim
at).

The text gives each leaf the count 1, each node the number of its leaves, weights of 0, and gains made from leaf values.
LightGBM needs counts for SHAP values, and true ones would be numbers of patients; so a SHAP value here is measured
against a population that is spread evenly over the leaves.
"""

import math
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from cohortium_messages.study import BinaryLabel, CountLabel, MulticlassLabel, NumberLabel, Study
from cohortium_protocol.statistics import SumsRefused
from cohortium_protocol.trees.predict import feature_columns, leaf_places, raw_scores, response
from cohortium_protocol.trees.random_structure import columns_of, random_recipe, random_tree
from cohortium_protocol.trees.text import ModelText, Tree, TreeModelRefused, check_model_text, make_header, render

FINE_BITS: Final = 32
"""Of sums without noise. 2^31 rows keep every word below 2^63."""
NOISY_BITS: Final = 12
"""Of sums with noise: a lattice that the samplers of integer noise are quick on. Rounding is far below the noise."""

CLIP: Final = {"binary": 0.802, "multiclass": math.sqrt(2.0), "number": 1.0, "count": 1.0}
"""Most L2 norm of a row's vector. No binary row reaches it: p² + 16 p² (1 − p)² is at most 1.2862 = 2 · 0.80192²."""
LARGEST_STEP: Final = 4.0
"""Of one tree, before the learning rate: log-odds or logarithm of a count; of a number, widths of its range."""
ROWS_AT_ONCE: Final = 1 << 14
UNLIKELY: Final = 8.0
"""Standard deviations of noise that a sum may lie below what no row can make it."""

Sums = NDArray[np.int64]
Floats = NDArray[np.float64]


class NoiseSource(Protocol):
    """Noise that is added to a vector before it is masked: a site's share, on the integers of `NOISY_BITS`."""

    def integers(self, count: int) -> NDArray[np.int64]:
        """`count` independent integers."""
        ...


def vector_length(study: Study) -> int:
    """Words of one update: trees of a round × leaves × classes × 2. The study alone decides it."""
    recipe = random_recipe(study)
    return recipe.trees_per_sum * (1 << recipe.depth) * study.trees_per_round * 2


def sensitivity(study: Study, bits: int = NOISY_BITS) -> float:
    """The most that one row more or less moves a round's integer vector, in L2: for B trees in a round
    √B · (2^bits · CLIP + √(2 · classes) / 2). The second summand is for rounding, half a step in each word that a row
    touches."""
    trees, words = random_recipe(study).trees_per_sum, 2 * study.trees_per_round
    longest = math.ldexp(CLIP[study.dataset.label.type] * (1 + 2.0**-40), bits)  # the factor: binary64's own rounding
    return math.sqrt(trees) * (longest + math.sqrt(words) / 2)


def initial_score(study: Study) -> float:
    """The raw score before the first tree, which no data has a part in: the middle of a number's range, otherwise 0."""
    label = study.dataset.label
    return (label.range[0] + label.range[1]) / 2 if isinstance(label, NumberLabel) else 0.0


def trees_of_round(study: Study, round_: int) -> range:
    """Numbers of the trees that round `round_` (from 1) fills. Raises `ValueError` when there is no such round."""
    recipe = random_recipe(study)
    first = (round_ - 1) * recipe.trees_per_sum
    if round_ < 1 or first >= recipe.trees:
        raise ValueError(f"round {round_} of {study.rounds}")
    return range(first, min(first + recipe.trees_per_sum, recipe.trees))


def leaf_vector(
    study: Study,
    round_: int,
    base: ModelText | None,
    matrix: NDArray[Any],
    labels: NDArray[Any],
    noise: NoiseSource | None = None,
) -> Sums:
    """A site's contribution to round `round_`, over its training rows.

    `base`: the model after the round before (`check_random_trees`), None in round 1; `matrix`: `tree_columns(binning,
    rows)`; `labels`: 0 and 1, codes of levels, numbers or counts. Raises `ValueError` for arrays of other shapes and
    `TreeModelRefused` for a base of another round.
    """
    if labels.shape != matrix.shape[:1]:
        raise ValueError("there is one label for each row")
    _check_trees(study, 0 if base is None else base.rounds, round_ - 1)
    columns = columns_of(study)
    trees = [random_tree(study, number, columns) for number in trees_of_round(study, round_)]
    recipe, bits = random_recipe(study), FINE_BITS if noise is None else NOISY_BITS
    sums = np.zeros((recipe.trees_per_sum, 1 << recipe.depth, 2 * study.trees_per_round), dtype=np.int64)
    for start in range(0, len(labels), ROWS_AT_ONCE):
        part, own = matrix[start : start + ROWS_AT_ONCE], labels[start : start + ROWS_AT_ONCE]
        raw = np.full(len(own), initial_score(study)) if base is None else raw_scores(base, part)
        words = np.rint(np.ldexp(row_vectors(study, raw, own), bits)).astype(np.int64)
        by_feature = feature_columns(part, len(columns))
        for place, tree in enumerate(trees):
            np.add.at(sums[place], leaf_places(tree, by_feature), words)
    vector = sums.reshape(-1)
    return vector if noise is None else vector + noise.integers(len(vector))


def row_vectors(study: Study, raw: Floats, labels: NDArray[Any]) -> Floats:
    """What each row adds to the leaf it is in, n × (2 · classes), before it is made integer."""
    vectors = _gradients(study, raw, labels) / math.sqrt(2.0)
    norms = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    return np.asarray(vectors * np.minimum(1.0, CLIP[study.dataset.label.type] / np.maximum(norms, 1e-300)))


def _gradients(study: Study, raw: Floats, labels: NDArray[Any]) -> Floats:
    label = study.dataset.label
    match label:
        case BinaryLabel():
            p = response("binary", raw)
            return np.stack([p - np.clip(labels, 0, 1), 4.0 * p * (1.0 - p)], axis=1)
        case MulticlassLabel():
            classes = len(label.levels)
            scores = np.broadcast_to(raw[:, None] if raw.ndim == 1 else raw, (len(labels), classes))
            p = response("multiclass", scores)
            return np.stack([p - np.eye(classes)[labels], 4.0 * p * (1.0 - p)], axis=2).reshape(len(labels), -1)
        case NumberLabel():
            low, high = label.range
            gap = (np.clip(raw, low, high) - np.clip(labels, low, high)) / (high - low)
            return np.stack([gap, np.ones_like(gap)], axis=1)
        case CountLabel():
            expected = np.exp(np.minimum(raw, math.log(label.most)))
            return np.stack([expected - np.clip(labels, 0, label.most), expected], axis=1) / label.most


def next_model(study: Study, round_: int, base: bytes, sums: Sums, noise_std: float = 0.0) -> bytes:
    """The server's step: the canonical model text after round `round_`.

    `base`: the text after the round before, empty in round 1; `sums`: the opened sum of `leaf_vector`; `noise_std`: the
    standard deviation of all noise in one word of it, 0 without. Raises `SumsRefused` for sums that no rows can make
    and `TreeModelRefused` for a base of another round or study.
    """
    model = check_random_trees(study, base, round_ - 1) if base else None
    _check_trees(study, 0 if model is None else model.rounds, round_ - 1)
    values = leaf_values(study, round_, sums, noise_std)
    blocks = [] if model is None else [tree.block for tree in model.trees]
    columns, rate = columns_of(study), _rate(study)
    for number, of_tree in zip(trees_of_round(study, round_), values, strict=True):
        tree = random_tree(study, number, columns)
        bias, shrinkage = (0.0, rate) if number else (initial_score(study), 1.0)
        blocks.extend(_block(tree, values=of_class, bias=bias, shrinkage=shrinkage) for of_class in of_tree.T)
    return render(_header(study), blocks, _parameters(study))


def leaf_values(study: Study, round_: int, sums: Sums, noise_std: float = 0.0) -> Floats:
    """Values of the leaves of the round's trees, trees × leaves × classes, learning rate included. Raises
    `SumsRefused`."""
    recipe, label = random_recipe(study), study.dataset.label
    if sums.shape != (vector_length(study),):
        raise SumsRefused(f"expected {vector_length(study)} sums, got an array of shape {sums.shape}")
    words = sums.reshape(recipe.trees_per_sum, 1 << recipe.depth, study.trees_per_round, 2).astype(np.float64)
    trees, least = len(trees_of_round(study, round_)), -UNLIKELY * noise_std
    if (words[..., 1] < least).any() or (np.abs(words[trees:]) > -least).any():
        raise SumsRefused("a sum of curvatures is negative, or a tree that is not there has a sum")
    first, second = _units(study)
    scaled = words[:trees] * math.ldexp(math.sqrt(2.0), -(NOISY_BITS if noise_std else FINE_BITS))
    slope, curvature = scaled[..., 0] * first, np.maximum(scaled[..., 1] * second, 0.0) + recipe.lambda_l2
    largest = LARGEST_STEP * (label.range[1] - label.range[0] if isinstance(label, NumberLabel) else 1.0)
    steps = np.divide(-slope, curvature, out=np.zeros_like(slope), where=curvature > 1e-12)
    return np.asarray(_rate(study) * np.clip(steps, -largest, largest))


def check_random_trees(study: Study, data: bytes, round_: int | None = None) -> ModelText:
    """A model text of this study: its header, and trees of the public structure. `round_`: after which it must be.
    Raises `TreeModelRefused`."""
    recipe, classes = random_recipe(study), study.trees_per_round
    columns = columns_of(study)
    names = tuple(feature.name for feature in study.dataset.features)
    model = check_model_text(
        data,
        features=names,
        classes=classes,
        max_trees=recipe.trees * classes,
        max_leaves=1 << recipe.depth,
        objective=_objective(study),
        categories={name: column.codes for name, column in zip(names, columns, strict=True) if column.codes},
    )
    if model.header != _header(study):
        raise TreeModelRefused("header", None, "not the header of the study's random trees")
    _check_trees(study, model.rounds, round_)
    for number in range(model.rounds):
        expected = random_tree(study, number, columns)
        for place in range(number * classes, (number + 1) * classes):
            if not _same_structure(model.trees[place], expected):
                raise TreeModelRefused("structure", place, "not the splits that the study's seed gives")
    return model


def _check_trees(study: Study, trees: int, round_: int | None) -> None:
    """Return if a model of `trees` trees of each class is one after `round_`, or after some round where it is None."""
    recipe = random_recipe(study)
    whole = trees % recipe.trees_per_sum == 0 or trees == recipe.trees
    if not whole or (round_ is not None and trees != min(round_ * recipe.trees_per_sum, recipe.trees)):
        raise TreeModelRefused("tree_count", None, f"{trees} trees are not those after round {round_}")


def _same_structure(tree: Tree, expected: Tree) -> bool:
    names = ("split_feature", "threshold", "decision_type", "left_child", "right_child", "cat_boundaries")
    return all(np.array_equal(getattr(tree, name), getattr(expected, name)) for name in (*names, "cat_threshold"))


def _objective(study: Study) -> str:
    if study.objective is None:
        raise ValueError(f"{study.recipe.trainer} has no objective")
    return study.objective


def _rate(study: Study) -> float:
    recipe = random_recipe(study)
    return min(recipe.learning_rate, 1.0 / recipe.trees_per_sum)


def _units(study: Study) -> tuple[float, float]:
    """What one unit of a row's g and h stands for, in the loss's own units. The last factor of multiclass is LightGBM's
    own: K / (K − 1) times the curvature, as one of the K scores is free."""
    label = study.dataset.label
    match label:
        case BinaryLabel():
            return 1.0, 0.25
        case MulticlassLabel():
            return 1.0, 0.25 * len(label.levels) / (len(label.levels) - 1)
        case NumberLabel():
            return label.range[1] - label.range[0], 1.0
        case CountLabel():
            return float(label.most), float(label.most)


def _header(study: Study) -> str:
    names = [feature.name for feature in study.dataset.features]
    infos = []
    for feature, column in zip(study.dataset.features, columns_of(study), strict=True):
        if feature.type == "category":
            infos.append(":".join(map(str, range(column.codes))))
        else:
            infos.append(f"[{_exact(np.array(feature.range)).replace(' ', ':')}]")
    return make_header(names, infos, objective=_objective(study), classes=study.trees_per_round)


def _parameters(study: Study) -> dict[str, object]:
    """What LightGBM needs to know of the study to refit the model or go on from it."""
    recipe, classes = random_recipe(study), study.trees_per_round
    categories = [place for place, feature in enumerate(study.dataset.features) if feature.type == "category"]
    return {
        "boosting": "gbdt",
        "objective": _objective(study),
        **({"num_class": classes} if classes > 1 else {}),
        "num_iterations": recipe.trees,
        "learning_rate": recipe.learning_rate,
        "num_leaves": 1 << recipe.depth,
        "max_depth": recipe.depth,
        "lambda_l2": recipe.lambda_l2,
        **({"categorical_feature": categories} if categories else {}),
    }


def _block(tree: Tree, *, values: Floats, bias: float, shrinkage: float) -> str:
    """The text of a complete tree with these leaf values, of which `bias` is added to each."""
    levels = [values]
    while len(levels[0]) > 1:
        levels.insert(0, levels[0].reshape(-1, 2).mean(axis=1))
    below = [1 << (len(levels) - 1 - level) for level in range(len(levels))]
    gains = [
        below[level + 1] * np.square(np.diff(levels[level + 1].reshape(-1, 2), axis=1)[:, 0]) / 2
        for level in range(len(levels) - 1)
    ]
    counts = [below[level] for level in range(len(levels) - 1) for _ in range(1 << level)]
    fields: list[tuple[str, str]] = [
        ("num_leaves", str(tree.leaves)),
        ("num_cat", str(max(len(tree.cat_boundaries) - 1, 0))),
        ("split_feature", _whole(tree.split_feature)),
        ("split_gain", _short(np.concatenate(gains))),
        ("threshold", _exact(tree.threshold)),
        ("decision_type", _whole(tree.decision_type)),
        ("left_child", _whole(tree.left_child)),
        ("right_child", _whole(tree.right_child)),
        ("leaf_value", _exact(values + bias)),
        ("leaf_weight", " ".join(["0"] * tree.leaves)),
        ("leaf_count", " ".join(["1"] * tree.leaves)),
        ("internal_value", _short(np.concatenate(levels[:-1]) + bias)),
        ("internal_weight", " ".join(["0"] * (tree.leaves - 1))),
        ("internal_count", " ".join(map(str, counts))),
    ]
    if len(tree.cat_boundaries):
        fields += [("cat_boundaries", _whole(tree.cat_boundaries)), ("cat_threshold", _whole(tree.cat_threshold))]
    fields += [("is_linear", "0"), ("shrinkage", _short(np.array([shrinkage])))]
    return "Tree=0\n" + "".join(f"{name}={value}\n" for name, value in fields) + "\n\n"


def _flushed(values: Floats) -> Floats:
    """LightGBM takes a value below 1e-35 for 0."""
    return np.where(np.abs(values) < 1e-35, 0.0, values)


def _whole(values: NDArray[np.int64]) -> str:
    return " ".join(map(str, values.tolist()))


def _exact(values: Floats) -> str:
    """17 digits bring every binary64 number back."""
    return " ".join(f"{value:.17g}" for value in _flushed(values).tolist())


def _short(values: Floats) -> str:
    """6 digits, as LightGBM writes what prediction does not read."""
    return " ".join(f"{value:.6g}" for value in _flushed(values).tolist())
