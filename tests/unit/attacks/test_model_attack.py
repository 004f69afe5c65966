"""The attack on one given model: one that knows its rows by heart is found, one that never saw them is not."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

from cohortium_connector.training.attacks.model import attack_model
from cohortium_connector.training.attacks.setting import PlainFit, examples_of
from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.data import Table, read_table
from cohortium_connector.training.jobs import DataSource
from cohortium_messages.study import MlpRecipe, Study
from cohortium_protocol.parameters import initial_parameters, layout_of, to_safetensors
from cohortium_protocol.statistics import Preprocessing
from model_stage import STUDY, ModelStage

pytestmark = pytest.mark.torch
WIDE = {"trainer": "torch.mlp", "hidden": [64], "local": {"optimizer": "adam", "lr": 0.01, "batch_size": 16}}


@pytest.fixture
def stage() -> ModelStage:
    return ModelStage(study=Study.model_validate(STUDY | {"recipe": WIDE}))


@pytest.fixture
def table(stage: ModelStage, tmp_path: Path) -> Table:
    """Patients whose outcome is a coin: there is nothing to learn, and all to know by heart."""
    chance = np.random.default_rng(5)
    rows = [f"{chance.integers(18, 110)},{chance.choice(['female', 'male'])},{chance.integers(2)}" for _ in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["age,sex,disease", *rows]) + "\n")
    return read_table(stage.study, DataSource(path=str(tmp_path / "rows.csv")))


def attacked(stage: ModelStage, table: Table, folder: Path, epochs: int) -> tuple[float, float, float]:
    """AUC and interval of a model that was trained for so many epochs."""
    rules = Preprocessing.model_validate_json(stage.inside["preprocessing.json"])
    recipe = stage.study.recipe
    assert isinstance(recipe, MlpRecipe)
    layout = layout_of(recipe, rules.inputs)
    weights = initial_parameters(layout, 1)
    if epochs:
        weights = PlainFit(recipe, rules.inputs, epochs, 1)(examples_of(rules, table.train), 2)
    (folder / "preprocessing.json").write_bytes(stage.inside["preprocessing.json"])
    (folder / "model.safetensors").write_bytes(to_safetensors(layout, weights))
    found = attack_model(folder, stage.study, {"north": table})
    assert (found.members, found.others) == (len(table.train), len(table.test))
    assert "no consent was asked" in found.method
    assert len(found.method) <= 400, "the release's privacy test takes so much"
    return found.auc, found.auc_low, found.auc_high


def test_a_model_that_knows_its_rows_by_heart_is_found(stage: ModelStage, table: Table, tmp_path: Path) -> None:
    _, low, _ = attacked(stage, table, tmp_path, epochs=120)
    assert low > 0.5


def test_a_model_that_never_saw_them_is_not(stage: ModelStage, table: Table, tmp_path: Path) -> None:
    _, low, high = attacked(stage, table, tmp_path, epochs=0)
    assert low < 0.5 < high


def test_a_model_of_another_version_of_the_study_is_refused(stage: ModelStage, table: Table, tmp_path: Path) -> None:
    attacked(stage, table, tmp_path, epochs=0)
    other = stage.study.model_copy(update={"purpose": "another"})
    with pytest.raises(SiteRefusal) as refused:
        attack_model(tmp_path, other, {"north": table})
    assert "is of another version of heart" in str(refused.value.local)
    (tmp_path / "model.safetensors").write_bytes(b"?")
    with pytest.raises(SiteRefusal) as refused:
        attack_model(tmp_path, stage.study, {"north": table})
    assert "holds no model of this study" in str(refused.value.local)
