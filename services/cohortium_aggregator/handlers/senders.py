"""Who may say what: checked before anything is done."""

from typing import TypeVar

from cohortium_kit.consumer import Received
from cohortium_kit.errors import Poison
from cohortium_messages.ids import SiteId
from cohortium_messages.registry import Message
from cohortium_messages.topology import uplink_key
from cohortium_protocol.signing import service_key_id, site_key_id

M = TypeVar("M", bound=Message)

SITE_PREFIX = "site:"


def check_service(received: Received[M], role: str) -> M:
    """The message, if that service signed it; `Poison` otherwise."""
    if received.key_id != service_key_id(role):
        raise Poison("wrong_sender", f"{received.envelope.type} is not for {received.key_id} to send")
    return received.message


def check_site(received: Received[M], claimed: SiteId | None = None) -> SiteId:
    """The site that signed the message, if it came under that site's own routing key (and says the same id)."""
    if not received.key_id.startswith(SITE_PREFIX):
        raise Poison("wrong_sender", f"{received.envelope.type} is not for {received.key_id} to send")
    site = SiteId(received.key_id.removeprefix(SITE_PREFIX))
    if received.routing_key != uplink_key(site, "aggregator"):
        raise Poison("wrong_routing_key", site_key_id(site))
    if claimed is not None and claimed != site:
        raise Poison("wrong_site", site_key_id(site))
    return site
