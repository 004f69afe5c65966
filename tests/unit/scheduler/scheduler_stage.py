"""A running scheduler on the in-memory bus, and everybody around it played by the test, with the real keys."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import httpx
import yaml

from cohortium_cli.federation import FederationFiles
from cohortium_kit.bus import Ack, Delivery, Disposition
from cohortium_kit.clock import SystemClock
from cohortium_kit.db import Database
from cohortium_kit.envelopes import Sender, open_envelope
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_messages import events
from cohortium_messages.governance import (
    AuthoriseAsked,
    Authorised,
    GrantRecorded,
    Manifest,
    ManifestPublished,
    Member,
    Permit,
    SiteRegistered,
)
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.registry import Message
from cohortium_messages.runs import (
    SessionClosed,
    SessionOpened,
    StudyOffered,
)
from cohortium_messages.secure_sum import ModelRef, WindowOpen
from cohortium_messages.topology import (
    EVENTS,
    SERVICES,
    Binding,
    Queue,
    QueueKind,
    Topology,
    control_queue,
    inbox,
    platform_topology,
    site_topology,
    uplink_key,
)
from cohortium_messages.witness import EventProven, Logged
from cohortium_protocol.documents import default_collusion, sign_manifest
from cohortium_protocol.keys import WindowKeys
from cohortium_protocol.logproof import authorisation_id
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey, Keyring, service_key_id, site_key_id
from cohortium_protocol.window import make_ready

M = TypeVar("M", bound=Message)
STUDY: dict[str, Any] = {
    "apiVersion": "cohortium/study/1",
    "governance": "trial",
    "name": "heart",
    "purpose": "test",
    "dataset": {
        "features": [{"name": "age", "type": "float", "range": [18, 110]}],
        "label": {"name": "disease", "type": "binary"},
        "split": {"test": 0.3, "seed": 7},
    },
    "recipe": {"trainer": "torch.logistic"},
    "federation": {"rounds": 2, "min_sites": 3, "deadlines": {"ready_s": 30}},
}


@dataclass(slots=True)
class Stage:
    """A running scheduler and everybody around it."""

    files: FederationFiles
    broker: MemoryBroker
    bus: MemoryBus
    http: httpx.AsyncClient
    sites: dict[SiteId, IdentityKey]
    db: Database
    heard: list[tuple[str, Message]] = field(default_factory=list)
    study: dict[str, Any] = field(default_factory=lambda: dict(STUDY))

    def sender(self, role: str) -> Sender:
        key = IdentityKey.from_seed(
            bytes.fromhex((self.files.directory / "secrets" / f"{role}.key").read_text().strip())
        )
        return Sender(f"/{role}", EnvelopeSigner(service_key_id(role), key), SystemClock())

    def site_sender(self, site: SiteId) -> Sender:
        return Sender("/site", EnvelopeSigner(site_key_id(site), self.sites[site]), SystemClock())

    async def say(self, role: str, message: Message, *, times: int = 2) -> None:
        """A service speaks to the scheduler; everything is said twice, as a redelivery would."""
        outgoing = self.sender(role).outgoing(SERVICES.name, "scheduler", message)
        for _ in range(times):
            await self.bus.publish(outgoing)

    async def site_says(self, site: SiteId, message: Message, *, key: str | None = None) -> None:
        outgoing = self.site_sender(site).outgoing("uplink", key or uplink_key(site, "scheduler"), message)
        for _ in range(2):
            await self.bus.publish(outgoing)

    async def wait(self, kind: type[M], count: int = 1, where: Callable[[M], bool] = lambda _: True) -> list[M]:
        """The first `count` messages of a type that anybody was sent."""
        for _ in range(6000):
            found = [message for _, message in self.heard if isinstance(message, kind) and where(message)]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(f"{count} x {kind.type_name} did not come; heard {[m.type_name for _, m in self.heard]}")

    async def status(self, run_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = (await self.http.get(f"/runs/{run_id}")).raise_for_status().json()
        return answer

    async def state_is(self, run_id: str, state: str) -> dict[str, Any]:
        for _ in range(6000):
            status = await self.status(run_id)
            if status["state"] == state:
                return status
            await asyncio.sleep(0.01)
        raise AssertionError(f"the run is {status['state']}, not {state}")


async def listen(stage: Stage) -> list[Any]:
    """Hear everything that the scheduler says to others."""
    ears = Keyring({service_key_id("scheduler"): stage.files.trust.services.scheduler})

    def hearing(name: str) -> Callable[[Delivery], Any]:
        async def hear(delivery: Delivery) -> Disposition:
            _, message, _ = open_envelope(delivery, ears)
            stage.heard.append((name, message))
            return Ack()

        return hear

    tap = Queue("test.events", QueueKind.CLASSIC, (Binding(EVENTS.name, "#"),))
    await stage.bus.declare(Topology(platform_topology().exchanges, (tap,)))
    queues = ["test.events", inbox("consent"), inbox("aggregator")]
    for site in stage.sites:
        await stage.bus.declare(site_topology(site))
        queues.append(control_queue(site))
    return [await stage.bus.consume(queue, hearing(queue), prefetch=16) for queue in queues]


async def submit(stage: Stage) -> tuple[str, bytes]:
    answer = await stage.http.post("/studies", content=yaml.safe_dump(stage.study))
    assert answer.status_code == 201, answer.text
    body = answer.json()
    return body["run_id"], bytes.fromhex(body["study_digest"])


def signed_manifest(stage: Stage, digest: bytes) -> Manifest:
    members = sorted(stage.sites, key=lambda site: bytes.fromhex(site.replace("-", "")))
    manifest = Manifest(
        study_id=StudyId("heart"),
        version=1,
        prev_hash=bytes(32),
        study_digest=digest,
        members=tuple(
            Member(site_id=site, name=f"site {number}", identity_pk=stage.sites[site].public)
            for number, site in enumerate(members)
        ),
        collusion=default_collusion(len(members)),
        k_min_floor=0,
    )
    for officer in stage.files.officers:
        manifest = sign_manifest(manifest, officer)
    return manifest


async def recruit(stage: Stage, *, grants: int = 4) -> tuple[str, bytes, Manifest]:
    """A run whose members have granted."""
    run_id, digest = await submit(stage)
    for site, key in stage.sites.items():
        await stage.say("enrolment", SiteRegistered(site_id=site, name="s", identity_pk=key.public))
    manifest = signed_manifest(stage, digest)
    await stage.say("enrolment", ManifestPublished(manifest=manifest))
    await stage.wait(StudyOffered, 4)
    for site in list(stage.sites)[:grants]:
        later = SystemClock().now() + timedelta(days=1)
        granted = GrantRecorded(
            study_id=StudyId("heart"), study_digest=digest, site_id=site, grant_digest=bytes(32), not_after=later
        )
        await stage.say("consent", granted)
    return run_id, digest, manifest


async def authorise(stage: Stage, *, number: int = 1, denied: int = 0, unopened: int = 0) -> WindowOpen:
    """Consent answers its newest question; the window that opens. `unopened`: earlier ones that did not."""
    question = (await stage.wait(AuthoriseAsked, number))[-1]
    permits = tuple(
        Permit(site_id=site, permitted=index >= denied, deny_code=None if index >= denied else "GRANT_NOT_FOUND")
        for index, site in enumerate(question.sites)
    )
    await stage.say("consent", Authorised(question_id=question.question_id, run_id=question.run_id, permits=permits))
    opened = await stage.wait(events.WindowAuthorised, number - unopened)
    await prove(stage, opened[-1].window_id)
    return (await stage.wait(WindowOpen, 1, lambda it: it.params.window_id == opened[-1].window_id))[0]


async def prove(stage: Stage, window_id: bytes) -> None:
    """Audit says that the log holds the window's authorisation; what the proof is worth is the sites' to find out."""
    logged = Logged(proof="a proof that only sites read, long enough")
    proven = EventProven(study_id=StudyId("heart"), event_id=authorisation_id(window_id), logged=logged)
    await stage.say("audit", proven)


async def make_all_ready(stage: Stage, window: WindowOpen) -> None:
    base = window.params.bases[-1].model_hash if window.params.bases else bytes(32)
    for site, key in stage.sites.items():
        await stage.site_says(site, make_ready(window.params, site, base, WindowKeys.generate(), key))


async def close(stage: Stage, window: WindowOpen, state: str = "RELEASED", **more: Any) -> None:
    """The aggregator's last word on a window."""
    closed = SessionClosed.model_validate(
        {
            "run_id": window.params.run_id,
            "window_id": window.params.window_id,
            "purpose": window.params.purpose,
            "state": state,
            "survivors": tuple(stage.sites) if state == "RELEASED" else (),
        }
        | more
    )
    await stage.say("aggregator", closed)


async def released(stage: Stage, number: int, version: int, **more: Any) -> WindowOpen:
    """One window from question to release."""
    window = await authorise(stage, number=number)
    await make_all_ready(stage, window)
    await stage.wait(SessionOpened, number)
    model = ModelRef(version=version, model_hash=bytes([version]) * 32)
    await close(stage, window, model=model, **more)
    return window
