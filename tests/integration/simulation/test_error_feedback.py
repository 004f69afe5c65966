"""Half of the coordinates a round, and what was left out comes later: recomputed from the sites' known updates."""

from pathlib import Path

import numpy as np
import pytest
from tests.integration.simulation.noise import (
    CLIP,
    error_bound,
    expected_model,
    finished_model,
    noise_plan,
    noise_study,
    started,
)

ROUNDS, KEEP = 5, 0.5


@pytest.mark.timeout(600)
async def test_nothing_that_a_round_left_out_is_lost(tmp_path: Path) -> None:
    """A coordinate that the last round sent has had all of its updates, however often it was left out before. Without
    feedback it would need to be sent in every round, which one in thirty-two is."""
    # Clipped less: an update grows by what was left out before.
    study = noise_study(ROUNDS, compression={"clip_norm_l2": 2 * CLIP, "keep": KEEP})
    async with started(noise_plan(tmp_path, study)) as simulation:
        run_id = await simulation.submit()
        status = await simulation.watch(run_id, None)
        released = await finished_model(simulation, run_id, status)
        spools = simulation.files.directory / "sites"
        assert list(spools.glob("*/**/residuals")), "they are in the hospitals' spools"
    everything = expected_model(study, status)
    whole = np.abs(released - everything) < 2 * error_bound(ROUNDS)
    assert KEEP - 0.05 < np.mean(whole) < KEEP + 0.15
    assert np.linalg.norm(released - everything) < 0.75 * np.linalg.norm(everything)
