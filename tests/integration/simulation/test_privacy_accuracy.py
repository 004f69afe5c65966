"""What distributed noise is for: at ε = 3 its models are within 0.02 AUC of DP-SGD on everybody's rows in one place."""

from pathlib import Path
from statistics import mean

import pytest

from cohortium_sim.diabetes import data_dir
from cohortium_sim.privacy_data import DataSet, Method, Setting, diabetes, heart

pytest.importorskip("torch", reason="the training extra is not installed")

from cohortium_sim.privacy_arms import Arms

WITHIN = 0.02
SETTINGS = {"heart": Setting(10, 4.0), "diabetes": Setting(400, 0.5, 4.0, 0.02)}
"""One setting for both: that the choice of settings favours neither is for the table to show."""

pytestmark = [pytest.mark.torch, pytest.mark.long, pytest.mark.timeout(1800)]


def aucs(arms: Arms, data: DataSet, seeds: range) -> dict[Method, float]:
    methods: tuple[Method, ...] = ("local", "distributed", "central")
    return {m: mean(arms.worth(m, 3.0, SETTINGS[data.name], seed).auc for seed in seeds) for m in methods}


def test_heart_disease(tmp_path: Path) -> None:
    found = []
    for seed in range(1, 6):
        data = heart(tmp_path / str(seed), seed)
        found.append(aucs(Arms(data), data, range(seed, seed + 1)))
    distributed, central = (mean(one[method] for one in found) for method in ("distributed", "central"))
    assert abs(distributed - central) < WITHIN
    assert central > 0.87


def test_diabetes(tmp_path: Path) -> None:
    source = data_dir()
    if source is None:
        pytest.skip("the data set is not here: name its folder in COHORTIUM_DATA_DIR")
    data = diabetes(tmp_path, source)
    found = aucs(Arms(data), data, range(1, 4))
    assert abs(found["distributed"] - found["central"]) < WITHIN
    assert found["central"] > 0.61
