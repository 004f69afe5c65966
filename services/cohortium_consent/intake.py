"""Between the queue and the handlers: keys that another instance heard of first, and faults put on record."""

import structlog

from cohortium_consent import store
from cohortium_kit.bus import Bus, Delivery, Disposition, Requeue
from cohortium_kit.clock import Clock
from cohortium_kit.consumer import FIRST_WAIT_S, LONGEST_WAIT_S
from cohortium_kit.db import Database
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import DatabaseError
from cohortium_kit.metrics import Outcome
from cohortium_messages.envelope import KEY_ID_HEADER
from cohortium_platform.faults import may_be_new
from cohortium_platform.reporting import ReportingConsumer
from cohortium_protocol.signing import Keyring, site_key_id

log = structlog.get_logger(__name__)


class Intake(ReportingConsumer):
    """A consumer that waits for a site's key before it calls its signature bad, and that reports proven faults."""

    def __init__(
        self, bus: Bus, db: Database, keyring: Keyring, sender: Sender, queue: str, name: str, *, clock: Clock
    ) -> None:
        super().__init__(bus, db, keyring, sender, queue, name, clock=clock)
        self._keys = keyring
        self._records = db
        self._time = clock

    async def load_keys(self) -> None:
        """Fill the keyring from the database."""
        async with self._records.reading("load_keys") as tx:
            known = await store.site_keys.all(tx)
        for key in known:
            if key.revoked:
                self._keys.remove(site_key_id(key.site_id))
            else:
                self._keys.add(site_key_id(key.site_id), key.identity_pk)

    async def take(self, delivery: Delivery, seen: Outcome) -> Disposition:
        """As the kit's consumer; before it, the key is looked up."""
        key_id = delivery.headers.get(KEY_ID_HEADER, "")
        try:
            if may_be_new(delivery, self._keys, "consent"):
                await self.load_keys()
                if key_id not in self._keys.keys and not await self._is_revoked(key_id):
                    seen.name = "postponed"
                    return await self._later(delivery, key_id)
        except DatabaseError as error:
            log.warning("database_waited_for", error=type(error).__name__)
            await self._time.sleep(FIRST_WAIT_S)
            seen.name = "held"
            return Requeue()
        return await super().take(delivery, seen)

    async def record_fault(self, delivery: Delivery, reason: str) -> None:
        """As the kit's consumer: what proven senders did."""
        await self.record_proven_fault(delivery, reason)

    async def _is_revoked(self, key_id: str) -> bool:
        async with self._records.reading("is_revoked") as tx:
            return any(key.revoked and site_key_id(key.site_id) == key_id for key in await store.site_keys.all(tx))

    async def _later(self, delivery: Delivery, key_id: str) -> Disposition:
        # Enrolment's word about a new site and the site's own first word travel by different queues.
        log.info("key_awaited", key_id=key_id, delivery_count=delivery.delivery_count)
        await self._time.sleep(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**delivery.delivery_count))
        return Requeue()
