"""Sites of strict sessions on a bus, beside an aggregator that runs. No test itself."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aggregator_world import Window, integer_spec
from live import PATIENCE_S, Live
from strict_world import Training, end, header, session_window, spec_of, statistics_of, tree

from cohortium_kit.bus import Ack, Delivery, Disposition, Outgoing
from cohortium_messages.ids import SiteId
from cohortium_messages.runs import SessionClosed
from cohortium_messages.secure_sum import ModelRef, SessionKey, StrictSpec, WindowClosed
from cohortium_messages.topology import results_queue
from cohortium_protocol.strict.session import Answer
from cohortium_protocol.strict.steps import Kind
from cohortium_protocol.trees.vectors import integer_length

Ask = tuple[Kind, Callable[[int], Any]]


class SessionOver(Exception):
    """The aggregator has closed the window."""


def vector(index: int) -> np.ndarray:
    return np.arange(600, dtype=np.int64) * 3**index


def course(numbers: range, *, best: int | None = None) -> list[Ask]:
    """What a site asks while it grows these rounds, and ends training after the last one."""
    asked: list[Ask] = [(Kind.AGREE, lambda _: b"H" + header())]
    for number in numbers:
        asked.append((Kind.SUM, vector))
        asked.append((Kind.RELAY, lambda index: bytes([index]) * index))
        asked.append((Kind.AGREE, lambda _, number=number: b"T" + tree(number)))
    if best is not None:
        asked.append((Kind.AGREE, lambda _: end(best, numbers[-1])))
    return asked


@dataclass
class StrictLive:
    """Plays sites that step, each in a task of its own, and send again what is not answered."""

    live: Live
    again_s: float = 1.0
    mail: dict[tuple[SiteId, bytes], asyncio.Queue[bytes]] = field(default_factory=dict)

    async def listen(self) -> None:
        def hearing(site: SiteId) -> Callable[[Delivery], Any]:
            async def hear(delivery: Delivery) -> Disposition:
                self.queue(site, delivery.body[5:21]).put_nowait(delivery.body)
                return Ack()

            return hear

        for site in self.live.world.identities:
            await self.live.bus.consume(results_queue(site), hearing(site), prefetch=16)

    def queue(self, site: SiteId, window_id: bytes) -> asyncio.Queue[bytes]:
        return self.mail.setdefault((site, window_id), asyncio.Queue())

    async def bins(self) -> ModelRef:
        """The version that training starts from."""
        live = self.live
        study = live.world.study
        window = live.world.prepare(live.world.params("statistics", integer_spec(integer_length(study, "statistics"))))
        await live.open(window, {index: statistics_of(study, index) for index in window.view.indices})
        closed = await live.closed(window)
        assert closed.model is not None
        return closed.model

    async def open(self, base: ModelRef, spec: StrictSpec | None = None) -> Training:
        """A session whose sites are told of it, each when its key comes."""
        window = session_window(self.live.world, base, spec or spec_of(self.live.world))
        await self.live.open(window, {})
        return Training(window, self.live.bus, lambda _: None)

    async def run_site(self, training: Training, index: int, asked: list[Ask]) -> list[Answer]:
        """One site's part; raises `SessionOver` when the window is closed before its end."""
        await self._join(training, index)
        answers = []
        for kind, content in asked:
            training.ask(index, kind, content(index))
            answers.append(await self._answer(training, index))
        return answers

    async def run_all(self, training: Training, asked: list[Ask]) -> dict[int, list[Answer] | BaseException]:
        tasks = [self.run_site(training, index, asked) for index in training.indices]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        return dict(zip(training.indices, found, strict=True))

    async def _join(self, training: Training, index: int) -> None:
        site = training.window.sites[index]
        while True:
            for member, message in self.live.heard:
                is_ours = getattr(message, "window_id", None) == training.window.params.window_id
                if member == site.site_id and is_ours and isinstance(message, SessionKey):
                    training.join(site, message)
                    return
            self._check_open(training, index)
            await asyncio.sleep(0.005)

    async def _answer(self, training: Training, index: int) -> Answer:
        site, session = training.window.sites[index].site_id, training.sessions[index]
        results = self.queue(site, training.window.params.window_id)
        while True:
            for frame in session.unanswered:
                await self._publish(training, index, frame)
            until = asyncio.get_running_loop().time() + self.again_s
            while (left := until - asyncio.get_running_loop().time()) > 0:
                self._check_open(training, index)
                try:
                    frame = await asyncio.wait_for(results.get(), min(left, 0.1))
                except TimeoutError:
                    continue
                if (answer := session.take(frame)) is not None:
                    return answer

    async def _publish(self, training: Training, index: int, frame: bytes) -> None:
        delivery = training.delivery(index, frame)
        outgoing = Outgoing(
            delivery.exchange,
            delivery.routing_key,
            frame,
            secrets.token_hex(16),
            delivery.type,
            content_type=delivery.content_type,
            persistent=False,
        )
        await self.live.bus.publish(outgoing)

    def _check_open(self, training: Training, index: int) -> None:
        site = training.window.sites[index].site_id
        for member, message in self.live.heard:
            if (
                member == site
                and isinstance(message, WindowClosed)
                and message.window_id == training.window.params.window_id
            ):
                raise SessionOver(message.reason)

    async def reached(self, training: Training, step: int) -> None:
        """Return when every site has come so far."""
        until = asyncio.get_running_loop().time() + PATIENCE_S
        while asyncio.get_running_loop().time() < until:
            steps = [session.step for session in training.sessions.values()]
            if len(steps) == training.window.view.n and min(steps) >= step:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"step {step} was not reached")

    async def closed(self, window: Window, seconds: float = PATIENCE_S) -> SessionClosed:
        return await self.live.closed(window, seconds)
