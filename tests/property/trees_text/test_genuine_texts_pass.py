"""Whatever LightGBM grows with the parameters that a study may set, on whatever data, its text passes and its scores
are those of numpy: a reader that refused a genuine model would end a run."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from cohortium_protocol.trees.predict import raw_scores
from cohortium_protocol.trees.text import check_model_text, header_of, render, tree_blocks
from examples import examples
from tree_text_stage import CLASSES, FEATURES, labels_for, rules_for

lightgbm = pytest.importorskip("lightgbm", reason="the training extra is not installed")

PARAMETERS = st.fixed_dictionaries(
    {
        "num_leaves": st.integers(2, 60),
        "max_depth": st.sampled_from([-1, 3, 64]),
        "min_data_in_leaf": st.sampled_from([5, 20]),
        "min_sum_hessian_in_leaf": st.sampled_from([0.0, 1e-3]),
        "min_gain_to_split": st.sampled_from([0.0, 0.1]),
        "lambda_l1": st.sampled_from([0.0, 1.0]),
        "lambda_l2": st.sampled_from([0.0, 1e-9, 1.0]),
        "max_delta_step": st.sampled_from([0.0, 0.5]),
        "path_smooth": st.sampled_from([0.0, 1.0]),
        "extra_trees": st.booleans(),
        "boost_from_average": st.booleans(),
        "feature_fraction": st.sampled_from([0.3, 1.0]),
        "feature_fraction_bynode": st.sampled_from([0.3, 1.0]),
        "monotone_constraints": st.sampled_from([None, [1, 0, 0, -1]]),
        "monotone_penalty": st.sampled_from([0.0, 2.0]),
        "learning_rate": st.sampled_from([1e-6, 0.1, 1.0]),
        "cat_smooth": st.sampled_from([0.0, 1.0, 10.0]),
        "max_cat_to_onehot": st.sampled_from([1, 4, 256]),
        "min_data_per_group": st.sampled_from([1, 5, 100]),
    }
)


def odd_table(random: np.random.Generator, rows: int, scale: float, missing: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of any scale, with columns that do not vary, that hardly vary, and with values missing."""
    values = random.normal(size=(rows, 4)) * scale
    values[:, 1] = np.minimum(random.geometric(0.15, size=rows) - 1, 39)
    signal = values[:, 0] / scale + np.sin(values[:, 1])
    values[:, 3] = random.choice([np.zeros(rows), np.round(values[:, 3]), values[:, 3]])
    values[random.random(rows) < missing, 2] = np.nan
    values[random.random(rows) < missing / 4, 1] = np.nan
    signal[random.random(rows) < 0.1] *= 10
    return values, signal + (0.5 * np.isnan(values[:, 2]))


@settings(max_examples=examples(80), deadline=None)
@given(
    parameters=PARAMETERS,
    objective=st.sampled_from(sorted(CLASSES)),
    seed=st.integers(0, 10_000),
    rows=st.sampled_from([30, 300, 900]),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e9, 1e14]),
    missing=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_genuine_text_passes_with_lightgbms_own_scores(
    parameters: dict[str, Any], objective: str, seed: int, rows: int, scale: float, missing: float
) -> None:
    random = np.random.default_rng(seed)
    values, signal = odd_table(random, rows, scale, missing)
    labels = labels_for(objective, signal)
    if objective == "multiclass":
        labels[:3] = (0, 1, 2)
        parameters = parameters | {"num_class": 3}
    if objective == "poisson":
        labels[0] = 1.0
    given_ = {name: value for name, value in parameters.items() if value is not None}
    options = {"objective": objective, "num_threads": 1, "verbosity": -1, "seed": seed} | given_
    names = {"feature_name": list(FEATURES), "categorical_feature": [1]}
    data = lightgbm.Dataset(values, labels, params={"verbosity": -1, "max_bin": 63}, **names)
    try:
        booster = lightgbm.train(options, data, num_boost_round=5)
    except lightgbm.basic.LightGBMError:  # its estimated counts can leave a side of a split without rows: no text then
        reject()
    text = booster.model_to_string()
    rules = rules_for(objective, 5, parameters["num_leaves"])
    model = check_model_text(text.encode(), **rules)
    expected = booster.predict(values, raw_score=True, num_threads=1)
    assert np.array_equal(raw_scores(model, values), expected)
    written = render(header_of(text), tree_blocks(text), {"objective": objective})
    assert [tree.block for tree in check_model_text(written, **rules).trees] == [tree.block for tree in model.trees]
