"""Evaluation from sums, for every type of label: the metrics of the pooled rows, and nothing that sums cannot tell."""

import warnings

import lightgbm
import numpy as np
import pytest
from tree_studies import BINARY, COUNT, LIGHTGBM, MLP, MULTICLASS, NUMBER, RANDOM, study_of

from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.study import DEFAULT_METRICS, LightgbmRecipe, MulticlassLabel, NumberFeature, NumberLabel, Study
from cohortium_protocol.errors import OutOfRange
from cohortium_protocol.metrics import evaluation_vector as binary_vector
from cohortium_protocol.metrics import metrics_from_sums
from cohortium_protocol.statistics import SumsRefused
from cohortium_protocol.trees.evaluation import (
    SHAP_ONE,
    evaluation_from_sums,
    evaluation_length,
    evaluation_vector,
    objective_of,
)
from cohortium_protocol.trees.text import ModelText, check_model_text

MODEL = ModelRef(version=3, model_hash=bytes(32))
FEATURES = tuple(NumberFeature(name=name, type="float", range=(0, 1)) for name in ("one", "two"))


def study(label: object, recipe: object = LIGHTGBM, **changes: object) -> Study:
    return study_of(*FEATURES, label=label, recipe=recipe).model_copy(update=changes)


def sites(rows: int, parts: int = 4) -> list[np.ndarray]:
    return np.array_split(np.random.default_rng(9).permutation(rows), parts)


def probabilities(rows: int, classes: int) -> np.ndarray:
    return np.random.default_rng(4).dirichlet(np.ones(classes), rows)


def test_a_binary_label_has_the_vector_and_the_metrics_of_any_trainer() -> None:
    generator = np.random.default_rng(1)
    scores = generator.beta(2, 3, 800)
    labels = (generator.random(800) < scores).astype(np.uint8)
    torch = study(BINARY, MLP, metrics=("auc", "accuracy", "brier", "calibration", "log_loss"))
    vector = evaluation_vector(torch, scores, labels)
    assert (vector == binary_vector(scores, labels)).all()
    assert vector.size == evaluation_length(torch)
    found = evaluation_from_sums(torch, vector, None, MODEL)
    known = metrics_from_sums(vector, torch.metrics)
    assert found.model == MODEL
    assert (found.rows, found.positives, found.auc) == (800, int(labels.sum()), known.auc)
    assert (found.auc_error_bound, found.accuracy, found.brier) == (known.auc_error_bound, known.accuracy, known.brier)
    assert known.calibration is not None
    assert found.calibration == known.calibration.model_dump()
    assert found.log_loss == pytest.approx(-np.mean(np.log(np.where(labels == 1, scores, 1 - scores))), abs=1e-9)
    assert found.importance is None


def test_only_what_was_asked_for_is_told() -> None:
    few = study(BINARY, MLP, metrics=("accuracy",))
    found = evaluation_from_sums(few, evaluation_vector(few, np.array([0.2, 0.9]), np.array([0, 1])), None, MODEL)
    assert found.accuracy == 1
    assert (found.auc, found.auc_error_bound, found.brier, found.log_loss) == (None, None, None, None)


def test_several_classes_have_the_accuracy_and_log_loss_of_the_pooled_rows() -> None:
    asked = study(MULTICLASS)
    scores, labels = probabilities(3000, 3), np.random.default_rng(5).integers(0, 3, 3000).astype(np.int32)
    sums = np.sum([evaluation_vector(asked, scores[rows], labels[rows]) for rows in sites(3000)], axis=0)
    found = evaluation_from_sums(asked, sums, None, MODEL)
    assert (found.rows, found.positives) == (3000, 0)
    assert found.accuracy == np.mean(scores.argmax(axis=1) == labels)
    given = np.maximum(scores[np.arange(3000), labels], 1e-7)
    assert found.log_loss == pytest.approx(-np.mean(np.log(given)), abs=1e-6)
    assert found.auc is None


@pytest.mark.parametrize("label", [NUMBER, COUNT, NumberLabel(name="y", type="number", range=(-1e6, 1e6))])
def test_numbers_have_the_errors_of_the_pooled_rows(label: NumberLabel) -> None:
    asked = study(label)
    generator = np.random.default_rng(6)
    labels = generator.poisson(6, 5000).clip(0, 29).astype(np.float64)
    scores = labels + generator.normal(0, 1.7, 5000)
    sums = np.sum([evaluation_vector(asked, scores[rows], labels[rows]) for rows in sites(5000)], axis=0)
    found = evaluation_from_sums(asked, sums, None, MODEL)
    assert found.rows == 5000
    errors = scores - labels
    assert found.mae == pytest.approx(np.mean(np.abs(errors)), rel=1e-9, abs=1e-6)
    assert found.rmse == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-9, abs=1e-6)
    assert found.r2 == pytest.approx(1 - np.sum(errors**2) / np.sum((labels - labels.mean()) ** 2), abs=1e-6)
    assert found.accuracy is None


