"""The server's optimizers, against the formulas of their papers written out number by number."""

import math

import numpy as np
import pytest

from cohortium_messages.study import ServerOptimizer
from cohortium_protocol.server_step import StepDiverged, initial_state, state_names, step

NAMES = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad")


def plain(name: str, start: float, updates: list[float], lr: float, b1: float, b2: float, tau: float) -> float:
    """Reddi et al. 2021, algorithm 2, and FedAvgM, for one parameter in double precision."""
    x, m, v = start, 0.0, tau**2
    for delta in updates:
        if name == "fedavg":
            x += lr * delta
            continue
        if name == "fedavgm":
            m = b1 * m + delta
            x += lr * m
            continue
        m = b1 * m + (1 - b1) * delta
        if name == "fedadagrad":
            v = v + delta**2
        elif name == "fedyogi":
            v = v - (1 - b2) * delta**2 * (1 if v > delta**2 else -1 if v < delta**2 else 0)
        else:
            v = b2 * v + (1 - b2) * delta**2
        x += lr * m / (math.sqrt(v) + tau)
    return x


@pytest.mark.parametrize("name", NAMES)
def test_five_steps_follow_the_paper(name: str) -> None:
    optimizer = ServerOptimizer(optimizer=name, lr=0.3, momentum=0.8, beta2=0.95, tau=0.01)
    generator = np.random.default_rng(1)
    model = generator.normal(size=20).astype(np.float32)
    updates = [(generator.normal(size=20) * 0.1).astype(np.float32) for _ in range(5)]
    x, state = model, initial_state(optimizer, 20)
    for update in updates:
        stepped = step(optimizer, x, update, state)
        x, state = stepped.model, stepped.state
    expected = [
        plain(name, float(model[i]), [float(update[i]) for update in updates], 0.3, 0.8, 0.95, 0.01) for i in range(20)
    ]
    assert x.dtype == np.float32
    assert all(part.dtype == np.float32 for part in state)
    assert x == pytest.approx(np.array(expected), rel=1e-4, abs=1e-5)
    assert len(state) == len(state_names(optimizer))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_stepped_in_slices_is_the_model_stepped_at_once(name: str) -> None:
    optimizer = ServerOptimizer(optimizer=name)
    generator = np.random.default_rng(2)
    model, mean = generator.normal(size=(2, 1003)).astype(np.float32)
    state = initial_state(optimizer, 1003)
    whole = step(optimizer, model, mean, state)
    for low, high in ((0, 1), (1, 400), (400, 1003)):
        part = step(optimizer, model[low:high], mean[low:high], tuple(piece[low:high] for piece in state))
        assert (part.model == whole.model[low:high]).all()
        assert all((a == b[low:high]).all() for a, b in zip(part.state, whole.state, strict=True))


def test_arguments_are_left_as_they_were() -> None:
    optimizer = ServerOptimizer(optimizer="fedadam")
    model, mean = np.ones(4, dtype=np.float32), np.ones(4, dtype=np.float32)
    state = initial_state(optimizer, 4)
    step(optimizer, model, mean, state)
    assert (model == 1).all()
    assert (state[0] == 0).all()
    assert state[1] == pytest.approx(np.full(4, 1e-6))


def test_a_step_out_of_the_numbers_is_refused() -> None:
    huge = np.full(2, 3e38, dtype=np.float32)
    with pytest.raises(StepDiverged):
        step(ServerOptimizer(), huge, huge, ())
    with pytest.raises(StepDiverged):
        step(
            ServerOptimizer(optimizer="fedadagrad"), huge, huge, initial_state(ServerOptimizer(optimizer="fedadam"), 2)
        )


def test_slices_of_different_length_are_an_error() -> None:
    one, two = np.zeros(1, dtype=np.float32), np.zeros(2, dtype=np.float32)
    with pytest.raises(ValueError):
        step(ServerOptimizer(), one, two, ())
    with pytest.raises(ValueError):
        step(ServerOptimizer(optimizer="fedavgm"), one, one, ())
