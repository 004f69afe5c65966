"""A federation of real processes on servers of its own, and everything that can be done to it.

Four hospitals of the noise trainer, whose every update is known; the first one's connection goes through a proxy of
ours. Parts that end are started again, as a supervisor would.
"""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.integration.simulation.noise import SITES, noise_plan, noise_study

from cohortium_kit.testing.proxy import CuttingProxy
from cohortium_kit.testing.servers import PrivatePostgres, PrivateRabbit, PrivateRedis
from cohortium_messages.governance import Invitation
from cohortium_messages.status import RunStatus
from cohortium_sim.plan import SiteTable
from cohortium_sim.simulate import Simulation
from cohortium_sim.worlds import ManyProcesses

LOOK_S = 0.3
SPOOL_MIB = 24
"""The size of a spool's own file system, where it has one."""


REFUSED = ("permission denied", "not permitted", "superuser")


class NoRight(Exception):
    """The kernel does not let us do what the fault needs: no server that could be installed would help."""


class _Simulation(Simulation):
    """One whose first site dials the proxy, and has its spool on a small file system if it is to be filled."""

    proxy: CuttingProxy
    small_spool = False
    folders: dict[str, Path]

    def _connector_config(self, site: SiteTable, invitation: Invitation) -> Path:
        config = super()._connector_config(site, invitation)
        self.folders[site.name] = config.parent
        if site.name == SITES[0]:
            text = config.read_text()
            dialled = re.sub(r"@127\.0\.0\.1:[0-9]+", f"@127.0.0.1:{self.proxy.port}", text)
            assert dialled != text, "the settings name no broker on this machine"
            config.write_text(dialled)
            if self.small_spool:
                mount(config.parent / "spool", SPOOL_MIB)
        return config


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

    async def freeze_server(self, name: str, seconds: float) -> None:
        server = getattr(self, name)
        server.freeze()
        await asyncio.sleep(seconds)
        server.thaw()

    # Faults of the first site's line

    async def partition(self, _: str, seconds: float) -> None:
        """Connections are reset, and new ones too."""
        self.simulation.proxy.block()
        await asyncio.sleep(seconds)
        self.simulation.proxy.unblock()

    async def dead_line(self, _: str, seconds: float) -> None:
        """No byte passes, and nobody is told."""
        self.simulation.proxy.freeze()
        await asyncio.sleep(seconds)
        self.simulation.proxy.thaw()

    async def far_away(self, _: str, seconds: float) -> None:
        """300 ms each way, and a line that stalls as one does that loses packets."""
        proxy, loop = self.simulation.proxy, asyncio.get_running_loop()
        proxy.delay_s, until = 0.3, loop.time() + seconds
        while loop.time() < until:
            await asyncio.sleep(0.7)
            proxy.freeze()
            await asyncio.sleep(0.3)
            proxy.thaw()
        proxy.delay_s = 0.0

    async def narrow(self, _: str, seconds: float) -> None:
        """16 KiB a second: an update of 40 kB takes three of them."""
        self.simulation.proxy.rate = 16 * 1024
        await asyncio.sleep(seconds)
        self.simulation.proxy.rate = None

    # Faults of a site's machine

    async def fill_disk(self, name: str, seconds: float) -> None:
        balloon = self.simulation.folders[name] / "spool" / "balloon"
        with contextlib.suppress(OSError), balloon.open("wb") as file:  # closing it meets the full disk once more
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        await asyncio.sleep(seconds)
        balloon.unlink()

    async def set_clock(self, name: str, seconds: float) -> None:
        """The site's wall clock is off by so much from now on."""
        (self.simulation.folders[name] / "clock_step").write_text(str(seconds))


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
    proxy = CuttingProxy("127.0.0.1", rabbit.port)
    await proxy.start()
    simulation = _Simulation(plan, work)
    simulation.proxy, simulation.small_spool, simulation.folders = proxy, small_spool, {}
    yard = Yard(simulation, rabbit, postgres, redis)
    try:
        await simulation.start()
        yard.supervise()
        yield yard
    finally:
        await yard.end()
        await proxy.close()
