"""Enrolment's wiring: the only place where its parts are put together."""

import asyncio
from datetime import timedelta

import structlog
from fastapi import FastAPI

from cohortium_enrolment import store
from cohortium_enrolment.api import create_api
from cohortium_enrolment.domain.sites import Active, Invited
from cohortium_enrolment.gate import Gate
from cohortium_enrolment.handlers import Handlers, Rules
from cohortium_enrolment.measures import add_samples
from cohortium_enrolment.preflights import Preflights, SiteKeyring, good_keys, in_its_own_name
from cohortium_enrolment.settings import EnrolmentSettings
from cohortium_enrolment.tokens import TokenVault
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock, SystemClock, pause
from cohortium_kit.db import Database
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import BrokerUnavailable
from cohortium_kit.outbox import Relay
from cohortium_kit.presence import Presence
from cohortium_kit.runtime import ServiceApp
from cohortium_messages.governance import RegisterSite, TrustDocument
from cohortium_messages.preflight import PreflightProbe, PreflightReport
from cohortium_messages.topology import platform_topology, site_topology
from cohortium_platform.configuration import note_configuration
from cohortium_platform.following import FollowingConsumer, KeyFollower
from cohortium_platform.identity import load_identity
from cohortium_platform.people.guard import guard_of
from cohortium_platform.service import offer_http, open_bus, open_database, require_migrated

log = structlog.get_logger(__name__)

ROLE = "enrolment"
BROKER_WAIT_S = 2.0


class App:
    """One instance of the enrolment service. `http` is there whether or not a port is served."""

    def __init__(
        self,
        settings: EnrolmentSettings,
        bus: Bus,
        db: Database,
        clock: Clock,
        *,
        sender: Sender,
        trust: TrustDocument,
        handlers: Handlers,
        http: FastAPI,
        gate: Gate,
    ) -> None:
        self.http = http
        self.db = db
        self.gate = gate
        self._settings = settings
        self._sender = sender
        self._trust = trust
        self._bus = bus
        self._clock = clock
        keys = KeyFollower(SiteKeyring(), db, good_keys, clock)
        preflights = Preflights(sender, clock)
        self.consumer = FollowingConsumer(bus, db, keys, sender, ROLE, clock=clock)
        self.consumer.on(RegisterSite, in_its_own_name(handlers.on_register))
        self.consumer.on(PreflightProbe, in_its_own_name(preflights.on_probe))
        self.consumer.on(PreflightReport, in_its_own_name(preflights.on_report))
        self._service = ServiceApp(bus, db, Relay(db, bus, clock), platform_topology())
        self._service.consume(self.consumer)
        self._service.part(keys.run)
        self._service.part(self._declare_sites)
        self._service.part(self._sweep)
        for part in gate.parts:
            self._service.part(part)
        gate.tell(self.http, db.metrics)
        add_samples(offer_http(self._service, self.http, settings, ROLE), db.metrics)

    @classmethod
    async def build(
        cls,
        settings: EnrolmentSettings,
        *,
        bus: Bus | None = None,
        database: Database | None = None,
        clock: Clock | None = None,
        presence: Presence | None = None,  # noqa: ARG003 - every service is built alike
    ) -> "App":
        """The service, from its settings; nothing is dialled yet. Raises `ConfigurationError`."""
        clock = clock or SystemClock()
        identity = load_identity(settings, ROLE, clock)
        bus = bus or open_bus(settings, ROLE)
        database = database or open_database(settings)
        rules = Rules(identity.governance, identity.trust, timedelta(hours=settings.invitation_hours))
        vault = TokenVault.from_file(settings.token_key_file)
        gate = Gate(settings, identity, bus, database, vault, clock)
        handlers = Handlers(
            sender=identity.sender, vault=vault, clock=clock, rules=rules, standing_changed=gate.standing_changed
        )
        http = create_api(
            handlers=handlers,
            db=database,
            bus=bus,
            clock=clock,
            trust=identity.trust,
            guard=guard_of(settings, ROLE, identity.trust, clock),
        )
        return cls(
            settings,
            bus,
            database,
            clock,
            sender=identity.sender,
            trust=identity.trust,
            handlers=handlers,
            http=http,
            gate=gate,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set. Raises `ConfigurationError` if a migration is missing."""
        await require_migrated(self.db, ROLE)
        await note_configuration(self.db, self._sender, self._trust, self._settings)
        await self._service.run(stop)

    async def _declare_sites(self, stop: asyncio.Event) -> None:
        """Make the queues of every site exist that may use them: the broker may be a new one since the invitation."""
        async with self.db.reading("sites_to_declare") as tx:
            waiting = [site.site_id for site in await store.sites(tx) if isinstance(site, Invited | Active)]
        while waiting and not stop.is_set():
            try:
                await self._bus.declare(site_topology(waiting[-1]))
            except BrokerUnavailable as error:
                log.warning("broker_awaited", error=type(error).__name__)
                await self._clock.sleep(BROKER_WAIT_S)
            else:
                waiting.pop()

    async def _sweep(self, stop: asyncio.Event) -> None:
        """Wipe the tokens of invitations that are over, now and then."""
        while not stop.is_set():
            wiped = await self.db.run("wipe_expired_tokens", store.wipe_expired_tokens)
            if wiped:
                log.info("tokens_wiped", count=wiped)
            await pause(self._clock, self._settings.sweep_s, stop)
