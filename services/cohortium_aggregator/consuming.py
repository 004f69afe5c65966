"""The aggregator's inbox: faults of senders are parked and put on record."""

from typing import Any, TypeVar

from cohortium_aggregator.context import Context, blamed, message_id
from cohortium_kit.bus import Bus, Delivery, Disposition
from cohortium_kit.consumer import Received, Work
from cohortium_kit.db import Tx
from cohortium_kit.errors import Poison
from cohortium_kit.metrics import Outcome
from cohortium_messages.envelope import KEY_ID_HEADER
from cohortium_messages.registry import Message
from cohortium_messages.topology import inbox
from cohortium_platform.faults import UNPROVEN
from cohortium_platform.reporting import ReportingConsumer
from cohortium_protocol.errors import RemoteFault

M = TypeVar("M", bound=Message)


class InboxConsumer(ReportingConsumer):
    """A consumer whose poison also becomes an audit event, in a transaction of its own: the handler's was undone."""

    def __init__(self, ctx: Context, bus: Bus) -> None:
        sender, queue = ctx.post.sender, inbox("aggregator")
        super().__init__(bus, ctx.db, ctx.keyring, sender, queue, "aggregator", clock=ctx.clock)
        self._ctx = ctx

    def on(self, kind: type[M], handler: Work[M]) -> None:
        """As `Consumer.on`; what the protocol calls a remote fault is poison."""

        async def work(tx: Tx, received: Received[M]) -> None:
            try:
                await handler(tx, received)
            except RemoteFault as fault:
                raise Poison(fault.code.lower(), fault.detail) from fault

        super().on(kind, work)

    async def take(self, delivery: Delivery, seen: Outcome) -> Disposition:
        """As the kit's consumer."""
        await self._ctx.keys.meet(delivery, "aggregator")
        return await super().take(delivery, seen)

    async def record_fault(self, delivery: Delivery, reason: str) -> None:
        """As the kit's consumer: everybody's, those of unproven senders, too."""
        key_id = _sender(delivery, reason)
        unique = message_id("fault", key_id, delivery.message_id, reason)

        async def record(tx: Tx) -> Any:
            await self._ctx.post.fault(tx, key_id, reason, study=None, window_id=None, unique=unique)

        await self._ctx.db.run("fault_seen", record)


def _sender(delivery: Delivery, reason: str) -> str:
    """Who is to blame: the key that signed; where no key did, the routing key that the broker let the sender use."""
    if reason not in UNPROVEN and (key_id := delivery.headers.get(KEY_ID_HEADER)):
        return key_id
    return blamed(delivery.routing_key)
