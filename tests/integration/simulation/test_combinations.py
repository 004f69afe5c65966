"""`cohortium simulate` on four real hospitals, in its combinations of parts, processes, modes and losses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cohortium_messages.study import Deadlines
from cohortium_sim.demo import demo_plan
from cohortium_sim.plan import Drop, Plan, check_plan
from cohortium_sim.simulate import Outcome, run_plan

ROUNDS = 3
DROPS = {"nobody": None, "before": Drop("va", 2, "before"), "after": Drop("va", 2, "after")}
PARTS = {"embedded": (False, False), "real": (True, False), "processes": (True, True)}


def _long(*values: str) -> Any:
    return pytest.param(*values, marks=pytest.mark.long)


COMBINATIONS = [
    _long("embedded", "synchronous", "nobody"),
    _long("embedded", "synchronous", "before"),
    ("embedded", "synchronous", "after"),
    ("embedded", "buffered", "before"),
    _long("embedded", "buffered", "after"),
    _long("real", "synchronous", "before"),
    _long("real", "buffered", "nobody"),
    _long("processes", "synchronous", "nobody"),
    _long("processes", "synchronous", "after"),
    _long("processes", "buffered", "before"),
]


def heart_plan(tmp_path: Path, *, mode: str = "synchronous", rounds: int = ROUNDS, **changes: Any) -> Plan:
    """The demo's hospitals, with deadlines that fit a test."""
    plan = demo_plan(tmp_path / "out", rounds=rounds)
    deadlines = Deadlines(ready_s=60, upload_s=8, echo_s=6, unmask_s=6, expire_s=16)
    federation = plan.study.federation.model_copy(
        update={"mode": mode, "deadlines": deadlines, "evaluate_every": rounds}
    )
    study = plan.study.model_copy(update={"federation": federation})
    return check_plan(replace(plan, study=study, compare=False, **changes))


def sums_are_right(outcome: Outcome, plan: Plan) -> None:
    """Everything went as planned, the log proves it, and the model has learnt."""
    assert outcome.as_planned, outcome.surprises
    assert outcome.result.audit is not None
    assert outcome.result.audit.verified
    assert [done.number for done in outcome.result.rounds] == list(range(1, plan.study.federation.rounds + 1))
    federated = outcome.result.metrics.federated
    assert federated is not None
    assert federated.auc is not None
    assert federated.auc > 0.6
    assert (plan.out / "report.html").stat().st_size > 10_000
    assert (plan.out / "model" / "model.safetensors").is_file()


@pytest.mark.real
@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("parts", "mode", "loss"), COMBINATIONS)
async def test_combination(parts: str, mode: str, loss: str, tmp_path: Path, amqp_url: str, postgres_url: str) -> None:
    real, processes = PARTS[parts]
    drop = DROPS[loss]
    plan = heart_plan(
        tmp_path,
        mode=mode,
        drops=() if drop is None else (drop,),
        amqp_url=amqp_url if real else None,
        database_url=postgres_url if real else None,
        processes=processes,
    )
    outcome = await run_plan(plan, live=False)
    sums_are_right(outcome, plan)
    if drop is None:
        return
    cohorts = {done.number: done for done in outcome.result.rounds}
    if mode == "synchronous":
        assert ("va" in cohorts[2].cohort) == (drop.when == "after"), (
            "after: its upload is in the sum; before: it is not"
        )
    assert all("va" not in done.cohort for done in outcome.result.rounds if done.number > 2)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.long
async def test_a_slow_hospital_delays_nobody_and_its_updates_are_used(tmp_path: Path) -> None:
    plan = heart_plan(tmp_path, mode="buffered", rounds=20, slow={"va": 3.0})
    outcome = await run_plan(plan, live=False)
    sums_are_right(outcome, plan)
    with_va = [done for done in outcome.result.rounds if "va" in done.cohort]
    without_va = [done for done in outcome.result.rounds if "va" not in done.cohort]
    assert with_va, "its updates are used"
    assert len(without_va) >= 3, "the others' rounds go on without it"
