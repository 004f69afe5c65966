"""Federations of the noise trainer, and what they must have computed: every opened sum, recomputed from the declared
cohorts."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from cohortium_cli.operator import Operator
from cohortium_connector.training.noise import NoiseTrainer
from cohortium_connector.training.work import task_seed
from cohortium_messages.status import RunStatus
from cohortium_messages.study import NoiseRecipe, Study
from cohortium_sim.plan import Plan, SiteTable
from cohortium_sim.simulate import Simulation
from cohortium_verify.verification import verify_bundle

SITES = ("a", "b", "c", "d")
PARAMETERS = 20_000
CLIP = 0.2
"""Noise of ±1e-3 on 20,000 parameters has a norm of 0.082: nothing is clipped, and the grid is fine."""


def clip_of(parameters: int) -> float:
    """What clips nothing in a longer vector: the noise of each number is the same, so its norm grows with the root."""
    return CLIP * float(np.sqrt(parameters / PARAMETERS))


def noise_study(rounds: int, parameters: int = PARAMETERS, **federation: object) -> Study:
    """Every site's every update is known in advance, and any two differ in every parameter."""
    return Study.model_validate(
        {
            "apiVersion": "cohortium/study/1",
            "governance": "trial",
            "name": "noise",
            "purpose": "Check every sum",
            "dataset": {
                "features": [{"name": "unused", "type": "float", "range": [0, 1], "missing": "impute"}],
                "label": {"name": "label", "type": "binary"},
                "split": {"test": 0.5},
            },
            "recipe": {"trainer": "benchmark.noise", "parameters": parameters},
            "federation": {
                "rounds": rounds,
                "min_sites": 3,
                "compression": {"clip_norm_l2": clip_of(parameters)},
                "deadlines": {"ready_s": 30, "upload_s": 20, "echo_s": 20, "unmask_s": 20, "expire_s": 120},
                **federation,
            },
            "metrics": [],
        }
    )


def noise_plan(folder: Path, study: Study, sites: Sequence[str] = SITES, **more: Any) -> Plan:
    """`sites`, all with the same table, which nobody looks at."""
    table = folder / "table.csv"
    table.write_text("unused,label\n0,0\n1,1\n")
    return Plan(study=study, sites=tuple(SiteTable(name, table) for name in sites), out=folder / "out", **more)


@asynccontextmanager
async def started(plan: Plan, kind: type[Simulation] = Simulation) -> AsyncIterator[Simulation]:
    """Its federation, with every site enrolled; all of it is gone at the end."""
    work = plan.out.with_name("work")
    work.mkdir()
    simulation = kind(plan, work)
    try:
        await simulation.start()
        yield simulation
    finally:
        await simulation.clear()


async def in_round(operator: Operator, run_id: str, number: int) -> None:
    """Wait until the roster of this round's update window is fixed: uploads are on their way."""
    for _ in range(12_000):
        status = await operator.run(run_id)
        assert status.state not in ("FINISHED", "FAILED", "STOPPED"), f"the run is {status.state} {status.reason}"
        window = status.window
        if window is not None and window.purpose == "update" and window.round >= number and window.phase != "PLANNED":
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"round {number} did not come")


async def finished_model(simulation: Simulation, run_id: str, status: RunStatus) -> NDArray[np.float32]:
    """What the run released, with all of its rounds, and a log that verifies."""
    plan = simulation.plan
    assert (status.state, status.reason) == ("FINISHED", "")
    assert [done.number for done in status.rounds_done] == list(range(1, plan.study.rounds + 1))
    await simulation.fetch(run_id, status)
    report = verify_bundle(plan.out / "audit", list(simulation.files.trust.governance_keys))
    assert report.verified, report.text()
    return released_model(plan.out / "model")


async def check_sums(simulation: Simulation, run_id: str, status: RunStatus) -> None:
    """An update that was lost, or counted twice, would show in every parameter."""
    released = await finished_model(simulation, run_id, status)
    study = simulation.plan.study
    np.testing.assert_allclose(released, expected_model(study, status), atol=error_bound(study.rounds))


def update(study: Study, base_version: int, site: str, order: Sequence[str]) -> NDArray[np.float32]:
    """The update that this site makes from this version; `order` are the site ids as the manifest has them."""
    base = np.zeros(_length(study), dtype=np.float32)
    seed = task_seed(study.federation.seed, base_version, order.index(site))
    trained = NoiseTrainer(study.recipe).train(base, None, epochs=1, seed=seed)  # type: ignore[arg-type]
    return np.concatenate(list(trained.slices))


def expected_model(study: Study, status: RunStatus) -> NDArray[np.float64]:
    """Zeros, and for each round the mean of its cohort's updates: nobody twice, nobody else, nobody missing."""
    ids: Mapping[str, str] = {site.name: site.site_id for site in status.sites}
    order = sorted(ids.values())
    model = np.zeros(_length(study))
    for done in status.rounds_done:
        updates = [update(study, done.model_version - 1, ids[name], order) for name in done.cohort]
        model += np.mean(updates, axis=0)
    return model


def _length(study: Study) -> int:
    assert isinstance(study.recipe, NoiseRecipe)
    return study.recipe.parameters


def released_model(folder: Path) -> NDArray[np.float32]:
    """The exported model's parameters."""
    tensors = load_file(folder / "model.safetensors")
    return np.concatenate([tensor.ravel() for tensor in tensors.values()])


def error_bound(rounds: int) -> float:
    """Four sites' grid step, as far as rounding can add up over the rounds: well under one update's size, 1e-3."""
    step = 6 * CLIP / np.sqrt(PARAMETERS) / (2**15 / 4)
    return float(rounds * 6 * step)
