"""`python -m cohortium_sim.pressure`: what a slow aggregator does to the broker, and to the hospitals that send to it.

Real processes on PostgreSQL and a RabbitMQ of its own. Three rounds: nothing is disturbed; the aggregator is stopped
(SIGSTOP) while every hospital sends, and the last hospital with it until the others have filled the queues; the
aggregator gets a tenth of the time. What is looked at: the broker's resident memory, what waits in its queues, frames
that it refused (the hospital sends them again), frames that it gave up, and who is in the sum.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cohortium_kit.errors import CohortiumError
from cohortium_kit.logging import configure_logging
from cohortium_kit.runtime import run_async
from cohortium_kit.testing.servers import ServerMissing
from cohortium_messages.status import RunStatus
from cohortium_messages.topology import CHUNK_PARTITIONS, chunk_queue, platform_topology
from cohortium_sim.bench import DATABASE, bench_study, machine
from cohortium_sim.floor import UP_BYTES
from cohortium_sim.plan import Plan, SiteTable
from cohortium_sim.pressure_watch import LOOK_S, Broker, Seen, Watch
from cohortium_sim.simulate import Simulation, ended_by_sigterm

MIB = 1 << 20
LEAST_BOUND_MIB = 2
SHARE, TURN_S = 0.1, 0.5
"""The slow aggregator's share of the time, and how long it goes and stands together."""
FINAL = ("FINISHED", "FAILED", "STOPPED")
CASES = ("undisturbed", "stopped", "slow")


@dataclass(frozen=True, slots=True)
class Load:
    """What is tried: sites, parameters, seconds that the aggregator stands still, and the bytes that a chunk queue may
    hold (None: its own bound)."""

    sites: int
    parameters: int
    hold_s: float
    bound: int | None
    database: str


async def press(load: Load, broker: Broker) -> list[Seen]:
    """The three rounds. Raises `CohortiumError` if the run does not finish."""
    async with _federation(load, broker) as simulation:
        watch = Watch(broker, simulation)
        if load.bound is not None:
            await asyncio.to_thread(broker.bound, simulation.namespace, load.bound)
        looking = asyncio.create_task(watch.run())
        try:
            return await _rounds(simulation, watch, load)
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking


async def _rounds(simulation: Simulation, watch: Watch, load: Load) -> list[Seen]:
    run_id, last = await simulation.submit(), f"connector-{simulation.plan.sites[-1].name}"
    found = []
    for number, case in enumerate(CASES, start=1):
        await _until(simulation, run_id, number, sends=False)
        found.append(watch.begin(case))
        await _until(simulation, run_id, number, sends=True)
        pids = simulation.world.pids()
        if case == "stopped":
            with _standing(pids["aggregator"]):
                with _standing(pids[last]):
                    await asyncio.sleep(load.hold_s / 2)
                await asyncio.sleep(load.hold_s / 2)
        slowing = asyncio.create_task(_slowed(pids["aggregator"])) if case == "slow" else None
        try:
            status = await _done(simulation, run_id, number)
        finally:
            if slowing is not None:
                slowing.cancel()
                await asyncio.gather(slowing, return_exceptions=True)
        done = status.rounds_done[number - 1]
        watch.end(done.cohort, done.seconds)
    return found


async def _until(simulation: Simulation, run_id: str, number: int, *, sends: bool) -> None:
    """Wait for this round's update window, or (`sends`) until its roster is fixed: from then on hospitals send."""
    until = time.monotonic() + simulation.plan.timeout_s
    while time.monotonic() < until:
        status = await _status(simulation, run_id)
        window = status.window
        if (
            window is not None
            and window.purpose == "update"
            and window.round >= number
            and (window.roster or not sends)
        ):
            return
        await asyncio.sleep(LOOK_S / 4)
    raise CohortiumError(
        f"round {number} did not come within {simulation.plan.timeout_s:g} s; look at its services' logs"
    )


async def _done(simulation: Simulation, run_id: str, number: int) -> RunStatus:
    until = time.monotonic() + simulation.plan.timeout_s
    while time.monotonic() < until:
        status = await _status(simulation, run_id)
        if len(status.rounds_done) >= number:
            return status
        await asyncio.sleep(LOOK_S)
    raise CohortiumError(
        f"round {number} is not over after {simulation.plan.timeout_s:g} s; give it fewer --params, or a shorter --hold"
    )


async def _status(simulation: Simulation, run_id: str) -> RunStatus:
    simulation.world.check()
    status = await simulation.world.operator.run(run_id)
    if status.state in FINAL[1:]:
        raise CohortiumError(f"the run is {status.state} {status.reason}; it should have finished")
    return status


