"""Texts of LightGBM are read, cut, put together again and written in one form, and stay the same trees."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cohortium_protocol.trees.text import (
    TreeModelRefused,
    check_blocks,
    check_header,
    check_model_text,
    gains_and_splits,
    header_of,
    make_header,
    render,
    tree_blocks,
)
from tree_text_stage import CLASSES, FEATURES, TESTS, Gate, genuine, labels_for, rules_for, table

lightgbm = pytest.importorskip("lightgbm", reason="the training extra is not installed")

PARAMETERS = {"boosting": "gbdt", "objective": "binary", "learning_rate": 0.1, "lambda_l2": 0.0, "deterministic": True}


@pytest.mark.parametrize("objective", CLASSES)
def test_genuine_text_is_read_and_written_with_the_same_trees(objective: str, gate: Gate) -> None:
    model = genuine(objective)
    read = check_model_text(model.data, **model.rules)
    written = render(read.header, [tree.block for tree in read.trees], {"objective": objective})
    again = check_model_text(written, **model.rules)
    start, end = model.text.index("Tree=0\n"), model.text.index("end of trees")
    assert model.text[start:end] in written.decode()
    assert again.header == model.text[: model.text.index("tree_sizes=")]
    assert read.rounds == again.rounds == 4
    found = gate.tries(written.decode(), model.rules)
    assert (found["end"], found["difference"] <= 1e-12) == ("used", True)


def test_canonical_text_says_of_its_making_only_what_it_is_told() -> None:
    model = genuine("binary")
    written = render(header_of(model.text), tree_blocks(model.text), PARAMETERS).decode()
    said = written[written.index("parameters:") :]
    assert said == (
        "parameters:\n[boosting: gbdt]\n[objective: binary]\n[learning_rate: 0.1]\n[lambda_l2: 0]\n[deterministic: 1]\n"
        "\nend of parameters\n\npandas_categorical:null\n"
    )
    assert lightgbm.Booster(model_str=written).params["learning_rate"] == 0.1


def test_canonical_text_is_its_own_canonical_text() -> None:
    model = genuine("multiclass")
    once = render(header_of(model.text), tree_blocks(model.text), {"objective": "multiclass", "num_class": 3})
    twice = render(header_of(once.decode()), tree_blocks(once.decode()), {"objective": "multiclass", "num_class": 3})
    assert once == twice


def test_rounds_cut_from_a_growing_model_make_the_whole_text() -> None:
    values, signal = table()
    names = {"feature_name": list(FEATURES), "categorical_feature": [1]}
    data = lightgbm.Dataset(values, labels_for("multiclass", signal), params={"verbosity": -1}, **names)
    params = {"objective": "multiclass", "num_class": 3, "num_leaves": 5, "verbosity": -1, "num_threads": 1}
    booster = lightgbm.Booster(params, data)
    header, rounds = "", b""
    for place in range(3):
        booster.update()
        text = booster.model_to_string(start_iteration=place, num_iteration=1)
        header = header or header_of(text)
        new = check_blocks("".join(tree_blocks(text)).encode(), features=4, max_trees=3, max_leaves=5, codes={1: 40})
        assert len(new) == 3
        rounds += "".join(tree.block for tree in new).encode()
    whole = render(header, tree_blocks(rounds.decode()), {"objective": "multiclass"})
    expected = booster.model_to_string()
    assert whole.decode()[: whole.index(b"\nparameters:")] == expected[: expected.index("\nparameters:")]


def test_text_of_lightgbm_that_stopped_early_passes() -> None:
    values, _ = table()
    data = lightgbm.Dataset(values, np.zeros(len(values)), params={"verbosity": -1}, feature_name=list(FEATURES))
    params = {"objective": "binary", "verbosity": -1, "num_threads": 1}
    text = lightgbm.train(params, data, num_boost_round=2).model_to_string()
    rules = rules_for("binary", 1, 31) | {"categories": None}
    read = check_model_text(text.encode(), **rules)
    assert [tree.leaves for tree in read.trees] == [1]
    assert read.trees[0].depth == 0


def test_gains_and_splits_are_those_that_lightgbm_tells() -> None:
    model = genuine("multiclass")
    gains, splits = gains_and_splits(check_model_text(model.data, **model.rules))
    booster = lightgbm.Booster(model_str=model.text)
    assert splits.tolist() == booster.feature_importance("split").tolist()
    assert np.allclose(gains, booster.feature_importance("gain"), rtol=1e-6)
    assert splits.sum() > 20


def test_header_of_ones_own_is_read_by_lightgbm() -> None:
    header = make_header(["age", "ward"], ["[0:90]", "0:1:2"], objective="poisson", classes=1, monotone=[1, 0])
    single = (
        "Tree=0\nnum_leaves=1\nnum_cat=0\nsplit_feature=\nsplit_gain=\nthreshold=\ndecision_type=\nleft_child=\n"
        "right_child=\nleaf_value=0.5\nleaf_weight=\nleaf_count=\ninternal_value=\ninternal_weight=\ninternal_count=\n"
        "is_linear=0\nshrinkage=1\n\n\n"
    )
    text = render(header, [single], {"objective": "poisson"}).decode()
    booster = lightgbm.Booster(model_str=text)
    assert booster.feature_name() == ["age", "ward"]
    assert np.allclose(booster.predict(np.zeros((2, 2))), np.exp(0.5))


def test_header_alone_is_checked() -> None:
    model = genuine("multiclass")
    rules = {"features": FEATURES, "classes": 3, "objective": "multiclass"}
    assert check_header(header_of(model.text).encode(), **rules) == header_of(model.text)
    for wrong in (b"tree\n", header_of(model.text)[:-1].encode(), model.data):
        with pytest.raises(TreeModelRefused):
            check_header(wrong, **rules)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda blocks: "", "size"),
        (lambda blocks: blocks + blocks, "tree_count"),
        (lambda blocks: "x" + blocks, "layout"),
        (lambda blocks: blocks + "end of trees\n", "layout"),
        (lambda blocks: blocks.replace("Tree=0", "Tree=x"), "tree_number"),
        (lambda blocks: blocks.replace("is_linear=0", "is_linear=1"), "linear"),
        (lambda blocks: blocks[:-1], "layout"),
    ],
)
def test_blocks_of_a_round_are_checked(change: object, rule: str) -> None:
    blocks = "".join(tree_blocks(genuine("multiclass").text)[:3])
    assert callable(change)
    with pytest.raises(TreeModelRefused) as refused:
        check_blocks(change(blocks).encode(), features=4, max_trees=3, max_leaves=8, codes={1: 40})
    assert refused.value.rule == rule


@pytest.mark.parametrize("value", [float("nan"), "a b", "10.0.0.1:1", '"', "x]\n[y: 1"])
def test_parameter_that_lightgbm_would_not_read_is_not_written(value: object) -> None:
    model = genuine("binary")
    with pytest.raises(TreeModelRefused):
        render(header_of(model.text), tree_blocks(model.text), {"lambda_l2": value})


def test_model_of_200_trees_is_checked_in_well_under_a_third_of_a_second() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(4000, 20))
    labels = (values[:, 0] + values[:, 1] * values[:, 2] + random.normal(size=4000) > 0).astype(int)
    data = lightgbm.Dataset(values, labels, params={"verbosity": -1})
    params = {"objective": "binary", "verbosity": -1, "num_threads": 1}
    text = lightgbm.train(params, data, num_boost_round=200).model_to_string()
    names = tuple(f"Column_{place}" for place in range(20))
    rules = {"features": names, "classes": 1, "max_trees": 200, "max_leaves": 31, "objective": "binary"}
    assert len(text) > 600_000
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        check_model_text(text.encode(), **rules, categories={})
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.3


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def parallel_texts(folder: Path) -> list[str]:
    """What three machines of LightGBM's data-parallel mode write. Ports may be taken in between: then once more."""
    for _ in range(3):
        ports = ",".join(map(str, free_ports(3)))
        command = [sys.executable, str(TESTS / "tree_text_parallel.py")]
        machines = [subprocess.Popen([*command, str(rank), ports, str(folder)]) for rank in range(3)]
        try:
            if all(machine.wait(timeout=60) == 0 for machine in machines):
                return [(folder / f"model-{rank}.txt").read_text() for rank in range(3)]
        finally:
            for machine in machines:
                machine.kill()
                machine.wait()
    raise AssertionError("three machines of LightGBM found no way to each other")


def test_texts_of_data_parallel_training_pass_and_keep_their_trees(tmp_path: Path) -> None:
    texts = parallel_texts(tmp_path)
    assert len({text[text.index("Tree=0\n") : text.index("end of trees")] for text in texts}) == 1
    rules = rules_for("binary", 6, 7) | {"categories": {"ward": 30}}
    with pytest.raises(TreeModelRefused, match="machines names a file or an address"):
        check_model_text(texts[0].encode(), **rules)
    written = render(header_of(texts[0]), tree_blocks(texts[0]), PARAMETERS)
    read = check_model_text(written, **rules)
    assert "".join(tree.block for tree in read.trees) in texts[0]
    assert read.rounds == 6
