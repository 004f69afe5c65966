"""Strict sessions of this site: from an accepted roster to the session's end, each beside the others.

A session lives in the memory of this process alone. Its masks are bound to its steps, and what was masked for a step is
remembered nowhere else; so a process that begins anew leaves what the one before it was in (`leave_old_sessions`), and
the site takes part again in the next session, under new keys.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import structlog

from cohortium_connector.desk import Desk
from cohortium_connector.domain.commands import SessionLost
from cohortium_connector.domain.window_states import InSession
from cohortium_connector.downloads import Downloads, ModelNotObtained, ModelUnfit
from cohortium_connector.looking import Act
from cohortium_connector.seats import MayNotPlay, Seat, take_seat
from cohortium_connector.steps import STRANGERS, SessionOver, StepPlace, Steps
from cohortium_connector.store import studies, windows
from cohortium_connector.store.windows import WindowRecord
from cohortium_connector.trainers import RunTrainers
from cohortium_connector.training.jobs import TreesDone
from cohortium_connector.training.live_wire import AGREE, LiveBridge, LiveFault, Request
from cohortium_connector.training.runner import (
    IsolationUnavailable,
    TrainerCrashed,
    TrainerTimeout,
    TrainingFailed,
    TrainingRefused,
    TrainingStopped,
)
from cohortium_connector.waiting import Bell
from cohortium_kit.bus import Ack, Bus, Dead, Delivery, Disposition
from cohortium_kit.clock import pause
from cohortium_kit.db import Database, Tx
from cohortium_kit.logging import allow_fields
from cohortium_messages.events import FaultSeen
from cohortium_messages.ids import RunId
from cohortium_protocol.errors import FrameRefused, LocalFault, RemoteFault
from cohortium_protocol.strict.frames import peek_result

log = structlog.get_logger(__name__)
allow_fields("step", "trees")
LONGEST_S = 30 * 86400.0
"""No session lasts longer, whatever its steps take. What ends an idle one is the window's expiry."""
LOOK_S = 0.25
"""How often a session's keeper looks whether the broker came back, or a step must be sent again."""
LONGEST_PUT_OFF_S = 60.0
STOP_GRACE_S = 30.0
"""How long a training process may go on computing when its session is over, before it is ended."""
TREES = b"T"
"""First byte of an agreement about the trees of one boosting round."""
CLOSED = "SESSION_CLOSED"
FAILED = "TRAINING_FAILED"


@dataclass(slots=True)
class Live:
    """A session that is being played. `rounds`: boosting rounds of the run that stand."""

    seat: Seat
    steps: Steps
    training: asyncio.Task[TreesDone]
    rounds: int
    reported: set[str] = field(default_factory=set)

    @property
    def progress(self) -> float:
        """0 to 1."""
        return min(1.0, self.rounds / self.seat.spec.rounds)


