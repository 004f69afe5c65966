"""`python -m cohortium_sim.storm --seeds 1000`: play seeds, and show the shortest way to whatever goes wrong."""

import argparse
import gc
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from cohortium_sim.storm.ground import Ground
from cohortium_sim.storm.operations import Action, Scenario, draw
from cohortium_sim.storm.playing import Outcome, play
from cohortium_sim.storm.shrink import shortest

MOST_SITES = 6
LAST_LINES = 40
SHARE = 50
"""Seeds that one process plays."""
TELL = 100
"""After so many seeds it is said how far it is, to standard error: thousands take hours, and may be broken off."""


def storm(seeds: Iterable[int], ground: Ground, aim: Action | None = None) -> Iterator[Outcome]:
    """The outcome of each seed, as soon as it is known."""
    # What stands before the first federation is not looked through again after each, and nothing while one is played:
    # all of its rubbish is taken back at its end.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for seed in seeds:
            yield play(draw(seed, aim), ground)
    finally:
        gc.enable()
        gc.unfreeze()


def _share(task: tuple[int, int]) -> list[Outcome]:
    """A process' share of the seeds, with the history of the last one only: they are long, and can be had again."""
    first, count = task
    with Ground(MOST_SITES) as ground:
        outcomes = list(storm(range(first, first + count), ground))
    return [*(replace(outcome, lines=()) for outcome in outcomes[:-1]), outcomes[-1]]


def explain(outcome: Outcome, ground: Ground) -> str:
    """What broke, and the shortest list of operations found that breaks it."""
    small = shortest(outcome, lambda scenario: play(scenario, ground))
    parts = [
        f"seed {outcome.scenario.seed} breaks: {outcome.violations[0]}",
        *(f"  and {more}" for more in outcome.violations[1:4]),
        "The shortest list of operations found that breaks it:",
        small.scenario.describe(),
        f"  {small.violations[0]}",
        "Play it again with",
        f"  python -m cohortium_sim.storm --replay '{small.scenario.to_json()}'",
    ]
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if nothing broke, 1 if something did, 2 for options that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m cohortium_sim.storm", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to play (100)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes to play in (1)")
    parser.add_argument("--history", type=Path, help="write the history of the last seed, or of --replay, here")
    parser.add_argument("--replay", metavar="JSON", help="play this scenario instead, and show its history's end")
    options = parser.parse_args(argv)
    if options.seeds < 1 or options.jobs < 1 or options.first < 0:
        parser.error("--seeds and --jobs are at least 1, --first at least 0")
    if options.replay:
        return _replay(options.replay, options.history)
    return _storm(options.first, options.seeds, options.jobs, options.history)


def _replay(text: str, history: Path | None) -> int:
    try:
        scenario = Scenario.from_json(text)
    except (ValueError, TypeError, KeyError, AttributeError):
        sys.stderr.write("--replay: not a scenario; give the JSON that a failed seed printed\n")
        return 2
    with Ground(max(MOST_SITES, scenario.sites)) as ground:
        outcome = play(scenario, ground)
    sys.stdout.write(f"{scenario.describe()}\n" + "".join(f"{line}\n" for line in outcome.lines[-LAST_LINES:]))
    sys.stdout.write("".join(f"BROKEN: {one}\n" for one in outcome.violations) or f"nothing broke: {outcome.state}\n")
    _write(history, outcome)
    return 1 if outcome.failed else 0


def _storm(first: int, count: int, jobs: int, history: Path | None) -> int:
    begun = time.perf_counter()
    failed, ends, opened, virtual_s = [], Counter[str](), 0, 0.0
    outcome: Outcome | None = None
    for number, outcome in enumerate(_outcomes(first, count, jobs), 1):
        ends[outcome.state.split()[0]] += 1
        opened += outcome.opened
        virtual_s += outcome.virtual_s
        if outcome.failed:
            failed.append(outcome)
            sys.stdout.write(f"seed {outcome.scenario.seed}: {outcome.violations[0]}\n")
            sys.stdout.flush()
        if number % TELL == 0:
            sys.stderr.write(
                f"{number} of {count} seeds, {time.perf_counter() - begun:.0f} s: {len(failed) or 'none'} broke\n"
            )
    seconds = time.perf_counter() - begun
    said = ", ".join(f"{number} {end}" for end, number in sorted(ends.items()))
    sys.stdout.write(
        f"{count} federations ({said}), {opened} sums opened, {virtual_s / 3600:.1f} virtual hours "
        f"in {seconds:.0f} s: {len(failed) or 'none'} broke\n"
    )
    if outcome is not None:
        _write(history, outcome)
    if failed:
        with Ground(MOST_SITES) as ground:
            for one in failed[:3]:
                sys.stdout.write(f"\n{explain(one, ground)}\n")
                sys.stdout.flush()
    return 1 if failed else 0


def _outcomes(first: int, count: int, jobs: int) -> Iterator[Outcome]:
    """In processes of their own, some seeds each: what a federation leaves in memory ends with its process."""
    share = max(1, min(SHARE, count // jobs))
    tasks = [(start, min(share, first + count - start)) for start in range(first, first + count, share)]
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        for outcomes in pool.imap(_share, tasks):
            yield from outcomes


def _write(history: Path | None, outcome: Outcome) -> None:
    if history is not None:
        history.write_text("".join(f"{line}\n" for line in outcome.lines), encoding="utf-8")
