"""Frames that break the protocol: parked, with who sent them on record."""

import structlog

from cohortium_aggregator.context import Context, blamed, message_id
from cohortium_aggregator.measures import frame_refused
from cohortium_kit.bus import Ack, Dead, Delivery, Disposition, Requeue
from cohortium_kit.errors import DatabaseError, Poison
from cohortium_kit.penalties import TOO_MANY_REFUSED, Verdict
from cohortium_protocol.errors import RemoteFault

log = structlog.get_logger(__name__)


def unheard(ctx: Context, delivery: Delivery) -> bool:
    """Whether this frame's sender is not heard for a while, after too many that were refused."""
    return ctx.penalties.silenced(blamed(delivery.routing_key), ctx.clock.monotonic())


async def refuse(ctx: Context, delivery: Delivery, fault: Poison | RemoteFault) -> Disposition:
    """The answer to a frame that its queue shall not give us again. Its sender is who may use its routing key: a
    signature or tag that was wrong proves nobody. Whose frames are refused again and again is not heard for a while."""
    code = fault.reason_code if isinstance(fault, Poison) else fault.code.lower()
    frame_refused(ctx.db.metrics, code)
    log.warning("frame_refused", reason=code, routing_key=delivery.routing_key)
    unique = message_id("chunk-fault", delivery.routing_key, delivery.message_id, code)
    sender = blamed(delivery.routing_key)
    verdict = ctx.penalties.refused(sender, ctx.clock.monotonic())
    if verdict is Verdict.FORGET:
        return Ack()
    if verdict is Verdict.RECORD_SILENCE:
        log.warning("sender_silenced", sender=sender)
        code = TOO_MANY_REFUSED.lower()
    try:
        await ctx.db.run(
            "frame_refused", lambda tx: ctx.post.fault(tx, sender, code, study=None, window_id=None, unique=unique)
        )
    except DatabaseError as error:
        log.warning("fault_not_recorded", error=type(error).__name__)
        return Requeue()
    return Dead(code)
