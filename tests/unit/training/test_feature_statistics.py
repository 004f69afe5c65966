"""Scaling and inputs come from sums over the sites."""

import math
from pathlib import Path

import numpy as np
import pytest

from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_protocol.statistics import (
    STEPS,
    NoTrainingRows,
    NumberInput,
    Preprocessing,
    Rows,
    SumsRefused,
    design_matrix,
    input_count,
    preprocessing_from_sums,
    statistics_length,
    statistics_vector,
    totals_from_sums,
)

TEXT = (Path(__file__).resolve().parents[2] / "studies" / "example.yaml").read_text()
STUDY = parse_study(TEXT.replace('levels: ["0", "1"]}', 'levels: ["0", "1"], missing: level}'))


def rows(age: list[float], sex: list[int], pressure: list[float], labels: list[int]) -> Rows:
    columns = {
        "age": np.array(age, dtype=float),
        "sex": np.array(sex, dtype=np.int32),
        "trestbps": np.array(pressure, dtype=float),
    }
    return Rows(columns, np.array(labels, dtype=np.uint8))


NONE = rows([], [], [], [])
NORTH = rows([40, 60], [0, 1], [120, math.nan], [0, 1])
SOUTH = rows([50, 70, 80], [1, -1, 0], [130, 140, math.nan], [1, 1, 0])


def made(study: Study = STUDY) -> Preprocessing:
    sums = statistics_vector(study, NORTH, SOUTH) + statistics_vector(study, SOUTH, NONE)
    return preprocessing_from_sums(study, sums, 2)


def test_the_vector_has_the_layout_that_is_written() -> None:
    vector = statistics_vector(STUDY, NORTH, SOUTH)
    q = [round((age - 18) / 92 * STEPS) for age in (40, 60)]
    assert vector[:3].tolist() == [2, sum(q), sum(step * step for step in q)]
    assert vector[3] == 1
    assert vector[-4:].tolist() == [2, 3, 1, 2]
    assert vector.size == statistics_length(STUDY) == 10


def test_means_and_spreads_are_those_of_all_rows_together() -> None:
    age, _, pressure = made().features
    assert isinstance(age, NumberInput)
    assert isinstance(pressure, NumberInput)
    assert age.mean == pytest.approx(np.mean([40, 60, 50, 70, 80]), abs=92 / STEPS)
    assert age.std == pytest.approx(np.std([40, 60, 50, 70, 80]), abs=92 / STEPS)
    assert pressure.mean == pytest.approx(130, abs=210 / STEPS)


def test_inputs_are_scaled_filled_and_spread_out() -> None:
    preprocessing = made()
    assert preprocessing.input_names() == (
        "age",
        "sex=0",
        "sex=1",
        "sex=missing",
        "trestbps",
        "trestbps=missing",
    )
    assert preprocessing.inputs == input_count(STUDY)
    matrix = design_matrix(preprocessing, SOUTH)
    assert matrix.dtype == np.float32
    assert matrix[:, 1:4].tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert matrix[:, 5].tolist() == [0, 0, 1]
    assert matrix[2, 4] == 0  # the federated mean, after scaling
    assert matrix[0, 0] == pytest.approx((50 - 60) / np.std([40, 60, 50, 70, 80]), abs=1e-3)


def test_preprocessing_is_the_same_bytes_and_back() -> None:
    data = made().canonical()
    assert Preprocessing.from_canonical(data) == made()
    assert b'"training_rows":5' in data
    with pytest.raises(ValueError):
        Preprocessing.from_canonical(data + b"\n")


def test_a_feature_without_spread_or_without_values_gives_finite_inputs() -> None:
    site = rows([50, 50], [0, 1], [math.nan, math.nan], [0, 1])
    preprocessing = preprocessing_from_sums(STUDY, statistics_vector(STUDY, site, NONE), 1)
    assert np.isfinite(design_matrix(preprocessing, SOUTH)).all()
    assert np.abs(design_matrix(preprocessing, SOUTH)).max() <= 1
    pressure = preprocessing.features[2]
    assert isinstance(pressure, NumberInput)
    assert pressure.mean == 155


def test_a_missing_value_that_the_study_refuses_never_becomes_an_input() -> None:
    study = parse_study(TEXT)
    preprocessing = preprocessing_from_sums(study, statistics_vector(study, NORTH, NONE), 1)
    with pytest.raises(ValueError, match="sex"):
        design_matrix(preprocessing, SOUTH)
    with pytest.raises(ValueError, match="age"):
        design_matrix(preprocessing, rows([math.nan], [1], [120], [0]))


@pytest.mark.parametrize(
    ("place", "value"), [(0, 6), (0, -1), (1, 10**9), (2, 0), (2, 10**12), (-4, 0), (-2, 6), (-1, 9)]
)
def test_sums_that_no_table_can_have_are_refused(place: int, value: int) -> None:
    sums = statistics_vector(STUDY, NORTH, SOUTH) + statistics_vector(STUDY, SOUTH, NONE)
    sums[place] = value
    with pytest.raises(SumsRefused):
        preprocessing_from_sums(STUDY, sums, 2)


def test_no_training_row_anywhere_is_an_error_of_its_own() -> None:
    with pytest.raises(NoTrainingRows):
        preprocessing_from_sums(STUDY, statistics_vector(STUDY, NONE, SOUTH), 2)


def test_totals_are_read_from_the_end() -> None:
    totals = totals_from_sums(STUDY, statistics_vector(STUDY, NORTH, SOUTH))
    assert (totals.training_rows, totals.test_rows) == (2, 3)
    assert (totals.training_positives, totals.test_positives) == (1, 2)
    with pytest.raises(SumsRefused):
        totals_from_sums(STUDY, [1, 2, 3])
