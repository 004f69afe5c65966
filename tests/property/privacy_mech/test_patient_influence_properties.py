"""One patient's influence on a clipped gradient sum, through the real network and Opacus."""

from dataclasses import replace

import numpy as np
import pytest

from examples import examples

pytest.importorskip("opacus", reason="the training extra is not installed")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from private_networks import class_losses, cnn, mlp, pictures, table

from cohortium_connector.training.dp_gradients import PatientData
from cohortium_connector.training.dp_sgd import binary_losses, clipped_sum
from cohortium_connector.training.torch_ import use_threads
from cohortium_privacy.lattice import Lattice

pytestmark = pytest.mark.torch

CALM = settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])


def influence(data: PatientData, chosen: list[int], patient: int, clip: float) -> tuple[int, int]:
    """By how much `patient`, put at its place among the others, moves the sum: its square, and the clip's, in fine
    steps."""
    make, loss = (cnn, class_losses) if data.inputs.ndim == 4 else (mlp, binary_losses)
    use_threads(1)
    lattice = Lattice(clip, sum(parameter.numel() for parameter in make().parameters()))
    more = np.array(sorted({*chosen, patient}))
    without = clipped_sum(make(), loss, data, more[more != patient], lattice, 8.0)
    moved = clipped_sum(make(), loss, data, more, lattice, 8.0) - without
    return sum(int(word) ** 2 for word in moved), int(lattice.clip / lattice.fine_step) ** 2


@CALM
@given(
    chosen=st.lists(st.integers(0, 39), max_size=30),
    patient=st.integers(0, 39),
    clip=st.sampled_from([1e-3, 0.1, 1.0, 100.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e3, 1e18]),
)
def test_nobody_moves_a_tables_sum_by_more_than_the_clip(
    chosen: list[int], patient: int, clip: float, scale: float
) -> None:
    data = table(40)
    inputs = data.inputs.copy()
    inputs[patient] *= np.float32(scale)
    moved, most = influence(replace(data, inputs=inputs), chosen, patient, clip)
    assert moved <= most


@settings(CALM, max_examples=12)
@given(chosen=st.lists(st.integers(0, 19), max_size=15), patient=st.integers(0, 19), scale=st.sampled_from([1.0, 1e6]))
def test_nobody_moves_a_sum_of_pictures_by_more_than_the_clip(chosen: list[int], patient: int, scale: float) -> None:
    data = pictures(20)
    inputs = data.inputs.copy()
    inputs[patient] *= np.float32(scale)
    moved, most = influence(replace(data, inputs=inputs), chosen, patient, 0.5)
    assert moved <= most


def test_a_large_gradient_reaches_the_clip() -> None:
    data = table(40)
    inputs = data.inputs.copy()
    inputs[7] *= np.float32(1e3)
    wrong = [replace(data, inputs=inputs, labels=np.full_like(data.labels, label)) for label in (0, 1)]
    found = [influence(rows, list(range(20)), 7, 0.5) for rows in wrong]
    assert all(moved <= most for moved, most in found)
    assert any(0.997 * most < moved for moved, most in found), "the test does not come near the bound"
