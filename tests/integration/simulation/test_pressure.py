"""A slow aggregator slows the hospitals that send to it; the broker's queues stay as short as they may be, and nobody's
frames are pushed out. `pytest -s -m long tests/integration/simulation/test_pressure.py` shows the figures."""

import sys

import pytest

from cohortium_kit.testing.servers import ServerMissing
from cohortium_sim.pressure import CASES, MIB, Load, holds, measure, text


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_slow_aggregator_slows_its_senders_and_fills_no_queue(postgres_url: str) -> None:
    load = Load(sites=4, parameters=10_000_000, hold_s=8.0, bound=4 * MIB, database=postgres_url)
    try:
        rounds = measure(load)
    except ServerMissing as missing:
        pytest.skip(str(missing))
    sys.stdout.write(text(load, rounds) + "\n")
    assert [seen.case for seen in rounds] == list(CASES)
    assert all(holds(load, seen) for seen in rounds), rounds
    undisturbed, stopped, _ = rounds
    assert stopped.chunks_peak > load.bound / 2, "the queues were never near their bound: nothing was shown"
    assert sum(stopped.refused.values()), "hospitals were never told to wait"
    assert stopped.refused["site-004"], "the hospital that came late found room at once"
    assert undisturbed.broker_peak > 0
