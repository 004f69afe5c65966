"""Networks and rows for the tests of private training. Imports torch."""

import numpy as np
import torch
from torch import nn

from cohortium_connector.training.dp_gradients import PatientData

INPUTS = 6


def mlp() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, 1))


def cnn(norm: nn.Module | None = None) -> nn.Sequential:
    """Ten classes of 28 × 28 pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = [nn.Conv2d(1, 4, 5, 2, padding=2), nn.GroupNorm(2, 4) if norm is None else norm, nn.ReLU()]
        second = [nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 10)]
        return nn.Sequential(*first, *second)


def class_losses(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, labels, reduction="none")


def table(rows: int, seed: int = 0) -> PatientData:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(rows, INPUTS)).astype(np.float32)
    return PatientData(inputs, (inputs[:, 0] + inputs[:, 1] > 0).astype(np.float32))


def pictures(rows: int, seed: int = 0) -> PatientData:
    """Each class is a bright square at a place of its own, in noise."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, size=rows)
    inputs = generator.normal(scale=0.3, size=(rows, 1, 28, 28)).astype(np.float32)
    for row, label in enumerate(labels):
        top, left = divmod(int(label), 5)
        inputs[row, 0, 14 * top : 14 * top + 10, 5 * left : 5 * left + 5] += 1.5
    return PatientData(inputs, labels)


def everyone(data: PatientData) -> np.ndarray:
    return np.arange(len(data.inputs))
