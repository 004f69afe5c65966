"""Whole federations under random faults: the quick slice of every run of the tests, and the thousands."""

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace

import pytest

from cohortium_sim.storm.command import explain, storm
from cohortium_sim.storm.ground import Ground
from cohortium_sim.storm.operations import Action, Operation, Point, Scenario, draw
from cohortium_sim.storm.playing import play
from cohortium_sim.storm.sweep import sweep

QUICK = (3, 5)
"""Both modes, with nine faults and with two."""
THOUSANDS = 2000
TWICE = 5
"""A seed with a kill in it."""


def breaks(seeds: Iterable[int], ground: Ground) -> str:
    """What broke, with the shortest way to it; empty if nothing did."""
    return "\n\n".join(explain(outcome, ground) for outcome in storm(seeds, ground) if outcome.failed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_breaks_in_a_few_federations(ground: Ground) -> None:
    broken = breaks(QUICK, ground)
    assert not broken, broken


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_nothing_breaks_in_thousands_of_federations() -> None:
    command = [sys.executable, "-m", "cohortium_sim.storm", "--seeds", str(THOUSANDS)]
    ended = subprocess.run([*command, "--jobs", "2"], capture_output=True, text=True, timeout=3 * 3600)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", ["scheduler", "aggregator", "consent", "audit", "site-1"])
@pytest.mark.parametrize(
    ("point", "action", "seconds"),
    [("delivery", "late", 8.0), ("delivery", "twice", 0.0), ("commit", "kill", 1.0), ("published", "kill", 1.0)],
)
def test_nothing_breaks_at_any_one_moment(
    part: str, point: Point, action: Action, seconds: float, ground: Ground
) -> None:
    for outcome in sweep(Operation(part, point, 1, action, seconds), ground):
        assert not outcome.failed, explain(outcome, ground)


@pytest.mark.long
@pytest.mark.parametrize("seed", [24, 121], ids=["late-model", "nobody-left-to-grant"])
def test_a_seed_that_broke_once_breaks_no_more(seed: int, ground: Ground) -> None:
    outcome = play(draw(seed), ground)
    assert not outcome.failed, outcome.violations


class TestOneSeedIsOneHistory:
    @pytest.mark.slow
    @pytest.mark.timeout(600)
    def test_here_and_in_a_new_process_that_orders_its_sets_differently(self, ground: Ground) -> None:
        """Here, other federations were played before."""
        scenario = draw(TWICE)
        assert scenario.operations
        here = play(scenario, ground).digest
        program = (
            "from cohortium_sim.storm.ground import Ground\n"
            "from cohortium_sim.storm.playing import play\n"
            "from cohortium_sim.storm.operations import draw\n"
            f"with Ground({scenario.sites}) as ground:\n    print(play(draw({TWICE}), ground).digest)\n"
        )
        there = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
        assert there.stdout.split()[-1] == here

    def test_another_operation_is_another_history(self, ground: Ground) -> None:
        calm = Scenario(1, 3, "synchronous", 1, 16, False, ())
        hit = Scenario(1, 3, "synchronous", 1, 16, False, (Operation("aggregator", "committed", 3, "kill", 2.0),))
        assert play(calm, ground).digest != play(hit, ground).digest


class TestWhatFaultsLookLike:
    def test_a_calm_federation_finishes_and_opens_every_sum(self, ground: Ground) -> None:
        outcome = play(Scenario(3, 4, "synchronous", 2, 16, False, ()), ground)
        assert (outcome.state, outcome.violations) == ("FINISHED", ())
        assert outcome.opened == 3  # statistics and two rounds

    def test_a_killed_service_goes_on_where_it_was(self, ground: Ground) -> None:
        kill = Operation("aggregator", "commit", 9, "kill", 3.0)
        outcome = play(Scenario(3, 3, "synchronous", 1, 16, False, (kill,)), ground)
        assert (outcome.state, outcome.violations) == ("FINISHED", ())
        assert any(str(kill) in line for line in outcome.lines)

    def test_a_session_that_overtakes_its_run_waits_for_it(self, ground: Ground) -> None:
        """Found by a sweep over all deliveries: it was parked with the dead letters, and the run stood still."""
        calm = Scenario(7, 3, "synchronous", 1, 16, False, ())
        taken = [line for line in play(calm, ground).lines if " aggregator < " in line]
        start = next(place for place, line in enumerate(taken, 1) if "cohortium.run.started" in line)
        late = Operation("aggregator", "delivery", start, "late", 8.0)
        outcome = play(replace(calm, operations=(late,)), ground)
        started = next(line for line in outcome.lines if "aggregator < cohortium.run.started" in line)
        opened = next(line for line in outcome.lines if "aggregator < cohortium.session.opened" in line)
        assert outcome.lines.index(opened) < outcome.lines.index(started)
        assert (outcome.state, outcome.violations) == ("FINISHED", ())

    def test_a_sweep_goes_on_until_the_moment_never_comes(self, ground: Ground) -> None:
        last = Operation("consent", "delivery", 8, "twice")
        outcomes = list(sweep(last, ground))
        assert [outcome.scenario.operations[0].nth for outcome in outcomes] == list(range(8, 8 + len(outcomes)))
        assert all(str(outcome.scenario.operations[0]) in "".join(outcome.lines) for outcome in outcomes)
        assert not any(outcome.failed for outcome in outcomes)

    def test_too_few_hospitals_end_the_run_with_a_reason(self, ground: Ground) -> None:
        drops = tuple(Operation(f"site-{number}", "publish", 8, "drop") for number in (1, 2))
        outcome = play(Scenario(3, 4, "synchronous", 2, 16, False, drops), ground)
        assert not outcome.violations
        assert outcome.state.startswith("FAILED ")
        assert outcome.state != "FAILED "
