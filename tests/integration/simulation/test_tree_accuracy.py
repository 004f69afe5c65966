"""The promise to hospitals, for trees: the federated model is the pooled one, and better than any of them alone."""

from pathlib import Path

import pytest

from cohortium_sim.diabetes import data_dir
from cohortium_sim.trees_table import FEDERATED, Accuracy, diabetes_plan, heart_plan, measure

WITHIN = 0.002

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


def as_promised(found: Accuracy) -> None:
    """Within 0.002 of pooled, not below bagging or any site's own."""
    federated = found.aucs[FEDERATED]
    assert federated == pytest.approx(found.aucs["pooled"], abs=WITHIN)
    assert federated > found.aucs["bagging"]
    local = [auc for name, auc in found.aucs.items() if name.startswith("only ")]
    assert len(local) == 4
    assert federated > max(local)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_heart_disease(seed: int, tmp_path: Path) -> None:
    found = await measure("heart disease", heart_plan(tmp_path, seed))
    as_promised(found)
    assert found.trees == 60
    assert found.aucs[FEDERATED] > 0.85


async def test_diabetes(tmp_path: Path) -> None:
    source = data_dir()
    if source is None:
        pytest.skip("the data set is not here: name its folder in COHORTIUM_DATA_DIR")
    found = await measure("diabetes 130", diabetes_plan(tmp_path, source))
    as_promised(found)
    assert found.test_rows == 25_420
    assert found.aucs[FEDERATED] > 0.665
