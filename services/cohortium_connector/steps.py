"""One strict session on the wire: what the training process asks, masked and sent; the result, opened and given back.

A session makes some dozens of steps for each tree, and each one is waited for at every hospital. So nothing here
touches the database or the log while all is well, and nobody waits for the broker's confirm: a publish that fails is
repeated beside the waiting for the result. What is repeated are always the same bytes (rule R1): `SiteSession` makes a
step's frames once, and they are kept until the step's result is in.
"""

import asyncio
from dataclasses import dataclass
from functools import partial

import numpy as np
import structlog

from cohortium_connector.training.live_wire import AGREE, RELAY, SUM
from cohortium_connector.waiting import backoff_s
from cohortium_kit.bus import Bus, Outgoing
from cohortium_kit.clock import Clock
from cohortium_kit.errors import BusError
from cohortium_messages.envelope import CHUNK_CONTENT_TYPE
from cohortium_messages.ids import SiteId
from cohortium_messages.topology import UPLINK, session_partition, steps_key
from cohortium_protocol.errors import BadSignature, FrameRefused, OutOfOrder, ProtocolError, WrongWindow
from cohortium_protocol.strict.session import Answer, SiteSession

log = structlog.get_logger(__name__)
FRAME_TYPE = "cohortium.strict.step.v1"
PUBLISH_TIMEOUT_S = 10.0
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 5.0
LONGEST_SILENCE_S = 30.0
THREAD_BYTES = 1 << 19
"""A payload from this size on is masked in a thread: it would hold up other sessions for milliseconds."""
STRANGERS = (BadSignature, FrameRefused, WrongWindow)
"""Faults of a frame that the aggregator did not make for this session: it is dropped, and the session goes on."""


@dataclass(frozen=True, slots=True)
class StepPlace:
    """Whose steps they are: the session's window and this site."""

    window_id: bytes
    site_id: SiteId

    @property
    def routing_key(self) -> str:
        """All steps of a session go through one intake queue."""
        return steps_key(self.site_id, session_partition(self.window_id))


class SessionOver(Exception):
    """No step of this session follows any more; the code says why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Steps:
    """Asks one step after the other. `take` gets the result frames from the consumer of the site's results.

    Between `ask` and the result at most one step is in hand, so memory is one payload, whatever the session's length.
    """

    def __init__(self, session: SiteSession, place: StepPlace, bus: Bus, clock: Clock, silence_s: float) -> None:
        """`silence_s`: after so long without an answer a step is sent again; the next time after twice as long."""
        self._session = session
        self._place = place
        self._key = place.routing_key
        self._bus = bus
        self._clock = clock
        self._waiting: asyncio.Future[Answer] | None = None
        self._publishing: dict[str, asyncio.Task[None]] = {}
        self._over = ""
        self._usual_s = silence_s
        self._silence_s = silence_s
        self._sent_at = 0.0
        self._connected = True

    @property
    def step(self) -> int:
        """The step that is open, or comes next; also how many were answered."""
        return self._session.step

    @property
    def over(self) -> str:
        """The code of the session's end, empty while it goes on."""
        return self._over

    async def ask(self, kind: int, payload: bytes) -> bytes:
        """One question of the training process (`live_wire`), and its answer's payload, however long that takes.

        Raises `SessionOver` when the session has ended for this site, at once and for every question after. Raises
        `ValueError` for a question that no session of this study can have, a `LocalFault` where it would break the
        protocol.
        """
        if self._over:
            raise SessionOver(self._over)
        if len(payload) < THREAD_BYTES:
            frames = self._frames(kind, payload)
        else:
            frames = await asyncio.to_thread(self._frames, kind, payload)
        if self._over:
            raise SessionOver(self._over)
        self._waiting = asyncio.get_running_loop().create_future()
        self._silence_s = self._usual_s
        self._send(frames)
        try:
            answer = await self._waiting
        finally:
            self._waiting = None
        return answer.chain if kind == AGREE else answer.payload

    def _frames(self, kind: int, payload: bytes) -> tuple[bytes, ...]:
        if kind == SUM:
            return self._session.sum(np.frombuffer(payload, dtype="<i8").astype(np.int64, copy=False))
        if kind == RELAY:
            return self._session.relay(payload)
        if kind == AGREE:
            return self._session.agree(payload)
        raise ValueError(f"kind {kind} is no step of a session")

    def take(self, frame: bytes) -> None:
        """A result frame for this window. Raises one of `STRANGERS` for a frame to be dropped, any other `RemoteFault`
        where the aggregator broke the protocol: the session is over then. Frames after its end are not looked at."""
        if self._over:
            return
        try:
            answer = self._session.take(frame)
        except STRANGERS:
            raise
        except OutOfOrder:
            return
        except ProtocolError as fault:
            self.end(fault.code)
            raise
        if answer is not None and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(answer)

    def end(self, code: str) -> None:
        """No more steps: who waits for one, or asks again, hears `SessionOver`. The first code counts."""
        if self._over:
            return
        self._over = code
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(SessionOver(code))
        for task in self._publishing.values():
            task.cancel()

    # Sending

    def look_after(self, *, connected: bool) -> None:
        """To be called a few times a second: send the open step again after a broken connection and after a silence.

        What was taken by the broker may be lost in it, or in the aggregator; or the result may be.
        """
        back, self._connected = connected and not self._connected, connected
        if self._waiting is None or self._over:
            return
        silent = self._clock.monotonic() - self._sent_at >= self._silence_s
        if silent:
            self._silence_s = min(LONGEST_SILENCE_S, 2 * self._silence_s)
        if back or (silent and connected):
            self._send(self._session.unanswered)

    def _send(self, frames: tuple[bytes, ...]) -> None:
        self._sent_at = self._clock.monotonic()
        for part, frame in enumerate(frames):
            message_id = f"{self._place.window_id.hex()}-{self._session.step}-{part}"
            if message_id not in self._publishing:
                task = asyncio.create_task(self._publish(message_id, frame, self._session.step), name="step")
                self._publishing[message_id] = task
                task.add_done_callback(partial(self._published, message_id))

    def _published(self, message_id: str, task: asyncio.Task[None]) -> None:
        """An error that no rule covers must not leave the session waiting for a frame that never left."""
        self._publishing.pop(message_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("step_not_sent", window=self._place.window_id.hex(), error=type(error).__name__, exc_info=error)
            self.end("TRAINING_FAILED")

    async def _publish(self, message_id: str, frame: bytes, step: int) -> None:
        """Hand a frame over, again after a pause while it is refused and its step is open."""
        outgoing = Outgoing(
            exchange=UPLINK.name,
            routing_key=self._key,
            body=frame,
            message_id=message_id,
            type=FRAME_TYPE,
            content_type=CHUNK_CONTENT_TYPE,
            persistent=False,
        )
        attempt = 0
        while self._session.step == step:
            try:
                await self._bus.publish(outgoing, timeout_s=PUBLISH_TIMEOUT_S)
            except BusError as error:
                log.info("step_not_taken", window=self._place.window_id.hex(), step=step, error=type(error).__name__)
                await self._clock.sleep(backoff_s(attempt, FIRST_WAIT_S, LONGEST_WAIT_S))
                attempt += 1
            else:
                return

    async def aclose(self) -> None:
        """Nothing is sent any more when this returns."""
        self.end("SESSION_CLOSED")
        await asyncio.gather(*self._publishing.values(), return_exceptions=True)
