"""Metrics from sums are those of the pooled rows, in whatever way the rows lie at the sites."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tree_studies import COUNT, LAB, MULTICLASS, NUMBER, study_of

from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.study import Label
from cohortium_protocol.trees.evaluation import evaluation_from_sums, evaluation_vector
from examples import examples

MODEL = ModelRef(version=1, model_hash=bytes(32))
SITES = st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(any)


def split(values: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(values, np.cumsum(sizes)[:-1])


@settings(max_examples=examples(60), deadline=None)
@given(SITES, st.integers(0, 10_000), st.sampled_from([NUMBER, COUNT]), st.floats(1e-4, 100))
def test_numbers(sizes: list[int], seed: int, label: Label, spread: float) -> None:
    study, generator = study_of(LAB, label=label), np.random.default_rng(seed)
    rows = sum(sizes)
    labels = generator.integers(0, 31, rows).astype(np.float64)
    scores = labels + generator.normal(0, spread, rows).clip(-80, 80)
    vectors = [evaluation_vector(study, *site) for site in zip(split(scores, sizes), split(labels, sizes), strict=True)]
    sums = np.sum(vectors, axis=0)
    found = evaluation_from_sums(study, sums, None, MODEL)
    assert found == evaluation_from_sums(study, evaluation_vector(study, scores, labels), None, MODEL)
    errors = scores - labels
    assert found.rows == rows
    assert found.mae == pytest.approx(np.abs(errors).mean(), rel=1e-9, abs=1e-9)
    assert found.rmse == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-9, abs=1e-9)
    total = ((labels - labels.mean()) ** 2).sum()
    if total > 0:
        assert found.r2 == pytest.approx(1 - (errors**2).sum() / total, rel=1e-6, abs=1e-6)
    else:
        assert found.r2 is None


@settings(max_examples=examples(60), deadline=None)
@given(SITES, st.integers(0, 10_000))
def test_classes(sizes: list[int], seed: int) -> None:
    study, generator = study_of(LAB, label=MULTICLASS), np.random.default_rng(seed)
    rows = sum(sizes)
    scores, labels = generator.dirichlet([0.2, 1, 3], rows), generator.integers(0, 3, rows).astype(np.int32)
    vectors = [evaluation_vector(study, *site) for site in zip(split(scores, sizes), split(labels, sizes), strict=True)]
    sums = np.sum(vectors, axis=0)
    assert (sums == evaluation_vector(study, scores, labels)).all()
    found = evaluation_from_sums(study, sums, None, MODEL)
    assert found.accuracy == (scores.argmax(axis=1) == labels).mean()
    given_ = np.maximum(scores[np.arange(rows), labels], 1e-7)
    assert found.log_loss == pytest.approx(-np.log(given_).mean(), abs=1e-6)
