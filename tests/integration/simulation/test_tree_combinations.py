"""`cohortium simulate` with trees on four real hospitals: labels, trainers, parts, and sites that are lost."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_protocol.trees.bins import Binning
from cohortium_protocol.trees.text import ModelText, check_model_text
from cohortium_sim.demo import demo_tables
from cohortium_sim.plan import Drop, Plan, check_plan
from cohortium_sim.simulate import Outcome, run_plan
from cohortium_sim.trees_table import heart_plan

ROUNDS = 12
CHEST_PAIN = ["typical angina", "atypical angina", "non-anginal", "asymptomatic"]
LABELS: dict[str, dict[str, Any]] = {
    "binary": {"name": "disease", "type": "binary"},
    "multiclass": {"name": "cp", "type": "multiclass", "levels": CHEST_PAIN},
    "number": {"name": "age", "type": "number", "range": [18, 110]},
    "count": {"name": "age", "type": "count", "most": 110},
}
BOOSTING: dict[str, Any] = {
    "trainer": "lightgbm",
    "rounds": ROUNDS,
    "params": {"learning_rate": 0.2, "num_leaves": 6, "min_data_in_leaf": 5, "min_data_per_group": 10},
}
RANDOM: dict[str, Any] = {"trainer": "lightgbm.random_trees", "trees": ROUNDS, "trees_per_sum": 4}

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]


def plan_of(folder: Path, label: str, recipe: dict[str, Any], *, more: dict[str, Any] | None = None) -> Plan:
    """The demo's hospitals; whatever is the label is no feature. Deadlines fit a test."""
    study = json.loads(heart_plan(folder / "usual", 1).study.model_dump_json())
    dataset = study["dataset"] | {"label": LABELS[label]}
    dataset["features"] = [one for one in dataset["features"] if one["name"] != LABELS[label]["name"]]
    federation = {
        "min_sites": 3,
        "rejoin_s": 6,
        "deadlines": {"ready_s": 60, "upload_s": 8, "echo_s": 6, "unmask_s": 6, "step_s": 4},
    }
    changes = {"dataset": dataset, "recipe": recipe, "federation": federation | (more or {})}
    study = {name: value for name, value in (study | changes).items() if name != "metrics"}
    made = parse_study(json.dumps(study))
    return check_plan(Plan(study=made, sites=demo_tables(folder / "sites"), out=folder / "out"))


def released(plan: Plan) -> ModelText:
    """The model that the run released, checked as anybody can check it."""
    study, folder = plan.study, plan.out / "model"
    binning = Binning.from_canonical((folder / "preprocessing.json").read_bytes())
    assert binning.study_digest == study.digest()
    assert study.objective is not None
    trees = study.boosting_rounds or getattr(study.recipe, "trees", 0)
    return check_model_text(
        (folder / "model.txt").read_bytes(),
        features=binning.feature_names(),
        classes=study.trees_per_round,
        max_trees=trees * study.trees_per_round,
        max_leaves=64,
        objective=study.objective,
    )


