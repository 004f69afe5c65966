"""Random trees learn from leaf sums alone; their text is an ordinary LightGBM model that tells no numbers of
patients."""

import numpy as np
import pytest

from cohortium_protocol.statistics import SumsRefused
from cohortium_protocol.trees.predict import raw_scores, response
from cohortium_protocol.trees.random_trees import (
    FINE_BITS,
    NOISY_BITS,
    check_random_trees,
    initial_score,
    leaf_values,
    leaf_vector,
    next_model,
    sensitivity,
    vector_length,
)
from cohortium_protocol.trees.text import TreeModelRefused
from random_tree_stage import FEATURES, LABELS, course, random_rows, random_study
from tree_text_stage import resized, values_of, with_value


class Steady:
    """Noise that is always the same, so that a test can see it."""

    def __init__(self, value: int) -> None:
        self.value = value

    def integers(self, count: int) -> np.ndarray:
        return np.full(count, self.value, dtype=np.int64)


def loss(label: str, predicted: np.ndarray, labels: np.ndarray) -> float:
    match label:
        case "binary":
            return float(-np.log(np.where(labels == 1, predicted, 1 - predicted)).mean())
        case "multiclass":
            return float(-np.log(predicted[np.arange(len(labels)), labels]).mean())
    return float(((predicted - labels) ** 2).mean())


def of_nobody(label: str, labels: np.ndarray) -> np.ndarray:
    """The prediction that the labels' own frequencies or mean make."""
    if label == "multiclass":
        return np.broadcast_to(np.bincount(labels) / len(labels), (len(labels), 3))
    return np.full(len(labels), labels.mean())


@pytest.mark.parametrize("together", [2, 10])
@pytest.mark.parametrize("label", LABELS)
def test_random_trees_learn_from_sums(label: str, together: int) -> None:
    study = random_study(label, trees=30, trees_per_sum=together, learning_rate=0.3)
    rows, labels = random_rows(label, 1500)
    _, model = course(study, [(rows[:300], labels[:300]), (rows[300:400], labels[300:400]), (rows[400:], labels[400:])])
    unseen, truth = random_rows(label, 1500, seed=1)
    predicted = response(model.objective, raw_scores(model, unseen))
    assert loss(label, predicted, truth) < 0.9 * loss(label, of_nobody(label, truth), truth)


def test_sites_together_make_the_text_of_all_rows_together() -> None:
    for label in LABELS:
        study = random_study(label, trees=5, trees_per_sum=2)
        rows, labels = random_rows(label, 500)
        order = np.argsort(rows[:, 1])
        parts = [(rows[part], labels[part]) for part in np.array_split(order, 4)]
        assert course(study, parts)[0] == course(study, [(rows, labels)])[0]


def test_first_step_is_the_newton_step_of_the_loss() -> None:
    study = random_study("binary", trees=1, depth=1, lambda_l2=2.0, learning_rate=0.5)
    rows, labels = random_rows("binary", 400)
    _, model = course(study, [(rows, labels)])
    raw = raw_scores(model, rows)
    for value in np.unique(raw):
        there = labels[raw == value]
        slope, curvature = (0.5 - there).sum(), 0.25 * len(there)
        assert value == pytest.approx(-0.5 * slope / (curvature + 2.0), rel=1e-8)


def test_a_number_begins_in_the_middle_of_its_range() -> None:
    study = random_study("number", trees=1, depth=2, lambda_l2=1e6)
    rows, labels = random_rows("number", 50)
    _, model = course(study, [(rows, labels)])
    assert initial_score(study) == 5.0
    assert raw_scores(model, rows) == pytest.approx(np.full(50, 5.0), abs=1e-3)


def test_steps_of_one_round_together_are_no_more_than_one_step() -> None:
    rows, labels = random_rows("number", 300)
    _, together = course(random_study("number", trees=50, trees_per_sum=50), [(rows, labels)])
    assert together.trees[1].block.count("shrinkage=0.02\n") == 1
    assert np.abs(raw_scores(together, rows) - labels).mean() < np.abs(5.0 - labels).mean()


def test_step_of_a_leaf_with_hardly_any_curvature_is_cut() -> None:
    study = random_study("binary", trees=1, depth=1, lambda_l2=0.0, learning_rate=1.0)
    sums = np.array([-1 << 32, 1, 1 << 32, 0], dtype=np.int64)
    assert leaf_values(study, 1, sums).ravel().tolist() == [4.0, 0.0]


def test_text_tells_no_numbers_of_patients() -> None:
    rows, labels = random_rows("binary", 700)
    text = course(random_study(trees=3, depth=3), [(rows, labels)])[0].decode()
    for tree in range(3):
        assert set(values_of(text, "leaf_count", tree)) == {"1"}
        assert values_of(text, "internal_count", tree) == ["8", "4", "4", "2", "2", "2", "2"]
        assert set(values_of(text, "leaf_weight", tree) + values_of(text, "internal_weight", tree)) == {"0"}
    empty = course(random_study(trees=3, depth=3), [(rows[:0], labels[:0])])[0].decode()
    kept = [line for line in text.split("\n") if line.startswith(("internal_count", "leaf_count", "leaf_weight"))]
    assert kept == [
        line for line in empty.split("\n") if line.startswith(("internal_count", "leaf_count", "leaf_weight"))
    ]


