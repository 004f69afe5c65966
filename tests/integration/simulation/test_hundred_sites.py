"""A hundred hospitals in one process, on RabbitMQ and PostgreSQL: secure rounds over all of them, each sum recomputed.

Time and memory are printed, not asserted: `pytest -s -m long tests/integration/simulation/test_hundred_sites.py`.
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.integration.simulation.noise import (
    CLIP,
    PARAMETERS,
    expected_model,
    finished_model,
    noise_plan,
    noise_study,
    started,
)

from cohortium_messages.status import RunStatus

ROUNDS, SITES = 2, tuple(f"site-{number:03d}" for number in range(1, 101))
FINE = {"clip_norm_l2": CLIP, "ring_bits": 32}
"""In 16 bits the grid of a hundred sites is coarser than one site's share of their mean."""
PATIENT = {"ready_s": 600, "upload_s": 600, "echo_s": 600, "unmask_s": 600, "expire_s": 3600}


def without_one(status: RunStatus) -> RunStatus:
    """The same run, had one site's update been lost in the last round."""
    last = status.rounds_done[-1]
    less = last.model_copy(update={"cohort": last.cohort[:-1]})
    return status.model_copy(update={"rounds_done": (*status.rounds_done[:-1], less)})


@pytest.mark.long
@pytest.mark.timeout(2700)
async def test_a_hundred_sites_train_one_model(tmp_path: Path, amqp_url: str, postgres_url: str) -> None:
    study = noise_study(ROUNDS, deadlines=PATIENT, compression=FINE)
    begun = time.monotonic()
    plan = noise_plan(tmp_path, study, SITES, amqp_url=amqp_url, database_url=postgres_url, timeout_s=2400.0)
    async with started(plan) as simulation:
        enrolled = time.monotonic()
        run_id = await simulation.submit()
        status = await simulation.watch(run_id, None)
        ended = time.monotonic()
        released = await finished_model(simulation, run_id, status)
    assert {len(done.cohort) for done in status.rounds_done} == {len(SITES)}
    expected = expected_model(study, status)
    error = np.sqrt(np.mean((released - expected) ** 2))
    lost = np.sqrt(np.mean((expected_model(study, without_one(status)) - expected) ** 2))
    assert 3 * error < lost, "so small that one lost update would show"
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rounds = ", ".join(f"{done.seconds:.1f}" for done in status.rounds_done)
    sys.stdout.write(
        f"{len(SITES)} sites x {PARAMETERS} parameters: enrolled in {enrolled - begun:.0f} s, "
        f"run {ended - enrolled:.0f} s, rounds {rounds} s, "
        f"{status.rounds_done[-1].bytes_up / len(SITES) / PARAMETERS:.2f} B a parameter up, "
        f"peak {peak_mb:.0f} MB, rms error {error:.1e} against {lost:.1e} for a lost update\n"
    )
