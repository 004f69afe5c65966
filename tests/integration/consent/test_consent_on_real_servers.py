"""Consent as it runs: grants and questions over RabbitMQ, records in PostgreSQL, a restart in between."""

from pathlib import Path

import pytest

from cohortium_consent.app import App
from cohortium_consent.settings import ConsentSettings
from cohortium_kit.amqp import RabbitBus
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
from cohortium_messages.topology import dead_letters, inbox
from governance_stage import DIGEST, STUDY, Stage, eventually, real_stage, receive, running

pytestmark = pytest.mark.real
RUN = RunId("00000000-0000-4000-8000-0000000000aa")


async def build(stage: Stage) -> App:
    return await App.build(ConsentSettings.model_validate(stage.settings("consent")))


async def permitted(stage: Stage, bus: RabbitBus, question: int) -> list[bool]:
    asked = AuthoriseAsked(
        question_id=bytes([question]) * 16,
        run_id=RUN,
        study_id=STUDY,
        study_digest=DIGEST,
        round=1,
        sites=tuple(site.site_id for site in stage.hospitals),
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
