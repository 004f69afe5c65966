"""Consent as it runs: grants and questions over RabbitMQ, records in PostgreSQL, a restart in between."""

from pathlib import Path
from typing import Any

import pytest

from cohortium_consent.app import App
from cohortium_consent.settings import ConsentSettings
from cohortium_kit.amqp import RabbitBus
from cohortium_messages.consent import ConsentFile, DocumentsShared, Record
from cohortium_messages.governance import (
    AuthoriseAsked,
    Authorised,
    GrantEnded,
    GrantGiven,
    GrantRecorded,
    ManifestPublished,
    SiteRegistered,
)
from cohortium_messages.ids import RunId
from cohortium_messages.topology import control_queue, dead_letters, inbox, site_topology
from cohortium_protocol.consent.signing import record_digest
from consent_stage import Plane
from governance_stage import DIGEST, STUDY, Stage, eventually, real_stage, receive, running

pytestmark = pytest.mark.real
RUN = RunId("00000000-0000-4000-8000-0000000000aa")


async def build(stage: Stage) -> App:
    return await App.build(ConsentSettings.model_validate(stage.settings("consent")))


async def permitted(stage: Stage, bus: RabbitBus, question: int, governance: Any = "trial") -> list[bool]:
    asked = AuthoriseAsked(
        question_id=bytes([question]) * 16,
        run_id=RUN,
        study_id=STUDY,
        study_digest=DIGEST,
        round=1,
        sites=tuple(site.site_id for site in stage.hospitals),
        governance=governance,
    )
    await bus.publish(stage.from_service("scheduler", "consent", asked))
    answer = await receive(bus, inbox("scheduler"), Authorised)
    assert answer.question_id == asked.question_id
    return [permit.permitted for permit in answer.permits]


async def test_grants_are_recorded_asked_for_and_withdrawn_over_a_restart(
    tmp_path: Path, amqp_url: str, postgres_url: str, namespace: str
) -> None:
    async with real_stage(tmp_path, amqp_url, postgres_url, namespace, "consent") as (stage, bus):
        async with running(await build(stage)):
            # Grants first: they wait for enrolment's word about their site, and for the manifest.
            for site in stage.hospitals[:3]:
                await bus.publish(stage.from_site(site, "consent", GrantGiven(grant=stage.grant(site))))
            for site in stage.hospitals:
                known = SiteRegistered(site_id=site.site_id, name=site.name, identity_pk=site.key.public)
                await bus.publish(stage.from_service("enrolment", "consent", known))
            manifest = ManifestPublished(manifest=stage.manifest())
            await bus.publish(stage.from_service("enrolment", "consent", manifest, study=STUDY))
            told = {(await receive(bus, inbox("scheduler"), GrantRecorded)).site_id for _ in range(3)}
            assert told == {site.site_id for site in stage.hospitals[:3]}
            assert await permitted(stage, bus, 1) == [True, True, True, False]
        async with running(await build(stage)):
            site = stage.hospitals[0]
            await bus.publish(stage.from_site(site, "consent", stage.withdrawal(site)))
            assert (await receive(bus, inbox("aggregator"), GrantEnded)).reason == "GRANT_WITHDRAWN"
            assert await permitted(stage, bus, 2) == [False, True, True, False]
            forged = stage.grant(stage.hospitals[1]).model_copy(update={"max_rounds": 99})
            await bus.publish(stage.from_site(stage.hospitals[1], "consent", GrantGiven(grant=forged)))
            dead = await eventually(lambda: bus.get(dead_letters("consent")))
            assert "bad_document_signature" in dead.headers.values()


async def test_documents_reach_the_hospitals_and_decide_over_a_restart(
    tmp_path: Path, amqp_url: str, postgres_url: str, namespace: str
) -> None:
    async with real_stage(tmp_path, amqp_url, postgres_url, namespace, "consent") as (stage, bus):
        site = stage.hospitals[0]
        plane = Plane(
            now=stage.clock.now(),
            study=STUDY,
            study_digest=DIGEST,
            officers=tuple(stage.files.officers),
            site_keys={one.site_id: one.key for one in stage.hospitals},
        )
        for one in stage.hospitals:
            await bus.declare(site_topology(one.site_id))
        try:
            signed = plane.signed(site.site_id, plane.parts(site.site_id))
            version = ConsentFile(people=plane.cards(), records=(signed.pop("version"),))
            theirs = ConsentFile(people=plane.cards(), records=tuple(signed.values()))
            basis = record_digest(signed["basis"].document)
            app = await build(stage)
            async with running(app):
                for one in stage.hospitals:
                    known = SiteRegistered(site_id=one.site_id, name=one.name, identity_pk=one.key.public)
                    await bus.publish(stage.from_service("enrolment", "consent", known))
                manifest = ManifestPublished(manifest=stage.manifest())
                await bus.publish(stage.from_service("enrolment", "consent", manifest, study=STUDY))
                await bus.publish(stage.from_site(site, "consent", GrantGiven(grant=stage.grant(site, basis=basis))))
                assert await permitted(stage, bus, 1, "required") == [False] * 4
                async with stage.client(app) as client:
                    answer = await client.post("/documents", json=version.model_dump(mode="json"))
                    assert answer.status_code == 200, answer.text
                shared = await receive(bus, control_queue(site.site_id), DocumentsShared)
                assert [record.document.kind for record in shared.file.records] == ["study_version"]
                await bus.publish(stage.from_site(site, "consent", DocumentsShared(file=theirs)))
                assert (await receive(bus, inbox("scheduler"), GrantRecorded)).site_id == site.site_id
            async with running(await build(stage)):
                assert await permitted(stage, bus, 2, "required") == [True, False, False, False]
                stop = plane.act(signed["terms"].document, "terminate", plane.admin(site.site_id), stage.clock.now())
                ended = ConsentFile(records=(Record(document=signed["terms"].document, acts=(stop,)),))
                await bus.publish(stage.from_site(site, "consent", DocumentsShared(file=ended)))
                assert (await receive(bus, inbox("aggregator"), GrantEnded)).reason == "TERMS_TERMINATED"
                assert await permitted(stage, bus, 3, "required") == [False] * 4
        finally:
            for one in stage.hospitals:
                await bus.delete(site_topology(one.site_id))
