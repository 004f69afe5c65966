"""What both buses do around a handler: every way out of it ends in an answer."""

import asyncio

import structlog

from cohortium_kit.bus import REASON_HANDLER_ERROR, Dead, Delivery, Disposition, Handler, Requeue

log = structlog.get_logger(__name__)

DRAIN_S = 20.0
"""How long handlers in flight may take when their consumer is cancelled."""


async def handle(handler: Handler, delivery: Delivery) -> Disposition:
    """Run the handler; its exception becomes `Dead`, so that no message stays unanswered.

    Our own cancellation passes. A foreign one (a library cancelled something inside the handler) means that nothing
    is known of the work's end, so the message goes back.
    """
    try:
        return await handler(delivery)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        log.warning("handler_cancelled_from_inside", queue=delivery.queue, message_id=delivery.message_id)
        return Requeue()
    except Exception as error:
        log.error("handler_failed", queue=delivery.queue, message_id=delivery.message_id, exc_info=error)
        return Dead(f"{REASON_HANDLER_ERROR}:{type(error).__name__}")


async def drain(working: set[asyncio.Task[None]], patience_s: float) -> None:
    """Wait for handlers in flight; after `patience_s` stop them where they are, and wait for that."""
    current = asyncio.current_task()
    others = {task for task in working if task is not current}
    if not others:
        return
    _, late = await asyncio.wait(others, timeout=patience_s)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late)
