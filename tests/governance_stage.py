"""A federation for the tests of enrolment, consent, audit and the verifier: real keys and documents, played parties.

Messages are handed to a service by hand (`hear`), twice, as a redelivery would; what it wants to send is read from its
outbox. Nothing sleeps, and no socket is opened, but by `real_stage`, on which whole services run.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import UUID

import httpx
import yaml
from sqlalchemy import select

from cohortium_cli.federation import FederationFiles, FederationSpec, create_federation
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Ack, Delivery, Disposition, Outgoing, Requeue
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.consumer import Consumer
from cohortium_kit.db import Database
from cohortium_kit.envelopes import Sender
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.migrate import drop_schema, migrate
from cohortium_kit.tables import outbox
from cohortium_kit.testing.clock import START, ManualClock
from cohortium_kit.testing.deliveries import delivered as delivery
from cohortium_messages.envelope import Envelope, Place
from cohortium_messages.governance import GrantWithdrawn, Manifest, Member, SiteGrant
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.registry import MESSAGE_TYPES, Message
from cohortium_messages.topology import (
    EVENTS,
    SERVICES,
    UPLINK,
    Topology,
    inbox,
    platform_topology,
    site_topology,
    uplink_key,
)
from cohortium_protocol.documents import (
    FIRST,
    UNSIGNED,
    default_collusion,
    manifest_hash,
    sign_grant,
    sign_manifest,
    sign_withdrawal,
)
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey, service_key_id, site_key_id

M = TypeVar("M", bound=Message)
T = TypeVar("T")
STUDY = StudyId("heart-disease")
DIGEST = bytes(range(32))
FEDERATION = "test.example"


class Service(Protocol):
    """What the tests use of an `App`."""

    consumer: Consumer
    db: Database
    http: Any


@dataclass(frozen=True, slots=True)
class Hospital:
    """A site with its key, before or after it is enrolled."""

    site_id: SiteId
    name: str
    key: IdentityKey

    @property
    def member(self) -> Member:
        return Member(site_id=self.site_id, name=self.name, identity_pk=self.key.public)

    def sender(self, clock: Clock) -> Sender:
        return Sender(f"/site/{self.site_id}", EnvelopeSigner(site_key_id(self.site_id), self.key), clock)


def hospital(number: int) -> Hospital:
    """The hospital of this number: always the same id, a fresh key."""
    return Hospital(SiteId(str(UUID(int=number, version=4))), f"Hospital {number}", IdentityKey.generate())


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that a service left in its outbox."""

    exchange: str
    key: str
    message: Message
    study: StudyId | None
    row: Any

    @property
    def outgoing(self) -> Outgoing:
        return Outgoing(self.exchange, self.key, self.row.body, self.row.message_id, self.row.type, self.headers)

    @property
    def headers(self) -> dict[str, str]:
        found: dict[str, str] = yaml.safe_load(self.row.headers)
        return found


