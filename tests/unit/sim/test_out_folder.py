"""A simulation replaces its own earlier results, and nothing else."""

from pathlib import Path

import pytest
from tests.integration.simulation.noise import noise_study

from cohortium_sim.plan import Plan, PlanError, SiteTable, check_plan


def test_a_folder_that_no_simulation_made_is_not_deleted(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("unused,label\n0,0\n1,1\n")
    plan = Plan(study=noise_study(1), sites=tuple(SiteTable(name, table) for name in "abc"), out=tmp_path)
    check_plan(plan)
    (tmp_path / "model").mkdir()
    with pytest.raises(PlanError, match="would be deleted"):
        check_plan(plan)
    (tmp_path / "log.jsonl").touch()
    check_plan(plan)
