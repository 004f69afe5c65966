"""Clipped sums of per-patient gradients: right, exact, bounded in memory, and the same whoever is beside a patient."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("opacus", reason="the training extra is not installed")

import torch
from private_networks import class_losses, cnn, everyone, mlp, pictures, table
from torch import nn

from cohortium_connector.training.dp_gradients import (
    ExactSums,
    GhostSums,
    Loss,
    ModelNotPrivate,
    PatientData,
    dimension_of,
    physical_records,
    prepared,
    widest_layer,
)
from cohortium_connector.training.dp_sgd import binary_losses, clipped_sum
from cohortium_connector.training.torch_ import use_threads
from cohortium_privacy.lattice import SHRINK, Lattice

pytestmark = pytest.mark.torch

Case = tuple[Callable[[], nn.Module], Loss, PatientData]
CASES = [
    pytest.param((mlp, binary_losses, table(23)), id="table"),
    pytest.param((cnn, class_losses, pictures(11)), id="pictures"),
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    use_threads(1)


def exact(case: Case, clip: float, chosen: np.ndarray, records: int = 8) -> np.ndarray:
    make, loss, data = case
    module = make()
    sums = ExactSums(module, loss, Lattice(clip, dimension_of(module)), records)
    try:
        return sums.sum(data, chosen)
    finally:
        sums.close()


def one_by_one(case: Case, clip: float) -> tuple[np.ndarray, np.ndarray]:
    """Plain autograd, a record at a time: the clipped sum, and all norms."""
    make, loss, data = case
    module = make()
    total, norms = np.zeros(dimension_of(module)), []
    for row in range(len(data.inputs)):
        module.zero_grad()
        inputs, labels = torch.from_numpy(data.inputs[row : row + 1]), torch.from_numpy(data.labels[row : row + 1])
        loss(module(inputs), labels).sum().backward()
        gradient = torch.cat([parameter.grad.reshape(-1) for parameter in module.parameters()]).numpy()
        norms.append(float(np.linalg.norm(gradient)))
        total += gradient * min(1.0, clip / norms[-1])
    return total, np.array(norms)


@pytest.mark.parametrize("case", CASES)
def test_the_sum_is_that_of_gradients_clipped_one_by_one(case: Case) -> None:
    norms = one_by_one(case, 1.0)[1]
    clip = float(np.median(norms))  # so that some are clipped, and some are not
    expected, _ = one_by_one(case, SHRINK * clip)
    lattice = Lattice(clip, len(expected))
    found = exact(case, clip, everyone(case[2])) * lattice.fine_step
    assert found == pytest.approx(expected, abs=2e-5 * clip)


@pytest.mark.parametrize("case", CASES)
def test_order_split_and_size_of_physical_batches_change_only_last_bits(case: Case) -> None:
    chosen, lattice = everyone(case[2]), Lattice(0.5, dimension_of(case[0]()))
    whole = exact(case, 0.5, chosen)
    others = [
        exact(case, 0.5, chosen[::-1].copy()),
        sum(exact(case, 0.5, part) for part in (chosen[:3], chosen[3:4], chosen[4:])),
        exact(case, 0.5, chosen, records=1),
        exact(case, 0.5, chosen, records=16),
    ]
    room = (1 - SHRINK) * lattice.clip / lattice.fine_step
    assert all(np.linalg.norm(other - whole) < 0.01 * room for other in others)


@pytest.mark.parametrize("case", CASES)
def test_what_is_in_the_records_beside_a_patients_changes_nothing(case: Case) -> None:
    make, loss, data = case
    inputs = data.inputs.copy()
    inputs[4:] *= -3
    changed = PatientData(inputs, data.labels[::1])
    module = make()
    sums = ExactSums(module, loss, Lattice(0.5, dimension_of(module)), 8)
    first = [sums.sum(data, np.arange(places)) for places in (4, 8)]
    second = [sums.sum(changed, np.arange(places)) for places in (4, 8)]
    assert (first[0] == second[0]).all()
    assert (first[1] != second[1]).any()
    zeros = PatientData(np.concatenate([data.inputs[:4], np.zeros_like(data.inputs[:4])]), data.labels[:8] * 0)
    assert (sums.sum(replace(zeros, labels=data.labels[:8]), np.arange(4)) == first[0]).all()


@pytest.mark.parametrize("case", CASES)
def test_an_empty_sample_is_a_sum_of_zeros(case: Case) -> None:
    nobody = np.empty(0, dtype=np.int64)
    assert not exact(case, 1.0, nobody).any()
    make, loss, data = case
    assert not GhostSums(make(), loss, 1.0, 8).sum(data, nobody).any()


@pytest.mark.parametrize("case", CASES)
def test_ghost_clipping_gives_the_same_sum_a_thousandth_further_in(case: Case) -> None:
    make, loss, data = case
    clip = 0.7 * float(np.median(one_by_one(case, 1.0)[1]))
    expected = one_by_one(case, clip)[0]
    ghost = GhostSums(make(), loss, clip, 4)
    found = ghost.sum(data, everyone(data))
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) < 0.002 * clip * len(data.inputs)
    single = ghost.sum(data, np.array([int(np.argmax(one_by_one(case, 1.0)[1]))]))
    assert clip * 0.998 < np.linalg.norm(single) < clip
    assert (ghost.sum(data, everyone(data)) == found).all()
    ghost.close()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("ghost", [False, True])
def test_a_record_without_a_finite_gradient_counts_as_nothing(bad: float, ghost: bool) -> None:
    data = table(9)
    spoilt = data.inputs.copy()
    spoilt[4, 2] = bad
    others = np.delete(everyone(data), 4)

    def total(of: PatientData, chosen: np.ndarray) -> np.ndarray:
        if ghost:
            return GhostSums(mlp(), binary_losses, 1.0, 16).sum(of, chosen)
        return exact((mlp, binary_losses, of), 1.0, chosen, records=16)

    found = total(replace(data, inputs=spoilt), everyone(data))
    assert np.isfinite(found).all()
    assert found == pytest.approx(total(data, others), abs=1e-6 if ghost else 50)


def test_the_module_is_left_as_it_was() -> None:
    module = mlp()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    for make in (lambda: ExactSums(module, binary_losses, Lattice(1.0, 65), 4), ghost_of(module)):
        sums = make()
        sums.sum(table(5), np.arange(5))
        sums.close()
        assert not any(layer._forward_hooks or layer._backward_hooks for layer in module.modules())
        assert all(parameter.grad is None for parameter in module.parameters())
    assert all((old == new).all() for old, new in zip(before, module.parameters(), strict=True))


def ghost_of(module: nn.Module) -> Callable[[], GhostSums]:
    return lambda: GhostSums(module, binary_losses, 1.0, 4)


def test_only_what_is_trained_is_summed() -> None:
    module = cnn()
    for parameter in list(module.parameters())[:-2]:
        parameter.requires_grad_(False)
    data = pictures(6)
    found = clipped_sum(module, class_losses, data, everyone(data), Lattice(1.0, 8 * 25 * 10 + 10), 4.0)
    assert found.any()
    with pytest.raises(ValueError, match=r"lattice of 5 numbers for a network of 2010"):
        clipped_sum(module, class_losses, data, everyone(data), Lattice(1.0, 5), 4.0)


def test_a_network_that_mixes_records_is_changed_and_says_so() -> None:
    made = prepared(cnn(nn.BatchNorm2d(4)))
    assert made.changes == ("1: BatchNorm2d became GroupNorm",)
    assert exact((lambda: made.module, class_losses, pictures(4)), 1.0, np.arange(4)).any()
    untouched = cnn()
    assert prepared(untouched).module is untouched
    assert prepared(untouched).changes == ()


def test_a_network_that_cannot_be_changed_is_refused() -> None:
    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.MultiheadAttention(4, 2)
            self.norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
            self.mix = nn.BatchNorm1d(7)

    frozen = mlp()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ModelNotPrivate, match="no parameter to train"):
        prepared(frozen)
    changed = prepared(Memory())
    assert any("BatchNorm1d became" in line for line in changed.changes)


def test_physical_batches_follow_from_public_numbers() -> None:
    assert physical_records(1537, 20.0) == 32
    assert physical_records(1537, 32.0) == 32
    assert physical_records(1537, 5000.0) == 256
    assert physical_records(1_000_000, 5000.0) == 8
    assert physical_records(10**9, 5000.0) == 1
    assert physical_records(1537, 0.3) == 1
    assert widest_layer(cnn()) == 4 * 8 * 9
    assert widest_layer(mlp()) == 1


def test_memory_does_not_grow_with_the_sample() -> None:
    seen: list[int] = []

    def watched(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(len(outputs))
        return binary_losses(outputs, labels)

    data = table(100)
    exact((mlp, watched, data), 1.0, everyone(data), records=16)
    assert seen == [16] * 7


def test_data_that_do_not_fit_each_other_are_refused() -> None:
    data = table(4)
    with pytest.raises(ValueError, match="4 records and 3 labels"):
        PatientData(data.inputs, data.labels[:3])
    for patients, match in (([0, 1], "patients for 4 records"), ([0, 1, 3, 3], "gaps"), ([-1, 0, 1, 1], "gaps")):
        with pytest.raises(ValueError, match=match):
            replace(data, patients=np.array(patients))
    assert replace(data, patients=np.array([1, 0, 1, 1])).count == 2
    assert PatientData(data.inputs[:0], data.labels[:0], np.empty(0, dtype=np.int64)).count == 0


def test_a_digest_tells_rows_labels_shapes_and_patients_apart() -> None:
    data = table(4)
    others = [
        replace(data, labels=1 - data.labels),
        replace(data, inputs=data.inputs[:, ::-1]),
        replace(data, inputs=data.inputs.reshape(4, 3, 2)),
        replace(data, patients=np.arange(4)),
        PatientData(data.inputs[:3], data.labels[:3]),
    ]
    assert len({data.digest(), *(other.digest() for other in others)}) == 6
    assert table(4).digest() == data.digest()