@contextmanager
def _standing(pid: int) -> Iterator[None]:
    """A process that is there and does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def _slowed(pid: int) -> None:
    """A process that gets `SHARE` of the time, until this is cancelled."""
    while True:
        with _standing(pid):
            await asyncio.sleep(TURN_S * (1 - SHARE))
        await asyncio.sleep(TURN_S * SHARE)


@asynccontextmanager
async def _federation(load: Load, broker: Broker) -> AsyncIterator[Simulation]:
    with tempfile.TemporaryDirectory(prefix="cohortium-pressure-") as folder:
        root = Path(folder)
        table, work = root / "table.csv", root / "work"
        table.write_text("unused,label\n0,0\n1,1\n", encoding="ascii")
        work.mkdir(mode=0o700)
        plan = Plan(
            study=bench_study(load.parameters, len(CASES) - 1, load.sites),
            sites=tuple(SiteTable(f"site-{number:03d}", table) for number in range(1, load.sites + 1)),
            out=root / "out",
            amqp_url=broker.server.url,
            database_url=load.database,
            processes=True,
        )
        with (root / "log.jsonl").open("w", encoding="utf-8") as stream:
            configure_logging(level="info", output="json", service="pressure", stream=stream)
            simulation = Simulation(plan, work)
            try:
                with ended_by_sigterm():
                    await simulation.start()
                    yield simulation
            finally:
                await simulation.clear()
                configure_logging(stream=sys.stderr)


def text(load: Load, rounds: Sequence[Seen]) -> str:
    """The rounds in words."""
    limit = own_bound() if load.bound is None else load.bound
    lines = [
        f"{load.sites} sites x {load.parameters:.0e} parameters: {_mib(UP_BYTES * load.sites * load.parameters)} MiB a "
        f"round, {CHUNK_PARTITIONS} chunk queues of at most {_mib(limit)} MiB each"
    ]
    for number, seen in enumerate(rounds, start=1):
        refused = sum(seen.refused.values())
        most = max(seen.refused.items(), key=lambda one: one[1], default=("", 0))
        by_whom = f" (most of {most[0]}: {most[1]})" if refused else ""
        lines.append(
            f"  round {number}, aggregator {_manner(seen.case, load)}: {seen.seconds:.1f} s; broker "
            f"{_mib(seen.broker_before)} to {_mib(seen.broker_peak)} MiB; fullest chunk queue "
            f"{_mib(seen.chunks_peak)} MiB, all queues {_mib(seen.queues_peak)} MiB; {refused} frames refused and sent "
            f"again{by_whom}, {seen.parked} given up; {len(seen.in_sum)} of {load.sites} sites in the sum"
        )
    return "\n".join(lines)


def own_bound() -> int:
    """What a chunk queue may hold as it is declared."""
    limits = {queue.name: queue.max_length_bytes for queue in platform_topology().queues}
    limit = limits[chunk_queue(0)]
    if limit is None:
        raise CohortiumError(
            "the chunk queues are declared without a bound; give them one in cohortium_messages.topology"
        )
    return limit


def _manner(case: str, load: Load) -> str:
    ways: Mapping[str, str] = {
        "undisturbed": "undisturbed",
        "stopped": f"stopped for {load.hold_s:g} s, one site for the first {load.hold_s / 2:g} of them",
        "slow": f"at {SHARE:.0%} of the time",
    }
    return ways[case]


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if every round ended with all sites in the sum and no chunk queue was longer than it may be."""
    parser = argparse.ArgumentParser(prog="python -m cohortium_sim.pressure", description=__doc__)
    parser.add_argument("--sites", type=int, default=4, help="hospitals (4)")
    parser.add_argument("--params", type=float, default=1e7, help="parameters of the model (1e7)")
    parser.add_argument("--hold", type=float, default=12.0, help="seconds that the aggregator stands still (12)")
    parser.add_argument("--bound", type=float, help="MiB that a chunk queue may hold, if less than its own bound")
    parser.add_argument("--database", default=DATABASE, help=f"PostgreSQL (default {DATABASE})")
    parser.add_argument("--json", type=Path, help="write what was seen to this file")
    options = parser.parse_args(argv)
    if options.sites < 3 or options.params < 1 or options.hold <= 0:
        parser.error("--sites is at least 3; --params and --hold are above 0")
    if options.bound is not None and options.bound < LEAST_BOUND_MIB:
        parser.error(f"--bound is at least {LEAST_BOUND_MIB}: a queue with less room than a frame takes none, ever")
    bound = None if options.bound is None else int(options.bound * MIB)
    load = Load(options.sites, int(options.params), options.hold, bound, options.database)
    try:
        rounds = measure(load)
    except (CohortiumError, ServerMissing) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(text(load, rounds) + "\n")
    if options.json:
        run = {**asdict(load), "rounds": [asdict(seen) for seen in rounds], **machine()}
        del run["database"]  # its address may hold a password
        options.json.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    return 0 if all(holds(load, seen) for seen in rounds) else 1


def measure(load: Load) -> list[Seen]:
    """Three rounds on a broker that is there for them alone."""
    with tempfile.TemporaryDirectory(prefix="cohortium-broker-") as folder:
        broker = Broker(Path(folder))
        broker.server.start()  # in this thread: the kernel ends a server with the thread that started it
        try:
            return run_async(press(load, broker))
        finally:
            broker.server.remove()


def holds(load: Load, seen: Seen) -> bool:
    """Whether nobody is missing, nothing was given up, and no chunk queue was longer than it may be."""
    limit = own_bound() if load.bound is None else load.bound
    return len(seen.in_sum) == load.sites and not seen.parked and seen.chunks_peak <= limit


if __name__ == "__main__":
    sys.exit(main())
