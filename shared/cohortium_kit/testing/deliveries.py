"""A message as a broker would hand it over, without a broker."""

from cohortium_kit.bus import Delivery, Outgoing


def delivered(outgoing: Outgoing, queue: str, *, count: int = 0) -> Delivery:
    """The delivery of what was sent; `count` is how often it was delivered before."""
    return Delivery(
        body=outgoing.body,
        headers=dict(outgoing.headers),
        exchange=outgoing.exchange,
        routing_key=outgoing.routing_key,
        message_id=outgoing.message_id,
        type=outgoing.type,
        content_type=outgoing.content_type,
        redelivered=count > 0,
        delivery_count=count,
        user_id=None,
        queue=queue,
    )
