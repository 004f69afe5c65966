"""One fault at every moment of a small federation where it can be, one after the other.

`python -m cohortium_sim.storm.sweep --part aggregator --point delivery --action late --seconds 8`
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

from cohortium_sim.storm.ground import Ground
from cohortium_sim.storm.operations import SERVICES, Action, Operation, Point, Scenario
from cohortium_sim.storm.playing import Outcome, play

SITES = 3
MOST = 500
"""Moments, so that a sweep ends."""


def sweep(first: Operation, ground: Ground) -> Iterator[Outcome]:
    """The outcome with the operation at its `nth` moment, at the next one, and so on, until the part has no such moment
    any more."""
    for nth in range(first.nth, first.nth + MOST):
        operation = replace(first, nth=nth)
        outcome = play(Scenario(7, SITES, "synchronous", 1, 16, False, (operation,)), ground)
        if not any(str(operation) in line for line in outcome.lines):
            return
        yield outcome


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if nothing broke at any moment, 1 if something did."""
    parser = argparse.ArgumentParser(prog="python -m cohortium_sim.storm.sweep", description=__doc__)
    parser.add_argument("--part", required=True, help="a service, or site-1 to site-3")
    parser.add_argument("--point", required=True, choices=get_args(Point))
    parser.add_argument("--action", required=True, choices=get_args(Action))
    parser.add_argument("--seconds", type=float, default=1.0, help="of the action (1)")
    options = parser.parse_args(argv)
    parts = (*SERVICES, *(f"site-{number}" for number in range(1, SITES + 1)))
    if options.part not in parts:
        parser.error(f"--part {options.part}: there is no such part; choose from {', '.join(parts)}")
    operation = Operation(options.part, options.point, 1, options.action, options.seconds)
    played = broken = 0
    with Ground(SITES) as ground:
        for outcome in sweep(operation, ground):
            played += 1
            if outcome.failed:
                broken += 1
                moment = outcome.scenario.operations[0]
                sys.stdout.write(f"{moment}: {outcome.violations[0]}\n  --replay '{outcome.scenario.to_json()}'\n")
                sys.stdout.flush()
    if not played:
        parser.error(f"--point {options.point}: {options.part} never passes it in this federation")
    sys.stdout.write(f"{played} moments: {broken or 'none'} broke\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
