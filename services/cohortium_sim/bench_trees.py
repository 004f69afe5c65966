"""What trees over secure sums cost on this machine, with real parts: `python -m cohortium_sim.bench_trees`.

Made-up rows, four hospitals, RabbitMQ and PostgreSQL, every service and hospital a process of its own. Beside it, on
the same rows and bins, LightGBM's own distributed training over loopback sockets, without masks, broker or record.

A step's latency is measured at the broker, by a queue that gets copies: from one hospital's frame for a step to the
result for it. So it holds the waiting for the slowest hospital, but not this hospital's own computing.
"""

import argparse
import asyncio
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Ack, Delivery, Disposition
from cohortium_kit.clock import Clock
from cohortium_kit.errors import CohortiumError
from cohortium_kit.logging import configure_logging
from cohortium_kit.runtime import run_async
from cohortium_messages.ids import SiteId
from cohortium_messages.study import Study
from cohortium_messages.topology import BULK, UPLINK, Binding, Queue, QueueKind, Topology, results_queue
from cohortium_protocol.errors import FrameRefused
from cohortium_protocol.strict.frames import FrameHeader, peek_result, peek_step
from cohortium_protocol.trees.binning import Binning, tree_columns
from cohortium_protocol.trees.predict import raw_scores
from cohortium_protocol.trees.text import check_model_text
from cohortium_sim.bench import AMQP, DATABASE, machine
from cohortium_sim.plan import Plan, SiteTable
from cohortium_sim.simulate import Simulation, ended_by_sigterm
from cohortium_sim.socket_worker import SocketJob
from cohortium_sim.worlds import free_ports

TAP: Final = "bench.tap"
TEST_SHARE: Final = 0.1
SOCKETS_TIMEOUT_S: Final = 300.0
INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured. `rows` train, over all sites; a tenth as many test."""

    sites: int = 4
    rows: int = 20_000
    features: int = 40
    trees: int = 100
    leaves: int = 15


def bench_study(size: Size) -> Study:
    """Numbers only, a binary label, LightGBM's defaults."""
    return Study.model_validate(
        {
            "apiVersion": "cohortium/study/1",
            "governance": "trial",
            "name": "benchmark-trees",
            "purpose": "Measure strict sessions on made-up rows",
            "dataset": {
                "features": [
                    {"name": f"x{place}", "type": "float", "range": [-8, 8]} for place in range(size.features)
                ],
                "label": {"name": "label", "type": "binary"},
                "split": {"column": "part", "train": "train", "test": "test"},
            },
            "recipe": {"trainer": "lightgbm", "rounds": size.trees, "params": {"num_leaves": size.leaves}},
            "federation": {"min_sites": min(3, size.sites), "deadlines": {"ready_s": 600, "step_s": 120}},
        }
    )


def write_tables(size: Size, folder: Path) -> tuple[SiteTable, ...]:
    """Rows whose label depends on a dozen features and two products; each site has others, of a mean of its own."""
    chance = np.random.Generator(np.random.PCG64(7))
    weights = chance.normal(size=size.features) * (np.arange(size.features) < 12)
    tables = []
    for site in range(size.sites):
        train = size.rows // size.sites + (site < size.rows % size.sites)
        count = train + math.ceil(train * TEST_SHARE)
        rows = np.clip(chance.normal(chance.normal(0, 0.3), 1, (count, size.features)), -8, 8)
        score = rows @ weights / 3 + rows[:, 0] * rows[:, 1 % size.features]
        labels = chance.random(count) < 1 / (1 + np.exp(-score))
        path = folder / f"site-{site + 1}.csv"
        names = [f"x{place}" for place in range(size.features)]
        with path.open("w", encoding="ascii") as file:
            file.write(",".join([*names, "label", "part"]) + "\n")
            for place, (row, label) in enumerate(zip(rows, labels, strict=True)):
                part = "train" if place < train else "test"
                file.write(",".join([*(f"{value:.6f}" for value in row), f"{int(label)}", part]) + "\n")
        tables.append(SiteTable(f"site-{site + 1}", path))
    return tuple(tables)


