"""LightGBM itself: training sets on public bins, boosters, scores. One of the files that import it; see `collectives`.

A training set takes its bins from a reference of a few rows made from the published binning, the same at every site,
before any network is there: nothing is binned by anybody's rows.
"""

import contextlib
import json
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import lightgbm
import numpy as np
from lightgbm.basic import _LIB
from numpy.typing import NDArray

from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.splits import Column
from cohortium_messages.study import LightgbmRecipe, Study
from cohortium_protocol.trees.bins import Binning, CategoryBins, NumberBins

LIBRARY: Final = _LIB
VERSION: Final[str] = lightgbm.__version__
SCORE_ROWS: Final = 8192

_ZERO: Final = float(np.float32(1e-35))
"""LightGBM's kZeroThreshold: it puts a border on each side of zero that values lie on, whatever the bins."""
_SPARE_BINS: Final = 4

Floats = NDArray[np.float64]


class BinsRefused(SiteRefusal):
    """LightGBM did not take the bins as they were published."""

    def __init__(self, name: str) -> None:
        super().__init__("BINS_REFUSED", column=name, local=f"LightGBM {VERSION} cuts {name} into other bins")


class _Silent:
    """LightGBM's own lines may quote values of rows."""

    def info(self, _: str) -> None: ...

    def warning(self, _: str) -> None: ...


lightgbm.register_logger(_Silent())


@dataclass(frozen=True, slots=True)
class Bins:
    """The reference that training sets take their bins from, and what is needed to make them alike."""

    reference: Any
    parameters: dict[str, Any]
    columns: tuple[Column, ...]

    @property
    def histogram_bytes(self) -> int:
        """The largest histogram: two float64 for each bin."""
        return 16 * sum(column.bins for column in self.columns)


def make_bins(binning: Binning) -> Bins:
    """A reference with exactly the published bins. Raises `BinsRefused`."""
    columns = [_reference_values(feature) for feature in binning.features]
    rows = np.column_stack([np.resize(values, max(map(len, columns))) for values in columns])
    parameters = _dataset_parameters(max(map(len, columns)) + _SPARE_BINS)
    forced = [
        {"feature": place, "bin_upper_bound": [float(edge) for edge in feature.edges]}
        for place, feature in enumerate(binning.features)
        if isinstance(feature, NumberBins)
    ]
    # The file's name goes into a list of words, so it must be free of spaces, which the folder need not be.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("bins.json").write_text(json.dumps(forced))
        reference = lightgbm.Dataset(
            rows,
            label=np.zeros(len(rows)),
            params=parameters | {"forcedbins_filename": "bins.json"},
            feature_name=list(binning.feature_names()),
            categorical_feature=_categories(binning),
        ).construct()
    found = tuple(
        Column(_bins(reference, place), isinstance(feature, CategoryBins))
        for place, feature in enumerate(binning.features)
    )
    for feature, column in zip(binning.features, found, strict=True):
        if column.bins != _expected_bins(feature):
            raise BinsRefused(feature.name)
    return Bins(reference, parameters, found)


def training_set(
    bins: Bins,
    columns: Floats,
    labels: Floats,
    *,
    weights: NDArray[np.float32] | None = None,
    scores: Floats | None = None,
) -> Any:
    """Rows of `tree_columns` on these bins. `scores`: raw scores that boosting goes on from, rows or rows × classes."""
    return lightgbm.Dataset(
        columns,
        label=labels,
        weight=weights,
        init_score=None if scores is None else scores.ravel(order="F"),
        reference=bins.reference,
        params=bins.parameters,
    ).construct()


def booster_parameters(study: Study, recipe: LightgbmRecipe, bins: Bins, *, threads: int) -> dict[str, Any]:
    """What LightGBM is told: the study's parameters, and all that keeps it deterministic and to itself."""
    given = recipe.params.model_dump(
        exclude={"objective", "metric", "monotone_constraints", "early_stopping_round", "early_stopping_min_delta"}
    )
    parameters = given | bins.parameters
    parameters |= {
        "objective": study.objective,
        "metric": "None",
        "boosting": "gbdt",
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": threads,
    }
    if study.objective == "multiclass":
        parameters["num_class"] = study.trees_per_round
    if any((recipe.params.monotone_constraints or {}).values()):
        constraints = recipe.params.monotone_constraints or {}
        names = [feature.name for feature in study.dataset.features]
        parameters["monotone_constraints"] = [constraints.get(name, 0) for name in names]
    return parameters


