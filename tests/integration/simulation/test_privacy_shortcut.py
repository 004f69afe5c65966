"""What the table of AUC at ε leaves out changes nothing: its models are those of a whole federation.

Distributed noise: bit by bit, over several rounds. Local noise: but for the rounding of updates in the secure sum,
which the federation does and the table does not.
"""

from pathlib import Path

import numpy as np
import pytest
from tests.integration.simulation.promises import LOCAL, LOGISTIC, SUMMED, plan_of
from tests.integration.simulation.watched_training import Made, once_each, watch_training

from cohortium_connector.training.attacks.setting import cohort_of
from cohortium_connector.training.attacks.utility_networks import Networks
from cohortium_connector.training.attacks.utility_plan import PlannedRun, planned
from cohortium_connector.training.data import read_table
from cohortium_connector.training.dp_random import Randomness
from cohortium_connector.training.jobs import DataSource
from cohortium_protocol.parameters import from_safetensors
from cohortium_sim.plan import Plan
from cohortium_sim.simulate import run_plan

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]


def shortcut(plan: Plan) -> tuple[Networks, PlannedRun]:
    tables = {site.name: read_table(plan.study, DataSource(path=str(site.path))) for site in plan.sites}
    return Networks(plan.study, cohort_of(plan.study, tables)), planned(plan.study, len(tables))


def randomness_of(made: dict[tuple[int, str], Made], plan: Plan, round_: int, place: int) -> Randomness:
    """What the hospital drew from, in the federation."""
    private = made[round_, plan.sites[place].name].job.private
    assert private is not None
    return Randomness(private.seed)


def released(plan: Plan, networks: Networks) -> np.ndarray:
    return from_safetensors(networks.cohort.layout, (plan.out / "model" / "model.safetensors").read_bytes())


async def test_distributed_steps_are_the_federations_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_training(monkeypatch)
    plan = plan_of(tmp_path, LOGISTIC, SUMMED | {"sampling_rate": 0.5, "evaluation_epsilon": None}, rounds=3)
    outcome = await run_plan(plan, live=False)
    assert (outcome.surprises, outcome.result.state) == ((), "FINISHED")
    made = once_each(seen)
    assert len(made) == 3 * len(plan.sites)
    networks, run = shortcut(plan)
    assert {one.job.private.noise for one in made.values() if one.job.private} == {run.noise}
    model = networks.private_model(run, lambda round_, place: randomness_of(made, plan, round_, place))
    np.testing.assert_array_equal(model, released(plan, networks))


@pytest.mark.long
async def test_local_steps_are_the_federations_but_for_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One round: in the next one the sites draw for the rounded model, which the shortcut does not have."""
    seen = watch_training(monkeypatch)
    plan = plan_of(tmp_path, LOGISTIC, LOCAL | {"evaluation_epsilon": None}, rounds=1)
    outcome = await run_plan(plan, live=False)
    assert (outcome.surprises, outcome.result.state) == ((), "FINISHED")
    made = once_each(seen)
    networks, run = shortcut(plan)
    model = networks.private_model(run, lambda round_, place: randomness_of(made, plan, round_, place))
    updates = [np.frombuffer(one.update, dtype="<f4") for one in made.values()]
    assert len(updates) == len(plan.sites)
    base = next(iter(made.values())).base
    np.testing.assert_allclose(model, base + np.mean(updates, axis=0), rtol=1e-5, atol=1e-6)
    moved = np.linalg.norm(model - base)
    assert np.linalg.norm(model - released(plan, networks)) < 0.01 * moved
