"""For `cohortium simulate --drop` only: a connector that vanishes at a chosen point of a chosen round.

The bus that the connector sees is wrapped; nothing else of it knows. `before`: nothing of the round's upload leaves.
`after`: the aggregator has the upload, and no echo leaves.
"""

import json
import os
import signal
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cohortium_kit.bus import Bus, Delivery, Disposition, Handler, Outgoing, Subscription
from cohortium_kit.errors import BrokerUnavailable
from cohortium_messages.envelope import CHUNK_CONTENT_TYPE
from cohortium_messages.secure_sum import Echo, UploadHeader, WindowOpen


class VanishSettings(BaseModel):
    """When a simulated connector ends for good."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: Annotated[int, Field(ge=1)]
    when: Literal["before", "after"]


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
        self._gone = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def consume(self, queue: str, handler: Handler, *, prefetch: int) -> Subscription:
        async def watched(delivery: Delivery) -> Disposition:
            if delivery.type == WindowOpen.type_name:
                params = json.loads(delivery.body)["data"]["params"]
                if params["purpose"] == "update" and params["round"] == self._settings.round:
                    self._window = params["window_id"]
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
            return self._settings.when == "before"
        moment = UploadHeader if self._settings.when == "before" else Echo
        if outgoing.type != moment.type_name:
            return False
        return bool(json.loads(outgoing.body)["data"]["window_id"] == self._window)
