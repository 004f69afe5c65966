"""A federation of real processes on servers of its own, and everything that can be done to it.

Four hospitals of the noise trainer, whose every update is known. The first one's connection, each service's to the
broker, and all of theirs to the database go through proxies of ours. Parts that end are started again, as a supervisor
would.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.integration.simulation.noise import SITES, noise_plan, noise_study
from yarl import URL

from cohortium_cli.federation import FederationFiles
from cohortium_kit.testing.proxy import CuttingProxy
from cohortium_kit.testing.servers import PrivatePostgres, PrivateRabbit, PrivateRedis
from cohortium_messages.governance import Invitation
from cohortium_messages.status import RunStatus
from cohortium_sim import worlds
from cohortium_sim.plan import SiteTable
from cohortium_sim.simulate import Simulation
from cohortium_sim.storm.replacing import replaced
from cohortium_sim.worlds import SERVICES, ManyProcesses

START_S = 600.0
"""So long may services take to start: that is no fault, and on a busy machine the 90 s of a simulation are too few."""
LOOK_S = 0.3
SPOOL_MIB = 24
"""The size of a spool's own file system, where it has one."""


REFUSED = ("permission denied", "not permitted", "superuser")


class NoRight(Exception):
    """The kernel does not let us do what the fault needs: no server that could be installed would help."""


class _Simulation(Simulation):
    """One whose lines are proxies, and whose first site has its spool on a small file system if it is to be filled."""

    lines: Mapping[str, CuttingProxy] = {}
    small_spool = False
    folders: dict[str, Path]

    def _create(self, work: Path) -> FederationFiles:
        files = super()._create(work)
        for role in SERVICES:
            _redial(files.configs[role], self.plan.amqp_url, self.lines[role])
            _redial(files.configs[role], self.plan.database_url, self.lines["postgres"])
        return files

    def settings_of(self, name: str) -> Path:
        """Of a service by its role, of a site by its name."""
        return self.files.configs[name] if name in SERVICES else self.folders[name] / "connector.yaml"

    def _connector_config(self, site: SiteTable, invitation: Invitation) -> Path:
        config = super()._connector_config(site, invitation)
        self.folders[site.name] = config.parent
        if site.name == SITES[0]:
            _redial(config, self.plan.amqp_url, self.lines[site.name])
            if self.small_spool:
                mount(config.parent / "spool", SPOOL_MIB)
        return config


def _redial(settings: Path, url: str | None, line: CuttingProxy) -> None:
    """Have them name this line where they named the server."""
    assert url is not None
    text, address = settings.read_text(), f"@127.0.0.1:{URL(url).port}"
    assert address in text, f"{settings.name} names no server at {address}"
    settings.write_text(text.replace(address, f"@127.0.0.1:{line.port}"))


