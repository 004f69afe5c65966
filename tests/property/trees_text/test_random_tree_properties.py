"""One row more or less moves the integer vector by no more than is stated, and sums of sites are sums of all rows."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium_messages.study import Study
from cohortium_protocol.trees.predict import raw_scores
from cohortium_protocol.trees.random_trees import (
    CLIP,
    FINE_BITS,
    NOISY_BITS,
    check_random_trees,
    leaf_vector,
    next_model,
    row_vectors,
    sensitivity,
    vector_length,
)
from cohortium_protocol.trees.text import ModelText
from examples import examples
from random_tree_stage import FEATURES, LABELS, LEVELS, random_rows, random_study

SCORES = st.floats(-60, 60) | st.sampled_from([0.0, 0.294816, -0.294816, 5.0, -20.0, 30.0, 4.1, 700.0, -700.0])
ROW = st.tuples(
    st.floats(-4, 4) | st.just(math.nan),
    st.integers(0, 9).map(float),
    st.integers(0, LEVELS).map(float),
    st.sampled_from([0.0, 1.0, math.nan]),
    st.floats(-4, 4),
)
OUTCOME = {
    "binary": st.integers(0, 1),
    "multiclass": st.integers(0, 2),
    "number": st.floats(-20, 30),
    "count": st.integers(0, 60).map(float),
}
KIND = {"multiclass": np.int32, "binary": np.uint8}


class Silence:
    """Noise of nothing: the vector is on the lattice that noise is added on."""

    def integers(self, count: int) -> np.ndarray:
        return np.zeros(count, dtype=np.int64)


def base_with(study: Study, leaves: list[float]) -> ModelText:
    """A model after round 1 whose scores are far from those of any training: sums made up from `leaves`."""
    words = np.resize(np.array(leaves), vector_length(study) // 2)
    sums = np.stack([np.rint(words * 2.0**FINE_BITS), np.full(len(words), 1 << 20)], axis=1).astype(np.int64)
    return check_random_trees(study, next_model(study, 1, b"", sums.reshape(-1)), 1)


@settings(max_examples=examples(150), deadline=None)
@given(data=st.data(), label=st.sampled_from(sorted(LABELS)), together=st.integers(1, 5), noisy=st.booleans())
def test_one_row_moves_the_vector_by_no_more_than_is_stated(
    data: st.DataObject, label: str, together: int, noisy: bool
) -> None:
    study = random_study(label, trees=2 * together, trees_per_sum=together, depth=3, learning_rate=1.0)
    rows = np.array(data.draw(st.lists(ROW, min_size=1, max_size=6)))
    labels = np.array([data.draw(OUTCOME[label]) for _ in rows]).astype(KIND.get(label, np.float64))
    base = base_with(study, data.draw(st.lists(st.floats(-1, 1), min_size=1, max_size=12)))
    noise = Silence() if noisy else None
    place = data.draw(st.integers(0, len(rows) - 1))
    without = np.delete(np.arange(len(rows)), place)
    for round_, model in ((1, None), (2, base)):
        whole = leaf_vector(study, round_, model, rows, labels, noise)
        less = leaf_vector(study, round_, model, rows[without], labels[without], noise)
        moved = np.sqrt(np.square((whole - less).astype(np.float64)).sum())
        assert moved <= sensitivity(study, NOISY_BITS if noisy else FINE_BITS)
        assert (whole == less + leaf_vector(study, round_, model, rows[[place]], labels[[place]], noise)).all()


@settings(max_examples=examples(300), deadline=None)
@given(data=st.data(), label=st.sampled_from(sorted(LABELS)))
def test_no_row_is_longer_than_its_bound(data: st.DataObject, label: str) -> None:
    study = random_study(label)
    shape = (1, 3) if label == "multiclass" else (1,)
    raw = np.array([data.draw(SCORES) for _ in range(math.prod(shape))]).reshape(shape)
    outcome = np.array([data.draw(OUTCOME[label])]).astype(KIND.get(label, np.float64))
    assert np.linalg.norm(row_vectors(study, raw, outcome)) <= CLIP[label] * (1 + 1e-12)


@pytest.mark.parametrize(("label", "nearest"), [("binary", 0.9998), ("number", 0.9999), ("count", 0.9999)])
def test_stated_bound_is_reached(label: str, nearest: float) -> None:
    study = random_study(label)
    raw = np.concatenate([np.linspace(-5, 5, 20_001), np.array([30.0, -20.0, math.log(60)])])
    outcomes = {"binary": (0, 1), "number": (-20.0, 30.0), "count": (0.0, 60.0)}[label]
    longest = max(np.linalg.norm(row_vectors(study, raw, np.full(len(raw), y)), axis=1).max() for y in outcomes)
    assert nearest * CLIP[label] < longest <= CLIP[label] * (1 + 1e-12)


def test_binary_rows_are_never_shortened() -> None:
    raw = np.linspace(-40, 40, 100_001)
    p = 1.0 / (1.0 + np.exp(-raw))
    natural = np.stack([p, 4.0 * p * (1.0 - p)], axis=1) / math.sqrt(2.0)
    assert np.allclose(row_vectors(random_study(), raw, np.zeros(len(raw))), natural, rtol=1e-12, atol=0)


@settings(max_examples=examples(40), deadline=None)
@given(label=st.sampled_from(sorted(LABELS)), cuts=st.lists(st.integers(0, 60), max_size=4), seed=st.integers(0, 99))
def test_vectors_of_sites_add_up_to_that_of_all_rows(label: str, cuts: list[int], seed: int) -> None:
    study = random_study(label, trees=4, trees_per_sum=2)
    rows, labels = random_rows(label, 60, seed)
    parts = np.split(np.random.default_rng(seed).permutation(60), sorted(cuts))
    together = leaf_vector(study, 1, None, rows, labels)
    assert (sum(leaf_vector(study, 1, None, rows[part], labels[part]) for part in parts) == together).all()
    model = check_random_trees(study, next_model(study, 1, b"", together), 1)
    further = sum(leaf_vector(study, 2, model, rows[part], labels[part]) for part in parts)
    assert (further == leaf_vector(study, 2, model, rows, labels)).all()


@st.composite
def studies(draw: st.DrawFn) -> tuple[Study, str]:
    label = draw(st.sampled_from(sorted(LABELS)))
    features: list[dict[str, Any]] = draw(
        st.lists(st.sampled_from(FEATURES), min_size=1, unique_by=lambda one: one["name"])
    )
    low, width = draw(st.floats(-1e6, 1e6)), draw(st.sampled_from([1e-9, 0.1, 1.0, 100.0, 1e14]))
    features = [one | {"range": [low, low + width]} if one["type"] == "float" else one for one in features]
    recipe = {
        "trees": draw(st.integers(1, 6)),
        "depth": draw(st.integers(1, 6)),
        "trees_per_sum": draw(st.integers(1, 4)),
        "grid": draw(st.integers(2, 100)),
        "lambda_l2": draw(st.floats(0, 100)),
        "learning_rate": draw(st.floats(0.01, 1)),
    }
    return random_study(label, features, draw(st.integers(0, 1 << 30)), **recipe), label


@settings(max_examples=examples(80), deadline=None)
@given(study_and_label=studies(), noise=st.sampled_from([0.0, 100.0, 1e6]), seed=st.integers(0, 99))
def test_any_sums_make_a_text_that_passes_and_scores_that_are_finite(
    study_and_label: tuple[Study, str], noise: float, seed: int
) -> None:
    study, label = study_and_label
    random = np.random.default_rng(seed)
    words = random.normal(scale=max(noise, 1e9), size=(vector_length(study) // 2, 2))
    words[:, 1] = np.abs(words[:, 1])
    slots = study.recipe.trees_per_sum
    words[min(study.recipe.trees, slots) * (len(words) // slots) :] = 0
    text = next_model(study, 1, b"", np.rint(words).astype(np.int64).reshape(-1), noise)
    model = check_random_trees(study, text, 1)
    places = [[one["name"] for one in FEATURES].index(name) for name in model.features]
    rows, _ = random_rows(label, 50, seed)
    assert np.isfinite(raw_scores(model, rows[:, places])).all()
