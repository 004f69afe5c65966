"""Weights, bounds, validation rows and the decision to stop."""

from typing import Any

import numpy as np
import pytest

from cohortium_connector.training.stopping import AUC_BINS, Stopping
from cohortium_connector.training.weights import row_bound, row_weights, validation_rows
from cohortium_messages.study import LightgbmRecipe, Study
from cohortium_protocol.metrics import exact_auc
from cohortium_protocol.strict.exact import scalar_words

BINARY = {"type": "binary"}
CLASSES = {"type": "multiclass", "levels": ["a", "b", "c"]}


def study_of(label: dict[str, Any], params: dict[str, Any] | None = None, **recipe: Any) -> Study:
    return Study.model_validate(
        {
            "apiVersion": "cohortium/study/1",
            "governance": "trial",
            "name": "weights",
            "purpose": "a test",
            "dataset": {
                "features": [{"name": "x", "type": "float", "range": [0, 1]}],
                "label": {"name": "y"} | label,
                "split": {"test": 0.2},
            },
            "recipe": {"trainer": "lightgbm", "rounds": 3, "params": params or {}} | recipe,
            "federation": {"seed": 3},
        }
    )


def recipe_of(study: Study) -> LightgbmRecipe:
    assert isinstance(study.recipe, LightgbmRecipe)
    return study.recipe


def test_rows_are_weighed_by_their_class() -> None:
    study = study_of(CLASSES, class_weight={"a": 0.1, "c": 3})
    weights = row_weights(study, recipe_of(study), np.array([0.0, 1.0, 2.0, 0.0]))
    assert weights is not None
    assert weights.tolist() == [np.float32(0.1), 1.0, 3.0, np.float32(0.1)]
    plain = study_of(CLASSES)
    assert row_weights(plain, recipe_of(plain), np.zeros(3)) is None


@pytest.mark.parametrize(
    ("study", "counts", "bound"),
    [
        (study_of(BINARY), (), 1),
        (study_of(CLASSES), (), 1),
        (study_of(BINARY, {"scale_pos_weight": 4}), (), 4),
        (study_of(BINARY, {"scale_pos_weight": 0.2}), (), 1),
        (study_of(BINARY, class_weight={"0": 0.5, "1": 7}), (), 7),
        (study_of(BINARY, {"scale_pos_weight": 4}, class_weight={"0": 0.5, "1": 7}), (), 28),
        (study_of(BINARY, {"is_unbalance": True}), (10, 90), 9),
        (study_of(BINARY, {"is_unbalance": True}), (90, 10), 9),
        (study_of(BINARY, {"is_unbalance": True}), (0, 100), 1),
        (study_of(BINARY, {"is_unbalance": True}), (50,), 1),
        (study_of({"type": "number", "range": [-3, 1]}), (), 32),
        (study_of({"type": "number", "range": [0, 0.001]}), (), 1),
        (study_of({"type": "number", "range": [99, 100]}), (), 800),
        (study_of({"type": "count", "most": 9}, {"objective": "regression"}), (), 80),
        (study_of({"type": "count", "most": 9}), (), 80 * np.exp(0.7)),
    ],
)
def test_no_row_adds_more_than_the_bound(study: Study, counts: tuple[int, ...], bound: float) -> None:
    assert row_bound(study, recipe_of(study), counts) == pytest.approx(bound)


def test_validation_rows_follow_from_seed_and_place_alone() -> None:
    study = study_of(BINARY, {"early_stopping_round": 3}, validation=0.25)
    recipe = recipe_of(study)
    chosen = validation_rows(study, recipe, 4000)
    assert 0.22 < chosen.mean() < 0.28
    assert (validation_rows(study, recipe, 1000) == chosen[:1000]).all()
    federation = study.federation.model_copy(update={"seed": 4})
    other = validation_rows(study.model_copy(update={"federation": federation}), recipe, 4000)
    assert (other != chosen).any()


def test_all_rows_train_without_early_stopping_and_one_always_does() -> None:
    plain = study_of(BINARY)
    assert not validation_rows(plain, recipe_of(plain), 100).any()
    half = study_of(BINARY, {"early_stopping_round": 3}, validation=0.5)
    for rows in range(1, 40):
        assert not validation_rows(half, recipe_of(half), rows).all()


def stopping(study: Study, labels: list[float]) -> Stopping:
    return Stopping(study, recipe_of(study), np.array(labels), np.zeros(len(labels)))


def told(decision: Stopping, losses: list[float]) -> list[bool]:
    return [
        decision.is_over(round_, np.append(scalar_words([loss]), 10)) for round_, loss in enumerate(losses, start=1)
    ]


def test_patience_counts_rounds_without_a_gain() -> None:
    decision = stopping(study_of(BINARY, {"early_stopping_round": 2}), [0, 1])
    assert told(decision, [5, 4, 4, 3, 3.5, 3]) == [False, False, False, False, False, True]
    assert decision.best_round(6) == 4


def test_a_gain_below_the_least_one_is_none() -> None:
    params = {"early_stopping_round": 2, "early_stopping_min_delta": 0.25}
    decision = stopping(study_of(BINARY, params), [0, 1])
    assert told(decision, [50, 48, 47.9]) == [False, False, True], "0.2 a row is not enough"
    assert decision.best_round(3) == 1


def test_without_early_stopping_the_last_round_is_the_best() -> None:
    study = study_of(BINARY)
    assert not Stopping.is_wanted(recipe_of(study).params)
    assert stopping(study, [0, 1]).best_round(7) == 7


def test_the_area_is_that_of_all_rows_but_for_ties_in_a_bin() -> None:
    study = study_of(BINARY, {"early_stopping_round": 1, "metric": "auc"})
    generator = np.random.Generator(np.random.PCG64(5))
    labels, scores = generator.integers(0, 2, 600), generator.normal(size=600)
    sums = np.zeros(2 * AUC_BINS, dtype=np.int64)
    for part in np.array_split(np.arange(600), 3):
        site = stopping(study, labels[part].tolist())
        site.add(scores[part])
        sums += site.words()
    assert sums.sum() == 600
    binned = np.floor(1000 / (1 + np.exp(-scores)))
    decision = stopping(study, [])
    decision.is_over(1, sums)
    assert decision._best == pytest.approx(exact_auc(binned, labels))


def test_an_area_without_one_of_the_labels_is_a_half() -> None:
    decision = stopping(study_of(BINARY, {"early_stopping_round": 2, "metric": "auc"}), [])
    sums = np.zeros(2 * AUC_BINS, dtype=np.int64)
    assert [decision.is_over(round_, sums) for round_ in (1, 2, 3)] == [False, False, True]


def test_no_validation_row_anywhere_stops_at_the_first_round() -> None:
    decision = stopping(study_of(BINARY, {"early_stopping_round": 2}), [])
    words = decision.words()
    assert not words.any()
    assert [decision.is_over(round_, words) for round_ in (1, 2, 3)] == [False, False, True]
    assert decision.best_round(3) == 1


@pytest.mark.parametrize("scores", [[800.0, -800.0], [-800.0, 800.0]])
def test_extreme_scores_have_a_finite_loss(scores: list[float]) -> None:
    decision = stopping(study_of(BINARY, {"early_stopping_round": 2}), [1, 0])
    decision.add(np.array(scores))
    decision.is_over(1, decision.words())
    assert 0 <= -decision._best <= 35
