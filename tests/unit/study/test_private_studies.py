"""Study files with a privacy block: what is refused, at which line and field, and what the check tells of the rest."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cohortium_messages.study import Study
from cohortium_messages.study_checks_privacy import least_sites
from cohortium_messages.study_file import StudyFileError, parse_study
from cohortium_privacy.study_plans import plan_findings, statement_of

BASE: dict[str, Any] = {
    "apiVersion": "cohortium/study/1",
    "governance": "trial",
    "name": "small",
    "purpose": "Say what is promised",
    "dataset": {
        "features": [{"name": "age", "type": "float", "range": [18, 110]}],
        "label": {"name": "disease", "type": "binary"},
        "split": {"test": 0.3},
    },
    "recipe": {"trainer": "torch.logistic"},
    "federation": {"rounds": 10, "min_sites": 4},
}
LOCAL = {"mode": "local", "epsilon": 4, "delta": 1e-5, "sampling_rate": 0.1, "patients": 500}
SUMMED = {"mode": "distributed", "epsilon": 4, "delta": 1e-5, "sampling_rate": 0.5, "patients": 2000}
SITE = {"mode": "site", "epsilon": 8, "delta": 1e-4, "sites": 60}
BATCHES = {name: value for name, value in LOCAL.items() if name != "sampling_rate"}
TREES = {"trainer": "lightgbm.random_trees", "trees": 4}


def parsed(privacy: dict[str, Any], **changes: Any) -> Study:
    return parse_study(json.dumps(BASE | {"privacy": privacy} | changes, indent=1), also=plan_findings)


def refused(privacy: dict[str, Any], **changes: Any) -> dict[str, str]:
    with pytest.raises(StudyFileError) as error:
        parsed(privacy, **changes)
    assert all(problem.line > 1 and problem.remedy for problem in error.value.problems)
    return {problem.field: problem.fact for problem in error.value.problems}


@pytest.mark.parametrize(
    ("privacy", "changes", "field"),
    [
        (LOCAL | {"delta": 5e-3}, {}, "privacy.delta"),
        (LOCAL | {"sampling_rate": 0.001}, {}, "privacy.sampling_rate"),
        (LOCAL | {"noise_multiplier": 0.4}, {}, "privacy.noise_multiplier"),
        (SUMMED | {"colluding": 5}, {}, "privacy.colluding"),
        (SUMMED, {"federation": {"rounds": 3, "mode": "buffered"}}, "privacy.mode"),
        (SUMMED, {"recipe": {"trainer": "lightgbm", "rounds": 3}, "federation": {}}, "privacy.mode"),
        (LOCAL, {"recipe": TREES, "federation": {}}, "privacy.mode"),
        (SUMMED | {"sampling_rate": 0.5}, {"recipe": TREES, "federation": {}}, "privacy.sampling_rate"),
        (SUMMED | {"sampling_rate": 1, "clip": 2}, {"recipe": TREES, "federation": {}}, "privacy.clip"),
        (SITE | {"delta": 9e-3, "sites": 200}, {"federation": {"rounds": 3, "min_sites": 140}}, "privacy.delta"),
        (LOCAL, {"recipe": {"trainer": "benchmark.noise", "parameters": 9}, "metrics": []}, "privacy.mode"),
        (LOCAL | {"evaluation_epsilon": 1}, {"metrics": []}, "privacy.evaluation_epsilon"),
        (LOCAL, {"recipe": BASE["recipe"] | {"local": {"batch_size": 8}}}, "recipe.local.batch_size"),
        (SUMMED, {"recipe": BASE["recipe"] | {"local": {"epochs": 3}}}, "recipe.local.epochs"),
        (SUMMED, {"recipe": BASE["recipe"] | {"local": {"weight_decay": 0.1}}}, "recipe.local.weight_decay"),
        (SUMMED, {"federation": {"rounds": 3, "proximal_mu": 0.1}}, "federation.proximal_mu"),
        (SUMMED, {"federation": {"rounds": 3, "compression": {"keep": 0.5}}}, "federation.compression.keep"),
        (LOCAL, {"federation": {"rounds": 3, "evaluate_every": 2}}, "federation.evaluate_every"),
        (LOCAL | {"batch_size": 50}, {}, "privacy.batch_size"),
        ({**BATCHES, "batch_size": 501}, {}, "privacy.batch_size"),
        ({**BATCHES, "batch_size": 2.5}, {}, "privacy.batch_size"),
        ({**BATCHES, "batch_size": 7}, {}, "privacy.sampling_rate"),
        (SITE, {"federation": {"rounds": 3, "min_sites": 3}}, "federation.min_sites"),
        (SITE, {"federation": {"rounds": 3, "min_sites": 39}}, "federation.min_sites"),
    ],
)
def test_what_cannot_be_kept_is_refused_at_its_field(
    privacy: dict[str, Any], changes: dict[str, Any], field: str
) -> None:
    assert field in refused(privacy, **changes)


def test_noisy_evaluation_is_for_binary_labels() -> None:
    label = {"name": "stage", "type": "multiclass", "levels": ["a", "b", "c"]}
    changes = {"dataset": BASE["dataset"] | {"label": label}, "recipe": TREES, "federation": {}}
    found = refused(SUMMED | {"sampling_rate": 1, "evaluation_epsilon": 1}, **changes)
    assert "multiclass" in found["privacy.evaluation_epsilon"]
    assert parsed(SUMMED | {"sampling_rate": 1}, **changes).privacy.mode == "distributed"


def test_the_privacy_block_is_explained_like_every_other() -> None:
    assert refused({"epsilon": 1}) == {"privacy.mode": "is missing"}
    assert refused({"mode": "global"}) == {"privacy.mode": 'is "global"'}
    assert set(refused({"mode": "local", "epsilon": 1})) == {
        "privacy.delta",
        "privacy.sampling_rate",
        "privacy.patients",
    }
    assert refused(LOCAL | {"epsilom": 2}) == {"privacy.epsilom": "is not a field here"}


def test_a_batch_size_is_a_rate_of_the_public_number_of_patients() -> None:
    study = parsed({**BATCHES, "batch_size": 50})
    assert study == parsed(LOCAL)
    assert study.digest() == parsed(LOCAL).digest()
    summed = {name: value for name, value in SUMMED.items() if name != "sampling_rate"}
    assert parsed(summed | {"batch_size": 1000}) == parsed(SUMMED)


@pytest.mark.parametrize(
    ("privacy", "fits"),
    [
        (LOCAL, True),
        ({**BATCHES, "batch_size": 50}, True),
        (SUMMED | {"batch_size": 50}, False),
        (LOCAL | {"batch_size": 50}, False),
        (BATCHES, False),
        ({**BATCHES, "batch_size": 0}, False),
        ({**BATCHES, "batch_size": 2.5}, False),
    ],
)
def test_the_published_schema_takes_a_batch_size_where_the_parser_does(privacy: dict[str, Any], fits: bool) -> None:
    schema = json.loads((Path(__file__).parents[3] / "contracts" / "schemas" / "study.json").read_text())
    assert Draft202012Validator(schema).is_valid(BASE | {"privacy": privacy}) == fits
    if fits:
        parsed(privacy)
    else:
        refused(privacy)


def test_the_usual_cohort_tolerance_leaves_the_digest_as_it_was() -> None:
    plain = parsed(LOCAL)
    said = [parsed(LOCAL, dataset=BASE["dataset"] | {"cohort_tolerance": share}) for share in (0.2, 0.05)]
    assert [one.dataset.cohort_tolerance for one in said] == [0.2, 0.05]
    assert plain.digest() == said[0].digest() != said[1].digest()
    assert b"cohort_tolerance" not in plain.canonical()
    assert Study.model_validate_json(said[1].canonical()) == said[1]


def test_site_mode_asks_for_more_than_half_of_the_honest_hospitals_and_all_others() -> None:
    federation = {"rounds": 3, "min_sites": 40}
    assert least_sites(parsed(SITE, federation=federation)) == 40  # of 60, of whom 19 collude
    assert least_sites(parsed(SITE | {"colluding": 8}, federation=federation)) == 35
    assert least_sites(parsed(LOCAL)) == 0


def test_a_statement_says_who_can_rely_on_what() -> None:
    local, summed = statement_of(parsed(LOCAL)), statement_of(parsed(SUMMED | {"evaluation_epsilon": 2}))
    assert (local.mode, local.unit, local.steps, local.evaluation_epsilon) == ("local", "patient", 100, None)
    assert local.relies_on == ("the patient's own hospital",)
    assert "the secure sum" in summed.relies_on
    for one, epsilon in ((local, 4), (summed, 4)):
        assert one.epsilon == epsilon
        assert one.epsilon_pld is not None
        assert one.epsilon_rdp is not None
        assert one.epsilon_pld < one.epsilon_rdp <= epsilon * 1.0001
    assert summed.evaluation_epsilon is not None
    assert 1 < summed.evaluation_epsilon <= 2
    nothing = statement_of(Study.model_validate(BASE))
    assert (nothing.mode, nothing.epsilon) == ("none", None)
    assert "no formal guarantee" in nothing.sentences[0]


def test_without_an_accountant_a_private_study_is_refused_and_any_other_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohortium_privacy.study_plans.accountant_installed", lambda: False)
    assert "dp-accounting" in refused(LOCAL)["privacy.mode"]
    assert parsed({"mode": "none"}).privacy.mode == "none"
