"""Enrolment as it runs: invitation over HTTP, registration over RabbitMQ, records in PostgreSQL, and a restart."""

from pathlib import Path

import pytest

from cohortium_enrolment.app import App
from cohortium_enrolment.settings import EnrolmentSettings
from cohortium_kit.amqp import RabbitBus
from cohortium_messages.governance import Invitation, ManifestPublished, RegistrationRefused, SiteRegistered
from cohortium_messages.topology import control_queue, inbox
from cohortium_protocol.documents import make_registration
from cohortium_protocol.signing import IdentityKey
from governance_stage import FEDERATION, Hospital, Stage, real_stage, receive, running

pytestmark = pytest.mark.real


async def build(stage: Stage) -> App:
    return await App.build(EnrolmentSettings.model_validate(stage.settings("enrolment")))


async def enrol(stage: Stage, app: App, bus: RabbitBus, name: str) -> Hospital:
    async with stage.client(app) as client:
        answer = (await client.post("/sites", json={"name": name})).raise_for_status()
    invitation = Invitation.model_validate_json(answer.content)
    site = Hospital(invitation.site_id, name, IdentityKey.generate())
    stage.hospitals.append(site)
    message = make_registration(invitation.token, FEDERATION, site.site_id, site.key)
    outgoing = stage.from_site(site, "enrolment", message)
    await bus.publish(outgoing)
    await bus.publish(outgoing)
    answered = await receive(bus, control_queue(site.site_id), SiteRegistered)
    assert answered.identity_pk == site.key.public
    return site


async def test_sites_enrol_a_manifest_reaches_its_members_and_all_of_it_outlives_a_restart(
    tmp_path: Path, amqp_url: str, postgres_url: str, namespace: str
) -> None:
    async with real_stage(tmp_path, amqp_url, postgres_url, namespace, "enrolment") as (stage, bus):
        stage.hospitals.clear()
        app = await build(stage)
        async with running(app):
            for number in range(3):
                await enrol(stage, app, bus, f"Hospital {number}")
            told = await receive(bus, inbox("scheduler"), SiteRegistered)
            assert told.site_id == stage.hospitals[0].site_id
        again = await build(stage)
        async with running(again):
            manifest = stage.manifest()
            async with stage.client(again) as client:
                assert (await client.get("/readyz")).status_code == 200
                answer = await client.post("/manifests", json=manifest.model_dump(mode="json"))
                assert answer.status_code == 201, answer.text
            for queue in [inbox("consent"), inbox("audit"), *(control_queue(s.site_id) for s in stage.hospitals)]:
                assert (await receive(bus, queue, ManifestPublished)).manifest == manifest
            thief = Hospital(stage.hospitals[0].site_id, "Hospital 0", IdentityKey.generate())
            stolen = make_registration("x" * 43, FEDERATION, thief.site_id, thief.key)
            await bus.publish(stage.from_site(thief, "enrolment", stolen))
            refused = await receive(bus, control_queue(thief.site_id), RegistrationRefused)
            assert refused.reason == "TOKEN_SPENT"
