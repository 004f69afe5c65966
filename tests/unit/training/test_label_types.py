"""Labels of the tree trainers in a hospital's table: classes, numbers, counts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohortium_connector.training.data import DataRefused, read_table
from cohortium_connector.training.jobs import DataSource
from cohortium_messages.study import Study

SPLIT = {"column": "part", "train": "train", "test": "test"}
CLASSES = {"type": "multiclass", "levels": ["1", "two", "3"]}
NUMBER = {"type": "number", "range": [-2.5, 10.0]}
COUNT = {"type": "count", "most": 20}


def study_of(label: dict[str, Any], split: dict[str, Any] | None = None) -> Study:
    features = [
        {"name": "x", "type": "float", "range": [0, 1000], "missing": "native"},
        {"name": "c", "type": "category", "levels": ["a", "b"], "missing": "native"},
    ]
    dataset = {"features": features, "label": {"name": "y"} | label, "split": split or SPLIT}
    return Study.model_validate(
        {
            "apiVersion": "cohortium/study/1",
            "governance": "trial",
            "name": "labels",
            "purpose": "a test",
            "dataset": dataset,
            "recipe": {"trainer": "lightgbm", "rounds": 3},
            "federation": {},
        }
    )


def source(tmp_path: Path, labels: list[str], part: str = "train") -> DataSource:
    path = tmp_path / "site.csv"
    path.write_text("x,c,y,part\n" + "".join(f"{place},a,{label},{part}\n" for place, label in enumerate(labels)))
    return DataSource(path=str(path))


@pytest.mark.parametrize(
    ("label", "texts", "expected", "kind"),
    [
        (CLASSES, ["1", "two", "3", "1.0", " two ", "3e0"], [0, 1, 2, 0, 1, 2], np.int32),
        (NUMBER, ["-2.5", "10", "0", "1e0", "3.25"], [-2.5, 10, 0, 1, 3.25], np.float64),
        (COUNT, ["0", "20", "7.0"], [0, 20, 7], np.float64),
    ],
    ids=["multiclass", "number", "count"],
)
def test_labels_are_read_as_their_type(
    tmp_path: Path, label: dict[str, Any], texts: list[str], expected: list[float], kind: type[np.generic]
) -> None:
    labels = read_table(study_of(label), source(tmp_path, texts)).train.labels
    assert labels.dtype == kind
    assert labels.tolist() == expected


@pytest.mark.parametrize(
    ("label", "good", "bad"),
    [
        (CLASSES, "two", ["2", "", "four", "nan", "1.5"]),
        (NUMBER, "1", ["-2.51", "10.01", "", "many", "inf", "nan"]),
        (COUNT, "1", ["-1", "21", "1.5", "", "few", "inf"]),
    ],
    ids=["multiclass", "number", "count"],
)
def test_a_label_that_does_not_fit_is_refused_with_its_row(
    tmp_path: Path, label: dict[str, Any], good: str, bad: list[str]
) -> None:
    for text in bad:
        with pytest.raises(DataRefused) as caught:
            read_table(study_of(label), source(tmp_path, [good, good, text]))
        assert (caught.value.code, caught.value.column, caught.value.rows) == ("LABEL_INVALID", "y", (3,)), text


def test_missing_values_stay_missing_where_trees_take_them(tmp_path: Path) -> None:
    path = tmp_path / "site.csv"
    path.write_text("x,c,y,part\n,a,1,train\n5,?,two,train\n")
    train = read_table(study_of(CLASSES), DataSource(path=str(path))).train
    assert np.isnan(train.columns["x"]).tolist() == [True, False]
    assert train.columns["c"].tolist() == [0, -1]


def test_a_random_split_keeps_the_share_of_every_class(tmp_path: Path) -> None:
    texts = ["1"] * 100 + ["two"] * 40 + ["3"] * 10
    table = read_table(study_of(CLASSES, {"test": 0.3, "seed": 5}), source(tmp_path, texts))
    assert np.bincount(table.test.labels).tolist() == [30, 12, 3]
    assert np.bincount(table.train.labels).tolist() == [70, 28, 7]


def test_a_random_split_of_numbers_takes_the_share_of_all_rows(tmp_path: Path) -> None:
    texts = [str(place / 100) for place in range(200)]
    first, again = (
        read_table(study_of(NUMBER, {"test": 0.25, "seed": 5}), source(tmp_path, texts)).test.labels for _ in range(2)
    )
    assert len(first) == 50
    assert (first == again).all()
    assert 0.5 < first.mean() < 1.5, "no part of the range is left out"
