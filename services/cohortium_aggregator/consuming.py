"""The aggregator's inbox: faults of senders are parked and put on record."""

from typing import Any, TypeVar

import structlog

from cohortium_aggregator.context import Context, blamed, message_id
from cohortium_kit.bus import Bus, Dead, Delivery, Disposition
from cohortium_kit.consumer import Consumer, Received, Work
from cohortium_kit.db import Tx
from cohortium_kit.errors import DatabaseError, Poison
from cohortium_messages.envelope import KEY_ID_HEADER
from cohortium_messages.registry import Message
from cohortium_messages.topology import inbox
from cohortium_platform.faults import UNPROVEN
from cohortium_protocol.errors import RemoteFault

log = structlog.get_logger(__name__)

M = TypeVar("M", bound=Message)


class InboxConsumer(Consumer):
    """A consumer whose poison also becomes an audit event, in a transaction of its own: the handler's was undone."""

    def __init__(self, ctx: Context, bus: Bus) -> None:
        super().__init__(bus, ctx.db, ctx.keyring, inbox("aggregator"), "aggregator", clock=ctx.clock)
        self._ctx = ctx

    def on(self, kind: type[M], handler: Work[M]) -> None:
        """As `Consumer.on`; what the protocol calls a remote fault is poison."""

        async def work(tx: Tx, received: Received[M]) -> None:
            try:
                await handler(tx, received)
            except RemoteFault as fault:
                raise Poison(fault.code.lower(), fault.detail) from fault

        super().on(kind, work)

    async def handle(self, delivery: Delivery) -> Disposition:
        await self._ctx.keys.meet(delivery, "aggregator")
        disposition = await super().handle(delivery)
        if isinstance(disposition, Dead):
            await self._record(delivery, disposition.reason)
        return disposition

    async def _record(self, delivery: Delivery, reason: str) -> None:
        key_id = _sender(delivery, reason)
        unique = message_id("fault", key_id, delivery.message_id, reason)

        async def record(tx: Tx) -> Any:
            await self._ctx.post.fault(tx, key_id, reason, study=None, window_id=None, unique=unique)

        try:
            await self._ctx.db.run("fault_seen", record)
        except DatabaseError as error:
            log.error("fault_not_recorded", reason=reason, error=type(error).__name__)


def _sender(delivery: Delivery, reason: str) -> str:
    """Who is to blame: the key that signed; where no key did, the routing key that the broker let the sender use."""
    if reason not in UNPROVEN and (key_id := delivery.headers.get(KEY_ID_HEADER)):
        return key_id
    return blamed(delivery.routing_key)
