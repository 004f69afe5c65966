"""One part of a federation, a service or a hospital's connector, over all its lives."""

import asyncio
import importlib
import random
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import Context
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from cohortium_connector.training.jobs import Answer, Failure, Job, Refusal
from cohortium_connector.training.runner import TrainingFailed, TrainingRefused
from cohortium_connector.training.work import Desk
from cohortium_kit.bus import Delivery, Outgoing
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.testing.clock import START
from cohortium_sim.storm.line import Course, Line
from cohortium_sim.storm.loop import Life, current_life, never
from cohortium_sim.storm.operations import Operation, Point

NAMESPACE = "storm"
TRAINING_S = 0.2
LATER_S = 86400.0
"""Federations begin a day after their ground was made: nothing of it is in force any more, no lease and no presence."""
FATAL = frozenset({"kill", "drop"})
OF_THE_MESSAGE = frozenset({"confirm_lost", "not_taken", "vanish", "late", "twice"})


class PartClock:
    """The loop's time; `step_s` is how far the part's wall clock is off from it, and from `START`."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.step_s = step_s

    def now(self) -> datetime:
        return START + timedelta(seconds=self.monotonic() + self.step_s)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class LivingClock(PartClock):
    """The clock of the machine whose code is running: what a part that makes a clock of its own gets."""

    def __init__(self, parts: Mapping[str, "Part"], outside: PartClock) -> None:
        super().__init__(outside.step_s)
        self._parts = parts

    def now(self) -> datetime:
        life = current_life()
        return super().now() if life is None else self._parts[life.part].clock.now()


class Trainer:
    """The training process, in place: the real jobs, without a process. Takes virtual seconds."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._desk = Desk(isolated=True)

    async def run(self, job: Job, **_: Any) -> Any:
        await asyncio.sleep(self._seconds())
        answer: Answer = self._desk.answer(job)
        match answer:
            case Refusal():
                raise TrainingRefused(answer.code, answer.column, answer.count)
            case Failure():
                raise TrainingFailed("the job failed")
            case _:
                return answer

    async def aclose(self) -> None:
        return


class Stage(Protocol):
    """What a part needs of its federation."""

    broker: MemoryBroker
    chance: random.Random

    def act(self, part: "Part", operation: Operation) -> None:
        """Do to the part what the operation says."""
        ...

    def note(self, text: str) -> None: ...
    def said(self, part: "Part", outgoing: Outgoing) -> None: ...
    def ended(self, part: "Part", life: Life, error: BaseException | None) -> None:
        """A life ended by itself."""
        ...


class Part(Course):
    """Started as often as it takes; its files and its clock outlive each life."""

    def __init__(self, stage: Stage, name: str, role: str, settings: Any, operations: tuple[Operation, ...]) -> None:
        self.stage = stage
        self.name = name
        self.role = role
        self.settings = settings
        self.clock = PartClock(LATER_S)
        self.slow_s = 0.0
        self.gone = False
        self.life: Life | None = None
        self.line: Line | None = None
        self.inner: MemoryBus | None = None
        self.app: Any = None
        self.stop = asyncio.Event()
        self._lives = 0
        self._passed: Counter[Point] = Counter()
        self._waiting: dict[tuple[Point, int], list[Operation]] = {}
        for one in operations:
            self._waiting.setdefault((one.point, one.nth), []).append(one)

    @property
    def is_site(self) -> bool:
        return self.role == "connector"

    @property
    def data_dir(self) -> Path:
        return Path(self.settings.spool_dir if self.is_site else self.settings.data_dir)

    @property
    def database(self) -> str:
        return str(self.settings.database_url).removeprefix("sqlite:///")

    # Lives

    def start(self) -> None:
        """Begin a life. To be called outside of any."""
        life = Life(self.name, self._lives)
        self._lives += 1
        self.life, self.app, self.stop = life, None, asyncio.Event()
        self.inner = MemoryBus(self.stage.broker, NAMESPACE)
        self.line = Line(self.inner, self, self.stage.chance)
        task = life.spawn(self._live(life), name=self.name)
        # Not in the part's own context: there it would die with it.
        task.add_done_callback(lambda done: self._over(life, done), context=Context())

    async def _live(self, life: Life) -> None:
        app_type = importlib.import_module(f"cohortium_{self.role}.app").App
        more = {"make_runner": self._trainer} if self.is_site else {}
        app = await app_type.build(self.settings, bus=self.line, clock=self.clock, **more)
        if self.life is life:
            self.app = app
        await app.run(self.stop)

    def _over(self, life: Life, task: "asyncio.Task[None]") -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if not life.dead:
            life.end()
            self.disconnect()
            self.stage.ended(self, life, error)

    def _trainer(self, _: Path) -> Trainer:
        return Trainer(lambda: TRAINING_S + self.slow_s)

    def disconnect(self) -> None:
        """What the broker sees of a death: the connection is closed, and what was held goes back."""
        if self.inner is not None:
            self.inner.lose()
            self.stage.broker.forget(self.inner)
            self.inner = None

    # The course

    async def reach(self, point: Point) -> list[Operation]:
        """Pass a point; see `operations`."""
        self._passed[point] += 1
        life = self.life
        due = self._waiting.pop((point, self._passed[point]), None)
        if due is None:
            if point in ("commit", "committed"):
                await asyncio.sleep(0)
            return []
        about = []
        for one in due:
            self.stage.note(f"{self.name}: {one}")
            if one.action in OF_THE_MESSAGE:
                about.append(one)
            else:
                self.stage.act(self, one)
        if life is not None and life.dead:
            await never()
        return about

    def said(self, outgoing: Outgoing) -> None:
        self.stage.said(self, outgoing)

    def heard(self, delivery: Delivery) -> None:
        # Which of the intake queues a chunk takes follows from its window's id, which is drawn anew in each process.
        queue = "chunks" if delivery.queue.startswith("chunks.") else delivery.queue
        self.stage.note(f"{self.name} < {delivery.type} from {queue}")
