"""For `cohortium simulate --drop` only: a connector that vanishes at a chosen point of a chosen round.

The bus that the connector sees is wrapped; nothing else of it knows. `before`: nothing of the round's upload leaves.
`after`: the aggregator has the upload, and no echo leaves. In a strict session, whose one round is all of training:
`before`: none of its steps leaves; `after`: the first step after so many trees stand does not.
"""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cohortium_kit.bus import Bus, Delivery, Disposition, Handler, Outgoing, Subscription
from cohortium_kit.errors import BrokerUnavailable
from cohortium_messages.envelope import CHUNK_CONTENT_TYPE
from cohortium_messages.secure_sum import Echo, UploadHeader, WindowOpen
from cohortium_protocol.strict.frames import peek_step
from cohortium_protocol.strict.steps import Kind


class VanishSettings(BaseModel):
    """When a simulated connector ends for good."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: Annotated[int, Field(ge=1)]
    when: Literal["before", "after"]
    trees: Annotated[int, Field(ge=1)] = 1
    """Boosting rounds of the run that stand when it ends, in a strict session and `after`."""


def kill_this_process() -> None:
    """kill -9, as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


class VanishingBus:
    """A bus that calls `vanish` instead of sending the message that the settings name, and is dead from then on."""

    def __init__(self, bus: Bus, settings: VanishSettings, vanish: Callable[[], None]) -> None:
        self._bus = bus
        self._settings = settings
        self._vanish = vanish
        self._window: str | None = None
        self._session: _Session | None = None
        self._gone = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def consume(self, queue: str, handler: Handler, *, prefetch: int) -> Subscription:
        async def watched(delivery: Delivery) -> Disposition:
            if delivery.type == WindowOpen.type_name:
                params = json.loads(delivery.body)["data"]["params"]
                if params["purpose"] in ("update", "training") and params["round"] == self._settings.round:
                    self._window = params["window_id"]
                    strict = params["strict"]
                    self._session = (
                        None if strict is None else _Session(bytes.fromhex(self._window), strict["trees_done"])
                    )
            return await handler(delivery)

        return await self._bus.consume(queue, watched, prefetch=prefetch)

    async def publish(self, outgoing: Outgoing, *, timeout_s: float = 10.0) -> None:
        if not self._gone and self._is_the_moment(outgoing):
            self._gone = True
            self._vanish()
        if self._gone:
            raise BrokerUnavailable("this connector has vanished, as the simulation asked")
        await self._bus.publish(outgoing, timeout_s=timeout_s)

    def _is_the_moment(self, outgoing: Outgoing) -> bool:
        if self._window is None:
            return False
        if outgoing.content_type == CHUNK_CONTENT_TYPE:
            return self._settings.when == "before" if self._session is None else self._leaves(outgoing.body)
        moment = UploadHeader if self._settings.when == "before" else Echo
        if outgoing.type != moment.type_name:
            return False
        return bool(json.loads(outgoing.body)["data"]["window_id"] == self._window)

    def _leaves(self, frame: bytes) -> bool:
        """Whether this step of the session is the one that is not sent."""
        assert self._session is not None  # noqa: S101 - asked in a session only
        return self._settings.when == "before" or self._session.stood_before(frame) >= self._settings.trees


@dataclass(slots=True)
class _Session:
    """A strict session as its own steps tell it: the first agreement is the header's, each other one a round's."""

    window_id: bytes
    trees_done: int
    agreed: set[int] = field(default_factory=set)

    def stood_before(self, frame: bytes) -> int:
        """Boosting rounds that stood when this step was made; 0 for a step of another session."""
        header = peek_step(frame)
        if header.window_id != self.window_id:
            return 0
        before = sum(step < header.step for step in self.agreed)
        if header.kind is Kind.AGREE:
            self.agreed.add(header.step)
        return self.trees_done + max(0, before - 1)
