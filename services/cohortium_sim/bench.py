"""`make bench`: what a secure round costs on this machine, with real parts and real processes.

The trainer only adds noise, so that what is measured is the federation: messages, masks, sums, models on their way. A
round's seconds run from the opening of its update window to the release of the new model. From one release to the next
takes longer: consent is asked, and the log, and hospitals fetch the model meanwhile.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cohortium_kit.errors import CohortiumError
from cohortium_kit.runtime import run_async
from cohortium_messages.study import Study
from cohortium_sim.floor import floor_seconds
from cohortium_sim.meter import Meter
from cohortium_sim.plan import Plan, SiteTable
from cohortium_sim.simulate import Look, run_plan
from cohortium_sim.stages import stage_lines, stage_seconds

AMQP, DATABASE = "amqp://guest:guest@127.0.0.1:5672/", "postgresql://postgres@127.0.0.1:5432/postgres"
SERVERS = {"broker": "beam.smp", "database": "postgres"}
"""Programs whose processes serve all of a run; what else they serve meanwhile is counted, too."""
GOALS_S = {(4, 10**6): 0.5, (4, 10**7): 3.0, (16, 10**7): 12.0, (4, 10**8): 40.0}
"""Hospitals and parameters, and how long a round of them shall take at most on two cores."""
PACE_S = 5.0
"""Hospitals say that they are there, and cosign the log between its tasks, as often as deployed ones do by default."""
DEFAULT_RUNS = ((4, 10**5), (16, 10**6), *GOALS_S)


def bench_study(parameters: int, rounds: int, sites: int) -> Study:
    """A study of the noise trainer. The first round is a warm-up: its connections and caches are cold."""
    return Study.model_validate(
        {
            "apiVersion": "cohortium/study/1",
            "governance": "trial",
            "name": "benchmark",
            "purpose": "Measure secure rounds; reads no row",
            "dataset": {
                "features": [{"name": "unused", "type": "float", "range": [0, 1], "missing": "impute"}],
                "label": {"name": "label", "type": "binary"},
                "split": {"test": 0.5},
            },
            "recipe": {"trainer": "benchmark.noise", "parameters": parameters},
            "federation": {
                "rounds": rounds + 1,
                "min_sites": min(3, sites),
                "deadlines": {"ready_s": 600, "upload_s": 600, "echo_s": 60, "unmask_s": 60, "expire_s": 3600},
            },
            "metrics": [],
        }
    )


async def measure(sites: int, parameters: int, rounds: int, amqp: str, database: str) -> dict[str, Any]:
    """One run's numbers. Raises `CohortiumError` if the run did not end as planned."""
    with tempfile.TemporaryDirectory(prefix="cohortium-bench-") as folder:
        root = Path(folder)
        table = root / "table.csv"
        table.write_text("unused,label\n0,0\n1,1\n", encoding="ascii")
        plan = Plan(
            study=bench_study(parameters, rounds, sites),
            sites=tuple(SiteTable(f"site-{number:03d}", table) for number in range(1, sites + 1)),
            out=root / "out",
            amqp_url=amqp,
            database_url=database,
            processes=True,
            pace_s=max(PACE_S, sites / 4),
        )
        meter = Meter(SERVERS)
        outcome = await run_plan(plan, live=False, look=meter_look(meter))
        entries = (root / "out" / "audit" / "entries.jsonl").read_bytes().splitlines()
    if outcome.surprises:
        raise CohortiumError(f"the run did not end as planned: {'; '.join(outcome.surprises)}")
    timed = outcome.result.rounds[1:]
    seconds = [done.seconds for done in timed]
    sent = [done.bytes_up / sites / parameters for done in timed]
    return {
        "sites": sites,
        "params": parameters,
        "rounds": len(timed),
        "seconds_per_round": {
            "median": round(statistics.median(seconds), 3),
            "min": round(min(seconds), 3),
            "max": round(max(seconds), 3),
        },
        "goal_s": GOALS_S.get((sites, parameters)),
        "bytes_up_per_param": round(statistics.median(sent), 3),
        "peak_mb": outcome.result.processes,
        "floor_s": await floor_seconds(sites, parameters, amqp),
        "stages_s": stage_seconds(entries, skip=1),
        "cpu_s": {role: round(used.cpu_s, 3) for role, used in sorted(meter.per_round().items())},
        "moved_per_byte": _moved(meter, sum(done.bytes_up + done.bytes_down for done in timed) / len(timed)),
        **machine(),
    }


