"""What waits in front of a held aggregator: the type that is held, of the window that the leaver is in, from others."""

import asyncio
import json
from typing import Any

from cohortium_kit.bus import Ack, Delivery, Disposition, Requeue
from cohortium_messages.envelope import CHUNK_CONTENT_TYPE, CONTENT_TYPE
from cohortium_messages.governance import GrantEnded
from cohortium_messages.registry import Message
from cohortium_messages.runs import SessionOpened
from cohortium_messages.secure_sum import Echo, Unmask
from cohortium_sim.gates import Gate

OTHER, LEAVER, ABSENT = "site-a", "site-b", "site-c"
FIRST, SECOND = "01" * 16, "02" * 16


class Aggregator:
    """Answers what comes through; remembers it."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.taken: list[str] = []
        self.answer: Disposition = Ack()

    async def hear(self, kind: type[Message] | str, data: dict[str, Any] | bytes, sender: str = "") -> None:
        async def handler(delivery: Delivery) -> Disposition:
            self.taken.append(f"{delivery.type.split('.')[-2]} {sender}".rstrip())
            return self.answer

        name = kind if isinstance(kind, str) else kind.type_name
        body = data if isinstance(data, bytes) else json.dumps({"data": data}).encode()
        delivery = Delivery(
            body=body,
            headers={},
            exchange="uplink",
            routing_key=f"site.{sender}.aggregator" if sender else "aggregator",
            message_id="m",
            type=name,
            content_type=CHUNK_CONTENT_TYPE if isinstance(data, bytes) else CONTENT_TYPE,
            redelivered=False,
            delivery_count=0,
            user_id=None,
            queue="aggregator",
        )
        assert await self.gate.deliver(delivery, handler) == self.answer

    async def open(self, window: str, round_: int, *sites: str, purpose: str = "update") -> None:
        params = {"window_id": window, "purpose": purpose, "round": round_}
        roster = {"entries": [{"site_id": site} for site in sites]}
        await self.hear(SessionOpened, {"open": {"params": params}, "roster": roster})


async def test_only_the_held_type_of_the_right_window_waits_and_the_leaver_s_own_does_not() -> None:
    aggregator = Aggregator()
    with aggregator.gate.hold(Echo, LEAVER, from_round=2) as hold:
        await aggregator.open(FIRST, 1, OTHER, LEAVER)
        await aggregator.hear(Echo, {"window_id": FIRST}, OTHER)  # an earlier round
        await aggregator.open(FIRST, 2, OTHER, ABSENT)
        await aggregator.hear(Echo, {"window_id": FIRST}, OTHER)  # the leaver is not in it
        await aggregator.open(FIRST, 2, OTHER, LEAVER, purpose="evaluation")
        await aggregator.hear(Echo, {"window_id": FIRST}, OTHER)
        assert hold.caught is None
        await aggregator.open(SECOND, 2, OTHER, LEAVER)
        await aggregator.hear(Unmask, {"window_id": SECOND}, OTHER)
        await aggregator.hear("chunk.frame.v1", b"\0not JSON", OTHER)
        await aggregator.hear(Echo, {"window_id": SECOND}, LEAVER)
        aggregator.taken.clear()
        waiting = asyncio.create_task(aggregator.hear(Echo, {"window_id": SECOND}, OTHER))
        await asyncio.sleep(0)
        assert hold.caught is not None
        assert hold.caught.window_id.hex() == SECOND
        await aggregator.hear(GrantEnded, {"site_id": LEAVER})
        assert aggregator.taken == ["grant_ended"]
        assert aggregator.gate.left == {LEAVER}
        assert aggregator.gate.answered(Echo, hold.caught) == {LEAVER}
    await asyncio.wait_for(waiting, 5)
    assert aggregator.taken == ["grant_ended", "echo " + OTHER]
    assert aggregator.gate.answered(Echo, hold.caught) == {LEAVER, OTHER}
    assert [one.window_id.hex() for one in aggregator.gate.windows(2)] == [SECOND]


async def test_what_the_aggregator_did_not_take_is_not_on_record_with_it() -> None:
    aggregator = Aggregator()
    await aggregator.open(SECOND, 2, OTHER, LEAVER)
    aggregator.answer = Requeue()
    await aggregator.hear(Echo, {"window_id": SECOND}, OTHER)
    await aggregator.hear(GrantEnded, {"site_id": LEAVER})
    (window,) = aggregator.gate.windows(2)
    assert aggregator.gate.answered(Echo, window) == frozenset()
    assert aggregator.gate.left == set()
