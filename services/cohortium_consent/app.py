"""Consent's wiring: the only place where its parts are put together."""

import asyncio

from fastapi import FastAPI

from cohortium_consent.api import create_api
from cohortium_consent.budgets import Cap
from cohortium_consent.handlers import Handlers
from cohortium_consent.intake import Intake
from cohortium_consent.settings import ConsentSettings
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.db import Database
from cohortium_kit.outbox import Relay
from cohortium_kit.presence import Presence
from cohortium_kit.runtime import ServiceApp
from cohortium_kit.settings import read_secret_file
from cohortium_messages.governance import (
    AuthoriseAsked,
    GrantGiven,
    GrantWithdrawn,
    ManifestPublished,
    SiteRegistered,
    SiteRevoked,
)
from cohortium_messages.ledger import LedgerEvent
from cohortium_messages.topology import inbox, platform_topology
from cohortium_platform.identity import Identity, load_identity
from cohortium_platform.service import offer_http, open_bus, open_database, require_migrated

ROLE = "consent"


class App:
    """One instance of the consent service. `http` is there whether or not a port is served."""

    def __init__(self, settings: ConsentSettings, identity: Identity, bus: Bus, db: Database, clock: Clock) -> None:
        token = read_secret_file(settings.operator_token_file) if settings.operator_token_file else None
        self.db = db
        self._settings = settings
        self._bus = bus
        self._clock = clock
        self.consumer = Intake(bus, db, identity.keyring, identity.sender, inbox(ROLE), ROLE, clock=clock)
        cap = None if settings.site_epsilon is None else Cap.of(settings.site_epsilon, settings.site_delta)
        self.http: FastAPI = create_api(db=db, bus=bus, clock=clock, operator_token=token, cap=cap)
        handlers = Handlers(
            sender=identity.sender, keyring=identity.keyring, clock=clock, governance=identity.governance, cap=cap
        )
        self.consumer.on(SiteRegistered, handlers.on_site_registered)
        self.consumer.on(SiteRevoked, handlers.on_site_revoked)
        self.consumer.on(ManifestPublished, handlers.on_manifest)
        self.consumer.on(GrantGiven, handlers.on_grant)
        self.consumer.on(GrantWithdrawn, handlers.on_withdrawal)
        self.consumer.on(AuthoriseAsked, handlers.on_question)
        self.consumer.on(LedgerEvent, handlers.on_ledger_event)
        self._service = ServiceApp(bus, db, Relay(db, bus, clock), platform_topology())
        self._service.consume(self.consumer)
        offer_http(self._service, self.http, settings)

    @classmethod
    async def build(
        cls,
        settings: ConsentSettings,
        *,
        bus: Bus | None = None,
        database: Database | None = None,
        clock: Clock | None = None,
        presence: Presence | None = None,  # noqa: ARG003 - every service is built alike
    ) -> "App":
        """The service, from its settings; nothing is dialled yet. Raises `ConfigurationError`."""
        clock = clock or SystemClock()
        identity = load_identity(settings, ROLE, clock)
        return cls(settings, identity, bus or open_bus(settings, ROLE), database or open_database(settings), clock)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set. Raises `ConfigurationError` if a migration is missing."""
        await require_migrated(self.db, ROLE)
        await self.consumer.load_keys()
        await self._service.run(stop)
