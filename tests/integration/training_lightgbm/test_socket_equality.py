"""Trees from sums are LightGBM's own: equal, byte for byte, to those of its distributed training over sockets.

A sum of a session is exact and rounded once. LightGBM adds float64 one after the other, in an order that follows from
the number of machines. Both give the same where no addition of LightGBM rounds, and so it is for gradients: they are
float32, and a float64 has 29 bits more, room for the sums of all rows as long as the smallest gradient is not much
smaller than the largest. What may round are the first scores of `regression` and `poisson`, which are means of each
site's mean (or its logarithm): so the labels here are such that these means add up without rounding (multiples of 1/64
over a power of two rows; the same mean at all of three sites). On arbitrary labels the trees have the same structure,
and the same leaf values but for the last bits: the last test.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightgbm_cases import (
    Columns,
    binary_sites,
    cases,
    count_sites,
    mixed_sites,
    multiclass_sites,
    number_sites,
    one_class_and_tiny_sites,
    study_of,
)
from lightgbm_world import World, model_of, trees_of

from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_protocol.trees.text import check_model_text, header_of, render, tree_blocks

pytest.importorskip("lightgbm", reason="the training extra is not installed")

STUDIES = Path(__file__).resolve().parents[2] / "studies"
BINARY = {"type": "binary"}
CLASSES = {"type": "multiclass", "levels": ["mild", "severe", "critical"]}
NUMBER = {"type": "number", "range": [0.0, 4.0]}
COUNT = {"type": "count", "most": 15}
SIZES = (512, 512, 512, 512)
UNEVEN = (150, 900, 350, 600)
MONOTONE = {
    "monotone_constraints": {"f0": 1, "f1": -1},
    "monotone_penalty": 0.5,
    "feature_fraction": 0.7,
    "feature_fraction_bynode": 0.8,
    "lambda_l1": 0.3,
    "lambda_l2": 2.0,
    "num_leaves": 12,
}
EXTRA = {"extra_trees": True, "path_smooth": 3.0, "max_delta_step": 0.6, "boost_from_average": False, "max_depth": 4}
CATEGORIES = {"min_data_per_group": 20, "cat_smooth": 2.0, "max_cat_threshold": 6, "max_cat_to_onehot": 3}

CASES: dict[str, tuple[Study, list[Columns]]] = {
    "binary": (study_of(BINARY), binary_sites(UNEVEN)),
    "binary, one class and twelve rows": (study_of(BINARY), one_class_and_tiny_sites()),
    "multiclass": (study_of(CLASSES, rounds=5), multiclass_sites(UNEVEN, CLASSES["levels"])),
    "regression": (study_of(NUMBER), number_sites(SIZES)),
    "regression of counts": (study_of(COUNT, params={"objective": "regression"}), count_sites(512, 4)),
    "poisson": (study_of(COUNT), count_sites(500, 3)),
    "poisson, not from the average": (study_of(COUNT, params={"boost_from_average": False}), count_sites(500, 4)),
    "categories and missing values": (
        study_of(BINARY, categories=2, missing="native", params=CATEGORIES),
        mixed_sites(UNEVEN),
    ),
    "monotone, fractions, penalties": (study_of(BINARY, params=MONOTONE), binary_sites(UNEVEN, seed=7)),
    "extra trees, smoothing, from zero": (study_of(BINARY, params=EXTRA), binary_sites(UNEVEN, seed=8)),
    "extra trees with categories": (
        study_of(BINARY, categories=2, missing="native", params=CATEGORIES | {"extra_trees": True}),
        mixed_sites(UNEVEN, seed=9),
    ),
    "weight of label 1": (study_of(BINARY, params={"scale_pos_weight": 3.7}), binary_sites(UNEVEN, seed=10)),
    "unbalanced": (study_of(BINARY, params={"is_unbalance": True}), one_class_and_tiny_sites(seed=11)),
    "class weights": (study_of(BINARY, class_weight={"0": 0.3, "1": 1.7}), binary_sites(UNEVEN, seed=12)),
    "class weights, multiclass": (
        study_of(CLASSES, rounds=4, class_weight={"severe": 2.5, "critical": 0.4}),
        multiclass_sites(UNEVEN, CLASSES["levels"], seed=13),
    ),
    "many leaves, few rows": (
        study_of(BINARY, params={"num_leaves": 63, "min_data_in_leaf": 5, "learning_rate": 0.5, "max_bin": 255}),
        binary_sites(UNEVEN, seed=14),
    ),
}


QUICK = (
    "binary, one class and twelve rows",
    "multiclass",
    "regression",
    "poisson",
    "categories and missing values",
    "monotone, fractions, penalties",
    "extra trees with categories",
    "class weights, multiclass",
)
"""Each label, and each part of LightGBM that a parameter brings in."""


@pytest.mark.parametrize("name", cases(CASES, *QUICK))
def test_trees_are_those_of_lightgbms_own_network(world: World, name: str) -> None:
    study, tables = CASES[name]
    prepared = world.prepare(study, tables)
    session = world.train(prepared)
    assert session.end == {"best_round": study.boosting_rounds, "rounds": study.boosting_rounds}
    assert [getattr(result, "rounds", result) for result in session.results] == [study.boosting_rounds] * len(tables)
    ours = model_of(session)
    theirs = world.over_sockets(prepared)
    assert ours.count("\nsplit_feature=") == study.boosting_rounds * study.trees_per_round
    assert len({trees_of(text) for text in theirs}) == 1
    assert trees_of(ours) == trees_of(theirs[0])


def test_four_real_hospitals_grow_the_trees_of_lightgbms_own_network(world: World, heart_tables: list[Path]) -> None:
    """Half of the values are missing at some of them, and one has hardly any healthy patient."""
    study = parse_study((STUDIES / "heart-trees.yaml").read_text())
    prepared = world.prepare_files(study, heart_tables)
    ours = model_of(world.train(prepared))
    assert trees_of(ours) == trees_of(world.over_sockets(prepared)[0])
    assert ours.count("Tree=") == study.boosting_rounds


OTHERWISE = {
    "histograms by row": {"force_col_wise": False, "force_row_wise": True},
    "two threads": {"num_threads": 2},
    "by row, two threads": {"force_col_wise": False, "force_row_wise": True, "num_threads": 2},
}


@pytest.mark.parametrize("name", cases(OTHERWISE, "by row, two threads"))
def test_what_a_hospital_decides_for_itself_grows_the_same_trees(world: World, name: str) -> None:
    """Threads are a setting of the connector; `force_col_wise` is set for speed. Neither decides anything."""
    study, tables = CASES["categories and missing values"]
    prepared = world.prepare(study, tables)
    ours = model_of(world.train(prepared))
    theirs = world.over_sockets(prepared, **OTHERWISE[name])
    assert trees_of(ours) == trees_of(theirs[0])


ARBITRARY: dict[str, tuple[dict[str, Any], list[Columns]]] = {
    "regression": (NUMBER, number_sites((333, 710, 291, 666), seed=20, steps=1e7)),
    "poisson": (COUNT, [*count_sites(401, 2, seed=21), *count_sites(577, 2, seed=22)]),
}


@pytest.mark.parametrize("name", ARBITRARY)
def test_on_arbitrary_labels_only_the_last_bits_of_leaf_values_may_differ(world: World, name: str) -> None:
    label, tables = ARBITRARY[name]
    study = study_of(label, rounds=6)
    prepared = world.prepare(study, tables)
    theirs = world.over_sockets(prepared)[0]
    texts = (model_of(world.train(prepared)).encode(), render(header_of(theirs), tree_blocks(theirs), {}))
    models = [
        check_model_text(
            text,
            features=prepared.binning.feature_names(),
            classes=1,
            max_trees=100,
            max_leaves=100,
            objective=study.objective or "",
        )
        for text in texts
    ]
    assert len(models[0].trees) == len(models[1].trees) == 6
    for ours, others in zip(models[0].trees, models[1].trees, strict=True):
        for part in ("split_feature", "threshold", "decision_type", "left_child", "right_child"):
            assert np.array_equal(getattr(ours, part), getattr(others, part)), part
        assert np.allclose(ours.leaf_value, others.leaf_value, rtol=0, atol=1e-12)