def is_sound(outcome: Outcome, study: Study) -> None:
    """It went as planned, the log proves it, and people can read it."""
    assert outcome.as_planned, outcome.surprises
    assert outcome.result.state == "FINISHED"
    assert outcome.result.audit is not None
    assert outcome.result.audit.verified, outcome.result.audit.checks
    assert (outcome.out / "report.html").stat().st_size > 10_000
    federated = outcome.result.metrics.federated
    assert federated is not None
    assert federated.importance is not None
    assert [one.name for one in federated.importance] == [feature.name for feature in study.dataset.features]
    assert sum(one.shap or 0.0 for one in federated.importance) > 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("label", "recipe"),
    [("multiclass", BOOSTING), ("number", BOOSTING), ("count", BOOSTING), ("binary", RANDOM), ("number", RANDOM)],
    ids=["multiclass", "number", "count", "binary, random trees", "number, random trees"],
)
async def test_every_label_is_learnt(label: str, recipe: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(tmp_path, label, recipe)
    outcome = await run_plan(plan, live=False)
    is_sound(outcome, plan.study)
    assert released(plan).rounds == ROUNDS
    found = outcome.result.metrics.federated
    assert found is not None
    match label:
        case "binary":
            assert found.auc is not None
            assert found.auc > 0.8
        case "multiclass":
            assert found.accuracy is not None
            assert found.log_loss is not None
            assert found.accuracy > 0.55
            assert found.log_loss < 1.3
        case _:
            assert found.r2 is not None
            assert found.rmse is not None
            assert found.rmse < 9.4  # ages have a standard deviation of 9.4


@pytest.mark.long
async def test_early_stopping_keeps_the_best_trees(tmp_path: Path) -> None:
    params = BOOSTING["params"] | {"learning_rate": 1, "early_stopping_round": 3, "metric": "auc"}
    plan = plan_of(tmp_path, "binary", BOOSTING | {"rounds": 60, "params": params})
    outcome = await run_plan(plan, live=False)
    is_sound(outcome, plan.study)
    assert outcome.result.training is not None
    assert outcome.result.training.trees == released(plan).rounds < 60


@pytest.mark.long
@pytest.mark.parametrize("trees", [True, False], ids=["lightgbm", "random trees"])
async def test_the_comparison_has_every_model(trees: bool, tmp_path: Path) -> None:
    plan = replace(plan_of(tmp_path, "multiclass", BOOSTING if trees else RANDOM), compare=True)
    outcome = await run_plan(plan, live=False)
    is_sound(outcome, plan.study)
    table = outcome.result.metrics
    assert table.pooled is not None
    assert table.pooled.log_loss is not None
    assert len(table.local) == 4
    assert (table.bagging is not None) == trees


@pytest.mark.long
async def test_a_site_that_vanishes_ends_training_with_the_trees_so_far(tmp_path: Path) -> None:
    plan = replace(plan_of(tmp_path, "binary", BOOSTING), drops=(Drop("va", 1, "after"),))
    outcome = await run_plan(plan, live=False)
    is_sound(outcome, plan.study)
    training = outcome.result.training
    assert training is not None
    assert outcome.result.reason == "SITES_LOST"
    assert (training.sessions, training.cohort_changes) == (1, 0)
    assert ROUNDS // 2 - 1 <= training.trees == released(plan).rounds <= ROUNDS // 2


@pytest.mark.long
@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_others_go_on_where_the_study_allows_it(when: Any, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "binary", BOOSTING, more={"allow_cohort_change": True})
    plan = check_plan(replace(plan, drops=(Drop("va", 1, when),)))
    outcome = await run_plan(plan, live=False)
    is_sound(outcome, plan.study)
    training = outcome.result.training
    assert training is not None
    assert (training.trees, training.cohort_changes) == (ROUNDS, 1)
    assert released(plan).rounds == ROUNDS
    assert "The cohort changed once" in (plan.out / "report.html").read_text("utf-8")
    assert set(outcome.result.rounds[0].cohort) == {"cleveland", "hungarian", "switzerland"}


@pytest.mark.long
async def test_random_trees_go_on_without_a_lost_site(tmp_path: Path) -> None:
    plan = replace(plan_of(tmp_path, "binary", RANDOM), drops=(Drop("va", 2, "before"),))
    outcome = await run_plan(plan, live=False)
    is_sound(outcome, plan.study)
    assert [len(done.cohort) for done in outcome.result.rounds] == [4, 3, 3]
    assert released(plan).rounds == ROUNDS


@pytest.mark.real
@pytest.mark.parametrize(
    "processes",
    [pytest.param(False, marks=pytest.mark.long, id="one process"), pytest.param(True, id="many processes")],
)
async def test_real_parts_give_the_same_model(
    processes: bool, tmp_path: Path, amqp_url: str, postgres_url: str
) -> None:
    plan = plan_of(tmp_path / "embedded", "binary", BOOSTING | {"rounds": ROUNDS // 2})
    is_sound(await run_plan(plan, live=False), plan.study)
    real = replace(plan, out=tmp_path / "real", amqp_url=amqp_url, database_url=postgres_url, processes=processes)
    outcome = await run_plan(real, live=False)
    is_sound(outcome, plan.study)
    assert (real.out / "model" / "model.txt").read_bytes() == (plan.out / "model" / "model.txt").read_bytes()