class Sessions:
    """Begins what the spool says is to be played, and ends what it says is over."""

    def __init__(
        self, desk: Desk, db: Database, bus: Bus, downloads: Downloads, bell: Bell, run_trainers: RunTrainers
    ) -> None:
        self._desk = desk
        self._db = db
        self._bus = bus
        self._downloads = downloads
        self._bell = bell
        self._run_trainers = run_trainers
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._live: dict[bytes, Live] = {}

    @property
    def live(self) -> tuple[Live, ...]:
        """The sessions that are being played now."""
        return tuple(self._live.values())

    async def leave(self) -> None:
        """Leave the sessions that run, in an orderly stop: the aggregator is told."""
        for window_id in self._tasks:
            live = self._live.get(window_id)
            await self._lose(window_id, "RESTARTED", 0 if live is None else live.steps.step)

    async def aclose(self) -> None:
        """End what runs, and the processes."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._run_trainers.aclose()

    def collect(self) -> None:
        """Nothing: a session that was played stays known until its window ends."""

    async def see(self, tx: Tx, opened: Sequence[WindowRecord]) -> Act:
        """End what is over, begin what has its roster and its key."""
        playing = [window for window in opened if isinstance(window.state, InSession)]
        due = [
            window
            for window in playing
            if window.window_id not in self._tasks
            and (await windows.material(tx, window.window_id)).session_key is not None
        ]
        runs = self._run_trainers.runs
        over = runs - await studies.all_open_runs(tx) if runs else frozenset()
        return partial(self._act, playing, due, over)

    async def _act(self, playing: Sequence[WindowRecord], due: Sequence[WindowRecord], over: frozenset[RunId]) -> None:
        self._end_unwanted(frozenset(window.window_id for window in playing))
        for window in due:
            self._tasks[window.window_id] = asyncio.create_task(self._drive(window), name="strict-session")
        self._run_trainers.end(over - {live.seat.run_id for live in self._live.values()})

    def _end_unwanted(self, wanted: frozenset[bytes]) -> None:
        """A session that was played stays in the list until its window ends, so that it is not begun again. An error
        that no rule covers ends the service, loudly."""
        for window_id, task in list(self._tasks.items()):
            if task.done():
                if not task.cancelled():
                    task.result()
                if window_id not in wanted:
                    del self._tasks[window_id]
            elif window_id not in wanted:
                live = self._live.get(window_id)
                if live is None:
                    task.cancel()  # it still waits for a model
                else:
                    live.steps.end(CLOSED)

    # One session

    async def _drive(self, window: WindowRecord) -> None:
        """Play a session to its end, and say so if it ended by this site."""
        step = 0
        try:
            seat = await take_seat(self._desk, self._db, self._downloads, window.window_id)
            if seat is None:
                return
            code, step = await self._play(seat)
        except MayNotPlay as refusal:
            code = refusal.code
        except RemoteFault as fault:
            code = fault.code
            await self._report(window, fault.code)
        except ModelNotObtained:
            code = "BASE_MODEL_UNKNOWN"
        except ModelUnfit:
            code = "MODEL_REFUSED"
        if code:
            await self._lose(window.window_id, code, step)

    async def _play(self, seat: Seat) -> tuple[str, int]:
        """The code of the end by this site, empty for a session that was played to its end; and the step it was at."""
        desk, window_id = self._desk, seat.window.window_id
        place = StepPlace(window_id, desk.identity.site_id)
        steps = Steps(seat.session, place, self._bus, desk.clock, desk.settings.step_silence_s)
        bridge, childs = LiveBridge.pair()
        running = self._run_trainers.of(seat.run_id).run(seat.job, timeout_s=LONGEST_S, bridge=childs)
        live = Live(seat, steps, asyncio.create_task(running, name="trees"), seat.spec.trees_done)
        self._live[window_id] = live
        keeper = asyncio.create_task(self._keep(live), name="session-keeper")
        log.info("session_begun", study=seat.window.study_id, window=window_id.hex(), trees=live.rounds)
        try:
            await self._serve(live, bridge)
            await asyncio.wait({live.training})
            if keeper.done():
                keeper.result()
            code = self._outcome(live)
            await self._put_off(live)
        finally:
            del self._live[window_id]
            bridge.close()
            keeper.cancel()
            live.training.cancel()
            await steps.aclose()
            await asyncio.gather(keeper, live.training, return_exceptions=True)
        return code, steps.step

    async def _serve(self, live: Live, bridge: LiveBridge) -> None:
        """Answer the training process until it hangs up."""
        try:
            while (request := await bridge.recv()) is not None:
                try:
                    answer = await self._ask(live, request)
                except SessionOver as over:
                    await bridge.stop(over.code)
                else:
                    await bridge.reply(request.kind, answer)
        except LiveFault as fault:
            log.error("training_failed", error=type(fault).__name__, reason=str(fault))
            live.steps.end(FAILED)
            live.training.cancel()

    async def _ask(self, live: Live, request: Request) -> bytes:
        try:
            answer = await live.steps.ask(request.kind, request.payload)
        except (LocalFault, ValueError) as fault:
            log.error("training_failed", error=type(fault).__name__, reason=str(fault))
            live.steps.end(FAILED)
            raise SessionOver(FAILED) from None
        if request.kind == AGREE and request.payload[:1] == TREES:
            live.rounds += 1
        return answer

    def _outcome(self, live: Live) -> str:
        """What the training process says about its end, as the code that others may know; empty for a good one."""
        window = live.seat.window
        if live.training.cancelled():
            return live.steps.over or FAILED
        error = live.training.exception()
        match error:
            case None:
                log.info("session_played", study=window.study_id, window=window.window_id.hex(), trees=live.rounds)
                return ""
            case TrainingStopped():
                return live.steps.over or FAILED
            case TrainingRefused():
                log.warning("data_refused", study=window.study_id, code=error.code, name=error.column)
                return error.code
            case TrainingFailed() | TrainerCrashed() | TrainerTimeout() | IsolationUnavailable():
                log.error("training_failed", study=window.study_id, error=type(error).__name__, reason=str(error))
                return live.steps.over or FAILED
            case _:
                raise error

    async def _keep(self, live: Live) -> None:
        """Beside the steps: send again what may be lost, put off the window's expiry while results come, and end a
        training process that does not end by itself."""
        clock, steps = self._desk.clock, live.steps
        put_off_s = min(LONGEST_PUT_OFF_S, live.seat.window.params.deadlines.expire_s / 4)
        put_off_at, step = clock.monotonic(), 0
        while not steps.over:
            await pause(clock, LOOK_S)
            steps.look_after(connected=self._bus.connected)
            if steps.step != step and clock.monotonic() - put_off_at >= put_off_s:
                put_off_at, step = clock.monotonic(), steps.step
                await self._put_off(live)
        await clock.sleep(STOP_GRACE_S)
        live.training.cancel()

    async def _put_off(self, live: Live) -> None:
        """The session goes on, or waits for its window's end: it is given up only after a silence from now on."""
        window, limits = live.seat.window, live.seat.window.params.deadlines
        until = self._desk.clock.now() + timedelta(seconds=limits.expire_s + 2 * live.seat.spec.step_s)
        await self._db.run(
            "put_off_expiry", lambda tx: windows.put_off_expiry(tx, window.window_id, until, by="session")
        )

    async def _lose(self, window_id: bytes, code: str, step: int) -> None:
        """This site ends the session, if it is not over already: the aggregator is told why."""

        async def lose(tx: Tx) -> WindowRecord | None:
            window = await windows.find_window(tx, window_id)
            if window is None or not isinstance(window.state, InSession):
                return None
            await self._desk.step(tx, window, SessionLost(code, step), by="lose_session")
            return window

        lost = await self._db.run("lose_session", lose)
        if lost is not None:
            log.warning("session_left", study=lost.study_id, window=window_id.hex(), code=code, step=step)
            self._bell.ring()

    # Results

    async def on_frame(self, delivery: Delivery) -> Disposition:
        """One frame of a result: the handler of the site's queue for them. What is for no session here is dropped."""
        try:
            live = self._live.get(peek_result(delivery.body).window_id)
        except FrameRefused as fault:
            return Dead(fault.code.lower())
        if live is None:
            return Ack()
        try:
            live.steps.take(delivery.body)
        except RemoteFault as fault:
            log.warning("result_refused", code=fault.code)
            if fault.code not in live.reported:
                live.reported.add(fault.code)
                await self._report(live.seat.window, fault.code)
            return Dead(fault.code.lower()) if isinstance(fault, STRANGERS) else Ack()
        return Ack()

    async def _report(self, window: WindowRecord, code: str) -> None:
        """The other side broke the protocol: to the audit log."""
        fault = FaultSeen(key_id="service:aggregator", code=code, window_id=window.window_id)
        await self._db.run("report_session", lambda tx: self._desk.record(tx, fault, window.study_id))


async def leave_old_sessions(desk: Desk, db: Database) -> int:
    """At the start: what was masked in a session before is not known any more, so every session is left, whatever it
    stood at. Returns how many."""

    async def leave(tx: Tx) -> int:
        left = [window for window in await windows.open_windows(tx) if isinstance(window.state, InSession)]
        for window in left:
            await desk.step(tx, window, SessionLost("RESTARTED", 0), by="leave_old_sessions")
        return len(left)

    left = await db.run("leave_old_sessions", leave)
    if left:
        log.warning("sessions_left", count=left, reason="a strict session does not outlive its process")
    return left
