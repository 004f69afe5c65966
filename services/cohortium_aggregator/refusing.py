"""Frames that break the protocol: parked, with who sent them on record."""

import structlog

from cohortium_aggregator.context import Context, blamed, message_id
from cohortium_kit.bus import Dead, Delivery, Disposition, Requeue
from cohortium_kit.errors import DatabaseError, Poison
from cohortium_protocol.errors import RemoteFault

log = structlog.get_logger(__name__)


async def refuse(ctx: Context, delivery: Delivery, fault: Poison | RemoteFault) -> Disposition:
    """The answer to a frame that its queue shall not give us again. Its sender is who may use its routing key: a
    signature or tag that was wrong proves nobody."""
    code = fault.reason_code if isinstance(fault, Poison) else fault.code.lower()
    log.warning("frame_refused", reason=code, routing_key=delivery.routing_key)
    unique = message_id("chunk-fault", delivery.routing_key, delivery.message_id, code)
    sender = blamed(delivery.routing_key)
    try:
        await ctx.db.run(
            "frame_refused", lambda tx: ctx.post.fault(tx, sender, code, study=None, window_id=None, unique=unique)
        )
    except DatabaseError as error:
        log.warning("fault_not_recorded", error=type(error).__name__)
        return Requeue()
    return Dead(code)
