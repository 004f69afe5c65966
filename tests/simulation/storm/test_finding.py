"""How a storm says what it found: scenarios as data, shorter and shorter ones, and the command."""

import pytest

from cohortium_sim.storm import command, scale, sweep
from cohortium_sim.storm.operations import Operation, Scenario, draw
from cohortium_sim.storm.playing import Outcome
from cohortium_sim.storm.shrink import kind_of, shortest


def outcome_of(scenario: Scenario, *violations: str) -> Outcome:
    return Outcome(scenario, "BROKEN", violations, "", 0.0, 0.0, 0, 0, ())


def needs(*wanted: Operation) -> "object":
    """A federation that breaks where all these operations are in its list."""

    def play(scenario: Scenario) -> Outcome:
        broken = set(wanted) <= set(scenario.operations)
        return outcome_of(scenario, *["window 1a2b3c4d broke"] * broken)

    return play


@pytest.mark.parametrize("places", [(0,), (7,), (2, 9), (0, 5, 13)])
def test_the_shortest_list_is_found(places: tuple[int, ...]) -> None:
    scenario = draw(0)
    operations = tuple(Operation("audit", "commit", nth, "kill", 1.0) for nth in range(1, 15))
    scenario = Scenario(0, 4, "buffered", 2, 16, False, operations)
    wanted = tuple(operations[place] for place in places)
    small = shortest(outcome_of(scenario, "window 9f9f9f9f broke"), needs(*wanted))  # type: ignore[arg-type]
    assert small.scenario.operations == wanted


def test_another_violation_is_not_the_same() -> None:
    scenario = Scenario(0, 4, "buffered", 2, 16, False, (Operation("audit", "commit", 1, "kill", 1.0),))
    found = outcome_of(scenario, "the log lacks 1 event")
    assert shortest(found, lambda one: outcome_of(one, "something else")) is found
    assert kind_of(outcome_of(scenario, "window 12ab34cd of 3")) == kind_of(
        outcome_of(scenario, "window 99ab34cd of 4")
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_scenario_is_data(seed: int) -> None:
    scenario = draw(seed)
    assert scenario == draw(seed)
    assert Scenario.from_json(scenario.to_json()) == scenario
    assert all(operation.nth >= 1 for operation in scenario.operations)


def test_an_aim_is_in_every_scenario() -> None:
    for seed in range(20):
        assert draw(seed, "withdraw").operations[-1].action == "withdraw"
        assert draw(seed, "withdraw").operations[:-1] == draw(seed).operations


@pytest.mark.parametrize("options", [["--seeds", "0"], ["--jobs", "0"], ["--first", "-1"]])
def test_options_that_cannot_be_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(options)
    assert ended.value.code == 2
    assert "at least" in capsys.readouterr().err


def test_a_replay_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--replay", "{}"]) == 2
    assert "give the JSON that a failed seed printed" in capsys.readouterr().err


def test_a_sweep_of_a_part_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        sweep.main(["--part", "console", "--point", "commit", "--action", "kill"])
    assert ended.value.code == 2
    assert "there is no such part; choose from enrolment" in capsys.readouterr().err


def test_more_sites_than_a_roster_holds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        scale.main(["--sites", "1000", "--cohort", "201"])
    assert ended.value.code == 2
    assert "a round 3 to 200 of them" in capsys.readouterr().err
