"""What a service that hears sites does around its handlers: whose key may still come, and faults put on record."""

import hashlib
from dataclasses import dataclass

from cohortium_kit.bus import Delivery
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.penalties import TOO_MANY_REFUSED
from cohortium_messages.envelope import KEY_ID_HEADER
from cohortium_messages.events import FaultSeen
from cohortium_messages.ids import SiteId
from cohortium_messages.topology import uplink_key
from cohortium_platform.recording import put_on_record
from cohortium_protocol.signing import Keyring

UNPROVEN = frozenset({"too_large", "unsigned", "bad_signature"})
"""Reasons found before the sender was known: the key id is only a claim."""


def may_be_new(delivery: Delivery, keyring: Keyring, service: str) -> bool:
    """Whether a site that enrolment has not told `service` of may have sent this: it came under that site's own routing
    key. Under another one it is a forgery, and waiting for its key would let one site hold up all the others."""
    key_id = delivery.headers.get(KEY_ID_HEADER, "")
    kind, _, name = key_id.partition(":")
    is_own = kind == "site" and delivery.routing_key == uplink_key(SiteId(name), service)
    return is_own and key_id not in keyring.keys


def fault_code(reason: str) -> str:
    """A dead-letter reason as an audit code: upper case, without the place of a schema fault."""
    plain = "".join(letter if letter.isalnum() else "_" for letter in reason.partition(":")[0].upper())
    return plain[:64] or "FAULT"


@dataclass(frozen=True, slots=True)
class FaultReporter:
    """Reports what proven senders did wrong, in the name of one service."""

    sender: Sender

    async def report(self, tx: Tx, delivery: Delivery, reason: str) -> None:
        """Send the event, once for each message. Not for a reason in `UNPROVEN`: anybody may have sent that."""
        key_id = delivery.headers.get(KEY_ID_HEADER, "")
        name = f"{key_id}/{delivery.message_id}"
        event = FaultSeen(key_id=key_id, code=fault_code(reason))
        # The same message again, from the dead letters or from the broker, is the same event.
        event_id = f"fault-{hashlib.sha256(name.encode()).hexdigest()[:40]}"
        await put_on_record(tx, self.sender, event, study=None, unique=event_id)

    async def report_silence(self, tx: Tx, key_id: str) -> None:
        """Send the one event about a sender whose faults are forgotten for a while. Its routing key names it, which the
        broker vouches for: whether a key of its signed is no matter here."""
        event = FaultSeen(key_id=key_id, code=TOO_MANY_REFUSED)
        await put_on_record(tx, self.sender, event, study=None)
