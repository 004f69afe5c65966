"""Our DP-SGD against Opacus' own, from its sampling to its noise: models of both have the same distribution.

What differs is known: our noise is 1.01 times as large, for the lattice's rounding.
"""

import math
import warnings

import numpy as np
import pytest

pytest.importorskip("opacus", reason="the training extra is not installed")

import torch
from opacus import PrivacyEngine
from torch.utils.data import DataLoader, TensorDataset

from cohortium_connector.training.attacks.private import chance_of
from cohortium_connector.training.dp_gradients import LastingData
from cohortium_connector.training.dp_sgd import BatchRule, PrivateRule, train_layout
from cohortium_messages.study import LocalTraining, LogisticRecipe
from cohortium_privacy.lattice import LATTICE
from cohortium_protocol.parameters import initial_parameters, layout_of

PATIENTS, INPUTS, RATE, STEPS = 240, 5, 0.25, 4
CLIP, NOISE, LR = 0.8, 4.0, 0.5
MODELS = 50

pytestmark = pytest.mark.torch


def rows() -> LastingData:
    chance = np.random.default_rng(5)
    inputs = chance.normal(size=(PATIENTS, INPUTS)).astype(np.float32)
    labels = (inputs[:, 0] - inputs[:, 1] + chance.normal(size=PATIENTS) > 0).astype(np.float32)
    return LastingData(inputs, labels)


def ours(data: LastingData, start: np.ndarray, model: int) -> np.ndarray:
    layout = layout_of(LogisticRecipe(trainer="torch.logistic"), INPUTS)
    rule = PrivateRule(BatchRule(CLIP, RATE, RATE * PATIENTS), NOISE, STEPS)
    local = LocalTraining(optimizer="sgd", lr=LR)
    trained = train_layout(layout, start, data, rule, local, chance_of("like opacus", model))
    return np.concatenate(list(trained.slices))


def theirs(data: LastingData, start: np.ndarray, model: int) -> np.ndarray:
    torch.manual_seed(model)
    network = torch.nn.Linear(INPUTS, 1)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(start.copy()), network.parameters())
    table = TensorDataset(torch.from_numpy(data.inputs), torch.from_numpy(data.labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its noise is not from a cryptographic generator: this is a test
        network, optimizer, loader = PrivacyEngine().make_private(
            module=network,
            optimizer=torch.optim.SGD(network.parameters(), lr=LR),
            data_loader=DataLoader(table, batch_size=round(RATE * PATIENTS)),
            noise_multiplier=NOISE,
            max_grad_norm=CLIP,
        )
        done = 0
        while done < STEPS:
            for inputs, labels in loader:
                optimizer.zero_grad()
                torch.nn.functional.binary_cross_entropy_with_logits(network(inputs).squeeze(1), labels).backward()
                optimizer.step()
                done += 1
                if done == STEPS:
                    break
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()]).numpy()


def test_models_are_distributed_as_those_of_opacus() -> None:
    """Means within 4 standard errors of their difference in every parameter; deviations, over all parameters, within
    4 standard errors of a ratio of 1.01."""
    data = rows()
    start = initial_parameters(layout_of(LogisticRecipe(trainer="torch.logistic"), INPUTS), 3)
    own = np.stack([ours(data, start, model) for model in range(MODELS)]).astype(np.float64)
    other = np.stack([theirs(data, start, model) for model in range(MODELS)]).astype(np.float64)
    error = np.sqrt((own.var(axis=0, ddof=1) + other.var(axis=0, ddof=1)) / MODELS)
    assert np.abs(own.mean(axis=0) - other.mean(axis=0)).max() < 4 * error.max()
    assert np.abs(other.mean(axis=0) - start).max() > 20 * error.max(), "and they have moved by much more than that"
    ratio = math.sqrt(own.var(axis=0, ddof=1).mean() / other.var(axis=0, ddof=1).mean())
    assert ratio == pytest.approx(1 + LATTICE, abs=4 / math.sqrt(MODELS * (INPUTS + 1)))
