"""Private studies on the demo's hospitals, and what a finished run of one must leave behind."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cohortium_messages.study_file import parse_study
from cohortium_privacy.study_plans import plan_findings, statement_of
from cohortium_sim.demo import demo_tables
from cohortium_sim.plan import Plan, check_plan
from cohortium_sim.simulate import Outcome
from cohortium_sim.trees_table import heart_plan

LOGISTIC: dict[str, Any] = {"trainer": "torch.logistic", "local": {"optimizer": "sgd", "lr": 0.5}}
TREES: dict[str, Any] = {"trainer": "lightgbm.random_trees", "trees": 8, "depth": 3, "trees_per_sum": 4}
LOCAL = {"mode": "local", "epsilon": 8, "delta": 1e-4, "sampling_rate": 0.2, "patients": 80, "evaluation_epsilon": 4}
SUMMED = {"mode": "distributed", "epsilon": 8, "delta": 1e-4, "patients": 640, "evaluation_epsilon": 4}
FEDERATION = {"min_sites": 3, "deadlines": {"ready_s": 60, "upload_s": 20, "echo_s": 10, "unmask_s": 20}}


def plan_of(folder: Path, recipe: dict[str, Any], privacy: dict[str, Any], rounds: int | None, **changes: Any) -> Plan:
    """The demo's hospitals with this recipe and promise; `changes` are of the plan."""
    study = json.loads(heart_plan(folder / "usual", 1).study.model_dump_json())
    if rounds is not None:
        for feature in study["dataset"]["features"]:
            missing = {"category": "level"}.get(feature["type"], "impute")
            feature["missing"] = missing if feature["missing"] == "native" else feature["missing"]
    federation = FEDERATION | ({} if rounds is None else {"rounds": rounds})
    asked = {"recipe": recipe, "federation": federation, "privacy": privacy, "metrics": ["auc", "accuracy", "brier"]}
    made = parse_study(json.dumps(study | asked), also=plan_findings)
    plan = Plan(study=made, sites=demo_tables(folder / "sites"), out=folder / "out")
    return check_plan(replace(plan, **changes))


def check_promise(plan: Plan, outcome: Outcome) -> None:
    """Result, card, attestation's subject and log say the same; the log has every charge of every site."""
    result, promised = outcome.result, statement_of(plan.study)
    assert (outcome.surprises, result.state) == ((), "FINISHED")
    assert (result.privacy_mode, result.privacy) == (plan.study.privacy.mode, promised)
    card = json.loads((plan.out / "model" / "card.json").read_text())
    assert {name: card["privacy"][name] for name in promised.model_dump()} == promised.model_dump(mode="json")
    assert promised.sentences[0].split(",")[0] in (plan.out / "report.html").read_text(encoding="utf-8")
    logged = "\n".join(file.read_text() for file in sorted((plan.out / "audit").rglob("*.json*")))
    assert promised.sentences[0] in logged
    assert logged.count('"reason":"PLANNED"') == 2 * len(plan.sites), "training and evaluation, at each site"
    assert logged.count('"reason":"UPLOADED"') == (plan.study.rounds + 1) * len(plan.sites)
    (check,) = [check for check in result.audit.checks if check.name == "privacy promise"]
    charges = (plan.study.rounds + 1) * len(plan.sites)
    assert f"epsilon {promised.epsilon:g} at delta" in check.fact
    assert f"{charges} charges in {2 * len(plan.sites)} plans" in check.fact
    metrics = result.metrics.federated
    assert metrics is not None
    assert metrics.count_noise is not None
    assert metrics.count_noise > 0
    assert metrics.auc is not None
    assert [round_.metrics is not None for round_ in result.rounds] == [False] * (plan.study.rounds - 1) + [True]
