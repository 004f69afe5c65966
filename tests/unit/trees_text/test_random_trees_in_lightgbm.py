"""The text of random trees is a LightGBM model like any other: prediction, SHAP, refit, continuation, JSON."""

import numpy as np
import pytest

from cohortium_protocol.trees.predict import raw_scores, response
from cohortium_protocol.trees.random_structure import columns_of
from cohortium_protocol.trees.text import ModelText, gains_and_splits
from random_tree_stage import LABELS, course, random_rows, random_study
from tree_text_stage import Gate

lightgbm = pytest.importorskip("lightgbm", reason="the training extra is not installed")


@pytest.fixture(scope="module", params=LABELS)
def grown(request: pytest.FixtureRequest) -> tuple[str, bytes, ModelText]:
    """A run of twelve trees, three in a round, for each kind of label."""
    study = random_study(request.param, trees=12, trees_per_sum=3, depth=5)
    text, model = course(study, [random_rows(request.param, 500, seed=site) for site in range(3)])
    return request.param, text, model


def test_lightgbm_predicts_the_same(grown: tuple[str, bytes, ModelText]) -> None:
    label, text, model = grown
    rows, _ = random_rows(label, 800, seed=9)
    rows[:40] = np.nan
    booster = lightgbm.Booster(model_str=text.decode())
    raw = raw_scores(model, rows)
    assert np.abs(raw - booster.predict(rows, raw_score=True, num_threads=1)).max() <= 1e-12
    assert np.abs(response(model.objective, raw) - booster.predict(rows, num_threads=1)).max() <= 1e-12
    assert booster.num_trees() == 12 * model.classes


def test_shap_values_are_finite_and_add_up_to_the_score(grown: tuple[str, bytes, ModelText]) -> None:
    label, text, model = grown
    rows, _ = random_rows(label, 300, seed=9)
    booster = lightgbm.Booster(model_str=text.decode())
    shares = booster.predict(rows, pred_contrib=True, num_threads=1)
    assert np.isfinite(shares).all()
    sums = shares.reshape(len(rows), model.classes, -1).sum(axis=2).squeeze()
    assert np.abs(sums - raw_scores(model, rows)).max() <= 1e-10
    even = sum(tree.leaf_value.mean() for tree in model.trees[:: model.classes])
    assert shares[0, len(model.features)] == pytest.approx(even)


def test_importances_are_those_that_lightgbm_tells(grown: tuple[str, bytes, ModelText]) -> None:
    _, text, model = grown
    gains, splits = gains_and_splits(model)
    booster = lightgbm.Booster(model_str=text.decode())
    assert booster.feature_importance("split").tolist() == splits.tolist()
    assert np.allclose(booster.feature_importance("gain"), gains, rtol=1e-6)
    assert (gains > 0).all()


def test_lightgbm_refits_the_leaves(grown: tuple[str, bytes, ModelText]) -> None:
    label, text, model = grown
    rows, labels = random_rows(label, 600, seed=4)
    booster = lightgbm.Booster(model_str=text.decode())
    refitted = booster.refit(rows, labels, decay_rate=0.0)
    assert refitted.params["objective"] == model.objective
    assert refitted.predict(rows, pred_leaf=True).tolist() == booster.predict(rows, pred_leaf=True).tolist()
    assert np.abs(refitted.predict(rows) - booster.predict(rows)).max() > 1e-3


def test_lightgbm_goes_on_from_it(grown: tuple[str, bytes, ModelText]) -> None:
    label, text, model = grown
    rows, labels = random_rows(label, 600, seed=4)
    booster = lightgbm.Booster(model_str=text.decode())
    categories = [place for place, column in enumerate(columns_of(random_study(label))) if column.codes]
    names = {"feature_name": list(model.features), "categorical_feature": categories}
    data = lightgbm.Dataset(rows, labels, params={"verbosity": -1}, **names)
    params = {"objective": model.objective, "verbosity": -1, "num_threads": 1, "num_leaves": 4}
    if model.classes > 1:
        params["num_class"] = model.classes
    longer = lightgbm.train(params, data, num_boost_round=3, init_model=booster)
    assert longer.num_trees() == 15 * model.classes
    first = longer.predict(rows, raw_score=True, num_iteration=12, num_threads=1)
    assert np.abs(first - raw_scores(model, rows)).max() <= 1e-12


def test_lightgbm_dumps_and_saves_it(grown: tuple[str, bytes, ModelText], gate: Gate) -> None:
    _, text, model = grown
    booster = lightgbm.Booster(model_str=text.decode())
    saved = booster.model_to_string()
    start, end = saved.index("Tree=0\n"), saved.index("end of trees")
    assert saved[start:end] == "".join(tree.block for tree in model.trees)
    assert len(booster.dump_model()["tree_info"]) == len(model.trees)
    rules = {"features": model.features, "classes": model.classes, "max_trees": 12 * model.classes, "max_leaves": 32}
    found = gate.tries(text.decode(), rules | {"objective": model.objective})
    assert (found["end"], found["difference"] <= 1e-12) == ("used", True)
