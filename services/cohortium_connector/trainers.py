"""Training processes: what the connector asks of them, and those that strict sessions have.

A run with strict sessions has a process of its own, from its first look at the table to the run's end. So several
sessions can run beside each other and beside other work, the table is read once, and a session that was paused goes on
in a process that has everything in its memory.
"""

import asyncio
import socket
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol, overload

from cohortium_connector.spool import remove
from cohortium_connector.training.jobs import (
    CohortTaken,
    ComputeRefinement,
    ComputeStatistics,
    CountDone,
    CountPatients,
    Evaluate,
    EvaluateDone,
    PrepareDone,
    PrepareTrees,
    StatisticsDone,
    TakeCohort,
    TrainDone,
    TrainLocally,
    TrainTrees,
    TreesDone,
)
from cohortium_messages.ids import RunId


class Runner(Protocol):
    """`training.runner.TrainingRunner`, or a fake of it."""

    @overload
    async def run(self, job: ComputeStatistics, *, timeout_s: float = ...) -> StatisticsDone: ...
    @overload
    async def run(self, job: ComputeRefinement, *, timeout_s: float = ...) -> StatisticsDone: ...
    @overload
    async def run(self, job: CountPatients, *, timeout_s: float = ...) -> CountDone: ...
    @overload
    async def run(self, job: TakeCohort, *, timeout_s: float = ...) -> CohortTaken: ...
    @overload
    async def run(self, job: PrepareTrees, *, timeout_s: float = ...) -> PrepareDone: ...
    @overload
    async def run(self, job: TrainTrees, *, timeout_s: float = ..., bridge: socket.socket) -> TreesDone: ...
    @overload
    async def run(self, job: TrainLocally, *, timeout_s: float = ...) -> TrainDone: ...
    @overload
    async def run(self, job: Evaluate, *, timeout_s: float = ...) -> EvaluateDone: ...
    async def aclose(self) -> None: ...


MakeRunner = Callable[[Path], Runner]


class RunTrainers:
    """The processes of runs with strict sessions. One is started with the first job that it is given."""

    def __init__(self, make_runner: MakeRunner, folder: Path) -> None:
        self._make_runner = make_runner
        self._folder = folder
        self._runners: dict[RunId, Runner] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def of(self, run_id: RunId) -> Runner:
        """The run's own process."""
        if run_id not in self._runners:
            self._runners[run_id] = self._make_runner(self._place(run_id))
        return self._runners[run_id]

    @property
    def runs(self) -> frozenset[RunId]:
        """Runs that have a process."""
        return frozenset(self._runners)

    def end(self, runs: Collection[RunId]) -> None:
        """These runs need none any more. Each process ends beside what goes on, after the job that it has."""
        for run_id in runs:
            if run_id in self._runners:
                task = asyncio.create_task(self._end(run_id, self._runners.pop(run_id)), name="end-trainer")
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    async def _end(self, run_id: RunId, runner: Runner) -> None:
        await runner.aclose()
        await asyncio.to_thread(remove, self._place(run_id))

    async def aclose(self) -> None:
        """End all, and wait for it. Jobs must have been ended before."""
        self.end(self.runs)
        await asyncio.gather(*self._ending)

    def _place(self, run_id: RunId) -> Path:
        return self._folder / f"run-{run_id}"
