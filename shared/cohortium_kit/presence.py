"""Who was seen when: liveness of sites, which may be lost without harm.

Nothing is decided by presence alone: it chooses whom to ask first and what the console shows. So an adapter that
loses its server answers from what this process saw itself, and logs. The one on Redis is `redis_presence`.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from cohortium_kit.clock import Clock
from cohortium_messages.ids import SiteId

TTL_S = 120.0


class Seen(NamedTuple):
    """When a site was last heard, and what it said of itself (connector version, state)."""

    at: datetime
    detail: Mapping[str, str]


class Presence(Protocol):
    """The last sign of life of every site."""

    async def seen(self, site: SiteId, at: datetime, detail: Mapping[str, str]) -> None:
        """Remember a sign of life. An older one than the one known changes nothing. Never raises for a lost server."""
        ...

    async def last_seen(self) -> Mapping[SiteId, Seen]:
        """Every site seen within the time to live, with its latest sign of life."""
        ...

    async def close(self) -> None:
        """Release the connection, if there is one."""
        ...


class MemoryPresence:
    """Presence of one process: what it saw itself."""

    def __init__(self, clock: Clock, ttl_s: float = TTL_S) -> None:
        self._clock = clock
        self._ttl = timedelta(seconds=ttl_s)
        self._sites: dict[SiteId, Seen] = {}

    async def seen(self, site: SiteId, at: datetime, detail: Mapping[str, str]) -> None:
        known = self._sites.get(site)
        if known is None or at > known.at:
            self._sites[site] = Seen(at, dict(detail))

    async def last_seen(self) -> Mapping[SiteId, Seen]:
        oldest = self._clock.now() - self._ttl
        self._sites = {site: seen for site, seen in self._sites.items() if seen.at >= oldest}
        return dict(self._sites)

    async def close(self) -> None:
        return
