"""The promise to hospitals: a federated model is as good as the pooled one, and better than any of them alone."""

from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from cohortium_sim.demo import demo_plan
from cohortium_sim.simulate import run_plan

SEEDS = range(1, 6)
ROUNDS = 12


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_federated_is_within_a_hundredth_of_pooled_and_above_every_local_model(tmp_path: Path) -> None:
    federated, pooled = [], []
    local: dict[str, list[float]] = {}
    for seed in SEEDS:
        plan = demo_plan(tmp_path / str(seed), rounds=ROUNDS)
        study = plan.study
        recipe = study.recipe.model_copy(update={"local": study.recipe.local.model_copy(update={"epochs": 3})})  # type: ignore[union-attr]
        dataset = study.dataset.model_copy(update={"split": study.dataset.split.model_copy(update={"seed": seed})})
        federation = study.federation.model_copy(update={"seed": seed, "evaluate_every": ROUNDS})
        changed = study.model_copy(update={"recipe": recipe, "dataset": dataset, "federation": federation})
        outcome = await run_plan(replace(plan, study=changed), live=False)
        assert outcome.as_planned, outcome.surprises
        metrics = outcome.result.metrics
        assert metrics.federated is not None
        assert metrics.pooled is not None
        federated.append(_auc(metrics.federated.auc))
        pooled.append(_auc(metrics.pooled.auc))
        for name, one in metrics.local.items():
            local.setdefault(name, []).append(_auc(one.auc))
    assert mean(federated) >= mean(pooled) - 0.01, (federated, pooled)
    assert len(local) == 4
    for name, values in local.items():
        assert mean(federated) > mean(values), (name, federated, values)


def _auc(value: float | None) -> float:
    assert value is not None
    return value
