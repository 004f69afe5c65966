"""What the services and hospitals say in the course of one small study: events for the tests of audit and verifier.

Four hospitals; the statistics window, one round of training with one hospital dropped, its evaluation, the bundle. A
test may change the lines before they are signed: then it is the emitter itself that lies.
"""

import asyncio
import hashlib
import io
import zipfile
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cohortium_audit.app import App
from cohortium_audit.domain import LogName
from cohortium_audit.settings import AuditSettings
from cohortium_audit.store import logs
from cohortium_kit.bus import Ack, Outgoing
from cohortium_messages import events as ev
from cohortium_messages.governance import Manifest, ManifestPublished, Permit, SiteRegistered
from cohortium_messages.ids import RunId
from cohortium_messages.runs import EvaluationResult
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.topology import inbox
from cohortium_messages.witness import CheckpointCosigned
from cohortium_protocol.attest import Statement, sign_statement
from cohortium_protocol.documents import grant_digest, manifest_hash
from cohortium_protocol.notes import Checkpoint
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.witness import cosign, witness_name
from governance_stage import DIGEST, FEDERATION, STUDY, Hospital, Stage, delivery

RUN = RunId("00000000-0000-4000-8000-0000000000aa")
MODEL_FILES = {"model.safetensors": b"weights", "card.json": b"{}"}


@dataclass(frozen=True, slots=True)
class Line:
    """One event and who says it (a role, or a hospital), `wait_s` after the one before."""

    who: str | Hospital
    message: ev.AuditEvent
    wait_s: float = 0.0


def window(number: int) -> bytes:
    return bytes([number]) * 16


def survivors_hash(number: int) -> bytes:
    return hashlib.sha256(b"survivors" + window(number)).digest()


def model(version: int) -> ModelRef:
    return ModelRef(version=version, model_hash=hashlib.sha256(b"model%d" % version).digest())


def attestation(stage: Stage, files: Mapping[str, bytes] = MODEL_FILES) -> bytes:
    """The signed statement over the model's files."""
    subjects = {name: hashlib.sha256(data).digest() for name, data in files.items()}
    return sign_statement(Statement(subjects, "https://test/model/1", {}), (stage.service_key("aggregator"),))


def window_lines(stage: Stage, number: int, purpose: str, *, dropped: int = 0) -> list[Line]:
    """One window from its authorisation to its end; the last `dropped` hospitals never upload."""
    sites = stage.hospitals
    left = sites[: len(sites) - dropped]
    ids = {"run_id": RUN, "window_id": window(number)}
    digests = {site.site_id: grant_digest(stage.grant(site, begin=stage.started)) for site in sites}
    permits = tuple(Permit(site_id=site, permitted=True, grant_digest=digest) for site, digest in digests.items())
    lines: list[Line] = [
        Line(
            "scheduler",
            ev.WindowAuthorised(
                **ids, round=0 if purpose == "statistics" else 1, purpose=purpose, params_hash=DIGEST, permits=permits
            ),
        )
    ]
    lines += [
        Line(site, ev.TaskTaken(**ids, site_id=site.site_id, grant_digest=digests[site.site_id])) for site in sites
    ]
    everybody = tuple(site.site_id for site in sites)
    fixed = ev.CohortFixed(**ids, roster_hash=DIGEST, sites=everybody, n=len(sites), t=3, c=1, k_min=3)
    lines.append(Line("scheduler", fixed))
    lines += [Line(site, ev.UploadSealed(**ids, site_id=site.site_id, header_hash=DIGEST, bytes=1000)) for site in left]
    shown = survivors_hash(number)
    lines += [Line(site, ev.SharesGiven(**ids, site_id=site.site_id, survivors_hash=shown)) for site in left]
    opened = ev.AggregateOpened(
        **ids,
        survivors_hash=shown,
        survivors=tuple(site.site_id for site in left),
        dropped=tuple(site.site_id for site in sites[len(left) :]),
    )
    lines += [Line("aggregator", opened), Line("aggregator", ev.WindowEnded(**ids, purpose=purpose, state="RELEASED"))]
    return lines


def study_lines(stage: Stage) -> list[Line]:
    """The whole study, as honest parties tell it."""
    manifest = stage.manifest()
    recorded = ev.ManifestRecorded(
        study_id=STUDY,
        version=1,
        manifest_hash=manifest_hash(manifest),
        study_digest=DIGEST,
        members=tuple(member.site_id for member in manifest.members),
    )
    lines = [
        Line("enrolment", recorded),
        Line("scheduler", ev.StudySubmitted(study_id=STUDY, study_digest=DIGEST, run_id=RUN)),
    ]
    for site in stage.hospitals:
        grant = stage.grant(site, begin=stage.started)
        started = ev.GrantStarted(
            site_id=site.site_id,
            study_digest=DIGEST,
            grant_digest=grant_digest(grant),
            not_before=grant.not_before,
            not_after=grant.not_after,
        )
        lines.append(Line("consent", started))
    lines.append(Line("scheduler", ev.RunStateChanged(run_id=RUN, state="PREPARING")))
    lines += window_lines(stage, 1, "statistics")
    lines.append(Line("aggregator", ev.ModelReleased(run_id=RUN, model=model(0), parent=None, window_id=window(1))))
    lines += window_lines(stage, 2, "update", dropped=1)
    released = ev.ModelReleased(run_id=RUN, model=model(1), parent=model(0), window_id=window(2))
    lines.append(Line("aggregator", released))
    lines += window_lines(stage, 3, "evaluation")
    result = EvaluationResult(model=model(1), rows=100, positives=40, auc=0.8)
    lines.append(Line("aggregator", ev.ModelEvaluated(run_id=RUN, window_id=window(3), result=result)))
    digest = hashlib.sha256(attestation(stage)).digest()
    lines.append(Line("aggregator", ev.ModelBundled(run_id=RUN, model=model(1), attestation_sha256=digest)))
    return [*lines, *witness_lines(stage), Line("scheduler", ev.RunStateChanged(run_id=RUN, state="FINISHED"))]


