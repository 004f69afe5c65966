"""`python -m cohortium_sim.storm.scale --sites 1000`: what secure rounds cost with many sites, all in this process."""

import argparse
import math
import resource
import sys
import time
from dataclasses import dataclass

from cohortium_messages.governance import MAX_MEMBERS, MAX_ROSTER
from cohortium_sim.storm.ground import Ground
from cohortium_sim.storm.operations import Scenario
from cohortium_sim.storm.playing import Outcome, play

LEAST = 3
USUAL_COHORT = 20
"""Of more sites than one roster holds. A sum of n sites costs about n³: each deals shares of its seed with every other
one to all."""


@dataclass(frozen=True, slots=True)
class Measured:
    """`enrolling_s` and `playing_s` are processor seconds."""

    outcome: Outcome
    rounds: int
    enrolling_s: float
    playing_s: float
    peak_mb: float

    @property
    def whole(self) -> bool:
        """Whether the run finished, nothing broke, and an update of every site is in a sum."""
        outcome = self.outcome
        return outcome.state == "FINISHED" and not outcome.failed and outcome.counted == outcome.scenario.sites


def measure(sites: int, cohort: int, seed: int = 0) -> Measured:
    """As many rounds as it takes until each site was asked once."""
    rounds, few = math.ceil(sites / cohort), None if cohort == sites else cohort
    begun = time.process_time()
    with Ground(sites) as ground:
        enrolled = time.process_time()
        outcome = play(Scenario(seed, sites, "synchronous", rounds, 16, False, (), few), ground)
        played = time.process_time()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return Measured(outcome, rounds, enrolled - begun, played - enrolled, peak_mb)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if the run finished, nothing broke, and an update of every site is in a sum."""
    parser = argparse.ArgumentParser(prog="python -m cohortium_sim.storm.scale", description=__doc__)
    parser.add_argument("--sites", type=int, default=100, help=f"how many hospitals, {LEAST} to {MAX_MEMBERS} (100)")
    parser.add_argument(
        "--cohort", type=int, help=f"how many take part in a round, at most {MAX_ROSTER} (all, or {USUAL_COHORT})"
    )
    options = parser.parse_args(argv)
    sites, cohort = options.sites, options.cohort or (options.sites if options.sites <= MAX_ROSTER else USUAL_COHORT)
    if not LEAST <= sites <= MAX_MEMBERS or not LEAST <= cohort <= min(sites, MAX_ROSTER):
        parser.error(
            f"--sites {sites} --cohort {cohort}: a study has {LEAST} to {MAX_MEMBERS} members, "
            f"and a round {LEAST} to {MAX_ROSTER} of them (contracts/protocol.md, 1.3)"
        )
    measured = measure(sites, cohort)
    outcome = measured.outcome
    broken = f", BROKEN {outcome.violations[0]}" if outcome.violations else ""
    sys.stdout.write(
        f"{sites} sites, {measured.rounds} rounds of {cohort}: {outcome.state} after {outcome.virtual_s:.0f} virtual s"
        f"{broken}, {outcome.opened} secure sums, updates of {outcome.counted} sites in them. "
        f"Processor: {measured.enrolling_s:.0f} s to enrol, {measured.playing_s:.0f} s for the run. "
        f"Peak {measured.peak_mb:.0f} MB.\n"
    )
    return 0 if measured.whole else 1


if __name__ == "__main__":
    sys.exit(main())
