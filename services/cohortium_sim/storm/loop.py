"""An event loop whose time jumps to the next event, and on which a part of the federation can die between two steps.

Nothing waits for the real clock: when no task can run, time goes on to the next timer. Work for threads is done in
place. Every callback knows the life of the process it belongs to, by a context variable that tasks hand on to the
tasks they begin; a life that is over runs no further line, not even a `finally`, as after kill -9.
"""

import asyncio
import gc
import heapq
import inspect
import itertools
import logging
import selectors
import sys
import warnings
from asyncio import events
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakSet

T = TypeVar("T")

MOST_AWAITS_IN_FINALLY = 100
"""How often a `finally` that waits for something is told that nothing comes."""


class Stuck(Exception):
    """Nothing can ever run again: every task waits, and no timer is set."""


@dataclass(eq=False)
class Life:
    """One process of one part, from its start to its death. `part`: its name, `number`: how many there were before."""

    part: str
    number: int = 0
    dead: bool = False
    context: Context = field(init=False, repr=False)
    tasks: "WeakSet[asyncio.Task[Any]]" = field(default_factory=WeakSet, repr=False)

    def __post_init__(self) -> None:
        self.context = copy_context()
        self.context.run(_life.set, self)

    def end(self) -> None:
        """kill -9. Its tasks are kept until the loop's end: a coroutine that is forgotten runs its `finally`.

        The loop keeps them, for when the next life begins, nothing else may know of this one.
        """
        self.dead = True
        loop = asyncio.get_running_loop()
        if isinstance(loop, VirtualLoop):
            loop.graves += [task for task in self.tasks if not task.done()]

    def spawn(self, work: Coroutine[Any, Any, T], name: str | None = None) -> "asyncio.Task[T]":
        """Begin a task that lives and dies with this process."""
        return asyncio.get_running_loop().create_task(work, name=name, context=self.context.copy())


_life: ContextVar[Life | None] = ContextVar("life", default=None)


def current_life() -> Life | None:
    """Whose code is running; None for the simulator's own."""
    return _life.get()


async def never() -> None:
    """Wait for ever: where a process has just died."""
    await asyncio.get_running_loop().create_future()


def _is_dead(context: Context) -> bool:
    life = context.get(_life)
    return life is not None and life.dead


class _Handle(events.Handle):
    __slots__ = ()

    def _run(self) -> None:
        if not _is_dead(self._context):  # type: ignore[attr-defined]
            super()._run()


class _TimerHandle(events.TimerHandle):
    """Those of one moment run in the order in which they were set, whatever else the loop's heap holds."""

    __slots__ = ("number",)
    number: int

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, _TimerHandle):
            return NotImplemented
        return (self.when(), self.number) < (other.when(), other.number)

    def _run(self) -> None:
        if not _is_dead(self._context):  # type: ignore[attr-defined]
            super()._run()


def _new_task(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], *, context: Context | None = None
) -> "asyncio.Task[Any]":
    task = asyncio.Task(work, loop=loop, context=context)
    life = current_life() if context is None else context.get(_life)
    if life is not None:
        life.tasks.add(task)
    return task


class _NoWaiting(selectors.SelectSelector):
    """Reports no input ever, and moves the loop's time on instead of sleeping."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("every task waits and no timer is set")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module's text. `reached` is called after work that would have been done in a thread."""

    def __init__(self, reached: Callable[[str], Coroutine[Any, Any, object]]) -> None:
        self.reached = reached
        self._virtual = _NoWaiting()
        self._numbers = itertools.count()
        super().__init__(self._virtual)
        self._clock_resolution = 1e-6
        self.set_exception_handler(self._remember)
        self.set_task_factory(_new_task)  # type: ignore[arg-type]
        self.unhandled: list[dict[str, Any]] = []
        self.graves: list[asyncio.Task[Any]] = []
        """Tasks of dead lives."""

    def _remember(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.unhandled.append(context)

    def time(self) -> float:
        return self._virtual.now

    def _call_soon(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Context | None) -> events.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> events.TimerHandle:
        # As the base class does it, with a handle that knows its life and its turn.
        timer = _TimerHandle(when, callback, args, self, context)
        timer.number = next(self._numbers)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Any,  # noqa: ARG002 - the port
        func: Callable[..., T],
        *args: Any,
    ) -> "asyncio.Future[T]":
        """Do it in place, then pass the point `disk`."""

        async def work() -> T:
            done = func(*args)
            await self.reached("disk")
            return done

        return self.create_task(work())


def _close(work: Any) -> None:
    """End a coroutine here and now. One that is left to the collector ends where that runs, in another's test too."""
    for _ in range(MOST_AWAITS_IN_FINALLY):
        if inspect.getcoroutinestate(work) == inspect.CORO_CLOSED:
            return
        with suppress(Exception, asyncio.CancelledError):
            work.close()


@contextmanager
def virtual_loop(reached: Callable[[str], Coroutine[Any, Any, object]]) -> Iterator[VirtualLoop]:
    """A loop for one federation. What is left in it at the end is dropped; use `buried` around it."""
    loop = VirtualLoop(reached)
    asyncio.set_event_loop(loop)
    try:
        yield loop
    finally:
        asyncio.set_event_loop(None)
        left = asyncio.all_tasks(loop)
        loop._ready.clear()  # type: ignore[attr-defined]
        loop._scheduled.clear()  # type: ignore[attr-defined]
        loop.close()
        for task in left:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            _close(task.get_coro())
        loop.graves.clear()


@contextmanager
def buried() -> Iterator[None]:
    """Take back the memory of all dead parts at the end. Their `finally` blocks run then, and come to nothing: there is
    no loop any more, and what they say about it is of no interest."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    pool = logging.getLogger("sqlalchemy.pool")
    level = pool.level
    pool.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
        pool.setLevel(level)
        sys.unraisablehook = before
