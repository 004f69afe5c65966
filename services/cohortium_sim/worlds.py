"""Where a simulated federation lives: all in this process, or each service and connector in a process of its own.

Both start the same services from the same settings files; only the parts under them differ.
"""

import asyncio
import importlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import structlog

from cohortium_cli.federation import FederationFiles
from cohortium_cli.operator import Operator, OperatorSettings
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database
from cohortium_kit.errors import CohortiumError
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.migrate import migrate
from cohortium_kit.runtime import set_parent_death_signal
from cohortium_sim.shared_trainers import SharedTrainers

log = structlog.get_logger(__name__)
SERVICES = ("enrolment", "consent", "scheduler", "aggregator", "audit")
END_TIMEOUT_S = 20.0
START_TIMEOUT_S = 90.0
POLL_S = 0.05


class PartFailed(CohortiumError):
    """A service or connector ended by itself; the text says which, and where its log is."""


class World(Protocol):
    """A place for one federation."""

    operator: Operator

    async def start_services(self) -> None:
        """Migrate, start all platform services, and return when they are ready."""
        ...

    async def start_connector(self, name: str, config: Path) -> None: ...

    def vanished(self) -> frozenset[str]:
        """Connectors that are gone because the plan made them vanish."""
        ...

    def check(self) -> None:
        """Raise `PartFailed` if a part ended that should be running."""
        ...

    def peaks_mb(self) -> dict[str, float]:
        """Peak resident memory in MiB by role, as far as known."""
        ...

    def pids(self) -> dict[str, int]:
        """The processes that the federation consists of, by name."""
        ...

    async def close(self) -> None:
        """End everything that was started. Twice is once."""
        ...


def load_settings(role: str, config: Path) -> Any:
    """The settings of a service or connector from its file."""
    module = importlib.import_module(f"cohortium_{role}.settings")
    return getattr(module, f"{role.capitalize()}Settings").load(config)


