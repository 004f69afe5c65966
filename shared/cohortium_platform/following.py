"""What several instances of a service must have in common beside their database: who speaks for a site, and whose turn
a timer's work is."""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping

import structlog

from cohortium_kit import leases
from cohortium_kit.bus import Bus, Delivery, Disposition
from cohortium_kit.clock import Clock, pause
from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import DatabaseError
from cohortium_kit.metrics import Outcome
from cohortium_messages.ids import SiteId
from cohortium_messages.topology import inbox
from cohortium_platform.faults import may_be_new
from cohortium_platform.reporting import ReportingConsumer
from cohortium_protocol.signing import Keyring, site_key_id

log = structlog.get_logger(__name__)

FOLLOW_S = 1.0
"""How long after one instance heard of a revocation the others still trust the key."""
TURN_S = 3.0


class KeyFollower:
    """Keeps a keyring like the service's table of sites, which other instances write, too."""

    def __init__(
        self, keyring: Keyring, db: Database, good_keys: Callable[[Tx], Awaitable[Mapping[SiteId, bytes]]], clock: Clock
    ) -> None:
        self.keyring = keyring
        self._db = db
        self._good_keys = good_keys
        self._clock = clock

    async def reload(self) -> None:
        """Take over what is on record now. Raises `DatabaseError`."""
        async with self._db.glance("follow_site_keys") as tx:
            good = {site_key_id(site): key for site, key in (await self._good_keys(tx)).items()}
        for key_id in [one for one in self.keyring.keys if one.startswith("site:") and one not in good]:
            self.keyring.remove(key_id)
        for key_id, key in good.items():
            if self.keyring.keys.get(key_id) != key:
                self.keyring.add(key_id, key)

    async def meet(self, delivery: Delivery, service: str) -> None:
        """Reload if this comes from a site that is not known yet and speaks for itself. Never raises: without the
        database no message is handled anyway."""
        if may_be_new(delivery, self.keyring, service):
            with contextlib.suppress(DatabaseError):
                await self.reload()

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop` is set. While the database is away the keys stay as they are."""
        while not stop.is_set():
            try:
                await self.reload()
            except DatabaseError as error:
                log.warning("site_keys_not_followed", error=type(error).__name__)
            await pause(self._clock, FOLLOW_S, stop)


class FollowingConsumer(ReportingConsumer):
    """A consumer that looks a site's key up once more before it calls its signature bad: another instance may have
    heard of the site."""

    def __init__(
        self, bus: Bus, db: Database, keys: KeyFollower, sender: Sender, service: str, *, clock: Clock
    ) -> None:
        super().__init__(bus, db, keys.keyring, sender, inbox(service), service, clock=clock)
        self._keys = keys
        self._service = service

    async def take(self, delivery: Delivery, seen: Outcome) -> Disposition:
        """As the kit's consumer."""
        await self._keys.meet(delivery, self._service)
        return await super().take(delivery, seen)


class Turn:
    """A lease on a timer's work: of several instances one does it, and another one `ttl_s` after that one has died.

    It saves double work, no more: what is done in a turn must be right when two do it.
    """

    def __init__(self, db: Database, clock: Clock, name: str, ttl_s: float = TURN_S) -> None:
        self._db = db
        self._clock = clock
        self._name = name
        self._ttl_s = ttl_s
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._lease: leases.Lease | None = None
        self._taken_at = 0.0
        self._ask_at = 0.0

    async def ours(self) -> bool:
        """Whether it is this instance's turn; takes it if nobody has it. Raises `DatabaseError`."""
        if leases.left_s(self._lease, self._taken_at, self._ttl_s, self._clock) > self._ttl_s / 2:
            return True
        if self._lease is None and self._clock.monotonic() < self._ask_at:
            return False
        now, taken_at, held = self._clock.now(), self._clock.monotonic(), self._lease

        async def take(tx: Tx) -> leases.Lease | None:
            renewed = await leases.renew(tx, held, now, self._ttl_s) if held else None
            return renewed or await leases.acquire(tx, self._name, self._holder, now, self._ttl_s)

        self._lease, self._taken_at = await self._db.run(f"turn:{self._name}", take), taken_at
        self._ask_at = self._clock.monotonic() + self._ttl_s / 6
        return self._lease is not None

    async def give_up(self) -> None:
        """Let another one have the turn at once. Raises `DatabaseError`."""
        held, self._lease = self._lease, None
        if held is not None:
            await self._db.run(f"turn:{self._name}", lambda tx: leases.release(tx, held))
