"""A connector that a simulation makes vanish from a strict session: at its first step, or after so many trees."""

import json
import struct
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cohortium_connector.simulation import VanishingBus, VanishSettings
from cohortium_kit.bus import Bus, Delivery, Outgoing
from cohortium_kit.errors import BrokerUnavailable
from cohortium_messages.envelope import CHUNK_CONTENT_TYPE
from cohortium_messages.secure_sum import WindowOpen
from cohortium_protocol.strict.frames import peek_step
from cohortium_protocol.strict.steps import Kind

WINDOW, OTHER = b"w" * 16, b"o" * 16
HEADER = struct.Struct("<4sB16sIHBHHI32s")
COURSE = (Kind.AGREE, Kind.SUM, Kind.RELAY, Kind.AGREE, Kind.SUM, Kind.RELAY, Kind.AGREE, Kind.SUM)
"""Header, then two boosting rounds and the beginning of a third."""


def frame(step: int, kind: Kind, window: bytes = WINDOW) -> bytes:
    made = HEADER.pack(b"CHst", 1, window, step, 1, kind, 0, 1, 8, bytes(32)) + bytes(8 + 16)
    assert peek_step(made).kind is kind
    return made


class RecordingBus:
    """Keeps what is sent, and lets a test deliver."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.deliver: Callable[[Delivery], Awaitable[object]]

    async def publish(self, outgoing: Outgoing, *, timeout_s: float) -> None:
        self.sent.append(outgoing.body)

    async def consume(self, queue: str, handler: Any, *, prefetch: int) -> None:
        self.deliver = handler


async def opened(settings: VanishSettings, **params: Any) -> tuple[RecordingBus, VanishingBus, list[str]]:
    """A bus whose connector was asked into a session of round 1."""
    inner, gone = RecordingBus(), list[str]()
    bus = VanishingBus(cast("Bus", inner), settings, lambda: gone.append("vanished"))

    async def handler(delivery: Delivery) -> object:
        return None

    await bus.consume("q", cast("Any", handler), prefetch=1)
    params = {"purpose": "training", "round": 1, "window_id": WINDOW.hex(), "strict": {"trees_done": 0}} | params
    body = json.dumps({"data": {"params": params}}).encode()
    await inner.deliver(cast("Delivery", SimpleNamespace(type=WindowOpen.type_name, body=body)))
    return inner, bus, gone


async def send(bus: VanishingBus, body: bytes) -> None:
    sent = SimpleNamespace(type="cohortium.strict.step.v1", content_type=CHUNK_CONTENT_TYPE, body=body)
    await bus.publish(cast("Outgoing", sent))


async def play(bus: VanishingBus) -> None:
    """The course, each step sent twice, as after a lost connection."""
    for step, kind in enumerate(COURSE):
        await send(bus, frame(step, kind))
        await send(bus, frame(step, kind))


async def steps_sent(settings: VanishSettings, **params: Any) -> int:
    inner, bus, gone = await opened(settings, **params)
    with pytest.raises(BrokerUnavailable, match="vanished"):
        await play(bus)
    assert gone == ["vanished"]
    with pytest.raises(BrokerUnavailable):
        await send(bus, frame(99, Kind.SUM))
    return len(set(inner.sent))


async def test_before_nothing_of_the_session_leaves() -> None:
    assert await steps_sent(VanishSettings(round=1, when="before")) == 0


@pytest.mark.parametrize(("trees", "sent"), [(1, 4), (2, 7)])
async def test_after_so_many_trees_the_next_step_does_not_leave(trees: int, sent: int) -> None:
    assert await steps_sent(VanishSettings(round=1, when="after", trees=trees)) == sent


async def test_trees_of_earlier_sessions_count() -> None:
    settings = VanishSettings(round=1, when="after", trees=2)
    assert await steps_sent(settings, strict={"trees_done": 1}) == 4


async def test_another_window_is_not_meant() -> None:
    inner, bus, gone = await opened(VanishSettings(round=1, when="after", trees=1))
    for step, kind in enumerate(COURSE):
        await send(bus, frame(step, kind, OTHER))
    assert len(inner.sent) == len(COURSE)
    assert gone == []
