"""The splits of random trees come from public numbers alone, the same everywhere and for ever."""

import hashlib

import numpy as np
import pytest

from cohortium_messages.study import Study
from cohortium_protocol.trees.predict import feature_columns, leaf_places
from cohortium_protocol.trees.random_structure import columns_of, random_tree
from cohortium_protocol.trees.tree_text import CATEGORY, DEFAULT_LEFT, MISSING_NAN, Tree
from random_tree_stage import FEATURES, random_study

AGE, WARD, SEX = 0, 2, 3
KNOWN_FEATURES = [3, 4, 4, 4, 4, 4, 2]
KNOWN_THRESHOLDS = [
    0.0,
    0.5538461538461537,
    1.5384615384615383,
    -2.646153846153846,
    1.907692307692308,
    -3.1384615384615384,
    1.0,
]
KNOWN_DIGESTS = [
    "e1a7458b40b3084b64231e528a4a626307ebb852ea485bdfd77a8cece2c14c0a",
    "c0658c6999ea27d280a27c1a4c5918e08d649e281db5001fe6e6712160280263",
    "724f6613324d83ccfa464316daae85db921db566622e4cee1d6e97cecd9f2e5b",
]


def digest(tree: Tree) -> str:
    parts = (tree.split_feature, tree.threshold, tree.decision_type, tree.left_child, tree.right_child)
    together = b"".join(part.tobytes() for part in (*parts, tree.cat_boundaries, tree.cat_threshold))
    return hashlib.sha256(together).hexdigest()


def test_structure_is_the_known_one() -> None:
    tree = random_tree(random_study(depth=3), 0)
    assert (tree.leaves, tree.depth) == (8, 3)
    assert tree.left_child.tolist() == [1, 3, 5, -1, -3, -5, -7]
    assert tree.right_child.tolist() == [2, 4, 6, -2, -4, -6, -8]
    assert tree.split_feature.tolist() == KNOWN_FEATURES
    assert tree.threshold.tolist() == KNOWN_THRESHOLDS
    assert [digest(random_tree(random_study(depth=8), number)) for number in (0, 1, 4999)] == KNOWN_DIGESTS


def test_structure_depends_on_seed_and_number_only_of_what_is_not_a_range() -> None:
    study = random_study()
    assert digest(random_tree(study, 5)) == digest(random_tree(random_study("count", trees=300, lambda_l2=7.0), 5))
    others = [random_tree(study, 6), random_tree(random_study(seed=4), 5), random_tree(random_study(grid=32), 5)]
    assert len({digest(tree) for tree in (random_tree(study, 5), *others)}) == 4


def test_features_and_thresholds_are_drawn_evenly() -> None:
    study = random_study(depth=1, grid=16)
    trees = [random_tree(study, number) for number in range(4000)]
    counts = np.bincount([tree.split_feature[0] for tree in trees], minlength=5)
    assert ((counts - 800) ** 2 / 800).sum() < 18.5  # chi-square, 4 degrees of freedom, 1 in 1,000
    thresholds = [float(tree.threshold[0]) for tree in trees if tree.split_feature[0] == AGE]
    values, found = np.unique(thresholds, return_counts=True)
    assert values.tolist() == list(columns_of(study)[AGE].thresholds)
    expected = len(thresholds) / len(values)
    assert ((found - expected) ** 2 / expected).sum() < 37.7  # 15 degrees of freedom


def test_missing_values_go_to_a_side_that_is_drawn() -> None:
    study = random_study(depth=1)
    sides = [
        int(tree.decision_type[0])
        for tree in (random_tree(study, n) for n in range(600))
        if tree.split_feature[0] == AGE
    ]
    assert set(sides) == {MISSING_NAN, MISSING_NAN | DEFAULT_LEFT}
    assert 0.3 < sides.count(MISSING_NAN) / len(sides) < 0.7


def test_sets_of_codes_are_proper_parts_of_what_the_splits_above_have_left() -> None:
    study = random_study(depth=8, features=[FEATURES[WARD], FEATURES[SEX]])
    for number in range(20):
        tree = random_tree(study, number)
        left_over = {0: ((1 << 41) - 1, 3)}
        for node in range(tree.leaves - 1):
            place, spans = int(tree.split_feature[node]), list(left_over.pop(node))
            assert tree.decision_type[node] == (CATEGORY | MISSING_NAN if place else CATEGORY)
            start, end = tree.cat_boundaries[int(tree.threshold[node]) :][:2].tolist()
            codes = sum(int(word) << 32 * shift for shift, word in enumerate(tree.cat_threshold[start:end]))
            divisible = [span.bit_count() > 1 for span in spans]
            assert 0 < codes < (1 << 41 if place == 0 else 4)
            if any(divisible):
                assert divisible[place]
                assert codes & ~spans[place] == 0
                assert codes != spans[place]
            for child, rest in ((tree.left_child[node], codes), (tree.right_child[node], spans[place] & ~codes)):
                if child >= 0:
                    left_over[int(child)] = tuple(rest if at == place else span for at, span in enumerate(spans))


def test_thresholds_below_a_split_divide_what_it_has_left() -> None:
    study = random_study(depth=6, features=[FEATURES[0], FEATURES[4]], grid=256)
    for number in range(20):
        tree = random_tree(study, number)
        rows = np.random.default_rng(number).uniform(-4, 4, size=(50_000, 2))
        assert np.unique(leaf_places(tree, feature_columns(rows, 2))).size > 0.9 * tree.leaves


def test_tree_of_one_feature_with_two_values_has_all_its_leaves() -> None:
    tree = random_tree(random_study(depth=4, features=[FEATURES[SEX]]), 0)
    assert tree.leaves == 16
    first, second = leaf_places(tree, feature_columns(np.array([[0.0], [1.0]]), 1))
    assert first != second


def test_study_of_another_trainer_has_no_random_trees() -> None:
    fields = random_study().model_dump(mode="json")
    other = Study.model_validate(fields | {"recipe": {"trainer": "lightgbm", "rounds": 3}})
    with pytest.raises(ValueError, match="no random trees"):
        random_tree(other, 0)