@dataclass(slots=True)
class Tap:
    """Copies of one hospital's frames, and when they passed. Seconds are of a monotonic clock."""

    clock: Clock
    sent: dict[tuple[bytes, int], float] = field(default_factory=dict)
    answered: dict[tuple[bytes, int], float] = field(default_factory=dict)

    async def take(self, delivery: Delivery) -> Disposition:
        """The last part of a step, the last part of its result; a frame that is sent again does not count again."""
        now = self.clock.monotonic()
        up = delivery.exchange.endswith(UPLINK.name)
        try:
            header: FrameHeader = (peek_step if up else peek_result)(delivery.body)
        except FrameRefused:
            return Ack()
        if header.part == header.parts - 1:
            (self.sent if up else self.answered).setdefault((header.window_id, header.step), now)
        return Ack()

    def latencies_s(self) -> list[float]:
        """Of every step that was seen going up and coming down."""
        return [self.answered[step] - begun for step, begun in self.sent.items() if step in self.answered]

    @property
    def seconds(self) -> float:
        """From the first step to the last result."""
        return max(self.answered.values()) - min(self.sent.values())


def tap_topology(site: SiteId) -> Topology:
    """A queue beside the real ones, with copies of what one hospital sends and is sent in its sessions."""
    bindings = (Binding(UPLINK.name, f"site.{site}.steps.*"), Binding(BULK.name, results_queue(site)))
    return Topology((), (Queue(TAP, QueueKind.CLASSIC, bindings, max_length_bytes=256 << 20),))


async def measure(size: Size, amqp: str, database: str) -> dict[str, Any]:
    """One run's numbers. Raises `CohortiumError` if it did not end as planned."""
    with tempfile.TemporaryDirectory(prefix="cohortium-bench-") as name:
        folder = Path(name)
        plan = Plan(
            study=bench_study(size),
            sites=write_tables(size, folder),
            out=folder / "out",
            amqp_url=amqp,
            database_url=database,
            processes=True,
        )
        plan.out.mkdir()
        (folder / "federation").mkdir(mode=0o700)
        with ended_by_sigterm():
            numbers = await _federation(plan, folder / "federation", amqp)
        sockets, difference = await _sockets(plan, folder)
    return {
        "sites": size.sites,
        "rows": size.rows,
        "features": size.features,
        "trees": size.trees,
        "leaves": size.leaves,
        **numbers,
        "sockets_seconds": round(sockets, 3),
        "largest_difference": difference,
        **machine(),
    }


async def _federation(plan: Plan, work: Path, amqp: str) -> dict[str, Any]:
    simulation = Simulation(plan, work)
    try:
        await simulation.start()
        site = SiteId(simulation.sites[plan.sites[0].name].site_id)
        bus = RabbitBus(amqp, simulation.namespace, connection_name="cohortium-bench-tap")
        await bus.connect()
        tap = Tap(simulation.clock)
        await bus.declare(tap_topology(site))
        watched = await bus.consume(TAP, tap.take, prefetch=64)
        try:
            run_id = await simulation.submit()
            status = await simulation.watch(run_id, None)
        finally:
            await watched.cancel()
            await bus.delete(tap_topology(site))
            await bus.close()
        boosting = status.boosting
        if status.state != "FINISHED" or boosting is None or boosting.trees < plan.study.boosting_rounds:
            raise CohortiumError(f"the run ended {status.state}: {status.sentence or status.reason}")
        await simulation.fetch(run_id, status)
        peaks = simulation.world.peaks_mb()
    finally:
        await simulation.clear()
    latencies = sorted(1000 * latency for latency in tap.latencies_s())
    return {
        "training_seconds": round(sum(done.seconds for done in status.rounds_done), 3),
        "session_seconds": round(tap.seconds, 3),
        "steps": boosting.steps,
        "steps_per_second": round(boosting.steps / tap.seconds, 1),
        "step_ms": {"p50": round(statistics.median(latencies), 2), "p99": round(_share(latencies, 0.99), 2)},
        "peak_mb": {role: round(peak) for role, peak in peaks.items()},
    }


