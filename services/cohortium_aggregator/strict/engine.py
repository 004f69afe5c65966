"""Frames of strict sessions, taken inline: no database, until a round is finished or something is wrong."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from cohortium_aggregator.context import Context
from cohortium_aggregator.domain.strict_states import Stop
from cohortium_aggregator.refusing import refuse, unheard
from cohortium_aggregator.store.rounds import HEADER, Round
from cohortium_aggregator.strict.agreements import AgreementRefused, End, Grown, Header, agreement
from cohortium_aggregator.strict.courier import Courier
from cohortium_aggregator.strict.ledger import Ledger, SessionGone, UnknownSession
from cohortium_aggregator.strict.session import Broken, HeldSession
from cohortium_kit.bus import Ack, Bus, Delivery, Disposition, Requeue
from cohortium_kit.errors import DatabaseError, Poison
from cohortium_protocol.errors import RemoteFault
from cohortium_protocol.signing import site_key_id
from cohortium_protocol.strict.collector import StepResult, Taken
from cohortium_protocol.strict.frames import FrameHeader, peek_step
from cohortium_protocol.strict.steps import Kind

log = structlog.get_logger(__name__)

FINAL = frozenset({"AGREEMENT_REFUSED", "MODEL_REFUSED", "TOO_MANY_STEPS"})
"""Codes after which no other session could do better."""
SESSION_LOST = Broken("SESSION_LOST")
PAUSE_S = 0.5
HOLD_S = 2.0
HOLD_LOOK_S = 0.05
MOST_HELD_BACK = 16
"""Frames of one sender that wait for a window that nobody knows yet."""
KNOWN_ENDS = 1024


class Engine:
    """Holds sessions. `handle` takes frames; `tick` does what time brings; `watch` looks whether records have changed.

    A step's result goes out as soon as the last site's frame is in. What all sites agree to is on record before they
    are told so, and until then no site can be late.
    """

    def __init__(self, ctx: Context, bus: Bus) -> None:
        self._ctx = ctx
        self._courier = Courier(bus)
        self._ledger: Ledger | None = None
        self._held: dict[bytes, HeldSession] = {}
        self._taking: dict[bytes, asyncio.Task[HeldSession | None]] = {}
        self._held_back: Counter[str] = Counter()
        self._ended: OrderedDict[bytes, None] = OrderedDict()
        self._work: set[asyncio.Task[None]] = set()
        self._closing = False

    def load(self, place: str) -> None:
        """From now on sessions are held in the name of this place."""
        self._ledger = Ledger(self._ctx, place)

    @property
    def ledger(self) -> Ledger:
        if self._ledger is None:
            raise AssertionError("the engine was not loaded")
        return self._ledger

    async def settle(self) -> None:
        """Return when nothing is being written any more."""
        while self._work:
            await asyncio.wait(set(self._work))

    async def close(self) -> None:
        """Give up every session: what stands is on record, and another session goes on from there."""
        for held in list(self._held.values()):
            self._break(held, SESSION_LOST)
        self._closing = True
        if self._work:
            await asyncio.wait(set(self._work), timeout=PAUSE_S * 10)
        left = list(self._work)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._courier.close()

    # Frames

    async def handle(self, delivery: Delivery) -> Disposition:
        """One frame. A frame of a session that is over is taken and forgotten."""
        if unheard(self._ctx, delivery):
            return Ack()
        try:
            header = peek_step(delivery.body)
            held = self._held.get(header.window_id) or await self._find(delivery, header)
            if held is not None and not held.over:
                self._take(held, delivery, header)
            return Ack()
        except (Poison, RemoteFault) as fault:
            return await refuse(self._ctx, delivery, fault)
        except DatabaseError as error:
            log.warning("session_not_taken", error=type(error).__name__)
            await asyncio.sleep(PAUSE_S)
            return Requeue()

    def _take(self, held: HeldSession, delivery: Delivery, header: FrameHeader) -> None:
        if delivery.routing_key != held.routing_key(header.index):
            raise Poison("wrong_routing_key")
        if site_key_id(held.site(header.index)) not in self._ctx.keyring.keys:
            raise Poison("site_revoked")
        part = held.open(delivery.body)
        taken = held.take(part, len(delivery.body))
        match taken:
            case StepResult(kind=Kind.AGREE):
                held.writing = True
                self._spawn(self._agree(held, taken))
            case StepResult():
                self._show(held, taken)
            case Broken():
                self._break(held, taken)
            case Taken.BEHIND if header.step == held.step - 1 and header.part == header.parts - 1 and not held.writing:
                name, site = f"{held.name}-{header.step}", held.site(header.index)
                self._courier.show(name, held.last_frames, [site], lambda: False)
            case Taken():
                pass

    def _show(self, held: HeldSession, result: StepResult) -> None:
        frames = held.seal(result)
        held.deadline = self._ctx.clock.monotonic() + held.material.spec.step_s
        step, sites = result.step, held.material.session.sites
        self._courier.show(f"{held.name}-{step}", frames, sites, lambda: held.step == step + 1)

    # Agreements

    async def _agree(self, held: HeldSession, result: StepResult) -> None:
        """Write down what the sites agreed to, then tell them."""
        material = held.material
        try:
            said = await asyncio.to_thread(agreement, material.study, material.rules, result.agreed)
            await self._stubbornly(lambda: self._record(held, said, result))
        except RemoteFault as fault:
            self._break(held, Broken(fault.code))
            return
        except SessionGone:
            self._drop(held)
            return
        held.writing = False
        self._show(held, result)
        if isinstance(said, End):
            self._drop(held)

    async def _record(self, held: HeldSession, said: Header | Grown | End, result: StepResult) -> None:
        ledger, window_id, chain = self.ledger, held.window_id, result.chain_after
        match said:
            case Header(content=content):
                await ledger.keep(window_id, Round(HEADER, content, chain), held.progress)
            case Grown(content=content):
                progress, most = held.with_round(chain), held.material.spec.rounds
                if progress.trees > most:
                    raise AgreementRefused(f"round {progress.trees} of {most}")
                await ledger.keep(window_id, Round(progress.trees, content, chain), progress)
                held.recorded(progress)
            case End(keep=keep, rounds=rounds):
                if rounds != held.progress.trees:
                    raise AgreementRefused(f"an end after {rounds} rounds; there are {held.progress.trees}")
                await ledger.finish(window_id, keep, held.progress)

    async def _stubbornly(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write, as often as it takes while the database is away. Raises `SessionGone` when we are told to stop."""
        while True:
            try:
                await write()
                return
            except DatabaseError as error:
                log.warning("session_waits", error=type(error).__name__)
                if self._closing:
                    raise SessionGone from None
                await asyncio.sleep(PAUSE_S)

    # Beginning and end

    async def _find(self, delivery: Delivery, header: FrameHeader) -> HeldSession | None:
        """The session, which is ours from now on; None if it is over. A window that nobody knows is waited for a
        little, since its record may be on its way."""
        window_id, sender = header.window_id, delivery.routing_key
        until = asyncio.get_running_loop().time() + HOLD_S
        while window_id not in self._ended:
            try:
                return await self._taken(window_id)
            except UnknownSession:
                if asyncio.get_running_loop().time() > until or self._held_back[sender] >= MOST_HELD_BACK:
                    raise Poison("unknown_window") from None
            self._held_back[sender] += 1
            await asyncio.sleep(HOLD_LOOK_S)
            self._held_back[sender] -= 1
        return None

    async def _taken(self, window_id: bytes) -> HeldSession | None:
        """Frames of all sites come at once: the first one takes the session for all."""
        task = self._taking.get(window_id)
        if task is None:
            task = asyncio.create_task(self._take_session(window_id), name=f"take:{window_id.hex()}")
            self._taking[window_id] = task
            task.add_done_callback(lambda done: self._no_longer_taking(window_id, done))
        return await asyncio.shield(task)

    def _no_longer_taking(self, window_id: bytes, done: "asyncio.Task[HeldSession | None]") -> None:
        self._taking.pop(window_id, None)
        if not done.cancelled():
            done.exception()  # those who wait for it have it too

    async def _take_session(self, window_id: bytes) -> HeldSession | None:
        if not await self.ledger.knows(window_id):
            raise UnknownSession
        material = await self.ledger.take(window_id)
        if material is None:
            self._remember_end(window_id)
            return None
        held = HeldSession(material, self._ctx.seal_key, self._ctx.key)
        now = self._ctx.clock.monotonic()
        held.deadline, held.renew_at = now + material.begin_s, now + self._renewal
        self._held[window_id] = self._ctx.held[window_id] = held
        log.info("session_taken", window=window_id.hex(), sites=held.view.n, rounds=held.progress.trees)
        return held

    def _break(self, held: HeldSession, broken: Broken) -> None:
        if not held.over:
            held.over = True
            self._spawn(self._stop(held, broken))

    async def _stop(self, held: HeldSession, broken: Broken) -> None:
        outcome: Stop = "FAILED" if broken.code in FINAL else "PAUSED"
        log.info("session_stopped", window=held.window_id.hex(), outcome=outcome, reason=broken.code)
        try:
            await self._stubbornly(lambda: self.ledger.stop(held.window_id, broken, outcome, held.progress))
        except SessionGone:
            pass
        finally:
            self._drop(held)

    def _drop(self, held: HeldSession) -> None:
        held.over = True
        self._held.pop(held.window_id, None)
        self._ctx.held.pop(held.window_id, None)
        self._remember_end(held.window_id)

    def _remember_end(self, window_id: bytes) -> None:
        self._ended[window_id] = None
        while len(self._ended) > KNOWN_ENDS:
            self._ended.popitem(last=False)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    # Time

    @property
    def _renewal(self) -> float:
        return self._ctx.settings.session_lease_s / 4

    def tick(self, *, listening: bool = True) -> None:
        """Give up sessions whose step is late, and renew our word for the others. While we do not hear the broker, no
        site can be late."""
        now = self._ctx.clock.monotonic()
        for held in list(self._held.values()):
            if held.over:
                continue
            if not listening:
                held.deadline = max(held.deadline, now + held.material.spec.step_s)
            if now >= held.deadline and not held.writing:
                self._break(held, Broken("SITE_SILENT", held.silent()))
            elif now >= held.renew_at:
                held.renew_at = now + self._renewal
                self._spawn(self._renew(held))

    async def _renew(self, held: HeldSession) -> None:
        try:
            await self.ledger.renew(held.window_id, held.progress)
        except SessionGone:
            self._drop(held)
        except DatabaseError as error:
            log.warning("session_not_renewed", error=type(error).__name__)

    async def watch(self) -> bool:
        """Forget sessions that others have ended: a site that has left, a run that is over. Whether there were any."""
        found = False
        for held in list(self._held.values()):
            if not held.over and not held.writing and not await self.ledger.holds(held.window_id):
                self._drop(held)
                found = True
        return found
