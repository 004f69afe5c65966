"""The audit service as it runs: it works through what waited, survives kills, and can be verified."""

import asyncio
import io
import zipfile
from pathlib import Path

import pytest

from cohortium_audit.app import App
from cohortium_audit.settings import AuditSettings
from cohortium_kit.amqp import RabbitBus
from cohortium_messages import events as ev
from cohortium_messages.governance import ManifestPublished, SiteRegistered
from cohortium_messages.topology import dead_letters
from cohortium_verify.verification import verify_bundle
from governance_stage import DIGEST, STUDY, Stage, eventually, real_stage, running
from study_story import RUN, signed, study_lines, window

pytestmark = pytest.mark.real


async def build(stage: Stage) -> App:
    return await App.build(AuditSettings.model_validate(stage.settings("audit")))


async def introduce(stage: Stage, bus: RabbitBus) -> None:
    for site in stage.hospitals:
        known = SiteRegistered(site_id=site.site_id, name=site.name, identity_pk=site.key.public)
        await bus.publish(stage.from_service("enrolment", "audit", known))
    await bus.publish(stage.from_service("enrolment", "audit", ManifestPublished(manifest=stage.manifest())))


async def log_size(stage: Stage, app: App) -> int:
    async with stage.client(app) as client:
        logs = (await client.get("/logs")).json()["items"]
    return next((log["size"] for log in logs if log["log"] == STUDY), 0)


async def bundle(stage: Stage, app: App, folder: Path) -> Path:
    async with stage.client(app) as client:
        answer = (await client.get(f"/studies/{STUDY}/bundle")).raise_for_status()
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(folder)
    return folder


async def test_a_study_is_recorded_over_two_lives_of_the_service_and_its_bundle_is_proven(
    tmp_path: Path, amqp_url: str, postgres_url: str, namespace: str
) -> None:
    async with real_stage(tmp_path, amqp_url, postgres_url, namespace, "audit") as (stage, bus):
        outgoing = [signed(stage, line) for line in study_lines(stage)]
        await introduce(stage, bus)
        for one in outgoing[:20]:
            await bus.publish(one)
        first = await build(stage)
        async with running(first):
            await eventually(lambda: reached(stage, first, 20))
        for one in outgoing[15:]:  # some of them again, as an outbox does after a crash
            await bus.publish(one)
        second = await build(stage)
        async with running(second):
            await eventually(lambda: reached(stage, second, len(outgoing)))
            folder = await bundle(stage, second, tmp_path / "audit")
        report = verify_bundle(folder, [officer.public for officer in stage.files.officers], quorum=0)
        assert report.verified, report.text()
        assert report.tree_size == len(outgoing)
        assert await bus.queue_depth(dead_letters("audit")) == 0


async def reached(stage: Stage, app: App, size: int) -> bool:
    found = await log_size(stage, app)
    assert found <= size
    return found == size


async def test_killed_at_any_moment_it_records_every_event_once(
    tmp_path: Path, amqp_url: str, postgres_url: str, namespace: str
) -> None:
    async with real_stage(tmp_path, amqp_url, postgres_url, namespace, "audit") as (stage, bus):
        await introduce(stage, bus)
        sites = stage.hospitals
        for number in range(200):
            message = ev.SharesGiven(
                run_id=RUN, window_id=window(number), site_id=sites[number % 4].site_id, survivors_hash=DIGEST
            )
            await bus.publish(stage.from_site(sites[number % 4], "audit", message, study=STUDY))
        size = 0
        for life in range(6):
            app = await build(stage)
            living = asyncio.create_task(app.run(asyncio.Event()))
            await asyncio.sleep(0.3 + 0.07 * life)
            living.cancel()  # no orderly end: what was in hand goes back to the queue
            await asyncio.gather(living, return_exceptions=True)
        last = await build(stage)
        async with running(last):
            await eventually(lambda: reached(stage, last, 200))
            async with stage.client(last) as client:
                lines = (await client.get(f"/logs/{STUDY}/entries")).content.split(b"\n")[:-1]
            size = await log_size(stage, last)
        assert size == len(lines) == len(set(lines)) == 200


@pytest.mark.slow
async def test_what_waited_for_the_service_is_logged_when_it_starts(
    tmp_path: Path, amqp_url: str, postgres_url: str, namespace: str
) -> None:
    """How many a second it takes is measured by `make bench`; here all of them arrive."""
    async with real_stage(tmp_path, amqp_url, postgres_url, namespace, "audit") as (stage, bus):
        await introduce(stage, bus)
        before = await build(stage)
        async with running(before):

            async def known() -> bool:
                return STUDY in before.directory.members

            await eventually(known)
        site = stage.hospitals[0]
        messages = [
            stage.from_site(
                site,
                "audit",
                ev.UploadSealed(
                    run_id=RUN,
                    window_id=number.to_bytes(16, "big"),
                    site_id=site.site_id,
                    header_hash=DIGEST,
                    bytes=number,
                ),
                study=STUDY,
            )
            for number in range(1000)
        ]
        for first in range(0, len(messages), 100):
            await asyncio.gather(*[bus.publish(one) for one in messages[first : first + 100]])
        app = await build(stage)
        async with running(app):
            await eventually(lambda: reached(stage, app, 1000), timeout_s=120)
            assert await log_size(stage, app) == 1000


async def test_two_who_sign_the_same_checkpoint_at_once_sign_one(
    tmp_path: Path, amqp_url: str, postgres_url: str, namespace: str
) -> None:
    async with real_stage(tmp_path, amqp_url, postgres_url, namespace, "audit") as (stage, bus):
        await introduce(stage, bus)
        app = await build(stage)
        async with running(app):
            for number in range(8):
                message = ev.SharesGiven(
                    run_id=RUN,
                    window_id=window(number),
                    site_id=stage.hospitals[0].site_id,
                    survivors_hash=DIGEST,
                )
                await bus.publish(stage.from_site(stage.hospitals[0], "audit", message, study=STUDY))
                await eventually(lambda wanted=number + 1: reached(stage, app, wanted))
                async with stage.client(app) as client:
                    asked = [client.get(f"/logs/{STUDY}/checkpoint") for _ in range(6)]
                    answers = await asyncio.gather(*asked)
                assert {answer.status_code for answer in answers} == {200}
                assert len({answer.text for answer in answers}) == 1