def _share(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


async def _sockets(plan: Plan, folder: Path) -> tuple[float, float]:
    """LightGBM's own distributed training: seconds of the slowest machine, and the most that a raw score of a test row
    differs from the federated model's."""
    ports = tuple(free_ports(tuple(site.name for site in plan.sites)).values())
    jobs = [
        SocketJob(
            study=plan.study,
            binning_path=str(plan.out / "model" / "preprocessing.json"),
            table_path=str(site.path),
            text_path=str(folder / "sockets.txt"),
            ports=ports,
            rank=rank,
        )
        for rank, site in enumerate(plan.sites)
    ]
    async with asyncio.timeout(SOCKETS_TIMEOUT_S):
        seconds = await asyncio.gather(*(_machine(job) for job in jobs))
    ours, theirs = (_scores(plan, path) for path in (plan.out / "model" / "model.txt", folder / "sockets.txt"))
    return max(seconds), float(np.abs(ours - theirs).max())


async def _machine(job: SocketJob) -> float:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cohortium_sim.socket_worker"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, complained = await process.communicate(job.model_dump_json().encode() + b"\n")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last = complained.decode(errors="replace").strip().splitlines()[-1:]
        raise CohortiumError(f"LightGBM's own training ended with exit code {process.returncode}: {' '.join(last)}")
    return float(json.loads(said)["seconds"])


def _scores(plan: Plan, text: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Raw scores of the first site's test rows."""
    from cohortium_connector.training.data import read_table
    from cohortium_connector.training.jobs import DataSource

    binning = Binning.from_canonical((plan.out / "model" / "preprocessing.json").read_bytes())
    model = check_model_text(
        text.read_bytes(),
        features=binning.feature_names(),
        classes=1,
        max_trees=plan.study.boosting_rounds,
        max_leaves=1024,
        objective="binary",
    )
    return raw_scores(
        model, tree_columns(binning, read_table(plan.study, DataSource(path=str(plan.sites[0].path))).test)
    )


def line(run: dict[str, Any]) -> str:
    """One run for people."""
    step = run["step_ms"]
    return (
        f"{run['sites']} sites, {run['rows']:,} rows x {run['features']} features, {run['trees']} trees of "
        f"{run['leaves']} leaves: session {run['session_seconds']:.1f} s ({run['training_seconds']:.1f} s with its "
        f"preparation), {run['steps']:,} steps, {run['steps_per_second']:.0f} a second; a step p50 {step['p50']:.1f} "
        f"ms, p99 {step['p99']:.1f} ms. LightGBM's own sockets: {run['sockets_seconds']:.1f} s; raw scores differ by "
        f"at most {run['largest_difference']:.1e}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a line, and write the numbers as JSON if asked to."""
    usual = Size()
    parser = argparse.ArgumentParser(prog="make bench BENCH_TREES=", description="Time of strict sessions.")
    for name in Size.__slots__:
        default = getattr(usual, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default:,}")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--amqp", default=AMQP, help=f"RabbitMQ (default {AMQP})")
    parser.add_argument("--database", default=DATABASE, help=f"PostgreSQL (default {DATABASE})")
    options = parser.parse_args(argv)
    configure_logging(level="error", output="console", stream=sys.stderr)
    size = Size(**{name: getattr(options, name) for name in Size.__slots__})
    try:
        run = run_async(measure(size, options.amqp, options.database))
    except (CohortiumError, TimeoutError) as error:
        sys.stderr.write(f"error: {error or 'it took too long'}\n")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    sys.stdout.write(line(run) + "\n")
    if options.json:
        options.json.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
