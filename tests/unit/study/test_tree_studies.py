"""Studies with trees: what is accepted, and what is said of each mistake."""

from importlib import resources

import pytest
from tests.unit.study.tree_mistakes import (
    LABEL,
    METRICS_LINE,
    MISTAKES,
    PARAMS,
    RANDOM,
    ROUNDS,
    TORCH,
    TREES,
    Pairs,
)

from cohortium_messages.study import DEFAULT_METRICS
from cohortium_messages.study_checks import METRICS
from cohortium_messages.study_file import StudyFileError, canonical_study, parse_study, study_from_canonical

OTHER_LABELS: dict[str, Pairs] = {
    "multiclass": [(LABEL, "label: {name: stage, type: multiclass, levels: [calm, mild, grave]}")],
    "number": [(LABEL, "label: {name: days, type: number, range: [0, 365]}")],
    "count": [(LABEL, "label: {name: visits, type: count, most: 50}")],
}


def changed(text: str, pairs: Pairs) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def mistakes(text: str) -> list[tuple[str, str, str]]:
    with pytest.raises(StudyFileError) as caught:
        parse_study(text)
    lines = text.splitlines()
    for problem in caught.value.problems:
        last = problem.field.rsplit(".", 1)[-1].split("[")[0]
        written = lines[problem.line - 1]
        assert last in written or problem.fact == "is missing"
    return [(problem.field, problem.fact, problem.remedy) for problem in caught.value.problems]


def with_label(kind: str) -> str:
    return changed(TREES, [*OTHER_LABELS[kind], (METRICS_LINE + "\n", "")])


@pytest.mark.parametrize("kind", OTHER_LABELS)
def test_every_label_has_its_objective_and_its_metrics(kind: str) -> None:
    study = parse_study(with_label(kind))
    assert study.objective == {"multiclass": "multiclass", "number": "regression", "count": "poisson"}[kind]
    assert study.metrics == DEFAULT_METRICS[kind]
    assert set(DEFAULT_METRICS[kind]) <= set(METRICS[kind])
    assert study.trees_per_round == (3 if kind == "multiclass" else 1)
    assert study_from_canonical(canonical_study(study)) == study


def test_packaged_studies_can_be_read() -> None:
    packaged = resources.files("cohortium_sim").joinpath("studies")
    found = {path.name: parse_study(path.read_text("utf-8"), file=path.name) for path in packaged.iterdir()}
    assert found["diabetes-trees.yaml"].boosting_rounds == 100
    assert len(found["diabetes-trees.yaml"].dataset.features) == 42


def test_rounds_may_stand_in_either_place() -> None:
    in_federation = changed(TREES, [("  rounds: 60\n", ""), ("  min_sites: 3", "  min_sites: 3\n  trees: 60")])
    in_both = changed(TREES, [("  min_sites: 3", "  min_sites: 3\n  trees: 60")])
    for text in (TREES, in_federation, in_both):
        assert (parse_study(text).boosting_rounds, parse_study(text).rounds) == (60, 1)


def test_random_trees_count_in_sums() -> None:
    study = parse_study(RANDOM)
    assert (study.rounds, study.boosting_rounds, study.objective) == (20, 0, "binary")
    assert parse_study(changed(RANDOM, [("trees: 60", "trees: 61")])).rounds == 21


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_field_and_remedy(name: str) -> None:
    text, pairs, expected = MISTAKES[name]
    assert mistakes(changed(text, pairs)) == [expected]


@pytest.mark.parametrize("kind", OTHER_LABELS)
def test_networks_learn_binary_labels_only(kind: str) -> None:
    text = changed(TORCH, [*OTHER_LABELS[kind], ("metrics: [auc, accuracy, brier]\n", "")])
    assert mistakes(text) == [
        (
            "dataset.label.type",
            f"is {kind}, but the trainer torch.mlp learns binary labels only",
            "Choose the trainer lightgbm, or a binary label.",
        )
    ]


@pytest.mark.parametrize("kind", ["number", "count"])
def test_numbers_have_no_classes_to_weigh(kind: str) -> None:
    text = changed(with_label(kind), [(ROUNDS, ROUNDS + '  class_weight: {"1": 2}\n')])
    assert mistakes(text) == [("recipe.class_weight", f"is set, but a {kind} label has no classes", "Leave it out.")]


def test_a_count_may_be_learnt_as_a_number_and_classes_may_be_weighed() -> None:
    counted = parse_study(changed(with_label("count"), [(PARAMS, "    objective: regression")]))
    assert counted.objective == "regression"
    weighed = changed(with_label("multiclass"), [(ROUNDS, ROUNDS + "  class_weight: {grave: 3.5}\n")])
    assert parse_study(weighed).objective == "multiclass"


def test_early_stopping_by_what_fits_is_accepted() -> None:
    stopping = "    metric: auc\n    early_stopping_round: 5\n    early_stopping_min_delta: 0.001"
    assert parse_study(changed(TREES, [(PARAMS, stopping)])).objective == "binary"


def test_all_mistakes_of_a_tree_study_are_told_at_once() -> None:
    text = changed(TREES, [(PARAMS, "    metric: l2"), ("mode: synchronous", "mode: buffered")])
    assert [field for field, *_ in mistakes(text)] == ["recipe.params.metric"] * 2 + ["federation.mode"]