def mount(folder: Path, mebibytes: int) -> None:
    """A small file system in memory there. Raises `NoRight` where we may not, else `RuntimeError`."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0700", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return
    said = done.stderr.strip()
    if any(word in said.lower() for word in REFUSED):
        raise NoRight(f"the kernel refuses to mount a file system in memory here ({said})")
    raise RuntimeError(f"{' '.join(command)}: {said}")


class Yard:
    """What faults are done to. Every method returns when the fault is over, or (`begin`/`end`) half of it."""

    def __init__(
        self, simulation: _Simulation, rabbit: PrivateRabbit, postgres: PrivatePostgres, redis: PrivateRedis
    ) -> None:
        self.simulation = simulation
        self.rabbit = rabbit
        self.postgres = postgres
        self.redis = redis
        self._supervising: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def world(self) -> ManyProcesses:
        assert isinstance(self.simulation.world, ManyProcesses)
        return self.simulation.world

    # Supervision

    def supervise(self) -> None:
        """From now on whatever ends is started again, and an end is no failure."""
        self.world.check = lambda: None  # type: ignore[method-assign]
        self._supervising = asyncio.create_task(self._supervise())

    async def _supervise(self) -> None:
        while True:
            for name, process in list(self.world._processes.items()):
                if process.returncode is not None:
                    self.restarts += 1
                    await self.world.restart(name)
            await asyncio.sleep(1.0)

    async def end(self) -> None:
        if self._supervising is not None:
            self._supervising.cancel()
            await asyncio.gather(self._supervising, return_exceptions=True)
        spool = self.simulation.folders.get(SITES[0])
        await self.simulation.clear()
        if self.simulation.small_spool and spool is not None:
            await asyncio.to_thread(subprocess.run, ["umount", "-l", str(spool / "spool")], capture_output=True)

    # The run

    async def in_round(self, run_id: str, number: int) -> RunStatus:
        """Wait until the update window of this round is open, or the run is over."""
        for _ in range(2400):
            with suppress(Exception):  # the scheduler may be down just now
                status = await self.simulation.world.operator.run(run_id)
                window = status.window
                if status.state in ("FINISHED", "FAILED", "STOPPED") or (
                    window is not None
                    and window.purpose == "update"
                    and window.round >= number
                    and window.phase != "PLANNED"
                ):
                    return status
            await asyncio.sleep(0.05)
        raise AssertionError(f"round {number} did not come")

    async def final(self, run_id: str, longest_s: float) -> RunStatus:
        """The run's end, asked for as often as it takes."""
        loop = asyncio.get_running_loop()
        until = loop.time() + longest_s
        status: RunStatus | None = None
        while loop.time() < until:
            with suppress(Exception):
                status = await self.simulation.world.operator.run(run_id)
                if status.state in ("FINISHED", "FAILED", "STOPPED"):
                    return status
            await asyncio.sleep(LOOK_S)
        raise AssertionError(f"the run is not over after {longest_s:g} s: {status and (status.state, status.window)}")

    # Faults of parts

    async def kill(self, name: str, seconds: float) -> None:
        """kill -9; it is started again `seconds` later."""
        process = self.world._processes.pop(name)
        process.kill()
        await process.wait()
        await asyncio.sleep(seconds)
        await self.world.restart(name)

    async def freeze(self, name: str, seconds: float) -> None:
        """SIGSTOP, then SIGCONT: a process that is there and does nothing."""
        process = self.world._processes[name]
        os.kill(process.pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)

    async def restart(self, name: str, seconds: float) -> None:
        """SIGTERM, an orderly end, and a new process."""
        process = self.world._processes.pop(name)
        process.terminate()
        await process.wait()
        await asyncio.sleep(seconds)
        await self.world.restart(name)

    # Faults of servers. Started in this thread: the kernel ends a server with the thread that started it.

    async def kill_server(self, name: str, seconds: float) -> None:
        server = getattr(self, name)
        server.kill()
        await asyncio.sleep(seconds)
        server.start()

    async def restart_server(self, name: str, seconds: float) -> None:
        """SIGTERM, an orderly end, and a new start."""
        server = getattr(self, name)
        server.stop()
        await asyncio.sleep(seconds)
        server.start()

    async def freeze_server(self, name: str, seconds: float) -> None:
        """SIGSTOP of all its processes, then SIGCONT."""
        server = getattr(self, name)
        server.freeze()
        await asyncio.sleep(seconds)
        server.thaw()

    # Faults of a line: of the first site or a service to the broker, or (`postgres`) of all services to the database

    async def partition(self, whose: str, seconds: float) -> None:
        """Connections are reset, and new ones too."""
        line = self.simulation.lines[whose]
        line.block()
        await asyncio.sleep(seconds)
        line.unblock()

    async def dead_line(self, whose: str, seconds: float) -> None:
        """No byte passes, and nobody is told."""
        line = self.simulation.lines[whose]
        line.freeze()
        await asyncio.sleep(seconds)
        line.thaw()

    async def far_away(self, whose: str, seconds: float) -> None:
        """300 ms each way, and a line that stalls as one does that loses packets."""
        line, loop = self.simulation.lines[whose], asyncio.get_running_loop()
        line.delay_s, until = 0.3, loop.time() + seconds
        while loop.time() < until:
            await asyncio.sleep(0.7)
            line.freeze()
            await asyncio.sleep(0.3)
            line.thaw()
        line.delay_s = 0.0

    async def narrow(self, whose: str, seconds: float) -> None:
        """16 KiB a second: an update of 40 kB takes three of them."""
        self.simulation.lines[whose].rate = 16 * 1024
        await asyncio.sleep(seconds)
        self.simulation.lines[whose].rate = None

    # Faults of a machine

    async def fill_disk(self, name: str, seconds: float) -> None:
        balloon = self.simulation.folders[name] / "spool" / "balloon"
        with contextlib.suppress(OSError), balloon.open("wb") as file:  # closing it meets the full disk once more
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        await asyncio.sleep(seconds)
        balloon.unlink()

    async def set_clock(self, name: str, seconds: float) -> None:
        """The wall clock of the site or service is off by so much from now on."""
        settings = self.simulation.settings_of(name)
        settings.with_name(f"{settings.name}.clock_step").write_text(str(seconds))


def _lined(lines: Mapping[str, CuttingProxy]) -> type[_Simulation]:
    """A simulation writes its services' settings when it is made, so its class has the lines."""

    class Lined(_Simulation):
        pass

    Lined.lines = lines
    return Lined


@asynccontextmanager
async def yard_of(
    folder: Path,
    servers: tuple[PrivateRabbit, PrivatePostgres, PrivateRedis],
    rounds: int,
    *,
    small_spool: bool = False,
) -> AsyncIterator[Yard]:
    """A federation that has started and enrolled its sites; all of it is gone at the end."""
    rabbit, postgres, redis = servers
    work = folder / "work"
    work.mkdir()
    urls = {"amqp_url": rabbit.url, "database_url": postgres.url, "redis_url": redis.url}
    plan = noise_plan(folder, noise_study(rounds), processes=True, **urls)
    lines = {name: CuttingProxy("127.0.0.1", rabbit.port) for name in (*SERVICES, SITES[0])}
    lines["postgres"] = CuttingProxy("127.0.0.1", postgres.port)
    yard: Yard | None = None
    try:
        for line in lines.values():
            await line.start()
        simulation = _lined(lines)(plan, work)
        simulation.small_spool = small_spool
        simulation.folders = {}
        yard = Yard(simulation, rabbit, postgres, redis)
        with replaced(worlds, START_TIMEOUT_S=START_S):
            await simulation.start()
        yard.supervise()
        yield yard
    finally:
        if yard is not None:
            await yard.end()
        for line in lines.values():
            await line.close()
