"""Who was seen when: liveness of sites, which may be lost without harm.

Nothing is decided by presence alone: it chooses whom to ask first and what the console shows. So an adapter that
loses its server answers from what this process saw itself, and logs.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple, Protocol

from cohortium_messages.ids import SiteId


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
