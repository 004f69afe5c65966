"""From a patient's values to a score, in numpy alone: what a released model is used with, without a training library.

The rows are checked by the same rules as at a hospital: a value outside its range, an unknown level, a missing value
that the study refuses are errors and not scores.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cohortium_messages.model_schema import ModelOutput, ModelSchema
from cohortium_messages.study import CategoryFeature, Label, NumberFeature, Study
from cohortium_messages.study_checks import MISSING_VALUES
from cohortium_protocol.parameters import Layout
from cohortium_protocol.statistics import Preprocessing, Rows
from cohortium_protocol.trees.bins import Binning

SCORED_ROWS: Final = 4096
"""Rows scored at a time: a convolution has many numbers for each."""


class RowsRefused(ValueError):
    """The rows are not what the model takes. The text names the column, the row and the rule."""


def schema_of(study: Study, rules: Preprocessing | Binning) -> ModelSchema:
    """What a model of this study takes and gives."""
    columns = rules.feature_names() if isinstance(rules, Binning) else rules.input_names()
    return ModelSchema(
        study=study.name,
        study_digest=study.digest(),
        trainer=study.recipe.trainer,
        inputs=study.dataset.features,
        label=study.dataset.label,
        output=_output(study.dataset.label, study.objective),
        columns=columns,
    )


def schema_bytes(schema: ModelSchema) -> bytes:
    """The file: JSON for people's eyes, always the same bytes."""
    return (json.dumps(schema.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _output(label: Label, objective: str | None) -> ModelOutput:
    match label.type:
        case "binary":
            return ModelOutput(kind="probability", classes=("0", "1"))
        case "multiclass":
            return ModelOutput(kind="probabilities", classes=label.levels)
    return ModelOutput(kind="expected_count" if objective == "poisson" else "value")


def rows_from(schema: ModelSchema, table: Mapping[str, Sequence[Any]]) -> Rows:
    """Columns by name, as numbers or as texts of a CSV file, checked against the schema. Other columns are passed over;
    the label is not asked for. Raises `RowsRefused`."""
    lacking = [feature.name for feature in schema.inputs if feature.name not in table]
    if lacking:
        raise RowsRefused(f"the table has no column {', '.join(lacking)}; the model takes it")
    lengths = {feature.name: len(table[feature.name]) for feature in schema.inputs}
    if len(set(lengths.values())) != 1:
        raise RowsRefused(f"columns differ in length: {lengths}")
    columns: dict[str, NDArray[Any]] = {}
    for feature in schema.inputs:
        values = table[feature.name]
        column = _numbers(feature, values) if isinstance(feature, NumberFeature) else _codes(feature, values)
        columns[feature.name] = column
        absent = np.isnan(column) if isinstance(feature, NumberFeature) else column < 0
        if feature.missing == "refuse" and absent.any():
            _refuse(feature.name, absent, "has no value, and the model takes none that is missing")
    return Rows(columns, np.zeros(next(iter(lengths.values())), dtype=np.uint8))


def _absent(value: Any) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and value.strip().lower() in MISSING_VALUES


def _numbers(feature: NumberFeature, values: Sequence[Any]) -> NDArray[np.float64]:
    found = np.full(len(values), np.nan, dtype=np.float64)
    for place, value in enumerate(values):
        if not _absent(value):
            try:
                found[place] = float(value)
            except (TypeError, ValueError):
                raise RowsRefused(f"{feature.name}, row {place + 1}: {value!r} is not a number") from None
    low, high = feature.range
    present = ~np.isnan(found)
    outside = present & ~((found >= low) & (found <= high))
    _refuse(feature.name, outside, f"is outside its range of {low:g} to {high:g}")
    if feature.type == "int":
        _refuse(feature.name, present & (found != np.rint(found)), "is no whole number")
    return found


def _codes(feature: CategoryFeature, values: Sequence[Any]) -> NDArray[np.int32]:
    """The place of each level: by its letters, else as a number ("1" is also 1.0); -1 for what is missing."""
    by_text = {level: place for place, level in enumerate(feature.levels)}
    by_number: dict[float, int] = {}
    for level, place in by_text.items():
        if (number := _number(level)) is not None:
            by_number.setdefault(number, place)
    found = np.full(len(values), -1, dtype=np.int32)
    for row, value in enumerate(values):
        if _absent(value):
            continue
        text = value.strip() if isinstance(value, str) else str(value)
        number = _number(text)
        place = by_text.get(text, -1 if number is None else by_number.get(number, -1))
        if place < 0:
            known = ", ".join(feature.levels)
            raise RowsRefused(f"{feature.name}, row {row + 1}: {text!r} is no level of it ({known})")
        found[row] = place
    return found


def _number(text: str) -> float | None:
    """The text as a finite number, if it is one."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _refuse(name: str, wrong: NDArray[np.bool_], words: str) -> None:
    if wrong.any():
        raise RowsRefused(f"{name}, row {int(np.argmax(wrong)) + 1}: {words}")


def tensors_of(layout: Layout, parameters: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The model's arrays by name; views of the flat one."""
    return {
        one.name: parameters[one.offset : one.offset + one.size].reshape(one.shape)  # copies nothing
        for one in layout.tensors
    }


def network_scores(layout: Layout, parameters: NDArray[np.float32], inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """The probability of label 1 for each row, as the trainers of `torch.logistic`, `torch.mlp` and `torch.cnn` compute
    it, in float64. `inputs` come from `design_matrix`."""
    arrays = [array.astype(np.float64) for array in tensors_of(layout, parameters).values()]
    pairs = list(zip(arrays[::2], arrays[1::2], strict=True))
    parts = [
        _logits(layout, pairs, inputs[start : start + SCORED_ROWS].astype(np.float64))
        for start in range(0, len(inputs), SCORED_ROWS)
    ]
    logits = np.concatenate(parts) if parts else np.zeros(0)
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-logits)))


_Pairs = Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]


def _logits(layout: Layout, pairs: _Pairs, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    hidden = inputs if layout.image is None else inputs.reshape(len(inputs), *layout.image)
    for weight, bias in pairs[:-1]:
        step: Callable[..., NDArray[np.float64]] = _convolved if weight.ndim == 4 else _linear
        hidden = step(hidden, weight, bias)
    weight, bias = pairs[-1]
    found: NDArray[np.float64] = (hidden.reshape(len(hidden), -1) @ weight.T + bias)[:, 0]
    return found


def _linear(hidden: NDArray[np.float64], weight: NDArray[np.float64], bias: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(hidden.reshape(len(hidden), -1) @ weight.T + bias, 0.0)


def _convolved(
    hidden: NDArray[np.float64], weight: NDArray[np.float64], bias: NDArray[np.float64]
) -> NDArray[np.float64]:
    """3x3 with a border of zeros, ReLU, means of 2x2 pixels."""
    padded = np.pad(hidden, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = hidden.shape[2:]
    found = np.zeros((len(hidden), len(weight), height, width))
    for row in range(3):
        for column in range(3):
            window = padded[:, :, row : row + height, column : column + width]
            found += np.einsum("nchw,oc->nohw", window, weight[:, :, row, column], optimize=True)
    found = np.maximum(found + bias[:, None, None], 0.0)
    halved = found.reshape(len(hidden), len(weight), height // 2, 2, width // 2, 2)
    return np.asarray(halved.mean(axis=(3, 5)))
