"""From a list of operations that breaks something to the shortest one found that still does (delta debugging).

Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 2002: leave out halves, then
quarters, and so on, as long as that breaks the same thing; at last single ones.
"""

import re
from collections.abc import Callable
from dataclasses import replace

from cohortium_sim.storm.operations import Operation, Scenario
from cohortium_sim.storm.playing import Outcome

Play = Callable[[Scenario], Outcome]

MOST_PLAYS = 60
_NAMES = re.compile(r"\b[0-9a-f]{6,}\b|\b[0-9]+\b|site-[0-9]+")


def kind_of(outcome: Outcome) -> str:
    """The first violation without names and numbers: what a shorter list must still show."""
    return _NAMES.sub("_", outcome.violations[0]) if outcome.violations else ""


def shortest(failed: Outcome, play: Play, most_plays: int = MOST_PLAYS) -> Outcome:
    """The outcome of the shortest scenario found in so many plays."""
    wanted, best, plays = kind_of(failed), failed, 0

    def fails(operations: tuple[Operation, ...]) -> Outcome | None:
        nonlocal plays
        plays += 1
        outcome = play(replace(best.scenario, operations=operations))
        return outcome if kind_of(outcome) == wanted else None

    size = max(1, len(best.scenario.operations) // 2)
    while best.scenario.operations and plays < most_plays:
        operations = best.scenario.operations
        for start in range(0, len(operations), size):
            shorter = fails(operations[:start] + operations[start + size :])
            if shorter is not None:
                best = shorter
                break
            if plays >= most_plays:
                break
        else:
            if size == 1:
                break
            size = max(1, size // 2)
            continue
        size = min(size, max(1, len(best.scenario.operations)))
    return best
