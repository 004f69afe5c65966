"""How the mean update of a window moves the global model.

Every rule here works element by element, so a model is stepped slice by slice, in any order and by several aggregators,
with the same result as all at once. Arrays are float32; `mean` is the weighted mean of (local model − base model),
which Reddi et al. 2021 ("Adaptive Federated Optimization", algorithm 2) call Δ, so the step is added.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium_messages.study import ServerOptimizer
from cohortium_protocol.errors import LocalFault

Slice = NDArray[np.float32]


class StepDiverged(LocalFault):
    """The step would give a model with values that are not finite. The model before it stays the newest."""

    code = "STEP_DIVERGED"


@dataclass(frozen=True, slots=True)
class Stepped:
    """A slice of the next model, and of the optimizer's state that belongs to it."""

    model: Slice
    state: tuple[Slice, ...]


def state_names(optimizer: ServerOptimizer) -> tuple[str, ...]:
    """Arrays as long as the model that the optimizer keeps between steps, in the order of `Stepped.state`."""
    match optimizer.optimizer:
        case "fedavg":
            return ()
        case "fedavgm":
            return ("m",)
        case "fedadam" | "fedyogi" | "fedadagrad":
            return ("m", "v")


def initial_state(optimizer: ServerOptimizer, size: int) -> tuple[Slice, ...]:
    """The state before the first step: m = 0, v = τ²."""
    start = {"m": 0.0, "v": optimizer.tau**2}
    return tuple(np.full(size, start[name], dtype=np.float32) for name in state_names(optimizer))


def step(optimizer: ServerOptimizer, model: Slice, mean: Slice, state: tuple[Slice, ...]) -> Stepped:
    """The next model on one slice. Changes none of its arguments. Raises `StepDiverged`.

    fedavg: x + η·Δ. fedavgm: m ← β·m + Δ, x + η·m (Hsu et al. 2019). The adaptive three: m ← β₁·m + (1 − β₁)·Δ,
    x + η·m / (√v + τ), with v ← β₂·v + (1 − β₂)·Δ² (fedadam), v − (1 − β₂)·Δ²·sign(v − Δ²) (fedyogi) or
    v + Δ² (fedadagrad). As in the paper there is no bias correction.
    """
    if len(state) != len(state_names(optimizer)) or any(part.shape != model.shape for part in (mean, *state)):
        raise ValueError("model, mean and state must be slices of the same length")
    with np.errstate(over="ignore", invalid="ignore"):
        stepped = _stepped(optimizer, model, mean, state)
    if not all(np.isfinite(part).all() for part in (stepped.model, *stepped.state)):
        raise StepDiverged("the step gives values that are not finite; lower the server's learning rate")
    return stepped


def _stepped(optimizer: ServerOptimizer, model: Slice, mean: Slice, state: tuple[Slice, ...]) -> Stepped:
    lr, beta, tau = np.float32(optimizer.lr), np.float32(optimizer.momentum), np.float32(optimizer.tau)
    if optimizer.optimizer == "fedavg":
        return Stepped(model + lr * mean, ())
    if optimizer.optimizer == "fedavgm":
        moment: Slice = beta * state[0] + mean
        return Stepped(model + lr * moment, (moment,))
    moment = beta * state[0] + (np.float32(1) - beta) * mean
    spread = _second_moment(optimizer, state[1], np.square(mean))
    move = lr * moment / (np.sqrt(spread) + tau)
    return Stepped(model + move.astype(np.float32, copy=False), (moment, spread))


def _second_moment(optimizer: ServerOptimizer, spread: Slice, square: Slice) -> Slice:
    beta2 = np.float32(optimizer.beta2)
    match optimizer.optimizer:
        case "fedadam":
            result: Slice = beta2 * spread + (np.float32(1) - beta2) * square
        case "fedyogi":
            result = spread - (np.float32(1) - beta2) * square * np.sign(spread - square)
        case _:
            result = spread + square
    return result