def witness_lines(stage: Stage) -> list[Line]:
    """Each hospital says with which key it cosigns."""
    named = [ev.WitnessNamed(site_id=site.site_id, witness_key=witness_key(site).public) for site in stage.hospitals]
    return [Line(site, message) for site, message in zip(stage.hospitals, named, strict=True)]


def witness_key(site: Hospital) -> IdentityKey:
    """The key with which this hospital cosigns checkpoints, and nothing else."""
    return IdentityKey.from_seed(hashlib.sha256(b"witness" + site.key.public).digest())


async def cosign_latest(stage: Stage, app: App, *, sites: Sequence[Hospital] | None = None) -> None:
    """The hospitals cosign the newest checkpoint, as the service asks them to."""
    async with app.db.reading("latest") as tx:
        latest = await logs.latest_checkpoint(tx, LogName(STUDY))
    assert latest is not None
    await app.db.run("ask", app.witnessing.ask_all)  # those that were not asked with a task
    checkpoint = Checkpoint(f"{FEDERATION}/audit/{STUDY}", latest.size, latest.root)
    for site in stage.hospitals if sites is None else sites:
        key, at = witness_key(site), int(stage.clock.now().timestamp())
        message = CheckpointCosigned(
            study_id=STUDY,
            site_id=site.site_id,
            size=latest.size,
            root=latest.root,
            witness_key=key.public,
            line=cosign(checkpoint, witness_name(FEDERATION, site.site_id), key, at),
        )
        outgoing = stage.from_site(site, "audit", message, study=STUDY)
        assert await app.consumer.handle(delivery(outgoing, inbox("audit"))) == Ack()


def signed(stage: Stage, line: Line) -> Outgoing:
    """The line as its emitter sends it, as the next one in its chain."""
    return stage.told(line.who, line.message)


async def audit_app(stage: Stage) -> App:
    """An audit service that knows the hospitals and the manifest."""
    settings = AuditSettings.model_validate(stage.settings("audit") | {"append_gather_s": 0.0})
    app = await App.build(settings, bus=await stage.bus(), database=await stage.database("audit"), clock=stage.clock)
    known = [
        SiteRegistered(site_id=site.site_id, name=site.name, identity_pk=site.key.public) for site in stage.hospitals
    ]
    for message in (*known, ManifestPublished(manifest=stage.manifest())):
        outgoing = stage.from_service("enrolment", "audit", message)
        assert await app.consumer.handle(delivery(outgoing, inbox("audit"))) == Ack()
    return app


@asynccontextmanager
async def recording(stage: Stage) -> AsyncIterator[App]:
    """The same service, its appender running."""
    app = await audit_app(stage)
    stop = asyncio.Event()
    appending = asyncio.create_task(app.consumer.appender.run(stop))
    yield app
    stop.set()
    await appending
    await app.db.close()


async def tell(
    stage: Stage, app: App, lines: Sequence[Line], *, checkpoint_every: int = 7, withheld: Collection[int] = ()
) -> None:
    """The service records these lines, but those whose places are `withheld`: they were told, and never came."""
    for first in range(0, len(lines), checkpoint_every):
        part = []
        for place, line in enumerate(lines[first : first + checkpoint_every], first):
            await stage.clock.advance(line.wait_s)
            told = delivery(signed(stage, line), inbox("audit"))
            if place not in withheld:
                part.append(told)
        answers = await asyncio.gather(*[app.consumer.handle(one) for one in part])
        assert answers == [Ack()] * len(part)
        await app.db.run("checkpoint", app.handlers.checkpoint_all)


async def fetch_bundle(stage: Stage, app: App, folder: Path) -> Path:
    """The study's bundle, unpacked into `folder`."""
    async with stage.client(app) as client:
        answer = (await client.get(f"/studies/{STUDY}/bundle")).raise_for_status()
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(folder)
    return folder


async def bundle_of(
    stage: Stage,
    lines: Sequence[Line],
    folder: Path,
    *,
    checkpoint_every: int = 7,
    manifest: Manifest | None = None,
    files: Mapping[str, bytes] = MODEL_FILES,
    cosigners: Sequence[Hospital] | None = None,
    withheld: Collection[int] = (),
) -> Path:
    """A result folder: these lines recorded by a real audit service, its bundle under `audit`, the model beside it.

    `withheld`: lines, by their place, that were told and that the log never took.
    """
    async with recording(stage) as app:
        if manifest is not None:
            outgoing = stage.from_service("enrolment", "audit", ManifestPublished(manifest=manifest))
            assert await app.consumer.handle(delivery(outgoing, inbox("audit"))) == Ack()
        await tell(stage, app, lines, checkpoint_every=checkpoint_every, withheld=withheld)
        await cosign_latest(stage, app, sites=cosigners)
        await fetch_bundle(stage, app, folder / "audit")
    (folder / "model").mkdir(parents=True)
    for name, data in files.items():
        (folder / "model" / name).write_bytes(data)
    (folder / "model" / "attestation.dsse.json").write_bytes(attestation(stage, files))
    return folder / "audit"
