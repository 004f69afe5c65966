"""Whether the broker certifies that a message of a site came by that site's own login."""

import structlog

from cohortium_kit.bus import Dead, Delivery, Disposition, Handler
from cohortium_messages.rights import SITE_ID
from cohortium_messages.topology import UPLINK

log = structlog.get_logger(__name__)

UNCERTIFIED = "sender_uncertified"


def certified(handler: Handler) -> Handler:
    """The handler, for messages from sites only with a certified sender; others are parked as `sender_uncertified`.

    RabbitMQ refuses a `user_id` that is not the login, so one that is there is true. A service's own login may send a
    site's message again (`cohortium dead-letters`); its signature says who made it.
    """

    async def checked(delivery: Delivery) -> Disposition:
        if delivery.exchange == UPLINK.name and not _fits(delivery):
            log.warning(UNCERTIFIED, queue=delivery.queue, message_id=delivery.message_id)
            return Dead(UNCERTIFIED)
        return await handler(delivery)

    return checked


def _fits(delivery: Delivery) -> bool:
    user = delivery.user_id
    if not user:
        return False
    return delivery.routing_key.startswith(f"site.{user}.") if SITE_ID.match(user) else True
