"""Training processes that the hospitals of a simulation share: with fifty of them, a PyTorch each would fill a machine.

A job says everything that it needs, and a process keeps nothing of a job but tables it has read; so which process does
a job changes no number. Real hospitals share nothing.
"""

import asyncio
import socket
from pathlib import Path
from typing import Any

from cohortium_connector.trainers import Runner
from cohortium_connector.training.jobs import TrainTrees
from cohortium_connector.training.runner import TrainingRunner

PROCESSES = 2


class SharedTrainers:
    """So many training processes, started when they are needed. `close` ends them."""

    def __init__(self, folder: Path, processes: int = PROCESSES) -> None:
        self._folder = folder
        self._runners = [TrainingRunner(work_dir=folder / f"shared-{n}", isolation="warn") for n in range(processes)]
        self._waiting = [0] * processes

    def runner(self, work_dir: Path) -> Runner:
        """For one hospital: what `connector.app.App.build` takes as `make_runner`."""
        return _Shared(self, work_dir)

    async def run(self, job: Any, timeout_s: float) -> Any:
        """Do a job in the process that fewest wait for."""
        place = self._waiting.index(min(self._waiting))
        self._waiting[place] += 1
        try:
            return await self._runners[place].run(job, timeout_s=timeout_s)
        finally:
            self._waiting[place] -= 1

    async def close(self) -> None:
        await asyncio.gather(*(runner.aclose() for runner in self._runners))


class _Shared:
    """One hospital's view. A strict session, which keeps a process busy to its end, gets a process of its own."""

    def __init__(self, shared: SharedTrainers, work_dir: Path) -> None:
        self._shared = shared
        self._work_dir = work_dir
        self._own: TrainingRunner | None = None

    async def run(self, job: Any, *, timeout_s: float = 3600.0, bridge: socket.socket | None = None) -> Any:
        if isinstance(job, TrainTrees) and bridge is not None:
            self._own = self._own or TrainingRunner(work_dir=self._work_dir, isolation="warn")
            return await self._own.run(job, timeout_s=timeout_s, bridge=bridge)
        self._work_dir.mkdir(parents=True, exist_ok=True)
        return await self._shared.run(job, timeout_s)

    async def aclose(self) -> None:
        if self._own is not None:
            await self._own.aclose()
