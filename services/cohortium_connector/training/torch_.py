"""`torch.logistic`, `torch.mlp` and `torch.cnn`: local training in PyTorch. The only file that imports it."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from cohortium_connector.training.base import Examples, Floats, Trained
from cohortium_messages.study import GradientRecipe, LocalTraining
from cohortium_protocol.parameters import Layout, layout_of

SCORE_ROWS = 8192
SCORE_PICTURES = 256
"""Fewer at once: a convolution keeps many numbers of each pixel."""


def use_threads(count: int) -> None:
    """Make results repeatable: this many threads, and only algorithms without chance."""
    torch.set_num_threads(count)
    torch.use_deterministic_algorithms(True)


class TorchTrainer:
    """Minimises the mean cross-entropy of one logit, plus μ/2·‖w − w₀‖² (FedProx, Li et al. 2020) when μ > 0."""

    def __init__(self, recipe: GradientRecipe, inputs: int, proximal_mu: float) -> None:
        self.layout = layout_of(recipe, inputs)
        self._local = recipe.local
        self._proximal_mu = proximal_mu

    def train(self, base: Floats, examples: Examples, *, epochs: int, seed: int) -> Trained:
        """Adam's or SGD's memory starts anew with each call; batches are drawn in an order that `seed` gives."""
        parameters = _tensors(self.layout, base)
        anchors = [parameter.detach().clone() for parameter in parameters]
        optimizer = _optimizer(self._local, parameters)
        order = torch.Generator().manual_seed(seed)
        inputs, labels = torch.from_numpy(examples.inputs), torch.from_numpy(examples.labels)
        loss_sum = 0.0
        for _ in range(epochs):
            loss_sum = 0.0
            for batch in torch.randperm(len(labels), generator=order).split(self._local.batch_size):
                logits = _logits(self.layout, parameters, inputs[batch])
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[batch])
                optimizer.zero_grad()
                loss.backward()
                self._pull_back(parameters, anchors)
                optimizer.step()
                loss_sum += loss.item() * len(batch)
        return Trained(_slices(parameters), loss_sum / len(labels))

    def scores(self, model: Floats, inputs: Floats) -> NDArray[np.float64]:
        """Sigmoid of the logit, in float64 so that near 0 and 1 scores stay distinct."""
        parameters = _tensors(self.layout, model)
        with torch.no_grad():
            rows = SCORE_ROWS if self.layout.image is None else SCORE_PICTURES
            parts = [_logits(self.layout, parameters, part) for part in torch.from_numpy(inputs).split(rows)]
            logits = torch.cat(parts) if parts else torch.zeros(0)
            scores: NDArray[np.float64] = torch.sigmoid(logits.double()).numpy()
        return scores

    def _pull_back(self, parameters: list[torch.Tensor], anchors: list[torch.Tensor]) -> None:
        if self._proximal_mu == 0:
            return
        with torch.no_grad():
            for parameter, anchor in zip(parameters, anchors, strict=True):
                assert parameter.grad is not None  # noqa: S101 - after backward
                parameter.grad.add_(parameter - anchor, alpha=self._proximal_mu)


def _tensors(layout: Layout, model: Floats) -> list[torch.Tensor]:
    """Leaf tensors that own their memory, in layout order: weight, bias, weight, bias, …"""
    return [
        torch.from_numpy(
            np.array(model[tensor.offset : tensor.offset + tensor.size]).reshape(tensor.shape)
        ).requires_grad_()
        for tensor in layout.tensors
    ]


def _logits(layout: Layout, parameters: list[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    hidden = inputs if layout.image is None else inputs.unflatten(1, layout.image)
    pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
    for weight, bias in pairs[:-1]:
        if weight.dim() == 4:
            hidden = torch.relu(torch.nn.functional.conv2d(hidden, weight, bias, padding=1))
            hidden = torch.nn.functional.avg_pool2d(hidden, 2)
        else:
            hidden = torch.relu(torch.nn.functional.linear(hidden, weight, bias))
    return torch.nn.functional.linear(hidden.flatten(1), *pairs[-1]).squeeze(1)


def _optimizer(local: LocalTraining, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    if local.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=local.lr, weight_decay=local.weight_decay)
    return torch.optim.SGD(parameters, lr=local.lr, weight_decay=local.weight_decay)


def _slices(parameters: list[torch.Tensor]) -> Iterator[Floats]:
    for parameter in parameters:
        yield parameter.detach().reshape(-1).numpy()
