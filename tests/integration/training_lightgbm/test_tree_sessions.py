"""Whole sessions: when they stop, what little they can be grown on, and what of them is asked in the clear."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from lightgbm_cases import (
    Columns,
    binary_sites,
    cases,
    columns_of,
    count_sites,
    inputs,
    mixed_sites,
    multiclass_sites,
    number_sites,
    study_of,
)
from lightgbm_world import Prepared, Session, World, model_of
from numpy.typing import NDArray

from cohortium_connector.training.data import read_table
from cohortium_connector.training.jobs import DataSource
from cohortium_connector.training.live_wire import RELAY, SUM
from cohortium_connector.training.weights import validation_rows
from cohortium_messages.study import LightgbmRecipe
from cohortium_protocol.trees.binning import tree_columns

lightgbm = pytest.importorskip("lightgbm", reason="the training extra is not installed")

BINARY = {"type": "binary"}
CLASSES = {"type": "multiclass", "levels": ["mild", "severe", "critical"]}
NUMBER = {"type": "number", "range": [0.0, 4.0]}
COUNT = {"type": "count", "most": 15}
SIZES = (150, 500, 250, 300)
GREEDY = {"early_stopping_round": 3, "learning_rate": 0.8, "num_leaves": 40, "min_data_in_leaf": 5}
Metric = Callable[[NDArray[Any], NDArray[Any]], float]


def log_loss(p: NDArray[Any], y: NDArray[Any]) -> float:
    return float(-np.mean(np.log(np.where(y == 1, p, 1 - p))))


def several_log_loss(p: NDArray[Any], y: NDArray[Any]) -> float:
    return float(-np.mean(np.log(p[np.arange(len(y)), y.astype(int)])))


def squares(p: NDArray[Any], y: NDArray[Any]) -> float:
    return float(np.mean((p - y) ** 2))


def poisson(p: NDArray[Any], y: NDArray[Any]) -> float:
    return float(np.mean(p - y * np.log(p)))


def area_lost(p: NDArray[Any], y: NDArray[Any]) -> float:
    """1 − AUC, scores in steps of a thousandth."""
    low, high = np.floor(p[y == 0] * 1000), np.floor(p[y == 1] * 1000)
    return 1 - float(np.mean((high[:, None] > low) + 0.5 * (high[:, None] == low)))


STOPPED: dict[str, tuple[dict[str, Any], list[Columns], dict[str, Any], Metric]] = {
    "binary_logloss": (BINARY, binary_sites(SIZES, seed=40), {}, log_loss),
    "auc": (BINARY, binary_sites(SIZES, seed=41), {"metric": "auc"}, area_lost),
    "multi_logloss": (CLASSES, multiclass_sites(SIZES, CLASSES["levels"], seed=42), {}, several_log_loss),
    "l2": (NUMBER, number_sites(SIZES, seed=43), {}, squares),
    "poisson": (COUNT, count_sites(300, 4, seed=44), {}, poisson),
    "binary_logloss, with a least gain": (
        BINARY,
        binary_sites(SIZES, seed=40),
        {"early_stopping_min_delta": 0.02},
        log_loss,
    ),
}


def held_out(prepared: Prepared) -> tuple[NDArray[Any], NDArray[Any]]:
    """Columns and labels of all sites' validation rows."""
    recipe = prepared.study.recipe
    assert isinstance(recipe, LightgbmRecipe)
    parts = []
    for table in prepared.tables:
        train = read_table(prepared.study, DataSource(path=str(table))).train
        parts.append(train.take(validation_rows(prepared.study, recipe, len(train))))
    columns = np.concatenate([tree_columns(prepared.binning, rows) for rows in parts])
    return columns, np.concatenate([rows.labels for rows in parts])


@pytest.mark.parametrize("name", cases(STOPPED, "binary_logloss", "multi_logloss", "binary_logloss, with a least gain"))
def test_training_stops_by_the_metric_of_all_sites_rows(world: World, name: str) -> None:
    label, tables, params, metric = STOPPED[name]
    prepared = world.prepare(study_of(label, rounds=60, params=GREEDY | params), tables)
    session = world.train(prepared)
    assert session.end is not None
    rounds, best = session.end["rounds"], session.end["best_round"]
    assert rounds == len(session.rounds) < 60, "these trees overfit early"
    columns, labels = held_out(prepared)
    assert 0.1 < len(labels) / sum(prepared.rows) < 0.3
    booster = lightgbm.Booster(model_str=model_of(session))
    values = [metric(booster.predict(columns, num_iteration=place + 1), labels) for place in range(rounds)]
    expected, least_gain = 0, params.get("early_stopping_min_delta", 0.0)
    for place, value in enumerate(values):
        if value < values[expected] - least_gain:
            expected = place
    assert best == expected + 1
    assert rounds == best + 3
    assert {getattr(result, "best_round", None) for result in session.results} == {best}


