"""Whether the broker certifies that a message of a site came by that site's own login."""

import structlog

from cohortium_kit.bus import Ack, Dead, Delivery, Disposition, Handler
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.penalties import NO_SITE, Penalties, Verdict, site_to_blame
from cohortium_messages.rights import SITE_ID
from cohortium_messages.topology import UPLINK

log = structlog.get_logger(__name__)

UNCERTIFIED = "sender_uncertified"


def certified(handler: Handler, clock: Clock | None = None) -> Handler:
    """The handler, for messages from sites only with a certified sender; others are parked as `sender_uncertified`,
    and forgotten where one site sends too many of them.

    RabbitMQ refuses a `user_id` that is not the login, so one that is there is true. A service's own login may send a
    site's message again (`cohortium dead-letters`); its signature says who made it.
    """

    penalties, time = Penalties(), clock or SystemClock()

    async def checked(delivery: Delivery) -> Disposition:
        if delivery.exchange != UPLINK.name or _fits(delivery):
            return await handler(delivery)
        sender = site_to_blame(delivery) or NO_SITE
        verdict = penalties.refused(sender, time.monotonic())
        if verdict is Verdict.FORGET:
            return Ack()
        silenced = verdict is Verdict.RECORD_SILENCE
        log.warning(UNCERTIFIED, queue=delivery.queue, message_id=delivery.message_id, sender=sender, silenced=silenced)
        return Dead(UNCERTIFIED)

    return checked


def _fits(delivery: Delivery) -> bool:
    user = delivery.user_id
    if not user:
        return False
    return delivery.routing_key.startswith(f"site.{user}.") if SITE_ID.match(user) else True
