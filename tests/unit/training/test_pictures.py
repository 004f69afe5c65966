"""`torch.cnn`: its layout, what it learns, the gradients that private training takes, and studies that it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("opacus", reason="the training extra is not installed")
pytest.importorskip("numba", reason="the training extra is not installed")

import torch
from tests.pictures import LOCAL_PROMISE, pictures, study_text, write_table

from cohortium_cli.study_words import promise
from cohortium_connector.training.attacks.setting import RecipeUnsupported, cohort_of
from cohortium_connector.training.base import Examples, trainer_for
from cohortium_connector.training.data import read_table
from cohortium_connector.training.dp_gradients import PatientData, prepared
from cohortium_connector.training.dp_random import Randomness
from cohortium_connector.training.dp_sgd import (
    BatchRule,
    PrivateRule,
    binary_losses,
    clipped_sum,
    network_of,
    train_layout,
)
from cohortium_connector.training.jobs import DataSource
from cohortium_connector.training.torch_ import TorchTrainer, use_threads
from cohortium_messages.privacy import LocalPrivacy
from cohortium_messages.study import CnnRecipe, ImageShape, LocalTraining, LogisticRecipe, MlpRecipe, Study
from cohortium_messages.study_file import StudyFileError, parse_study
from cohortium_privacy.lattice import Lattice
from cohortium_privacy.study_plans import plan_findings
from cohortium_protocol.parameters import from_safetensors, initial_parameters, layout_of, to_safetensors

pytestmark = pytest.mark.torch

RECIPE = CnnRecipe(trainer="torch.cnn", image=ImageShape(height=8, width=8), channels=(4, 8))
LAYOUT = layout_of(RECIPE, 64)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    use_threads(1)


def study(**changes: Any) -> Study:
    return parse_study(study_text(**changes), also=plan_findings)


def test_the_layout_is_the_networks_and_comes_back_from_a_file() -> None:
    shapes = [tensor.shape for tensor in LAYOUT.tensors]
    assert shapes == [(4, 1, 3, 3), (4,), (8, 4, 3, 3), (8,), (1, 32), (1,)]
    assert LAYOUT.size == 36 + 4 + 288 + 8 + 32 + 1
    assert [tuple(parameter.shape) for parameter in network_of(LAYOUT).parameters()] == shapes
    model = initial_parameters(LAYOUT, 5)
    bounds = [np.abs(model[tensor.offset : tensor.offset + tensor.size]).max() for tensor in LAYOUT.tensors]
    limits = [1 / 3, 1 / 3, 1 / 6, 1 / 6, 32**-0.5, 32**-0.5]
    assert all(0.3 * limit < bound <= limit for bound, limit in zip(bounds[:-1], limits, strict=False))
    assert (from_safetensors(LAYOUT, to_safetensors(LAYOUT, model)) == model).all()
    assert (initial_parameters(LAYOUT, 5) == model).all()
    assert (initial_parameters(LAYOUT, 6) != model).any()


def test_pixels_stand_channel_by_channel_and_row_by_row() -> None:
    shape = ImageShape(height=4, width=2, channels=3)
    layout = layout_of(RECIPE.model_copy(update={"image": shape, "channels": (1,)}), 24)
    folded = network_of(layout)[0](torch.arange(24).reshape(1, 24))
    assert folded.shape == (1, 3, 4, 2)
    assert folded[0, 1, 2, 1] == 8 + 2 * 2 + 1


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_training_and_private_training_have_the_same_network(rows: int) -> None:
    inputs, base = pictures(rows)[0], initial_parameters(LAYOUT, 3)
    module = network_of(LAYOUT)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(base), module.parameters())
    with torch.no_grad():
        scores = torch.sigmoid(module(torch.from_numpy(inputs)).squeeze(1).double()).numpy()
    assert scores.shape == (rows,)
    assert TorchTrainer(RECIPE, 64, 0.0).scores(base, inputs) == pytest.approx(scores, abs=1e-6)


def test_training_lowers_the_loss_and_is_repeatable() -> None:
    trainer, examples = trainer_for(study(), 64), Examples(*pictures(200))
    base = initial_parameters(trainer.layout, 0)
    first = trainer.train(base, examples, epochs=1, seed=1)
    last, again = (trainer.train(base, examples, epochs=8, seed=1) for _ in range(2))
    assert first.loss is not None
    assert last.loss is not None
    assert last.loss < 0.5 * first.loss
    model = np.concatenate(list(last.slices))
    assert (model == np.concatenate(list(again.slices))).all()
    inputs, labels = pictures(200, seed=1)
    assert np.mean((trainer.scores(model, inputs) > 0.5) == labels) > 0.9


def test_without_a_clip_the_private_sum_is_the_plain_gradient() -> None:
    data = PatientData(*pictures(20))
    module = network_of(LAYOUT)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(initial_parameters(LAYOUT, 3)), module.parameters())
    binary_losses(module(torch.from_numpy(data.inputs)), torch.from_numpy(data.labels)).sum().backward()
    plain = torch.cat([parameter.grad.reshape(-1) for parameter in module.parameters()]).numpy()
    module.zero_grad()
    lattice = Lattice(1e3, LAYOUT.size)  # far above every norm, so nothing is clipped
    found = clipped_sum(module, binary_losses, data, np.arange(20), lattice, 8.0) * lattice.fine_step
    assert np.abs(plain).max() > 0.1
    assert found == pytest.approx(plain, abs=1e-3)


def test_private_training_learns_pictures() -> None:
    data, base = PatientData(*pictures(300)), initial_parameters(LAYOUT, 3)
    rule = PrivateRule(BatchRule(1.0, 0.2, 60.0), noise_multiplier=1.0, steps=30)
    local = LocalTraining(optimizer="sgd", lr=1.0)
    (model,) = train_layout(LAYOUT, base, data, rule, local, Randomness(bytes(32))).slices
    inputs, labels = pictures(200, seed=1)
    assert np.mean((TorchTrainer(RECIPE, 64, 0.0).scores(model, inputs) > 0.5) == labels) > 0.8


@pytest.mark.parametrize(
    "layout",
    [
        LAYOUT,
        layout_of(MlpRecipe(trainer="torch.mlp", hidden=(4,)), 5),
        layout_of(LogisticRecipe(trainer="torch.logistic"), 5),
    ],
    ids=lambda layout: layout.trainer,
)
def test_no_layer_needs_a_change_for_private_training(layout: Any) -> None:
    assert prepared(network_of(layout)).changes == ()


def test_a_check_of_the_study_says_so() -> None:
    made = study(privacy=LOCAL_PROMISE)
    assert isinstance(made.privacy, LocalPrivacy)
    said = "every layer of torch.cnn has a gradient for each patient: no layer needs a change"
    assert said in list(promise(made))
    assert said not in list(promise(study()))


@pytest.mark.parametrize(
    ("changes", "place", "fact", "remedy"),
    [
        (
            {"image": {"height": 8, "width": 4}},
            "recipe.image",
            "has 8 x 4 x 1 = 32 pixels, but the study has 64 features",
            "Name one numeric feature for each pixel, or correct the sides.",
        ),
        (
            {"channels": [2, 2, 2, 2]},
            "recipe.image",
            "image of 8 x 8 pixels cannot be halved 4 times, once for each of channels: name fewer channels, or sides "
            "that 16 divides",
            "Correct it, or leave it out.",
        ),
        (
            {"first": {"type": "category", "levels": ["0", "1"], "missing": "refuse"}},
            "dataset.features[0].type",
            "is category, but for the trainer torch.cnn every feature is a pixel, a number",
            "Leave the column out, or choose the trainer torch.mlp.",
        ),
        (
            {"first": {"type": "float", "range": [-9, 9], "missing": "impute"}},
            "dataset.features[0].missing",
            "is impute, but the trainer torch.cnn has no input that says which pixel is missing",
            "Write missing: refuse, or choose the trainer torch.mlp.",
        ),
    ],
)
def test_what_is_no_picture_is_refused(changes: dict[str, Any], place: str, fact: str, remedy: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        study(**changes, privacy=LOCAL_PROMISE)
    assert [(found.field, found.fact, found.remedy) for found in caught.value.problems] == [(place, fact, remedy)]


def test_a_picture_that_is_missing_is_asked_for() -> None:
    text = json.loads(study_text())
    del text["recipe"]["image"], text["recipe"]["channels"]
    with pytest.raises(StudyFileError) as caught:
        parse_study(json.dumps(text))
    assert {found.remedy for found in caught.value.problems} == {
        "Add image: {height: 8, width: 8}, the pixels whose columns are the features.",
        "Add channels: [8, 16], the width of each convolution.",
    }


def test_benchmarks_of_accuracy_and_attacks_refuse_pictures(tmp_path: Path) -> None:
    made = study(privacy=LOCAL_PROMISE)
    tables = {
        name: read_table(made, DataSource(path=str(write_table(tmp_path / f"{name}.csv", 20, seed))))
        for seed, name in enumerate(("north", "south", "west"), start=1)
    }
    with pytest.raises(RecipeUnsupported) as refused:
        cohort_of(made, tables)
    assert refused.value.local == "the trainer torch.cnn is none of torch.logistic and torch.mlp; use one of them"


def test_a_layout_of_other_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="64 pixels and the study 63 inputs"):
        layout_of(RECIPE, 63)