def test_rows_that_decide_do_not_train(world: World) -> None:
    """The root's count in the text is LightGBM's own, of all rows that train."""
    prepared = world.prepare(study_of(BINARY, rounds=5, params=GREEDY), binary_sites(SIZES, seed=45))
    session = world.train(prepared)
    _, labels = held_out(prepared)
    counts = next(line for line in session.rounds[0].splitlines() if line.startswith("leaf_count="))
    assert sum(map(int, counts.removeprefix("leaf_count=").split())) == pytest.approx(
        sum(prepared.rows) - len(labels), abs=20
    )


def test_labels_without_a_pattern_end_in_a_model_of_one_leaf(world: World) -> None:
    """And nothing in it says how many rows a site has: LightGBM would write that into a tree without a split."""
    tables = [columns_of(inputs(size, size), np.arange(size) % 2) for size in (100, 120, 140, 160)]
    study = study_of(BINARY, rounds=5, params={"min_gain_to_split": 1e6})
    session = world.train(world.prepare(study, tables))
    assert session.end == {"best_round": 1, "rounds": 1}
    booster = lightgbm.Booster(model_str=model_of(session))
    assert np.allclose(booster.predict(np.zeros((1, 8))), 0.5)
    assert "leaf_count=0\n" in session.rounds[0]


@pytest.mark.parametrize("label", [BINARY, NUMBER, COUNT, CLASSES], ids=lambda label: str(label["type"]))
def test_no_split_and_no_start_from_the_average(world: World, label: dict[str, Any]) -> None:
    """The first score is then gathered at the end of the first round."""
    tables = {
        "binary": binary_sites(SIZES),
        "number": number_sites(SIZES),
        "count": count_sites(200, 4),
        "multiclass": multiclass_sites(SIZES, CLASSES["levels"]),
    }[label["type"]]
    params = {"min_gain_to_split": 1e6, "boost_from_average": False}
    prepared = world.prepare(study_of(label, rounds=5, params=params), tables)
    session = world.train(prepared)
    assert session.end == {"best_round": 1, "rounds": 1}
    theirs = lightgbm.Booster(model_str=world.over_sockets(prepared)[0])
    ours = lightgbm.Booster(model_str=model_of(session))
    assert np.allclose(ours.predict(np.zeros((1, 8))), theirs.predict(np.zeros((1, 8))), rtol=1e-12)


def test_training_ends_where_no_leaf_can_be_split_any_more(world: World) -> None:
    study = study_of(NUMBER, rounds=50, params={"learning_rate": 1.0, "min_gain_to_split": 20.0})
    session = world.train(world.prepare(study, number_sites(SIZES)))
    assert session.end is not None
    assert 1 <= session.end["rounds"] == session.end["best_round"] == len(session.rounds) < 50


def test_a_site_with_twelve_rows_and_early_stopping_still_trains(world: World) -> None:
    sizes = (3, 400, 200, 300)
    session = world.train(world.prepare(study_of(BINARY, rounds=4, params=GREEDY), binary_sites(sizes, seed=46)))
    assert session.end is not None
    assert session.end["rounds"] == 4


def test_a_feature_that_is_the_same_everywhere_is_never_split(world: World) -> None:
    tables = binary_sites(SIZES)
    for columns in tables:
        columns["f0"] = np.full(len(columns["y"]), 2.5)
    session = world.train(world.prepare(study_of(BINARY, rounds=3), tables))
    used = {name for text in session.rounds for line in text.splitlines() for name in _features(line)}
    assert used
    assert "0" not in used


def _features(line: str) -> list[str]:
    return line.removeprefix("split_feature=").split() if line.startswith("split_feature=") else []


def test_thresholds_are_edges_of_the_published_bins(world: World) -> None:
    prepared = world.prepare(study_of(BINARY, rounds=5, params={"max_bin": 16}), binary_sites(SIZES))
    session = world.train(prepared)
    edges = [{float(edge) for edge in feature.edges} for feature in prepared.binning.features]
    beside_zero = 1.00000001800250948e-35
    found = 0
    for text in session.rounds:
        lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        for feature, threshold in zip(lines["split_feature"].split(), lines["threshold"].split(), strict=True):
            assert float(threshold) in edges[int(feature)] or abs(float(threshold)) == beside_zero
            found += 1
    assert found > 50


def test_what_is_relayed_holds_nothing_but_two_splits(world: World) -> None:
    study = study_of(BINARY, rounds=3, categories=2, missing="native", params={"min_data_per_group": 20})
    session = world.train(world.prepare(study, mixed_sites(SIZES)))
    size = 94 + 4 * 32
    relayed = [request.payload for asked in session.questions for request in asked if request.kind == RELAY]
    assert {len(pair) for pair in relayed} == {2 * size}
    for pair in relayed:
        for record in (pair[:size], pair[size:]):
            (categories,) = struct.unpack_from("<i", record, 90)
            assert not record[94 + 4 * categories :].strip(b"\0")


def test_a_step_asks_the_same_of_every_site(world: World) -> None:
    """Kinds and lengths follow from the study and opened sums: a length that depended on rows would tell of them."""
    session: Session = world.train(world.prepare(study_of(BINARY, rounds=3), binary_sites((12, 700, 250, 300))))
    for asked in session.questions:
        assert len({(request.kind, len(request.payload)) for request in asked}) == 1
    assert session.kinds.count(SUM) > 30
