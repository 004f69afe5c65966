"""What the tests of the broker's border play with: sites with real keys, and an enrolment that the broker asks."""

import asyncio
import contextlib
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
from sqlalchemy import select

from cohortium_cli.federation import FederationFiles, FederationSpec, create_federation
from cohortium_enrolment import store
from cohortium_enrolment.app import App
from cohortium_enrolment.domain.sites import Active
from cohortium_enrolment.settings import EnrolmentSettings
from cohortium_kit.addresses import with_login
from cohortium_kit.amqp import RabbitBus, UrlSource
from cohortium_kit.bus import Ack, Delivery, Disposition, Outgoing
from cohortium_kit.db import Database
from cohortium_kit.migrate import drop_schema, migrate
from cohortium_kit.tables import outbox
from cohortium_kit.testing.servers import PrivateRabbit
from cohortium_messages.envelope import Envelope
from cohortium_messages.events import BrokerCut, BrokerRefusal
from cohortium_messages.governance import Invitation
from cohortium_messages.ids import SiteId
from cohortium_messages.registry import MESSAGE_TYPES, Message
from cohortium_messages.rights import BROKER_LOG
from cohortium_messages.topology import Topology, site_topology
from cohortium_protocol.logins import Audience, make_login
from cohortium_protocol.signing import IdentityKey
from governance_stage import eventually, running

NAMESPACE = "cohortium"
VHOST = "cohortium"
FEDERATION = "test.example"
AUDIENCE = Audience(FEDERATION, NAMESPACE)


