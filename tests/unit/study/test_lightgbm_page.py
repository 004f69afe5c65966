"""contracts/lightgbm.md: its lists are those of the code, its study is one, and its examples run."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohortium_messages.lightgbm import OBJECTIVES, LightgbmParams
from cohortium_messages.lightgbm_names import UNSUPPORTED
from cohortium_messages.study import Study
from cohortium_messages.study_checks import METRICS
from cohortium_messages.study_file import parse_study
from cohortium_protocol.statistics import Rows
from cohortium_protocol.trees.binning import Binning, binning_from_sums, tree_columns
from cohortium_protocol.trees.grid import tree_statistics_vector
from cohortium_protocol.trees.text import check_model_text, header_of, render, tree_blocks

PAGE = (Path(__file__).resolve().parents[3] / "contracts" / "lightgbm.md").read_text("utf-8")
STUDY = """\
apiVersion: cohortium/study/1
governance: trial
name: page
purpose: Run what the page says
dataset:
  features:
    - {name: age, type: int, range: [18, 110]}
    - {name: crp, type: float, range: [0, 1000], missing: native}
    - {name: admission, type: category, levels: [planned, urgent, transfer], missing: native}
    - {name: smoker, type: category, levels: ["no", "yes"], missing: level}
  label: {name: label, type: binary}
  split: {test: 0.3}
recipe: {trainer: lightgbm, rounds: 12, params: {num_leaves: 5, max_bin: 15}}
federation: {min_sites: 3}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def named_in_tables() -> dict[str, str]:
    """First cells of tables that are names in code, and their second cells."""
    rows = re.findall(r"^\| `([a-z_0-9]+)` \| ([^|]*) \|", PAGE, flags=re.MULTILINE)
    return {name: second.strip() for name, second in rows}


def test_the_list_of_parameters_is_the_codes_with_its_defaults() -> None:
    told = {name: said for name, said in named_in_tables().items() if name in LightgbmParams.model_fields}
    assert set(told) == set(LightgbmParams.model_fields)
    for name, field in LightgbmParams.model_fields.items():
        if name in ("objective", "metric", "monotone_constraints"):
            continue
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        assert told[name] == default, name


def test_a_parameter_that_the_page_refuses_is_refused_with_a_reason() -> None:
    part = PAGE.split("## 3. What is refused, and why")[1].split("## 4.")[0]
    cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("| ")]
    objectives_and_kinds = {"regression_l1", "quantile", "mape", "tweedie", "fair", "cross_entropy", "cegb_"}
    for name in set(re.findall(r"`([a-z_0-9]+)\*?`", " ".join(cells))) - objectives_and_kinds:
        assert name in UNSUPPORTED, name


def test_every_label_stands_there_with_its_metrics() -> None:
    for kind, metrics in METRICS.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{kind}`"))
        assert ", ".join(metrics) in row
        assert all(f"`{objective}`" in row for objective in OBJECTIVES[kind])


def test_the_study_of_the_page_is_one() -> None:
    (text,) = blocks("yaml")
    study = parse_study(text)
    assert (study.boosting_rounds, study.objective) == (100, "binary")


@pytest.fixture
def hospital(tmp_path: Path) -> tuple[Study, Binning, Rows]:
    """A made-up table `patients.csv` with everything that may be missing, and the model that was grown on it."""
    lightgbm = pytest.importorskip("lightgbm", reason="the training extra is not installed")
    chance = np.random.Generator(np.random.PCG64(5))
    study, size = parse_study(STUDY), 600
    crp = np.where(chance.random(size) < 0.2, np.nan, np.round(chance.lognormal(2, 1, size), 2))
    columns = {
        "age": chance.integers(18, 100, size).astype(np.float64),
        "crp": np.clip(crp, 0, 1000),
        "admission": chance.integers(-1, 3, size).astype(np.int32),
        "smoker": chance.integers(-1, 2, size).astype(np.int32),
    }
    risk = columns["age"] / 40 + np.nan_to_num(crp, nan=30) / 20 + (columns["admission"] == 1)
    rows = Rows(columns, (chance.random(size) < 1 / (1 + np.exp(3 - risk))).astype(np.uint8))
    binning = binning_from_sums(study, tree_statistics_vector(study, rows, rows.take(np.zeros(size, bool))), 1)
    (tmp_path / "preprocessing.json").write_bytes(binning.canonical())
    _write_table(tmp_path / "patients.csv", study, rows)
    names = list(binning.feature_names())
    data = lightgbm.Dataset(
        tree_columns(binning, rows), rows.labels, feature_name=names, categorical_feature=["admission", "smoker"]
    )
    parameters = {"objective": "binary", "num_leaves": 5, "min_data_per_group": 10, "verbosity": -1}
    grown = lightgbm.train(parameters, data, 12).model_to_string()
    text = render(header_of(grown), tree_blocks(grown), {"objective": "binary", "num_leaves": 5})
    check_model_text(text, features=tuple(names), classes=1, max_trees=12, max_leaves=5, objective="binary")
    (tmp_path / "model.txt").write_bytes(text)
    return study, binning, rows


def _write_table(path: Path, study: Study, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [feature.name for feature in study.dataset.features]
        writer.writerow([*names, "label"])
        for place, label in enumerate(rows.labels):
            cells = [
                _cell(feature, rows.columns[name][place])
                for name, feature in zip(names, study.dataset.features, strict=True)
            ]
            writer.writerow([*cells, int(label)])


def _cell(feature: Any, value: float) -> str:
    if feature.type == "category":
        return feature.levels[int(value)] if value >= 0 else "NA"
    return "" if np.isnan(value) else f" {value!s} "


@pytest.mark.torch
def test_the_examples_run_and_do_what_they_say(
    hospital: tuple[Study, Binning, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, binning, rows = hospital
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "lightgbm.md", "exec"), found)  # noqa: S102 - the page is ours, and this is its test
    np.testing.assert_array_equal(found["matrix"], tree_columns(binning, rows))
    scores, labels = found["scores"], rows.labels.astype(bool)
    assert scores[labels].mean() > scores[~labels].mean() + 0.1
    log_odds = found["by_feature"].sum(axis=1) + found["start"]
    np.testing.assert_allclose(1 / (1 + np.exp(-log_odds)), scores, rtol=0, atol=1e-12)
    assert found["moved"].num_trees() == found["model"].num_trees() == 12
    assert not np.array_equal(found["moved"].predict(found["matrix"]), scores)
    assert found["continued"].num_trees() == 22
    longer = found["continued"].predict(found["matrix"], num_iteration=12)
    np.testing.assert_array_equal(longer, scores)