def make_booster(parameters: dict[str, Any], data: Any, *, machines: int = 1) -> Any:
    """A booster on one machine, or on one of `machines` whose network is open in this thread."""
    if machines > 1:
        parameters = parameters | {"tree_learner": "data", "num_machines": machines}
    return lightgbm.Booster(parameters, data)


def open_booster(text: bytes) -> Any:
    """A booster from a model text that has been checked (`trees.text`): LightGBM itself must not see any other."""
    return lightgbm.Booster(model_str=text.decode("ascii"))


def raw_scores(booster: Any, columns: Floats, *, start: int = 0, rounds: int = -1) -> Floats:
    """Sums of leaf values, rows or rows × classes, of `rounds` rounds from `start`; all of them with -1."""
    return _in_parts(booster, columns, raw_score=True, start_iteration=start, num_iteration=rounds)


def predictions(booster: Any, columns: Floats) -> Floats:
    """Probabilities, values or expected counts: rows or rows × classes."""
    return _in_parts(booster, columns)


def shap_sums(booster: Any, columns: Floats, *, classes: int) -> Floats:
    """By feature: the sum of |SHAP| over rows and classes, on the scale of the raw score (TreeSHAP, Lundberg 2018)."""
    features = columns.shape[1]
    sums = np.zeros(features)
    for start in range(0, len(columns), SCORE_ROWS):
        found = booster.predict(columns[start : start + SCORE_ROWS], pred_contrib=True)
        by_class = np.asarray(found, dtype=np.float64).reshape(-1, classes, features + 1)
        sums += np.abs(by_class[:, :, :features]).sum(axis=(0, 1))
    return sums


def _in_parts(booster: Any, columns: Floats, **options: Any) -> Floats:
    parts = [
        booster.predict(columns[start : start + SCORE_ROWS], **options) for start in range(0, len(columns), SCORE_ROWS)
    ]
    return np.concatenate(parts).astype(np.float64, copy=False) if parts else np.zeros(0)


def _dataset_parameters(most_bins: int) -> dict[str, Any]:
    return {
        "max_bin": most_bins,
        "min_data_in_bin": 1,
        "feature_pre_filter": False,
        "enable_bundle": False,
        "use_missing": True,
        "zero_as_missing": False,
        "verbosity": -1,
    }


def _categories(binning: Binning) -> list[int]:
    return [place for place, feature in enumerate(binning.features) if isinstance(feature, CategoryBins)]


def _borders(feature: NumberBins) -> list[float]:
    """Borders of the bins as LightGBM will have them: the published ones, and those next to zero."""
    low, high = feature.low, feature.high
    zero = [border for border, used in ((-_ZERO, low < -_ZERO), (_ZERO, high > _ZERO)) if used]
    return sorted([edge for edge in feature.edges if abs(edge) > _ZERO] + zero)


def _reference_values(feature: NumberBins | CategoryBins) -> list[float]:
    """One value in each bin, so that LightGBM finds nothing to divide further; a missing one where there may be any.

    A category always has a missing one: otherwise LightGBM leaves its last levels out where there are 100 or more.
    """
    if isinstance(feature, CategoryBins):
        return [*map(float, range(feature.codes)), np.nan]
    missing = [np.nan] if feature.missing == "native" else []
    if not feature.edges:
        return [0.0, *missing]
    borders = _borders(feature)
    between = [(left + right) / 2 for left, right in pairwise(borders)]
    # Where the whole range lies on one side of zero, the bin beyond the border next to zero holds zero alone.
    beyond = 0.0 if borders[0] > 0 else float(np.nextafter(borders[0], -np.inf))
    least = feature.low if feature.low < borders[0] else beyond
    most = feature.high if feature.high > borders[-1] else 0.0
    return [least, *between, most, *missing]


def _expected_bins(feature: NumberBins | CategoryBins) -> int:
    """0: a feature that is the same everywhere is not used."""
    if isinstance(feature, CategoryBins):
        return feature.codes + 1
    if not feature.edges:
        return 2 if feature.missing == "native" else 0
    return len(_borders(feature)) + 1 + (feature.missing == "native")


def _bins(reference: Any, place: int) -> int:
    count = int(reference.feature_num_bin(place))
    return count if count > 1 else 0