@dataclass(slots=True)
class Stage:
    """The federation's files and clock, and the hospitals of the test."""

    files: FederationFiles
    clock: Any
    broker: MemoryBroker
    started: datetime
    hospitals: list[Hospital] = field(default_factory=lambda: [hospital(number) for number in (1, 2, 3, 4)])
    heads: dict[str, Place] = field(default_factory=dict)
    """By who told an event of the study: the place of the next one in its chain."""

    @classmethod
    def at(cls, folder: Path) -> "Stage":
        clock = ManualClock()
        spec = FederationSpec(folder / "federation", FEDERATION, "memory://", "test", START)
        return cls(create_federation(spec), clock, MemoryBroker(clock), clock.now())

    def settings(self, role: str) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(self.files.configs[role].read_text())
        return found

    def service_key(self, role: str) -> IdentityKey:
        path = self.files.directory / "secrets" / f"{role}.key"
        return IdentityKey.from_seed(bytes.fromhex(path.read_text().strip()))

    def sender(self, role: str) -> Sender:
        return Sender(f"/{role}", EnvelopeSigner(service_key_id(role), self.service_key(role)), self.clock)

    @classmethod
    def real(cls, folder: Path, amqp_url: str, postgres_url: str, namespace: str) -> "Stage":
        """On real servers, in a namespace and schemas of its own."""
        spec = FederationSpec(
            folder / "federation",
            FEDERATION,
            amqp_url,
            namespace,
            datetime.now(UTC),
            database_url=postgres_url,
            schema_prefix=f"{namespace}_",
            settings={"audit": {"checkpoint_s": 0.2}},
        )
        return cls(create_federation(spec), SystemClock(), MemoryBroker(SystemClock()), datetime.now(UTC))

    async def bus(self) -> MemoryBus:
        bus = MemoryBus(self.broker, "test")
        await bus.connect()
        await bus.declare(platform_topology())
        return bus

    async def database(self, role: str, url: str | None = None) -> Database:
        """The role's database, migrated."""
        settings = self.settings(role)
        db = Database(url or settings["database_url"], schema=settings["schema"], clock=self.clock)
        await migrate(db, f"cohortium_{role}")
        return db

    def client(self, service: Service, *, token: str | None = None) -> httpx.AsyncClient:
        """An operator at a service's HTTP interface."""
        headers = {"Authorization": f"Bearer {self.files.operator_token if token is None else token}"}
        transport = httpx.ASGITransport(app=service.http)
        return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)

    # Documents

    def manifest(
        self, members: Sequence[Hospital] | None = None, *, previous: Manifest | None = None, digest: bytes = DIGEST
    ) -> Manifest:
        """A manifest that both officers signed."""
        chosen = sorted(members or self.hospitals, key=lambda site: UUID(site.site_id).bytes)
        unsigned = Manifest(
            study_id=STUDY,
            version=1 if previous is None else previous.version + 1,
            prev_hash=FIRST if previous is None else manifest_hash(previous),
            study_digest=digest,
            members=tuple(site.member for site in chosen),
            collusion=default_collusion(len(chosen)),
            k_min_floor=0,
        )
        for officer in self.files.officers:
            unsigned = sign_manifest(unsigned, officer)
        return unsigned

    def grant(self, site: Hospital, *, begin: datetime | None = None, days: int = 30, **changes: Any) -> SiteGrant:
        """A grant that the hospital signed."""
        start = begin or self.clock.now()
        values: dict[str, Any] = {
            "study_id": STUDY,
            "study_digest": DIGEST,
            "site_id": site.site_id,
            "not_before": start,
            "not_after": start + timedelta(days=days),
            "max_rounds": 10,
            "approvers": ("Dr. Ada",),
            "sig": UNSIGNED,
        }
        return sign_grant(SiteGrant(**{**values, **changes}), site.key)

    def withdrawal(self, site: Hospital, *, at: datetime | None = None) -> GrantWithdrawn:
        """A withdrawal that the hospital signed."""
        unsigned = GrantWithdrawn(
            study_id=STUDY, study_digest=DIGEST, site_id=site.site_id, at=at or self.clock.now(), sig=UNSIGNED
        )
        return sign_withdrawal(unsigned, site.key)

    # Messages

    def from_service(self, role: str, receiver: str, message: Message, *, study: StudyId | None = None) -> Outgoing:
        return self.sender(role).outgoing(SERVICES.name, receiver, message, study=study)

    def from_site(
        self, site: Hospital, receiver: str, message: Message, *, study: StudyId | None = None, key: str | None = None
    ) -> Outgoing:
        routing_key = key or uplink_key(site.site_id, receiver)
        return site.sender(self.clock).outgoing(UPLINK.name, routing_key, message, study=study)

    def told(self, who: str | Hospital, message: Message) -> Outgoing:
        """An event of the study, numbered, as a role or a hospital tells it."""
        if isinstance(who, Hospital):
            name, sender = who.site_id, who.sender(self.clock)
            exchange, key = UPLINK.name, uplink_key(who.site_id, "audit")
        else:
            name, sender, exchange, key = who, self.sender(who), EVENTS.name, f"{STUDY}.{message.type_name}"
        place = self.heads.get(name, Place(name.encode()[:8].ljust(8)))
        outgoing = sender.outgoing(exchange, key, message, study=STUDY, place=place)
        self.heads[name] = Place(place.series, place.number + 1, hashlib.sha256(outgoing.body).digest())
        return outgoing

    def event(self, role: str, message: Message, *, study: StudyId | None = STUDY) -> Outgoing:
        return self.sender(role).outgoing(EVENTS.name, f"{study or '-'}.{message.type_name}", message, study=study)


