"""Between the queue and the handlers: keys that another instance heard of first, and faults put on record."""

import hashlib

import structlog

from cohortium_consent import store
from cohortium_kit.bus import Bus, Dead, Delivery, Disposition, Requeue
from cohortium_kit.clock import Clock
from cohortium_kit.consumer import FIRST_WAIT_S, LONGEST_WAIT_S, Consumer
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import DatabaseError
from cohortium_kit.inbox import first_time
from cohortium_messages.envelope import KEY_ID_HEADER
from cohortium_messages.events import FaultSeen
from cohortium_messages.ids import SiteId
from cohortium_messages.topology import EVENTS, uplink_key
from cohortium_protocol.signing import Keyring, site_key_id

log = structlog.get_logger(__name__)

UNPROVEN = frozenset({"too_large", "unsigned", "bad_signature"})
"""Reasons found before the sender was known: anybody may have sent it, so nobody is named for it."""


class Intake(Consumer):
    """A consumer that waits for a site's key before it calls its signature bad, and that reports proven faults."""

    def __init__(
        self, bus: Bus, db: Database, keyring: Keyring, sender: Sender, queue: str, name: str, *, clock: Clock
    ) -> None:
        super().__init__(bus, db, keyring, queue, name, clock=clock)
        self._keys = keyring
        self._sender = sender
        self._records = db
        self._time = clock

    async def load_keys(self) -> None:
        """Fill the keyring from the database."""
        async with self._records.reading("load_keys") as tx:
            known = await store.site_keys(tx)
        for key in known:
            if key.revoked:
                self._keys.remove(site_key_id(key.site_id))
            else:
                self._keys.add(site_key_id(key.site_id), key.identity_pk)

    async def handle(self, delivery: Delivery) -> Disposition:
        """As the kit's consumer; before it, the key is looked up, and after it, a fault is put on record."""
        key_id = delivery.headers.get(KEY_ID_HEADER, "")
        try:
            if self._may_be_new(key_id, delivery):
                await self.load_keys()
                if key_id not in self._keys.keys and not await self._is_revoked(key_id):
                    return await self._later(delivery, key_id)
            disposition = await super().handle(delivery)
            if isinstance(disposition, Dead) and disposition.reason not in UNPROVEN:
                await self._records.run(
                    "report_fault", lambda tx: self._report(tx, key_id, disposition.reason, delivery)
                )
        except DatabaseError as error:
            log.warning("database_waited_for", error=type(error).__name__)
            await self._time.sleep(FIRST_WAIT_S)
            return Requeue()
        return disposition

    def _may_be_new(self, key_id: str, delivery: Delivery) -> bool:
        """Whether a site that enrolment has not told us of may have sent this: it came under that site's own routing
        key. Under another one it is a forgery, and waiting for its key would let one site hold up all the others."""
        kind, _, name = key_id.partition(":")
        is_own = kind == "site" and delivery.routing_key == uplink_key(SiteId(name), "consent")
        return is_own and key_id not in self._keys.keys

    async def _is_revoked(self, key_id: str) -> bool:
        async with self._records.reading("is_revoked") as tx:
            return any(key.revoked and site_key_id(key.site_id) == key_id for key in await store.site_keys(tx))

    async def _later(self, delivery: Delivery, key_id: str) -> Disposition:
        # Enrolment's word about a new site and the site's own first word travel by different queues.
        log.info("key_awaited", key_id=key_id, delivery_count=delivery.delivery_count)
        await self._time.sleep(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**delivery.delivery_count))
        return Requeue()

    async def _report(self, tx: Tx, key_id: str, reason: str, delivery: Delivery) -> None:
        if not await first_time(tx, "consent-faults", f"{key_id}/{delivery.message_id}"):
            return
        event = FaultSeen(key_id=key_id, code=fault_code(reason))
        # The same message again, from the dead letters or from the broker, is the same event.
        event_id = hashlib.sha256(f"{key_id}/{delivery.message_id}".encode()).hexdigest()[:40]
        outgoing = self._sender.outgoing(EVENTS.name, f"-.{event.type_name}", event, message_id=f"fault-{event_id}")
        await tx.send(outgoing, ordering_key="events")


def fault_code(reason: str) -> str:
    """A dead-letter reason as an audit code: upper case, without the place of a schema fault."""
    plain = "".join(letter if letter.isalnum() else "_" for letter in reason.partition(":")[0].upper())
    return plain[:64] or "FAULT"
