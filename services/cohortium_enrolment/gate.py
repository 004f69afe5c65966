"""The gate to the broker, put together: who is let in, what was refused, and closing what is over."""

import asyncio
import ssl
from datetime import timedelta

import structlog
from fastapi import FastAPI

from cohortium_enrolment import store
from cohortium_enrolment.border import Border
from cohortium_enrolment.broker_api import create_broker_api
from cohortium_enrolment.broker_log import LogReader
from cohortium_enrolment.domain.passes import PassRules
from cohortium_enrolment.management import Management
from cohortium_enrolment.reaper import Reaper
from cohortium_enrolment.refusals import Refusals
from cohortium_enrolment.settings import EnrolmentSettings
from cohortium_enrolment.tokens import TokenVault
from cohortium_kit.addresses import vhost_of
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock, pause
from cohortium_kit.db import Database
from cohortium_kit.errors import ConfigurationError, DatabaseError
from cohortium_kit.http import add_worry, serve, server_context
from cohortium_kit.metrics import Metrics
from cohortium_kit.runtime import Part
from cohortium_platform.identity import Identity
from cohortium_protocol.logins import Audience

log = structlog.get_logger(__name__)
REPORT_S = 1.0
KEEP_S = 24 * 3600.0
"""An ended pass is kept so long, for whoever looks into a refusal."""


class Gate:
    """Border, refusals and reaper of one instance, as the settings say. `parts` run with the service."""

    def __init__(
        self, settings: EnrolmentSettings, identity: Identity, bus: Bus, db: Database, vault: TokenVault, clock: Clock
    ) -> None:
        if settings.broker_auth_port is not None and settings.management_url is None:
            raise ConfigurationError(
                "management_url: missing, but broker_auth_port is set; without it nobody would end connections that"
                " are over. Set it, or COHORTIUM_MANAGEMENT_URL"
            )
        self._tls = _tls(settings)
        self._settings = settings
        self._db = db
        self._clock = clock
        rules = PassRules(
            longest=timedelta(seconds=settings.credential_s),
            overlap=timedelta(seconds=settings.overlap_s),
            most_connections=settings.most_connections,
        )
        self.refusals = Refusals(identity.sender, clock)
        audience = Audience(identity.trust.federation, settings.namespace)
        vhost = vhost_of(settings.amqp_url)
        self.border = Border(db, clock, vault, audience, vhost, rules, self.refusals)
        self.http = create_broker_api(self.border)
        self._log_reader = LogReader(bus, self.border, clock)
        self._management: Management | None = None
        self.reaper: Reaper | None = None
        if settings.management_url is not None:
            self._management = Management(settings.management_url, settings.management_ca_file)
            self.reaper = Reaper(db, clock, rules, self.refusals, self._management, settings.reap_s)

    @property
    def parts(self) -> tuple[Part, ...]:
        if self._settings.broker_auth_port is None:
            return (self._forget,)
        return self._serve, self._report, self._reap, self._forget, self._log_reader.run

    def tell(self, http: FastAPI, metrics: Metrics) -> None:
        """Show at `/readyz` and `/metrics` whether connections that are over are looked for."""
        gauge = metrics.gauge(
            "cohortium_connections_unlooked_seconds",
            "Since the last good look at the broker's open connections, which ends those that are over.",
        )
        if self._settings.broker_auth_port is not None and self.reaper is not None:
            gauge.set_function(self.reaper.unlooked_s)
            add_worry(http, "connections", self.reaper.worry)

    def standing_changed(self) -> None:
        """A site became active or was revoked: connections from before are over."""
        if self.reaper is not None:
            self.reaper.hurry()

    async def _serve(self, stop: asyncio.Event) -> None:
        port = self._settings.broker_auth_port
        assert port is not None  # noqa: S101 - told to the type checker; see `parts`
        await serve(self.http, self._settings.broker_auth_host, port, stop, tls=self._tls)

    async def _report(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await pause(self._clock, REPORT_S, stop)
            try:
                await self.refusals.report(self._db)
            except DatabaseError as error:
                log.warning("refusals_wait", error=type(error).__name__)

    async def _reap(self, stop: asyncio.Event) -> None:
        assert self.reaper is not None  # noqa: S101 - see the constructor
        assert self._management is not None  # noqa: S101
        async with self._management:
            await self.reaper.run(stop)

    async def _forget(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self._db.run("forget_passes", lambda tx: store.forget_passes(tx, KEEP_S))
            except DatabaseError as error:
                log.warning("passes_not_forgotten", error=type(error).__name__)
            await pause(self._clock, self._settings.sweep_s, stop)


def _tls(settings: EnrolmentSettings) -> ssl.SSLContext | None:
    """What the broker's questions are answered with. Raises `ConfigurationError`."""
    certificate, key = settings.broker_auth_cert_file, settings.broker_auth_key_file
    if certificate is not None and key is not None:
        return server_context(certificate, key)
    if certificate is None and key is None:
        if settings.broker_auth_port is not None and settings.broker_check == "strict":
            log.warning(
                "broker_asks_in_the_clear",
                remedy="set broker_auth_cert_file and broker_auth_key_file, and https:// in rabbitmq.conf; or keep the"
                " network between broker and enrolment to these two",
            )
        return None
    raise ConfigurationError("broker_auth_cert_file and broker_auth_key_file: give both, or neither")
