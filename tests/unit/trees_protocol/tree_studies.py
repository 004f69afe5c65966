"""Studies with trees, and rows for them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohortium_messages.study import (
    DEFAULT_METRICS,
    BinaryLabel,
    CategoryFeature,
    CountLabel,
    Dataset,
    Feature,
    Federation,
    Label,
    LightgbmRecipe,
    MlpRecipe,
    MulticlassLabel,
    NumberFeature,
    NumberLabel,
    RandomTreesRecipe,
    Recipe,
    SplitFraction,
    Study,
)
from cohortium_protocol.statistics import Rows

BINARY = BinaryLabel(name="y", type="binary")
MULTICLASS = MulticlassLabel(name="y", type="multiclass", levels=("a", "b", "c"))
NUMBER = NumberLabel(name="y", type="number", range=(-10, 30))
COUNT = CountLabel(name="y", type="count", most=40)

LIGHTGBM = LightgbmRecipe(trainer="lightgbm", rounds=10)
RANDOM = RandomTreesRecipe(trainer="lightgbm.random_trees", trees=10, grid=4)
MLP = MlpRecipe(trainer="torch.mlp", hidden=(4,))

AGE = NumberFeature(name="age", type="int", range=(18, 21), missing="native")
LAB = NumberFeature(name="lab", type="float", range=(0, 1024))
SEX = CategoryFeature(name="sex", type="category", levels=("f", "m", "x"), missing="level")


def study_of(*features: Feature, label: Label = BINARY, recipe: Recipe = LIGHTGBM, max_bin: int | None = None) -> Study:
    """A study; `max_bin` sets that parameter of a `lightgbm` recipe."""
    if max_bin is not None:
        recipe = LightgbmRecipe(trainer="lightgbm", rounds=10, params={"max_bin": max_bin})
    return Study(
        apiVersion="cohortium/study/1",
        governance="trial",
        name="trees",
        purpose="tests",
        dataset=Dataset(features=features or (AGE, LAB, SEX), label=label, split=SplitFraction(test=0.2)),
        recipe=recipe,
        federation=Federation(),
        metrics=DEFAULT_METRICS[label.type],
    )


def one_number(low: float, high: float, *, whole: bool = False, missing: str = "refuse", max_bin: int = 63) -> Study:
    """A study with one numeric feature, `x`."""
    kind: Any = "int" if whole else "float"
    return study_of(NumberFeature(name="x", type=kind, range=(low, high), missing=missing), max_bin=max_bin)


def table(columns: dict[str, Sequence[Any] | NDArray[Any]], labels: Sequence[Any] | NDArray[Any]) -> Rows:
    """Rows as the connector's reader makes them: lists of int are codes of a category."""
    made = {
        name: np.asarray(column, dtype=np.int32 if _are_codes(column) else np.float64)
        for name, column in columns.items()
    }
    return Rows(made, np.asarray(labels))


def _are_codes(column: Sequence[Any] | NDArray[Any]) -> bool:
    return isinstance(column, list) and bool(column) and all(isinstance(value, int) for value in column)


def numbers(values: Sequence[float] | NDArray[Any]) -> Rows:
    """Rows of `one_number`'s study."""
    column = np.asarray(values, dtype=np.float64)
    return Rows({"x": column}, np.zeros(column.size, dtype=np.uint8))


def none_of(rows: Rows) -> Rows:
    """No rows, with the columns of `rows`."""
    return rows.take(np.zeros(0, dtype=np.int64))


def parts_of(rows: Rows, sites: int, seed: int = 0) -> list[Rows]:
    """The rows, at `sites` sites at random."""
    at = np.random.default_rng(seed).integers(0, sites, len(rows))
    return [rows.take(at == site) for site in range(sites)]


NORTH = table({"age": [18.0, 21.0, math.nan], "lab": [0.0, 1.0, 1024.0], "sex": [0, 2, -1]}, [0, 1, 1])
SOUTH = table({"age": [19.0, 18.0], "lab": [1.5, 2.0], "sex": [1, 1]}, [0, 1])
