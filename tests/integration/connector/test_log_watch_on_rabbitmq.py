"""A real audit service withholds what a hospital reported, or is away: the hospital hears of it, and of its end."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from connector_on_broker import BrokerWorld
from connector_world import ROLES

from cohortium_audit.app import App as Audit
from cohortium_audit.domain import Entry, LogName
from cohortium_audit.handlers import Outcome, Recorded
from cohortium_audit.settings import AuditSettings
from cohortium_audit.store import logs
from cohortium_connector.store import log_watch
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.migrate import drop_schema, migrate
from cohortium_messages.events import FaultSeen
from cohortium_messages.governance import GrantGiven, ManifestPublished, SiteRegistered
from cohortium_messages.ids import StudyId
from cohortium_messages.topology import EVENTS, SERVICES, inbox
from cohortium_protocol.signing import EnvelopeSigner, service_key_id, site_key_id
from governance_stage import eventually, running

pytestmark = pytest.mark.real
OVERDUE = "INCLUSION_OVERDUE"


class WatchedWorld(BrokerWorld):
    """A platform of which audit is a real service, and the rest is played."""

    async def listen(self) -> None:
        for role in set(ROLES) - {"audit"}:
            await self.bus.consume(inbox(role), self._on_delivery, prefetch=16)

    def sender(self, role: str) -> Sender:
        return Sender(f"/{role}", EnvelopeSigner(service_key_id(role), self.services[role]), self.clock)

    async def audit(self, postgres_url: str) -> Audit:
        """An audit service that is not running yet, and will have heard of this hospital and its study."""
        (self.folder / "trust.json").write_text(self.trust().model_dump_json())
        for name, secret in (("audit.key", self.services["audit"].to_seed().hex()), ("token", "t" * 43)):
            (self.folder / name).write_text(secret)
            (self.folder / name).chmod(0o600)
        settings = {
            "amqp_url": self.amqp_url,
            "namespace": self.namespace,
            "broker_check": "trial",
            "database_url": postgres_url,
            "schema": f"{self.namespace}_audit",
            "trust_file": str(self.folder / "trust.json"),
            "signing_key_file": str(self.folder / "audit.key"),
            "operator_token_file": str(self.folder / "token"),
            "governance_keys": [officer.public.hex() for officer in self.officers],
            "governance_threshold": 2,
            "checkpoint_s": 0.2,
        }
        app = await Audit.build(AuditSettings.model_validate(settings))
        await migrate(app.db, "cohortium_audit")
        return app

    async def join(self) -> None:
        """The hospital takes part in the study, and audit is told that it does."""
        await self.enrol()
        await self.offer()
        await self.expect(GrantGiven)
        known = SiteRegistered(site_id=self.site_id, name="Hospital", identity_pk=self.site_pk)
        for message in (known, ManifestPublished(manifest=self.manifest())):
            await self.bus.publish(self.sender("enrolment").outgoing(SERVICES.name, "audit", message))
        # The log has an entry of another emitter, whatever becomes of the hospital's own.
        event, study = FaultSeen(key_id="service:audit", code="BAD_SIGNATURE"), StudyId(self.study.name)
        await self.bus.publish(
            self.sender("scheduler").outgoing(EVENTS.name, f"{study}.{event.type_name}", event, study=study)
        )

    async def hears(self) -> list[str]:
        await self.app.log_watch.look()
        return [code for _, code in self.app.log_watch.standing]

    async def hears_of_it(self) -> bool:
        return await self.hears() == [OVERDUE]

    async def hears_nothing_and_awaits_nothing(self) -> bool:
        async with self.app.db.reading("awaited") as tx:
            waits = await log_watch.waits(tx)
        return await self.hears() == [] and not waits


@pytest.fixture
async def watched(tmp_path: Path, amqp_url: str, namespace: str) -> AsyncIterator[WatchedWorld]:
    world = WatchedWorld(tmp_path, amqp_url, namespace)
    await world.declare()
    await world.listen()
    yield world
    await world.remove()


PATIENCE: dict[str, Any] = {"inclusion_s": 2, "log_stale_s": 3600}


async def test_a_hospital_hears_that_its_events_are_withheld_from_a_log_that_it_cosigns(
    watched: WatchedWorld, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, withheld = await watched.audit(postgres_url), True
    genuine = audit.handlers.append

    async def append(tx: Tx, batch: Sequence[Entry]) -> list[Outcome]:
        """Acknowledge what the hospital says, and record the rest."""
        mine = site_key_id(watched.site_id)
        kept = [entry for entry in batch if not (withheld and entry.key_id == mine)]
        outcomes = iter(await genuine(tx, kept) if kept else [])
        return [next(outcomes) if entry in kept else Recorded(0) for entry in batch]

    async def entries() -> list[bytes]:
        async with audit.db.reading("entries") as tx:
            return await logs.entries(tx, LogName(watched.study.name), 0, 100)

    monkeypatch.setattr(audit.handlers, "append", append)
    try:
        async with running(audit), watched.running(**PATIENCE):
            await watched.join()
            await eventually(watched.hears_of_it)
            study = StudyId(watched.study.name)
            assert watched.app.desk.witness.state(study).size == len(await entries()) == 1
            withheld = False
            await eventually(watched.hears_nothing_and_awaits_nothing)
            assert watched.app.desk.witness.state(study).size >= 2
            ours = [entry for entry in await entries() if watched.site_id.encode() in entry]
            assert len(ours) == len(set(ours)) >= 1
    finally:
        await drop_schema(audit.db)
        await audit.db.close()


async def test_a_hospital_hears_that_the_log_is_away_and_that_it_is_back(
    watched: WatchedWorld, postgres_url: str
) -> None:
    audit = await watched.audit(postgres_url)
    try:
        async with watched.running(**PATIENCE):
            await watched.join()
            await eventually(watched.hears_of_it)
            async with running(audit):
                await eventually(watched.hears_nothing_and_awaits_nothing)
    finally:
        await drop_schema(audit.db)
        await audit.db.close()
