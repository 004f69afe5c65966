"""Hospitals whose clocks are off by five minutes, one ahead and one behind, take part like the others."""

from dataclasses import replace

import pytest

from cohortium_sim.storm.ground import Ground
from cohortium_sim.storm.operations import Operation, draw
from cohortium_sim.storm.playing import play


@pytest.mark.slow
def test_two_clocks_that_are_five_minutes_off_cost_nobody_their_place(ground: Ground) -> None:
    ahead = Operation("site-1", "delivery", 1, "clock", 299.0)
    behind = Operation("site-2", "delivery", 1, "clock", -299.0)
    outcome = play(replace(draw(3), operations=(ahead, behind)), ground)
    assert not outcome.failed, outcome.violations
    assert outcome.state == "FINISHED"
    assert outcome.counted == outcome.scenario.sites, "the one ahead would wait if its grant began in our future"
