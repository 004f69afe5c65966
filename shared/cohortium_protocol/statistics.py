"""Scaling, imputation and inputs of a model, made from integer sums over the sites and from nothing else.

A site contributes one vector of integers (`statistics_vector`); the sum over the sites, opened by the secure sum, gives
means and variances (`preprocessing_from_sums`); every site then turns its rows into inputs by the same published rules
(`design_matrix`). No site's own mean, and no pooled file, has any part in it.

Layout of the vector, for a study with F numeric features in the order of the study file:

    3·f       rows of the training part in which feature f is present
    3·f + 1   Σ q over those rows, q = round((x − low) / (high − low) · 65536)
    3·f + 2   Σ q²
    3·F       training rows
    3·F + 1   test rows
    3·F + 2   training rows with label 1
    3·F + 3   test rows with label 1
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import rfc8785
from numpy.typing import NDArray
from pydantic import Field

from cohortium_messages.ids import STUDY_PATTERN, Bytes32, Wire
from cohortium_messages.study import ColumnName, Level, NumberFeature, Study
from cohortium_protocol.errors import RemoteFault

STEPS = 65536
"""Steps that a feature's range is divided into. A count of 2^31 rows keeps Σ q² below 2^63."""

TOTALS = 4
MISSING_LEVEL = "missing"


class SumsRefused(RemoteFault, ValueError):
    """The sums cannot have come from any rows: a count is negative, or the parts contradict each other."""

    code = "SUMS_REFUSED"


class NoTrainingRows(SumsRefused):
    """The sites together have no training row, so there is nothing to take a mean of."""

    code = "NO_TRAINING_ROWS"


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one site whose columns have been checked against the study.

    A numeric column is float64 with NaN where the value is missing; a category is int32, the index of its level, with
    −1 where it is missing. Labels are uint8, 0 and 1, for a binary outcome; int32, the index of the level, for several
    classes; float64 for a number or a count. All arrays have the same length.
    """

    columns: Mapping[str, NDArray[Any]]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def take(self, choice: NDArray[Any]) -> "Rows":
        """The rows that a mask or an index array chooses."""
        return Rows({name: column[choice] for name, column in self.columns.items()}, self.labels[choice])


class NumberInput(Wire):
    """A numeric feature: (x − mean) / std. `impute` puts the mean for a missing x and adds an input of 0 or 1."""

    name: ColumnName
    type: Literal["number"] = "number"
    mean: float
    std: Annotated[float, Field(gt=0)]
    missing: Literal["refuse", "impute"]

    def input_names(self) -> tuple[str, ...]:
        return (self.name, f"{self.name}={MISSING_LEVEL}") if self.missing == "impute" else (self.name,)


class CategoryInput(Wire):
    """A category: one input of 0 or 1 for each level, and one more for missing values where `missing` is `level`."""

    name: ColumnName
    type: Literal["category"] = "category"
    levels: tuple[Level, ...]
    missing: Literal["refuse", "level"]

    def input_names(self) -> tuple[str, ...]:
        levels = (*self.levels, MISSING_LEVEL) if self.missing == "level" else self.levels
        return tuple(f"{self.name}={level}" for level in levels)


ModelInput = Annotated[NumberInput | CategoryInput, Field(discriminator="type")]


class Preprocessing(Wire):
    """How a row becomes the inputs of the model: a part of the model, published and signed with it."""

    version: Literal["cohortium/preprocessing/1"] = "cohortium/preprocessing/1"
    study_id: Annotated[str, Field(pattern=STUDY_PATTERN)]
    study_digest: Bytes32
    features: tuple[ModelInput, ...]
    label: ColumnName
    training_rows: Annotated[int, Field(ge=1)]
    sites: Annotated[int, Field(ge=1)]

    def input_names(self) -> tuple[str, ...]:
        """The inputs in the order in which the model takes them."""
        return tuple(name for feature in self.features for name in feature.input_names())

    @property
    def inputs(self) -> int:
        return len(self.input_names())

    def canonical(self) -> bytes:
        """RFC 8785 JSON: the same bytes wherever the same sums were opened."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @classmethod
    def from_canonical(cls, data: bytes) -> "Preprocessing":
        """Raises `ValueError` unless `data` is exactly what `canonical` gives."""
        preprocessing = cls.model_validate_json(data)
        if preprocessing.canonical() != data:
            raise ValueError("preprocessing is not in canonical form")
        return preprocessing


def input_count(study: Study) -> int:
    """Inputs that a model of this study takes; known before any statistic is."""
    count = 0
    for feature in study.dataset.features:
        own = 1 if isinstance(feature, NumberFeature) else len(feature.levels)
        count += own + (feature.missing != "refuse")
    return count


def number_features(study: Study) -> tuple[NumberFeature, ...]:
    return tuple(feature for feature in study.dataset.features if isinstance(feature, NumberFeature))


def statistics_length(study: Study) -> int:
    """Integers in one site's contribution."""
    return 3 * len(number_features(study)) + TOTALS


