"""The main loop of a service: one task group, an orderly end, and exit codes an operator can rely on."""

import asyncio
import ctypes
import gc
import itertools
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog
import uvloop

from cohortium_kit._heap import keep_freed_blocks
from cohortium_kit.bus import Bus
from cohortium_kit.clock import SystemClock, pause
from cohortium_kit.consumer import Consumer
from cohortium_kit.db import Database
from cohortium_kit.errors import AccessRefused, BusError, ConfigurationError
from cohortium_kit.outbox import Relay
from cohortium_messages.topology import Topology

log = structlog.get_logger(__name__)

T = TypeVar("T")

EXIT_CLEAN = 0
EXIT_FAILED = 1
EXIT_CONFIGURATION = 2
GRACE_S = 25.0
LONGEST_WAIT_S = 10.0
SETTLED_S = 10.0
"""So long after its start a service has imported and built what stays until its end."""

Part = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
"""A part of a service: runs until the event is set, then ends by itself. Its exception ends the service."""

_PR_SET_PDEATHSIG = 1


async def run_until_stopped(*parts: Part, stop: asyncio.Event, grace_s: float = GRACE_S) -> None:
    """Run the parts side by side until `stop` is set; parts still running `grace_s` later are cancelled.

    A part that fails sets `stop` for the others, and its exception is raised when all have ended: several as a group.
    A part may end early by itself; when all have ended this returns. Being cancelled sets `stop` and cancels them.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def watch() -> None:
        await stop.wait()
        _, late = await asyncio.wait(tasks, timeout=grace_s)
        for task in late:
            log.warning("part_cancelled", part=task.get_name())
            task.cancel()

    async def guarded(part: Part) -> None:
        try:
            await part(stop)
        except Exception:
            stop.set()
            raise

    tasks = {asyncio.create_task(guarded(part), name=getattr(part, "__qualname__", repr(part))) for part in parts}
    if not tasks:
        return
    watcher = asyncio.create_task(watch())
    try:
        await asyncio.wait(tasks)
    finally:
        if not all(task.done() for task in tasks):
            # We are cancelled. A part that loses its own cancellation somewhere still looks at this.
            stop.set()
        for task in (watcher, *tasks):
            task.cancel()
        await asyncio.gather(watcher, *tasks, return_exceptions=True)
    failures = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
    match failures:
        case []:
            return
        case [Exception() as only]:
            raise only
        case _:
            raise BaseExceptionGroup("parts failed", failures)


class ServiceApp:
    """What every service does around its own code, in the order that loses nothing.

    Start: bus, topology, relay, consumers, other parts; a broker that is away is waited for. End: consumers stop and
    drain, parts end, the relay sends what the last transactions left, then bus and database close.
    """

    def __init__(self, bus: Bus, db: Database, relay: Relay, topology: Topology | None = None) -> None:
        self.bus = bus
        self.db = db
        self.relay = relay
        self._topology = topology
        self._consumers: list[Consumer] = []
        self._parts: list[Part] = []

    def consume(self, consumer: Consumer) -> None:
        self._consumers.append(consumer)

    @property
    def consuming(self) -> bool:
        """Whether every consumer of this instance is subscribed; one that waits for its turn as standby is, too."""
        return all(consumer.active for consumer in self._consumers)

    def part(self, part: Part) -> None:
        """Add a timer, an HTTP server or another coroutine that runs until its event is set."""
        self._parts.append(part)

    async def run(self, stop: asyncio.Event, *, grace_s: float = GRACE_S) -> None:
        """Run until `stop` is set and everything is closed. Raises what a part failed with, after closing."""
        relay_stop = asyncio.Event()
        relaying = asyncio.create_task(self.relay.run(relay_stop), name="relay")
        relaying.add_done_callback(lambda _: stop.set())
        try:
            if not await self._declared(stop):
                return
            await run_until_stopped(*[one.run for one in self._consumers], *self._parts, stop=stop, grace_s=grace_s)
        finally:
            relay_stop.set()
            await asyncio.wait({relaying}, timeout=grace_s)
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)
            await self.bus.close()
            await self.db.close()
        if not relaying.cancelled():
            relaying.result()

    async def _declared(self, stop: asyncio.Event) -> bool:
        """Connect and declare, as long as it takes; False if we are told to stop before.

        Raises `AccessRefused` where there is a topology that our login may not declare: waiting would not help.
        """
        for attempt in itertools.count():
            try:
                await self.bus.connect()
                if self._topology is not None:
                    await self.bus.declare(self._topology)
                return True
            except BusError as error:
                if isinstance(error, AccessRefused) and self._topology is not None:
                    raise
                log.warning("broker_awaited", error=type(error).__name__, attempt=attempt)
            if await pause(SystemClock(), min(LONGEST_WAIT_S, 0.5 * 2 ** min(attempt, 8)), stop):
                return False
        raise AssertionError("unreachable")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on uvloop: a tenth less time for a secure round, measured by `make bench`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def main(service: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run a service until SIGTERM or SIGINT; returns its exit code: 0 clean, 1 failed, 2 configuration."""
    keep_freed_blocks()
    try:
        run_async(_with_signals(service))
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CONFIGURATION
    except Exception as error:
        log.critical("service_failed", error=type(error).__name__, exc_info=error)
        return EXIT_FAILED
    return EXIT_CLEAN


async def _with_signals(service: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    settling = loop.call_later(SETTLED_S, _settle)
    try:
        await service(stop)
    finally:
        settling.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _settle() -> None:
    """Tell the collector that what is there now stays: some 150,000 objects, modules and models above all, through
    which it would go again and again, for a tenth of a second in which the loop stands still."""
    gc.collect()
    gc.freeze()


def set_parent_death_signal(number: int = signal.SIGTERM, *, parent: int | None = None) -> None:
    """Ask the kernel to signal this process when its parent ends (Linux; elsewhere nothing happens).

    Call it first thing in the child. Give the parent's id if it may have ended in between: then we end at once.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)
