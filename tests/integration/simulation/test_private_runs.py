"""`cohortium simulate` with differential privacy on four real hospitals: what is promised is what is published."""

from pathlib import Path

import pytest
from tests.integration.simulation.promises import LOCAL, LOGISTIC, SUMMED, TREES, check_promise, plan_of

from cohortium_sim.simulate import run_plan

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.long
async def test_local_privacy(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, LOGISTIC, LOCAL, rounds=2)
    check_promise(plan, await run_plan(plan, live=False))


@pytest.mark.long
async def test_distributed_privacy_learns(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, LOGISTIC, SUMMED | {"sampling_rate": 0.5}, rounds=8)
    outcome = await run_plan(plan, live=False)
    check_promise(plan, outcome)
    metrics = outcome.result.metrics.federated
    assert metrics is not None
    assert metrics.auc is not None
    assert metrics.auc > 0.55, "a step in the wrong direction would end far below one half"


@pytest.mark.long
async def test_random_trees_with_noise(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TREES, SUMMED, rounds=None)
    check_promise(plan, await run_plan(plan, live=False))
