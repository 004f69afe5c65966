"""Clocks that are off: hospitals' by five minutes, services' by an hour."""

from dataclasses import replace

import pytest

from cohortium_sim.storm.ground import Ground
from cohortium_sim.storm.operations import SERVICES, Operation, Scenario, draw
from cohortium_sim.storm.playing import play


@pytest.mark.slow
def test_two_clocks_that_are_five_minutes_off_cost_nobody_their_place(ground: Ground) -> None:
    ahead = Operation("site-1", "delivery", 1, "clock", 299.0)
    behind = Operation("site-2", "delivery", 1, "clock", -299.0)
    outcome = play(replace(draw(3), operations=(ahead, behind)), ground)
    assert not outcome.failed, outcome.violations
    assert outcome.state == "FINISHED"
    assert outcome.counted == outcome.scenario.sites, "the one ahead would wait if its grant began in our future"


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", [one if one in ("scheduler", "audit") else pytest.param(one, marks=pytest.mark.long) for one in SERVICES]
)
def test_a_service_whose_clock_jumps_an_hour_ahead_and_back_costs_nothing(part: str, ground: Ground) -> None:
    first = {"enrolment": 1, "consent": 2}.get(part, 12)
    ahead = Operation(part, "committed", first, "clock", 3600.0)
    right = Operation(part, "committed", first + 1, "clock", -3600.0)
    outcome = play(Scenario(3, 4, "synchronous", 2, 16, False, (ahead, right)), ground)
    assert any(str(right) in line for line in outcome.lines), "the clock was not set"
    assert not outcome.failed, outcome.violations


def test_a_scheduler_that_dies_with_its_clock_an_hour_ahead_is_replaced_at_once(ground: Ground) -> None:
    """Its leases, on the outbox and on the timer, would hold the next one off for that hour."""
    ahead = Operation("scheduler", "committed", 12, "clock", 3600.0)
    right = Operation("scheduler", "committed", 32, "clock", -3600.0)
    dies = Operation("scheduler", "committed", 32, "kill", 1.0)
    outcome = play(Scenario(3, 4, "synchronous", 2, 16, False, (ahead, right, dies)), ground)
    assert any(str(dies) in line for line in outcome.lines), "it did not die"
    assert not outcome.failed, outcome.violations
    assert outcome.virtual_s < 900


def test_some_seeds_set_a_services_clock_wrong() -> None:
    wrong = [one for seed in range(200) for one in draw(seed).operations if one.action == "clock"]
    assert {one.part for one in wrong} > set(SERVICES)
    assert {3600.0, -3600.0} < {one.seconds for one in wrong}
