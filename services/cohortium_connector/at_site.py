"""The hospital's own hand on its connector: what local commands open, beside a running connector or not."""

import contextlib
from collections.abc import AsyncIterator
from typing import Self

from cohortium_connector.app import open_site
from cohortium_connector.desk import Desk
from cohortium_connector.settings import ConnectorSettings
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.db import Database


class AtSite:
    """Something at the site of a spool, with its records."""

    def __init__(self, desk: Desk, db: Database) -> None:
        self._desk = desk
        self._db = db

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: ConnectorSettings, clock: Clock | None = None) -> AsyncIterator[Self]:
        """At the site of this spool; raises `ConfigurationError` if it has not joined a federation."""
        desk, db = await open_site(settings, clock or SystemClock())
        try:
            yield cls(desk, db)
        finally:
            await db.close()