def test_an_error_of_more_than_twice_the_range_counts_as_twice_the_range() -> None:
    asked = study(NUMBER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vector = evaluation_vector(asked, np.array([1e308, -1e308, 5.0]), np.array([0.0, 30.0, 5.0]))
    found = evaluation_from_sums(asked, vector, None, MODEL)
    assert found.mae == pytest.approx(2 * 80 / 3)
    assert found.rmse == pytest.approx(np.sqrt(2 * 80**2 / 3))


def test_labels_that_do_not_vary_have_no_r2() -> None:
    asked = study(COUNT)
    found = evaluation_from_sums(asked, evaluation_vector(asked, np.array([1.0, 4.0]), np.array([2, 2])), None, MODEL)
    assert found.r2 is None
    assert found.mae == pytest.approx(1.5)


@pytest.mark.parametrize("label", [BINARY, MULTICLASS, NUMBER, COUNT])
@pytest.mark.parametrize("recipe", [LIGHTGBM, RANDOM, MLP])
def test_no_test_row_at_all_leaves_everything_undefined(label: object, recipe: object) -> None:
    asked = study(label, recipe)
    vector = evaluation_vector(asked, np.zeros(0), np.zeros(0, dtype=np.int32))
    assert vector.tolist() == [0] * evaluation_length(asked)
    found = evaluation_from_sums(asked, vector, None, MODEL)
    assert found.rows == 0
    told = found.model_dump(exclude={"model", "rows", "positives"})
    assert set(told.values()) == {None}


@pytest.mark.parametrize(
    ("label", "scores", "labels"),
    [
        (MULTICLASS, [[0.5, 0.5]], [0]),
        (MULTICLASS, [[0.5, 0.25, 0.25]], [3]),
        (MULTICLASS, [[0.5, 0.25, 0.25]], [-1]),
        (MULTICLASS, [[1.5, 0, 0]], [0]),
        (MULTICLASS, [[np.nan, 0, 0]], [0]),
        (NUMBER, [1.0], [31.0]),
        (NUMBER, [np.nan], [3.0]),
        (NUMBER, [np.inf], [3.0]),
        (NUMBER, [1.0, 2.0], [3.0]),
        (NUMBER, [1.0], [np.nan]),
        (COUNT, [1.0], [2.5]),
        (COUNT, [1.0], [41]),
        (COUNT, [[1.0]], [1]),
        (BINARY, [1.0], [2]),
    ],
)
def test_scores_and_labels_that_are_none_are_refused(label: object, scores: list, labels: list) -> None:
    with pytest.raises(ValueError):
        evaluation_vector(study(label), np.array(scores), np.array(labels))


@pytest.mark.parametrize(
    ("label", "place", "value"),
    [
        (MULTICLASS, 0, 0),
        (MULTICLASS, 1, -1),
        (MULTICLASS, 2, -1),
        (MULTICLASS, 2, 10**12),
        (NUMBER, 0, 1),
        (NUMBER, 0, -1),
        (NUMBER, 0, 1 << 41),
        (NUMBER, 1, -1),
        (NUMBER, 2, 1 << 50),
        (NUMBER, 5, 0),
        (NUMBER, 6, 1 << 40),
        (NUMBER, 8, 1 << 30),
        (NUMBER, 11, 0),
        (NUMBER, 12, 1 << 30),
    ],
)
def test_sums_that_no_rows_can_have_are_refused(label: object, place: int, value: int) -> None:
    asked = study(label, recipe=RANDOM)
    scores = probabilities(10, 3) if label is MULTICLASS else np.linspace(0, 30, 10)
    sums = evaluation_vector(asked, scores, np.arange(10) % 3)
    evaluation_from_sums(asked, sums, None, MODEL)
    sums[place] = value
    with pytest.raises(SumsRefused):
        evaluation_from_sums(asked, sums, None, MODEL)
    with pytest.raises(SumsRefused, match="expected"):
        evaluation_from_sums(asked, sums[:-1], None, MODEL)


def grown(asked: Study, rows: int = 600) -> tuple[ModelText, lightgbm.Booster, np.ndarray, np.ndarray]:
    """A small genuine model for `asked`, and rows with their labels."""
    generator = np.random.default_rng(2)
    columns = generator.random((rows, 2))
    match asked.dataset.label.type:
        case "binary":
            labels = (columns[:, 0] + generator.normal(0, 0.2, rows) > 0.5).astype(float)
        case "multiclass":
            labels = np.digitize(columns[:, 0] + generator.normal(0, 0.1, rows), [0.3, 0.6]).astype(float)
        case _:
            labels = np.rint(20 * columns[:, 0] + columns[:, 1]).clip(0, 30)
    classes = 3 if asked.dataset.label.type == "multiclass" else 1
    params = {"objective": objective_of(asked), "num_leaves": 5, "verbosity": -1, "num_threads": 1}
    params |= {"num_class": 3} if classes == 3 else {}
    booster = lightgbm.train(params, lightgbm.Dataset(columns, labels, feature_name=["one", "two"]), 4)
    text = check_model_text(
        booster.model_to_string(num_iteration=-1).encode(),
        features=("one", "two"),
        classes=classes,
        max_trees=12,
        max_leaves=5,
        objective=objective_of(asked),
    )
    return text, booster, columns, labels


@pytest.mark.parametrize("label", [BINARY, MULTICLASS, NUMBER, COUNT])
def test_importance_is_the_mean_shap_of_all_sites_rows_with_gains_and_splits_of_the_model(label: object) -> None:
    asked = study(label)
    text, booster, columns, labels = grown(asked)
    scores, effects = booster.predict(columns), booster.predict(columns, pred_contrib=True)
    sizes = np.abs(effects.reshape(600, -1, 3)[:, :, :2]).sum(axis=1)  # over classes, without the expected value
    sums = np.sum(
        [evaluation_vector(asked, scores[rows], labels[rows], sizes[rows].sum(axis=0)) for rows in sites(600)], axis=0
    )
    found = evaluation_from_sums(asked, sums, text, MODEL)
    assert found.importance is not None
    assert [feature.name for feature in found.importance] == ["one", "two"]
    for feature, shap, gain, splits in zip(
        found.importance,
        sizes.mean(axis=0),
        booster.feature_importance("gain"),
        booster.feature_importance("split"),
        strict=True,
    ):
        assert feature.shap == pytest.approx(shap, rel=1e-6)
        assert feature.gain == pytest.approx(gain, rel=1e-4)
        assert feature.splits == splits
    wanted = set(DEFAULT_METRICS[asked.dataset.label.type])
    assert all(getattr(found, metric) is not None for metric in wanted)


def test_importance_without_shap_still_has_gains_and_splits() -> None:
    asked = study(BINARY)
    text, booster, columns, labels = grown(asked)
    sums = evaluation_vector(asked, booster.predict(columns), labels)
    found = evaluation_from_sums(asked, sums, text, MODEL)
    assert found.importance is not None
    assert {feature.shap for feature in found.importance} == {None}
    assert sum(feature.splits for feature in found.importance) == 16
    assert evaluation_from_sums(asked, sums, None, MODEL).importance is None


def test_shap_of_a_number_is_told_on_the_scale_of_the_label_however_wide_its_range() -> None:
    asked = study(NumberLabel(name="y", type="number", range=(0, 1e9)))
    text, *_ = grown(asked)
    vector = evaluation_vector(asked, np.full(4, 5.0), np.full(4, 7.0), np.array([6e9, 0.0]))
    assert vector[-2] == round(6 * SHAP_ONE)
    found = evaluation_from_sums(asked, vector, text, MODEL)
    assert found.importance is not None
    assert [feature.shap for feature in found.importance] == [1.5e9, 0]


@pytest.mark.parametrize("shap", [[1.0], [-1.0, 0.0], [np.nan, 0.0], [np.inf, 0.0]])
def test_shap_sums_that_are_none_are_refused(shap: list[float]) -> None:
    with pytest.raises(ValueError, match="SHAP"):
        evaluation_vector(study(BINARY), np.array([0.5]), np.array([1]), np.array(shap))


def test_shap_sums_that_have_no_place_are_never_sent() -> None:
    with pytest.raises(OutOfRange):
        evaluation_vector(study(BINARY), np.array([0.5]), np.array([1]), np.array([1e12, 0]))


def test_a_network_has_no_shap_here() -> None:
    with pytest.raises(ValueError, match="SHAP"):
        evaluation_vector(study(BINARY, MLP), np.array([0.5]), np.array([1]), np.array([1.0, 1.0]))


@pytest.mark.parametrize(("place", "value"), [(-3, 11), (-3, 0), (-3, -1), (-1, -1)])
def test_shap_words_that_no_rows_can_have_are_refused(place: int, value: int) -> None:
    asked = study(BINARY)
    sums = evaluation_vector(asked, np.full(10, 0.5), np.arange(10) % 2, np.ones(2))
    sums[place] = value
    with pytest.raises(SumsRefused, match="SHAP"):
        evaluation_from_sums(asked, sums, None, MODEL)


def test_a_model_of_other_features_is_not_explained() -> None:
    text, *_ = grown(study(BINARY))
    other = study_of(FEATURES[0])
    with pytest.raises(ValueError, match="features"):
        evaluation_from_sums(other, evaluation_vector(other, np.zeros(0), np.zeros(0)), text, MODEL)


def test_the_objective_is_the_recipes_or_the_one_that_fits_the_label() -> None:
    assert objective_of(study(COUNT)) == "poisson"
    assert objective_of(study(MULTICLASS, RANDOM)) == "multiclass"
    wanted = LightgbmRecipe(trainer="lightgbm", rounds=1, params={"objective": "regression"})
    assert objective_of(study(COUNT, wanted)) == "regression"


def test_many_classes_have_no_longer_vector() -> None:
    levels = tuple(f"level{place}" for place in range(50))
    many = study(MulticlassLabel(name="y", type="multiclass", levels=levels))
    assert evaluation_length(many) == evaluation_length(study(MULTICLASS))
