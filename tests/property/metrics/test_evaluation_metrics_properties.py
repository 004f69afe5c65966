"""Evaluation vectors add up, and the AUC's error stays within what is claimed."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cohortium_protocol.metrics import evaluation_vector, exact_auc, metrics_from_sums

ALL = ("auc", "accuracy", "brier", "calibration")
ROW = st.tuples(st.floats(0, 1) | st.sampled_from([0.0, 0.5, 0.29, 0.57, 1.0]), st.integers(0, 1))
SITE = st.lists(ROW, max_size=40)


def arrays(rows: list[tuple[float, int]]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    return np.array([score for score, _ in rows], dtype=float), np.array([label for _, label in rows], dtype=np.uint8)


@given(st.lists(SITE, min_size=1, max_size=5))
def test_the_sum_over_sites_is_the_vector_of_all_rows(sites: list[list[tuple[float, int]]]) -> None:
    together = evaluation_vector(*arrays([row for site in sites for row in site]))
    assert (np.sum([evaluation_vector(*arrays(site)) for site in sites], axis=0) == together).all()
    metrics_from_sums(together, ALL)


@given(st.lists(ROW, min_size=2, max_size=200))
def test_the_auc_is_off_by_no_more_than_its_bound(rows: list[tuple[float, int]]) -> None:
    scores, labels = arrays(rows)
    assume(0 < labels.sum() < labels.size)
    found = metrics_from_sums(evaluation_vector(scores, labels), ["auc"])
    assert found.auc is not None
    assert found.auc_error_bound is not None
    assert abs(found.auc - exact_auc(scores, labels)) <= found.auc_error_bound + 1e-12


@given(st.lists(ROW, min_size=1, max_size=60))
def test_every_metric_that_is_there_can_be_written_down(rows: list[tuple[float, int]]) -> None:
    found = metrics_from_sums(evaluation_vector(*arrays(rows)), ALL)
    assert type(found).model_validate_json(found.model_dump_json()) == found
    assert found.calibration is not None
    assert 0 <= found.calibration.ece <= 1