def meter_look(meter: Meter) -> Look:
    """Samples at each look at the run."""
    return lambda world, status: meter.sample(len(status.rounds_done), world.pids())


def _moved(meter: Meter, sent: float) -> dict[str, float]:
    """Bytes read and written for each byte that was sent up or down, by who moves vectors.

    Linux counts read(2) and write(2) of files, pipes and sockets, which is all that ours use; not recv(2), which the
    broker uses, and not what is copied within a process.
    """
    return {
        role: round(used.moved / sent, 1)
        for role, used in meter.per_round().items()
        if role in ("connectors", "aggregator", "training")
    }


def machine() -> dict[str, str]:
    """When and on what it was measured."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {_cores()} cores, {platform.system()}, Python {platform.python_version()}",
    }


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _count(text: str) -> int:
    value = float(text)
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write the runs as JSON if asked to."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=", description="Time, bytes, memory of secure rounds.")
    parser.add_argument("--sites", type=_count, help="hospitals (default: a series of runs)")
    parser.add_argument("--params", type=_count, help="parameters of the model, for example 1e6")
    parser.add_argument("--rounds", type=_count, default=5, help="timed rounds after one warm-up (default 5)")
    parser.add_argument("--json", type=Path, help="write the list of runs to this file")
    parser.add_argument("--amqp", default=AMQP, help=f"RabbitMQ (default {AMQP})")
    parser.add_argument("--database", default=DATABASE, help=f"PostgreSQL (default {DATABASE})")
    options = parser.parse_args(argv)
    asked = ((options.sites or 4, options.params or 1_000_000),) if options.sites or options.params else DEFAULT_RUNS
    runs = []
    try:
        for sites, parameters in asked:
            runs.append(run_async(measure(sites, parameters, options.rounds, options.amqp, options.database)))
            sys.stdout.write(_text(runs[-1]) + "\n")
            sys.stdout.flush()
    except CohortiumError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if options.json:
        options.json.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    return 0


def _text(run: dict[str, Any]) -> str:
    """A run in words: the round, its stages, the processors, the bytes."""
    seconds = run["seconds_per_round"]
    peaks = ", ".join(f"{role} {peak:.0f}" for role, peak in sorted(run["peak_mb"].items()))
    used, moved = run["cpu_s"], run["moved_per_byte"]
    goal = "" if run["goal_s"] is None else f" (goal {run['goal_s']:g})"
    lines = [
        f"{run['sites']} sites x {run['params']:.0e} parameters: {seconds['median']:.2f} s a round "
        f"[{seconds['min']:.2f}..{seconds['max']:.2f}]{goal}, {sum(run['stages_s'].values()):.2f} s from release to "
        f"release, {run['bytes_up_per_param']:.2f} B up per parameter; "
        f"peak MB: {peaks}",
        *stage_lines(run["stages_s"]),
        "  the floor: " + " + ".join(f"{taken:.2f} s {what}" for what, taken in run["floor_s"].items()),
    ]
    if used:
        by_role = ", ".join(f"{role} {taken:.2f}" for role, taken in sorted(used.items(), key=lambda one: -one[1]))
        lines.append(f"  processor seconds a round: {sum(used.values()):.2f} ({by_role})")
        by_mover = ", ".join(f"{role} {times:.1f}" for role, times in sorted(moved.items()))
        lines.append(f"  bytes read and written for each byte sent: {by_mover}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