@dataclass(frozen=True, slots=True)
class GuardedBroker:
    """Its ports, its files, and the passwords of the platform's users."""

    rabbit: PrivateRabbit
    folder: Path
    passwords: dict[str, str]
    tls_port: int
    auth_port: int
    management_port: int
    measures_port: int
    """Where Prometheus asks."""
    authority: Any
    """Its certificate and key: who signs for this federation."""

    def url(self, login: str = "", password: str = "", *, host: str = "localhost", ca: str = "ca.crt") -> str:
        """The address that hospitals use; without a login, as it stands in a connector's settings."""
        address = f"amqps://{host}:{self.tls_port}/{VHOST}?cafile={self.folder / ca}"
        return with_login(address, login, password) if login else address

    def user(self, name: str) -> str:
        return self.url(name, self.passwords[name])

    @property
    def management_url(self) -> str:
        return f"https://reaper:{self.passwords['reaper']}@localhost:{self.management_port}"

    @property
    def gate_settings(self) -> dict[str, Any]:
        """What enrolment has to know of this broker."""
        return {
            "broker_auth_port": self.auth_port,
            "broker_auth_cert_file": str(self.folder / "enrolment-tls.crt"),
            "broker_auth_key_file": str(self.folder / "enrolment-tls.key"),
            "management_url": self.management_url,
            "management_ca_file": str(self.folder / "ca.crt"),
        }

    def client(self, **more: Any) -> httpx.AsyncClient:
        """Who believes this federation's authority, at whichever port."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        return httpx.AsyncClient(verify=context, trust_env=False, **more)


@dataclass(frozen=True, slots=True)
class Hospital:
    """An active site, or one that is only invited (`token`)."""

    site_id: SiteId
    key: IdentityKey
    token: str | None = None

    def password(self, *, seconds: int = 600, since: int = 0, **changes: Any) -> str:
        """A login statement of this site: issued `since` seconds from now, good for so many seconds."""
        issued = int(time.time()) + since
        values = {
            "issued_at": issued,
            "ends_at": issued + seconds,
            "nonce": secrets.token_bytes(16),
            "token": self.token,
        }
        audience = changes.pop("audience", AUDIENCE)
        return make_login(audience, changes.pop("site", self.site_id), self.key, **{**values, **changes}).password()


@dataclass
class GuardedWorld:
    broker: GuardedBroker
    folder: Path
    database_url: str
    prefix: str
    settings: dict[str, Any] = field(default_factory=dict)
    files: FederationFiles = field(init=False)
    app: App = field(init=False)
    db: Database = field(init=False)
    _sites: list[SiteId] = field(default_factory=list)
    _values: dict[str, Any] = field(init=False)
    _running: contextlib.AsyncExitStack = field(init=False)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        self.files = create_federation(
            FederationSpec(
                self.folder / "federation",
                FEDERATION,
                self.broker.user("enrolment"),
                NAMESPACE,
                datetime.now(UTC),
                database_url=self.database_url,
                schema_prefix=f"{self.prefix}_",
                settings={"enrolment": {**self.broker.gate_settings, "reap_s": 0.3}},
                broker_check="strict",
            )
        )
        values = yaml.safe_load(self.files.configs["enrolment"].read_text())
        self.db = Database(values["database_url"], schema=values["schema"])
        await migrate(self.db, "cohortium_enrolment")
        self._values = {**values, **self.settings}
        try:
            async with contextlib.AsyncExitStack() as self._running:
                await self._start()
                yield
        finally:
            await self._remove_sites()
            await drop_schema(self.db)
            await self.db.close()

    async def _start(self) -> None:
        self.app = await App.build(EnrolmentSettings.model_validate(self._values))
        await self._running.enter_async_context(running(self.app))
        await self.answering()

    @contextlib.asynccontextmanager
    async def enrolment_away(self) -> AsyncIterator[None]:
        """Nobody answers the broker until the end of the block; then another process of enrolment does."""
        await self._running.aclose()
        yield
        await self._start()

    async def answering(self) -> None:
        async with asyncio.timeout(120), self.broker.client() as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    await client.get(f"https://localhost:{self.broker.auth_port}/healthz")
                    return
                await asyncio.sleep(0.05)

    async def invitation(self, name: str) -> Invitation:
        headers = {"Authorization": f"Bearer {self.files.operator_token}"}
        transport = httpx.ASGITransport(app=self.app.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            answer = await client.post("/sites", json={"name": name})
        assert answer.status_code == 201, answer.text
        invitation = Invitation.model_validate_json(answer.content)
        self._sites.append(invitation.site_id)
        return invitation

    async def invite(self, name: str) -> Hospital:
        """A site that was invited and has not registered."""
        invitation = await self.invitation(name)
        return Hospital(invitation.site_id, IdentityKey.generate(), invitation.token)

    async def hospital(self, name: str) -> Hospital:
        """An active site. How it registers is tested elsewhere."""
        invited = await self.invite(name)
        active = Active(invited.site_id, name, invited.key.public, datetime.now(UTC))
        await self.db.run("test_activate", lambda tx: store.save_site(tx, active, "test"))
        return Hospital(invited.site_id, invited.key)

    async def revoke(self, site_id: SiteId) -> None:
        headers = {"Authorization": f"Bearer {self.files.operator_token}"}
        transport = httpx.ASGITransport(app=self.app.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            (await client.post(f"/sites/{site_id}/revoke", json={})).raise_for_status()

    def address(self, hospital: Hospital, password: str | None = None) -> str:
        return self.broker.url(hospital.site_id, password or hospital.password())

    @contextlib.asynccontextmanager
    async def bus(self, url: UrlSource, user_id: str | None = None) -> AsyncIterator[RabbitBus]:
        bus = RabbitBus(url, NAMESPACE, connection_name="test", user_id=user_id)
        try:
            await bus.connect()
            yield bus
        finally:
            await bus.close()

    async def recorded(self, kind: type[Message]) -> list[Message]:
        """Every event of this type that enrolment has sent, or wants to."""
        async with self.db.reading("test_events") as tx:
            rows = await tx.rows(select(outbox).where(outbox.c.type == kind.type_name).order_by(outbox.c.id))
        return [MESSAGE_TYPES[row.type].model_validate(Envelope.model_validate_json(row.body).data) for row in rows]

    async def refused(self, code: str, site: Hospital | None) -> None:
        """Return when the audit log is told of this refusal."""
        wanted = None if site is None else site.site_id
        await self._until(BrokerRefusal, lambda one: one.code == code and one.site_id == wanted, f"{code} of {wanted}")

    async def cut(self, reason: str, site: Hospital) -> None:
        """Return when the audit log is told that connections of this site were closed."""
        await self._until(BrokerCut, lambda one: one.reason == reason and one.site_id == site.site_id, reason)

    async def log_is_heard(self) -> None:
        """Return when enrolment hears the broker's log: a young broker has no exchange for it yet."""

        async def heard() -> bool:
            bus = self.app._bus
            assert isinstance(bus, RabbitBus)
            return any(one._name == BROKER_LOG and one.active for one in bus._subscriptions)

        await eventually(heard, timeout_s=120)

    async def _until(self, kind: type[Message], fits: Any, what: str) -> None:
        deadline = time.monotonic() + 120
        while not any(fits(one) for one in await self.recorded(kind)):
            assert time.monotonic() < deadline, f"no {kind.__name__}: {what}"
            await asyncio.sleep(0.1)

    async def _remove_sites(self) -> None:
        async with self.bus(self.broker.user("enrolment")) as bus:
            for site in self._sites:
                await bus.delete(Topology((), site_topology(site).queues))


def hello(key: str, exchange: str = "uplink", *, body: bytes = b"{}", number: int = 0) -> Outgoing:
    return Outgoing(exchange, key, body, message_id=f"hello-{number}-{secrets.token_hex(8)}", type="test")


async def take(delivery: Delivery) -> Disposition:
    return Ack()