def test_trees_that_the_last_round_does_not_have_stay_empty() -> None:
    study = random_study(trees=5, trees_per_sum=3, depth=2)
    rows, labels = random_rows("binary", 200)
    model = check_random_trees(study, next_model(study, 1, b"", leaf_vector(study, 1, None, rows, labels)), 1)
    last = leaf_vector(study, 2, model, rows, labels)
    assert len(last) == vector_length(study) == 3 * 4 * 2
    assert (last[16:] == 0).all()
    assert last[:16].any()
    assert course(study, [(rows, labels)])[1].rounds == 5


def test_noise_is_added_to_every_word_on_the_noisy_lattice() -> None:
    study = random_study("multiclass", trees=2, trees_per_sum=2)
    rows, labels = random_rows("multiclass", 300)
    silent, loud = (leaf_vector(study, 1, None, rows, labels, Steady(value)) for value in (0, 12345))
    assert (loud - silent == 12345).all()
    fine = leaf_vector(study, 1, None, rows, labels)
    assert np.abs(fine / 2.0 ** (FINE_BITS - NOISY_BITS) - silent).max() <= 0.5 * len(rows)
    quiet = leaf_values(study, 1, silent, noise_std=1e-3)
    assert np.abs(quiet - leaf_values(study, 1, fine)).max() < 1e-3


def test_noise_may_make_curvature_negative_and_no_value_endless() -> None:
    study = random_study("binary", trees=1, depth=3, lambda_l2=0.0)
    noise = np.rint(np.random.default_rng(0).normal(scale=9000.0, size=vector_length(study))).astype(np.int64)
    text = next_model(study, 1, b"", noise, noise_std=9000.0)
    assert np.abs(check_random_trees(study, text, 1).trees[0].leaf_value).max() <= 0.4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda sums: sums[:-1],
        lambda sums: np.where(np.arange(len(sums)) == 1, -1, sums),
        lambda sums: np.where(np.arange(len(sums)) == len(sums) - 2, 1, sums),
    ],
)
def test_sums_that_no_rows_make_are_refused(spoil: object) -> None:
    study = random_study(trees=1, trees_per_sum=2, depth=2)
    rows, labels = random_rows("binary", 100)
    sums = leaf_vector(study, 1, None, rows, labels)
    assert callable(spoil)
    with pytest.raises(SumsRefused):
        next_model(study, 1, b"", spoil(sums))


def test_model_of_another_structure_header_or_round_is_refused() -> None:
    study = random_study(trees=3, depth=3)
    rows, labels = random_rows("binary", 200)
    data, _ = course(study, [(rows, labels)])
    text = data.decode()
    number = next(place for place, kind in enumerate(values_of(text, "decision_type", 1)) if int(kind) % 2 == 0)
    forged = {
        "structure": with_value(text, "threshold", number, "0.123", tree=1),
        "header": text.replace("[0:9]", "[0:8]", 1),
        "leaves": course(random_study(trees=3, depth=4), [(rows, labels)])[0].decode(),
        "tree_count": resized(text[: text.index("Tree=2")] + text[text.index("end of trees") :]),
        "objective": course(random_study("count", trees=3, depth=3), [(rows, labels)])[0].decode(),
    }
    for rule, wrong in forged.items():
        with pytest.raises(TreeModelRefused) as refused:
            check_random_trees(study, wrong.encode(), 3)
        assert refused.value.rule in (rule, "importances")
    other = course(random_study(trees=3, depth=3, seed=4), [(rows, labels)])[0]
    with pytest.raises(TreeModelRefused, match="structure: tree 0"):
        check_random_trees(study, other)


def test_rounds_follow_one_another() -> None:
    study = random_study(trees=4, trees_per_sum=2, depth=2)
    rows, labels = random_rows("binary", 100)
    sums = leaf_vector(study, 1, None, rows, labels)
    first = next_model(study, 1, b"", sums)
    model = check_random_trees(study, first, 1)
    for wrong in (
        lambda: next_model(study, 1, first, sums),
        lambda: next_model(study, 2, b"", sums),
        lambda: leaf_vector(study, 1, model, rows, labels),
        lambda: leaf_vector(study, 2, None, rows, labels),
        lambda: check_random_trees(study, first, 2),
    ):
        with pytest.raises(TreeModelRefused, match="tree_count"):
            wrong()
    with pytest.raises(ValueError, match="round 3 of 2"):
        leaf_vector(study, 3, check_random_trees(study, next_model(study, 2, first, sums), 2), rows, labels)
    with pytest.raises(ValueError, match="label"):
        leaf_vector(study, 1, None, rows, labels[1:])


def test_sensitivity_is_that_of_the_design() -> None:
    assert sensitivity(random_study(), bits=20) / 2**20 == pytest.approx(0.802, rel=1e-5)
    assert sensitivity(random_study("number", trees_per_sum=16), bits=20) / 2**20 == pytest.approx(4.0, rel=1e-5)
    assert sensitivity(random_study("count"), bits=0) == pytest.approx(1.0 + np.sqrt(2) / 2)


def test_studies_of_one_feature_have_random_trees() -> None:
    for place, feature in enumerate(FEATURES):
        study = random_study(trees=2, depth=3, features=[feature])
        rows, labels = random_rows("binary", 200)
        assert course(study, [(rows[:, [place]], labels)])[1].rounds == 2
