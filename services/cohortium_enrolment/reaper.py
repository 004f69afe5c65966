"""Ends connections that are over. RabbitMQ asks about a login once; what ends afterwards, it goes on serving (broker
study, 1). So this looks every few seconds, and at once when a site was revoked, and closes."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import structlog

from cohortium_enrolment import store
from cohortium_enrolment.domain.passes import Over, PassRules, connections_over
from cohortium_enrolment.management import Management, ManagementUnavailable
from cohortium_enrolment.refusals import Refusals
from cohortium_kit.clock import Clock, pause
from cohortium_kit.db import Database
from cohortium_kit.errors import DatabaseError

log = structlog.get_logger(__name__)

HURRY_S = 10.0
"""After a revocation it looks again and again for so long: a connection that is just being opened is listed late."""
HURRIED_S = 0.25
LOOK_LIMIT_S = 15.0
"""Without a good look for so long, readiness says that revocations end no connection."""


@dataclass(slots=True)
class Reaper:
    """Closes sites' connections through the management interface, until there are none that are over."""

    db: Database
    clock: Clock
    rules: PassRules
    refusals: Refusals
    management: Management
    every_s: float
    _asked: asyncio.Event = field(default_factory=asyncio.Event)
    _hurry_until: float = 0.0
    _told: set[str] = field(default_factory=set)
    _looked_at: float = field(init=False)
    """When the last good look ended; at first when this was made, for a start without management is a fault, too."""

    def __post_init__(self) -> None:
        self._looked_at = self.clock.monotonic()

    def unlooked_s(self) -> float:
        """For how long nobody here has looked at the open connections: so old may be what a revocation did not end."""
        return max(0.0, self.clock.monotonic() - self._looked_at)

    async def worry(self) -> str | None:
        """What readiness tells of it."""
        unlooked_s = self.unlooked_s()
        if unlooked_s <= LOOK_LIMIT_S:
            return None
        return (
            f"open connections were not looked at for {unlooked_s:.0f} s: what is revoked or has ended goes on at the"
            " broker; its management interface (management_url) must answer"
        )

    def hurry(self) -> None:
        """Look now, and often for the next seconds: a site was revoked, or has become active."""
        self._hurry_until = self.clock.monotonic() + HURRY_S
        self._asked.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Look until `stop` is set. Management or database away: say so, and look again."""
        while not stop.is_set():
            self._asked.clear()
            try:
                await self.look()
            except (ManagementUnavailable, DatabaseError) as error:
                log.error("connections_not_looked_at", error=type(error).__name__, detail=str(error))
            hurried = self.clock.monotonic() < self._hurry_until
            await pause(self.clock, HURRIED_S if hurried else self.every_s, self._asked, stop)

    async def look(self) -> list[Over]:
        """Close what is over now; returns what was closed."""
        open_now = await self.management.connections()
        async with self.db.reading("find_standings") as tx:
            sites = {site.site_id: site for site in await store.sites(tx)}
            passes = await store.all_passes(tx)
        over = connections_over(open_now, sites, passes, self.rules, self.clock.now())
        closed = [one for one in over if await self.management.close(one.name, one.reason)]
        # The listing keeps a connection for a moment after it is closed: it is closed again, and told of once.
        new = [one for one in closed if one.name not in self._told]
        self._told = {one.name for one in over}
        self._looked_at = self.clock.monotonic()
        for (site_id, reason), count in Counter((one.site_id, one.reason) for one in new).items():
            log.warning("connections_closed", site=site_id, reason=reason, count=count)
            await self.refusals.report_cut(self.db, site_id, reason, count)
        return new