def statistics_vector(study: Study, train: Rows, test: Rows) -> NDArray[np.int64]:
    """One site's contribution. Only sums over its training rows, and four counts."""
    vector: list[int] = []
    for feature in number_features(study):
        low, high = feature.range
        values = train.columns[feature.name]
        present = values[~np.isnan(values)]
        steps = np.rint((present - low) / (high - low) * STEPS).astype(np.int64)
        vector += [int(present.size), int(steps.sum()), int((steps * steps).sum())]
    vector += [len(train), len(test), int(train.labels.sum()), int(test.labels.sum())]
    return np.asarray(vector, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Totals:
    """The four counts at the end of the summed vector."""

    training_rows: int
    test_rows: int
    training_positives: int
    test_positives: int


def totals_from_sums(study: Study, sums: Sequence[int] | NDArray[Any]) -> Totals:
    """Raises `SumsRefused` unless the vector has the study's length and the counts can be true."""
    if len(sums) != statistics_length(study):
        raise SumsRefused(f"expected {statistics_length(study)} sums, got {len(sums)}")
    totals = Totals(*(int(value) for value in sums[-TOTALS:]))
    if not 0 <= totals.training_positives <= totals.training_rows:
        raise SumsRefused("positives of the training rows are not between 0 and the rows")
    if not 0 <= totals.test_positives <= totals.test_rows:
        raise SumsRefused("positives of the test rows are not between 0 and the rows")
    return totals


def preprocessing_from_sums(study: Study, sums: Sequence[int] | NDArray[Any], sites: int) -> Preprocessing:
    """The rules of the model, from sums over `sites` sites.

    A feature without spread gets its range as its scale, one that nobody has the middle of its range as its mean, so
    that no input is ever infinite. The arithmetic is exact on integers up to the last step: every party gets the same.
    """
    totals = totals_from_sums(study, sums)
    if totals.training_rows == 0:
        raise NoTrainingRows("no site of the sum has a training row")
    scales = {feature.name: scale for feature, scale in _scales(study, sums, totals.training_rows)}
    features: list[ModelInput] = []
    for feature in study.dataset.features:
        if isinstance(feature, NumberFeature):
            mean, std = scales[feature.name]
            features.append(NumberInput(name=feature.name, mean=mean, std=std, missing=feature.missing))
        else:
            features.append(CategoryInput(name=feature.name, levels=feature.levels, missing=feature.missing))
    return Preprocessing(
        study_id=study.name,
        study_digest=study.digest(),
        features=tuple(features),
        label=study.dataset.label.name,
        training_rows=totals.training_rows,
        sites=sites,
    )


def _scales(
    study: Study, sums: Sequence[int] | NDArray[Any], rows: int
) -> Iterator[tuple[NumberFeature, tuple[float, float]]]:
    for place, feature in enumerate(number_features(study)):
        count, total, squares = (int(value) for value in sums[3 * place : 3 * place + 3])
        possible = 0 <= count <= rows and 0 <= total <= STEPS * count and total <= squares <= STEPS * total
        spread = count * squares - total * total  # n² times the variance
        if not possible or spread < 0:
            raise SumsRefused(f"the sums of {feature.name} cannot come from values inside its range")
        yield feature, _scale(feature, count, total, spread)


def _scale(feature: NumberFeature, count: int, total: int, spread: int) -> tuple[float, float]:
    low, high = feature.range
    width = high - low
    mean = low + (total / (count * STEPS) if count else 0.5) * width
    std = math.sqrt(spread / (count * count)) / STEPS * width if count else 0.0
    return mean, std if std > width / STEPS / 2 else width


def design_matrix(preprocessing: Preprocessing, rows: Rows) -> NDArray[np.float32]:
    """Inputs of the model, one line per row, in the order of `preprocessing.input_names()`.

    The rows were checked against the study before: a missing value is here only where the study allows one.
    """
    matrix = np.zeros((len(rows), preprocessing.inputs), dtype=np.float32)
    place = 0
    for feature in preprocessing.features:
        width = len(feature.input_names())
        block = matrix[:, place : place + width]
        if isinstance(feature, NumberInput):
            _fill_number(block, feature, rows.columns[feature.name])
        else:
            _fill_category(block, feature, rows.columns[feature.name])
        place += width
    return matrix


def _fill_number(block: NDArray[np.float32], feature: NumberInput, values: NDArray[np.float64]) -> None:
    absent = np.isnan(values)
    if feature.missing == "impute":
        block[:, 1] = absent
    elif absent.any():
        raise ValueError(f"{feature.name} has missing values, which the study refuses")
    block[:, 0] = np.where(absent, 0.0, (values - feature.mean) / feature.std)


def _fill_category(block: NDArray[np.float32], feature: CategoryInput, codes: NDArray[np.int32]) -> None:
    if feature.missing == "level":
        codes = np.where(codes < 0, len(feature.levels), codes)
    if codes.size and (codes.min() < 0 or codes.max() >= block.shape[1]):
        raise ValueError(f"{feature.name} has a value that is no level of the study")
    block[np.arange(codes.size), codes] = 1.0