async def hear(service: Service, role: str, outgoing: Outgoing) -> Disposition:
    """Hand a message over twice. The second time must be answered alike and leave nothing new to send."""
    first = await service.consumer.handle(delivery(outgoing, inbox(role)))
    after_first = await sent(service)
    second = await service.consumer.handle(delivery(outgoing, inbox(role), count=1))
    assert second == first
    assert len(await sent(service)) == len(after_first)
    return first


async def sent(service: Service) -> list[Sent]:
    """Everything the service ever wanted to send, in order."""
    async with service.db.reading("test_sent") as tx:
        rows = await tx.rows(select(outbox).order_by(outbox.c.id))
    found = []
    for row in rows:
        envelope = Envelope.model_validate_json(row.body)
        message = MESSAGE_TYPES[envelope.type].model_validate(envelope.data)
        found.append(Sent(row.exchange, row.routing_key, message, envelope.study, row))
    return found


async def sent_of(service: Service, kind: type[M]) -> list[tuple[str, M]]:
    """Receiver's key and message, for every message of this type in the outbox."""
    return [(one.key, one.message) for one in await sent(service) if isinstance(one.message, kind)]


@asynccontextmanager
async def real_stage(
    folder: Path, amqp_url: str, postgres_url: str, namespace: str, *roles: str
) -> AsyncIterator[tuple[Stage, RabbitBus]]:
    """A stage on real servers with these roles' databases migrated; all of it is deleted in the end."""
    stage = Stage.real(folder, amqp_url, postgres_url, namespace)
    bus = RabbitBus(amqp_url, namespace, connection_name=f"test-{namespace}")
    await bus.connect()
    await bus.declare(platform_topology())
    databases = [await stage.database(role) for role in roles]
    try:
        yield stage, bus
    finally:
        for db in databases:
            await drop_schema(db)
            await db.close()
        for site in stage.hospitals:
            await bus.delete(Topology((), site_topology(site.site_id).queues))
        await bus.delete(platform_topology())
        await bus.close()


@asynccontextmanager
async def running(*apps: Any) -> AsyncIterator[None]:
    """These services run; at the end they stop in good order, and a failure of theirs is one of the test."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(app.run(stop)) for app in apps]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def eventually(ask: Callable[[], Awaitable[T | None]], *, timeout_s: float = 90.0) -> T:
    """The first answer that is not None and not empty."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = await ask()
            if found:
                return found
            await asyncio.sleep(0.05)


async def receive(bus: RabbitBus, queue: str, kind: type[M]) -> M:
    """The next message of this type in a queue; others before it are taken and dropped.

    As a consumer, because some queues hand their messages to one consumer only, and to nobody who just asks.
    """
    found: asyncio.Future[M] = asyncio.get_running_loop().create_future()

    async def take(taken: Delivery) -> Disposition:
        if found.done():
            return Requeue()
        if taken.type == kind.type_name:
            found.set_result(kind.model_validate(Envelope.model_validate_json(taken.body).data))
        return Ack()

    subscription = await bus.consume(queue, take, prefetch=1)
    try:
        async with asyncio.timeout(90):
            return await found
    finally:
        await subscription.cancel()
