"""Consent's wiring: the only place where its parts are put together."""

import asyncio
import contextlib
import hmac
from functools import partial

import structlog
from fastapi import FastAPI

from cohortium_consent import store
from cohortium_consent.api import create_api
from cohortium_consent.budgets import Cap
from cohortium_consent.handlers import Handlers
from cohortium_consent.intake import Intake
from cohortium_consent.measures import add_samples
from cohortium_consent.oidc import Oidc
from cohortium_consent.settings import ConsentSettings
from cohortium_consent.sign_in import People
from cohortium_consent.withdrawals import Limits
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock, SystemClock, pause
from cohortium_kit.db import Database
from cohortium_kit.errors import DatabaseError
from cohortium_kit.manifests import studies_of
from cohortium_kit.outbox import Relay
from cohortium_kit.presence import Presence
from cohortium_kit.runtime import ServiceApp
from cohortium_kit.settings import read_secret_file
from cohortium_messages.consent import DocumentsShared
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
from cohortium_messages.withdrawals import (
    EffectDone,
    EffectRefused,
    EffectStarted,
    WithdrawalFollowed,
    WithdrawalTraced,
)
from cohortium_platform.configuration import note_configuration
from cohortium_platform.following import Turn
from cohortium_platform.identity import Identity, load_identity
from cohortium_platform.people.guard import guard_of
from cohortium_platform.service import offer_http, open_bus, open_database, require_migrated
from cohortium_protocol.labels import PERSON_SECRETS

ROLE = "consent"
log = structlog.get_logger(__name__)


class App:
    """One instance of the consent service. `http` is there whether or not a port is served."""

    def __init__(self, settings: ConsentSettings, identity: Identity, bus: Bus, db: Database, clock: Clock) -> None:
        self.db = db
        self._settings = settings
        self._identity = identity
        self._bus = bus
        self._clock = clock
        self.consumer = Intake(bus, db, identity.keyring, identity.sender, inbox(ROLE), ROLE, clock=clock)
        cap = None if settings.site_epsilon is None else Cap.of(settings.site_epsilon, settings.site_delta)
        handlers = Handlers(
            sender=identity.sender,
            key=identity.key,
            federation=identity.trust.federation,
            keyring=identity.keyring,
            clock=clock,
            governance=identity.governance,
            cap=cap,
            limits=_limits(settings),
        )
        self._cases = handlers.cases
        self._expiries = handlers.expiries
        self._overdue = 0
        seal_key = hmac.digest(identity.key.to_seed(), PERSON_SECRETS, "sha256")
        self.people = people = People(db, identity.sender, clock, seal_key, require_mfa=settings.require_mfa)
        providers = {one.name: (one, read_secret_file(one.client_secret_file)) for one in settings.oidc}
        public_url = settings.public_url or ""
        oidc = Oidc(db, people, clock, providers, public_url, require_mfa=settings.require_mfa)
        self.http: FastAPI = create_api(
            db=db,
            bus=bus,
            clock=clock,
            guard=guard_of(
                settings, ROLE, identity.trust, clock, people.find_caller, partial(studies_of, db, store.manifest_table)
            ),
            handlers=handlers,
            people=people,
            oidc=oidc,
            identity=identity,
            cap=cap,
        )
        self.consumer.on(SiteRegistered, handlers.on_site_registered)
        self.consumer.on(SiteRevoked, handlers.on_site_revoked)
        self.consumer.on(ManifestPublished, handlers.on_manifest)
        self.consumer.on(GrantGiven, handlers.on_grant)
        self.consumer.on(GrantWithdrawn, handlers.on_withdrawal)
        self.consumer.on(AuthoriseAsked, handlers.on_question)
        self.consumer.on(LedgerEvent, handlers.on_ledger_event)
        self.consumer.on(DocumentsShared, handlers.on_documents)
        self.consumer.on(WithdrawalTraced, handlers.cases.on_traced)
        self.consumer.on(WithdrawalFollowed, handlers.cases.on_followed)
        self.consumer.on(EffectStarted, handlers.cases.on_started)
        self.consumer.on(EffectRefused, handlers.cases.on_effect_refused)
        self.consumer.on(EffectDone, handlers.cases.on_done)
        self._service = ServiceApp(bus, db, Relay(db, bus, clock), platform_topology())
        self._service.consume(self.consumer)
        self._service.part(self._watch_deadlines)
        add_samples(offer_http(self._service, self.http, settings, ROLE), db.metrics, lambda: self._overdue)

    async def _watch_deadlines(self, stop: asyncio.Event) -> None:
        """What is over by the calendar (withdrawals' deadlines, grants, documents) is told to the log, by one instance
        for all."""
        turn = Turn(self.db, self._clock, "deadlines")
        while not stop.is_set():
            try:
                if await turn.ours():
                    self._overdue = await self.db.run("tell_overdue", self._cases.tell_overdue)
                    await self.db.run("tell_expired", self._expiries.tell)
            except DatabaseError as error:
                log.warning("deadlines_not_watched", error=type(error).__name__)
            await pause(self._clock, self._settings.deadline_look_s, stop)
        with contextlib.suppress(DatabaseError):
            await turn.give_up()

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
        await note_configuration(self.db, self._identity.sender, self._identity.trust, self._settings)
        await self.consumer.load_keys()
        await self._service.run(stop)


def _limits(settings: ConsentSettings) -> Limits:
    return Limits(
        settings.withdrawal_stopped_s,
        settings.withdrawal_effective_s,
        settings.withdrawal_patients_s,
        settings.withdrawal_decided_working_days,
        settings.withdrawal_started_days,
        settings.withdrawal_answered_days,
    )
