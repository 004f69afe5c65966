"""Statistics of sites add up to those of all rows, in whatever way the rows lie at the sites."""

import math
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cohortium_messages.study_file import parse_study
from cohortium_protocol.statistics import (
    STEPS,
    NumberInput,
    Rows,
    design_matrix,
    preprocessing_from_sums,
    statistics_vector,
)

STUDY = parse_study((Path(__file__).resolve().parents[2] / "studies" / "example.yaml").read_text())
ROW = st.tuples(st.floats(18, 110), st.integers(0, 1), st.floats(50, 260) | st.just(math.nan), st.integers(0, 1))
SITES = st.lists(st.lists(ROW, max_size=12), min_size=1, max_size=5)


def rows(values: list[tuple[float, int, float, int]]) -> Rows:
    age, sex, pressure, labels = (list(column) for column in zip(*values, strict=True)) if values else ([], [], [], [])
    columns = {
        "age": np.array(age, dtype=float),
        "sex": np.array(sex, dtype=np.int32),
        "trestbps": np.array(pressure, dtype=float),
    }
    return Rows(columns, np.array(labels, dtype=np.uint8))


@given(SITES)
def test_sums_of_sites_are_the_sums_of_all_rows(sites: list[list[tuple[float, int, float, int]]]) -> None:
    together = [row for site in sites for row in site]
    summed = sum(statistics_vector(STUDY, rows(site), rows(site[:1])) for site in sites)
    firsts = [row for site in sites for row in site[:1]]
    assert (summed == statistics_vector(STUDY, rows(together), rows(firsts))).all()


@given(st.lists(ROW, min_size=1, max_size=30))
def test_scaling_is_that_of_the_pooled_rows_and_inputs_are_finite(values: list[tuple[float, int, float, int]]) -> None:
    table = rows(values)
    preprocessing = preprocessing_from_sums(STUDY, statistics_vector(STUDY, table, table), 3)
    age = preprocessing.features[0]
    assert isinstance(age, NumberInput)
    assert abs(age.mean - table.columns["age"].mean()) <= 92 / STEPS
    if table.columns["age"].std() > 92 * 4 / STEPS:
        assert abs(age.std - table.columns["age"].std()) <= 92 / STEPS
    assert np.isfinite(design_matrix(preprocessing, table)).all()