class OneProcess:
    """Every service and connector as a task in this process; the bus is in memory, or RabbitMQ.

    Each connector has a training process of its own, or all share `trainers`, which are ended with the rest.
    """

    def __init__(
        self,
        files: FederationFiles,
        clock: Clock,
        make_bus: Callable[[str], Bus],
        trainers: SharedTrainers | None = None,
    ) -> None:
        self._files = files
        self._clock = clock
        self._make_bus = make_bus
        self._trainers = trainers
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stops: list[asyncio.Event] = []
        self._closing = False
        self._vanished: set[str] = set()
        self.operator: Operator

    async def start_services(self) -> None:
        apps = {}
        for role in SERVICES:
            settings = load_settings(role, self._files.configs[role])
            await migrate_service(settings, f"cohortium_{role}")
            app_type = importlib.import_module(f"cohortium_{role}.app").App
            app = await app_type.build(settings, bus=self._make_bus(role), clock=self._clock)
            self._start(role, app.run)
            apps[role] = app.http
        self.operator = Operator.within(apps, self._files.operator_token)

    async def start_connector(self, name: str, config: Path) -> None:
        settings = load_settings("connector", config)
        app_type = importlib.import_module("cohortium_connector.app").App
        bus = self._make_bus(f"connector-{name}")
        make_runner = self._trainers.runner if self._trainers is not None else None
        app = await app_type.build(
            settings, bus=bus, clock=self._clock, make_runner=make_runner, vanish=lambda: self._vanish(name)
        )
        self._start(f"connector-{name}", app.run)

    def _start(self, name: str, run: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        # One event each: a service that ends sets its own, and must not end the others.
        stop = asyncio.Event()
        self._stops.append(stop)

        async def guarded() -> None:
            await run(stop)

        self._tasks[name] = asyncio.create_task(guarded(), name=name)

    def _vanish(self, name: str) -> None:
        """What kill -9 is to a process: no further message in or out, no farewell."""
        self._vanished.add(name)
        self._tasks[f"connector-{name}"].cancel()

    def vanished(self) -> frozenset[str]:
        return frozenset(self._vanished)

    def check(self) -> None:
        for name, task in self._tasks.items():
            if task.done() and not self._closing and name.removeprefix("connector-") not in self._vanished:
                cause = None if task.cancelled() else task.exception()
                raise PartFailed(f"{name} ended: {cause!r}") from cause

    def peaks_mb(self) -> dict[str, float]:
        return {"all": _peak_mb(os.getpid())}

    def pids(self) -> dict[str, int]:
        return {"all": os.getpid()}

    async def close(self) -> None:
        self._closing = True
        for stop in self._stops:
            stop.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks.values(), timeout=END_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            self._tasks.clear()
        if self._trainers is not None:
            await self._trainers.close()
        if hasattr(self, "operator"):
            await self.operator.__aexit__(None, None, None)


class ManyProcesses:
    """Every service and connector started as in production: `python -m cohortium_<role> run --config FILE`."""

    def __init__(self, files: FederationFiles, clock: Clock) -> None:
        self._files = files
        self._clock = clock
        self._logs = files.directory / "logs"
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._started: dict[str, tuple[str, Path]] = {}
        self._vanishing: set[str] = set()
        self._peaks: dict[str, float] = {}
        self.operator: Operator

    async def start_services(self) -> None:
        self._logs.mkdir(exist_ok=True)
        for role in SERVICES:
            await migrate_service(load_settings(role, self._files.configs[role]), f"cohortium_{role}")
            await self.start(role, role, self._files.configs[role])
        settings = OperatorSettings.load(self._files.operator_settings)
        self.operator = Operator.at(settings, self._files.operator_token)
        deadline = self._clock.monotonic() + START_TIMEOUT_S
        for role in SERVICES:
            while not await self.operator.healthy(role):
                self.check()
                if self._clock.monotonic() > deadline:
                    log_file = self._logs / f"{role}.log"
                    raise PartFailed(f"{role} was not ready within {START_TIMEOUT_S:g} s; its log is {log_file}")
                await self._clock.sleep(POLL_S)

    async def start_connector(self, name: str, config: Path) -> None:
        await self.start(f"connector-{name}", "connector", config)

    async def start(self, name: str, role: str, config: Path) -> asyncio.subprocess.Process:
        """Start one process; its log goes to `logs/<name>.log`."""
        with (self._logs / f"{name}.log").open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", f"cohortium_{role}", "run", "--config", str(config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # Killed with -9, the simulation can take nothing down; its parts then end by themselves.
                preexec_fn=partial(set_parent_death_signal, parent=os.getpid()),
            )
        self._processes[name] = process
        self._started[name] = (role, config)
        return process

    async def restart(self, name: str) -> None:
        """Start a killed part again, as a supervisor would: same command, same settings."""
        await self.start(name, *self._started[name])

    async def kill(self, name: str) -> None:
        """kill -9, and wait until it is gone."""
        process = self._processes.pop(name)
        self._note_peak(name, process.pid)
        process.kill()
        await process.wait()

    def may_vanish(self, name: str) -> None:
        """This connector will end itself, as the plan says: that is no failure."""
        self._vanishing.add(name)

    def vanished(self) -> frozenset[str]:
        gone = {name for name, process in self._processes.items() if process.returncode is not None}
        return frozenset(name.removeprefix("connector-") for name in gone) & frozenset(self._vanishing)

    def check(self) -> None:
        for name, process in self._processes.items():
            self._note_peak(name, process.pid)
            if process.returncode is not None and name.removeprefix("connector-") not in self._vanishing:
                raise PartFailed(
                    f"{name} ended with exit code {process.returncode}; its log is {self._logs / name}.log"
                )

    def _note_peak(self, name: str, pid: int) -> None:
        peak = _peak_mb(pid)
        if peak:
            role = "connector" if name.startswith("connector-") else name
            self._peaks[role] = max(peak, self._peaks.get(role, 0.0))

    def peaks_mb(self) -> dict[str, float]:
        return dict(self._peaks)

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items() if process.returncode is None}

    async def close(self) -> None:
        for name, process in self._processes.items():
            self._note_peak(name, process.pid)
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                async with asyncio.timeout(END_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        self._processes.clear()
        if hasattr(self, "operator"):
            await self.operator.__aexit__(None, None, None)


def memory_buses(clock: Clock, namespace: str) -> Callable[[str], Bus]:
    """Buses to one broker in this process."""
    broker = MemoryBroker(clock)
    return lambda _name: MemoryBus(broker, namespace)


def free_ports(roles: tuple[str, ...]) -> dict[str, int]:
    """A free TCP port on the loopback for each role."""
    sockets = []
    try:
        for _ in roles:
            one = socket.socket()
            one.bind(("127.0.0.1", 0))
            sockets.append(one)
        return {role: one.getsockname()[1] for role, one in zip(roles, sockets, strict=True)}
    finally:
        for one in sockets:
            one.close()


async def migrate_service(settings: Any, package: str) -> None:
    """Bring the database that the settings name up to date with the package's migrations."""
    db = Database(settings.database_url, schema=settings.db_schema)
    try:
        await migrate(db, package)
    finally:
        await db.close()


def _peak_mb(pid: int) -> float:
    """Peak resident set of a process in MiB (VmHWM), 0 if it is gone or the system does not say."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    for line in text.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
