"""Federations of `torch.cnn` on made-up pictures: without privacy, with private steps at each hospital, and in sums."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.integration.simulation.promises import check_promise
from tests.pictures import LOCAL_PROMISE, SUMMED_PROMISE, pictures, study_text, write_table

from cohortium_connector.training.base import open_model, trainer_for
from cohortium_messages.study_file import parse_study
from cohortium_privacy.study_plans import plan_findings
from cohortium_protocol.statistics import Preprocessing
from cohortium_sim.plan import Plan, SiteTable, check_plan
from cohortium_sim.simulate import run_plan

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]


def plan_of(folder: Path, *, rounds: int, privacy: dict[str, Any] | None = None) -> Plan:
    """Three hospitals with 100 pictures each."""
    study = parse_study(study_text(privacy=privacy, rounds=rounds), also=plan_findings)
    sites = [
        SiteTable(name, write_table(folder / f"{name}.csv", 100, seed))
        for seed, name in enumerate(("north", "south", "west"), start=1)
    ]
    return check_plan(Plan(study=study, sites=tuple(sites), out=folder / "out"))


async def test_hospitals_learn_pictures_together(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, rounds=5)
    outcome = await run_plan(plan, live=False)
    assert (outcome.surprises, outcome.result.state) == ((), "FINISHED")
    metrics = outcome.result.metrics.federated
    assert metrics is not None
    assert metrics.auc is not None
    assert metrics.auc > 0.9
    folder = plan.out / "model"
    rules = Preprocessing.model_validate_json((folder / "preprocessing.json").read_bytes())
    trainer = trainer_for(plan.study, rules.inputs)
    model = open_model(folder / "model.safetensors", trainer.layout)
    inputs, labels = pictures(200, seed=9)
    means, widths = (np.array([getattr(feature, name) for feature in rules.features]) for name in ("mean", "std"))
    scores = trainer.scores(model, ((inputs - means) / widths).astype(np.float32))
    assert np.mean((scores > 0.5) == labels) > 0.85, "the published model with its rules knows new pictures"


@pytest.mark.long
@pytest.mark.parametrize("privacy", [LOCAL_PROMISE, SUMMED_PROMISE], ids=lambda privacy: str(privacy["mode"]))
async def test_private_steps_keep_their_promise(tmp_path: Path, privacy: dict[str, Any]) -> None:
    plan = plan_of(tmp_path, rounds=2, privacy=privacy)
    check_promise(plan, await run_plan(plan, live=False))
