"""Registration over the bus: who gets in, who does not, and what everybody is told."""

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select

from cohortium_enrolment import store
from cohortium_enrolment.app import App
from cohortium_enrolment.domain.sites import Active
from cohortium_kit.bus import Ack, Dead, Outgoing
from cohortium_messages.envelope import KEY_ID_HEADER, SIGNATURE_HEADER
from cohortium_messages.events import FaultSeen, SiteEnrolled
from cohortium_messages.governance import Invitation, RegistrationRefused, SiteRegistered
from cohortium_messages.topology import control_queue, inbox, uplink_key
from cohortium_protocol.documents import make_registration
from cohortium_protocol.signing import IdentityKey
from governance_stage import FEDERATION, Hospital, Stage, delivery, hear, sent, sent_of


async def invite(stage: Stage, enrolment: App, name: str = "Hospital A") -> tuple[Invitation, Hospital]:
    async with stage.client(enrolment) as client:
        answer = (await client.post("/sites", json={"name": name})).raise_for_status()
    invitation = Invitation.model_validate_json(answer.content)
    return invitation, Hospital(invitation.site_id, name, IdentityKey.generate())


def registration(stage: Stage, site: Hospital, token: str) -> Outgoing:
    return stage.from_site(site, "enrolment", make_registration(token, FEDERATION, site.site_id, site.key))


async def test_a_registration_enrols_and_tells_the_site_and_every_service_once(stage: Stage, enrolment: App) -> None:
    invitation, site = await invite(stage, enrolment)
    assert await hear(enrolment, "enrolment", registration(stage, site, invitation.token)) == Ack()
    told = await sent_of(enrolment, SiteRegistered)
    receivers = {key for key, _ in told}
    assert receivers == {"consent", "scheduler", "aggregator", "audit", control_queue(site.site_id)}
    assert len(told) == 5
    assert all(message.identity_pk == site.key.public and message.name == "Hospital A" for _, message in told)
    assert len(await sent_of(enrolment, SiteEnrolled)) == 1


async def test_the_same_registration_asked_again_gets_the_same_answer_and_the_scheduler_hears_of_it(
    stage: Stage, enrolment: App
) -> None:
    invitation, site = await invite(stage, enrolment)
    await hear(enrolment, "enrolment", registration(stage, site, invitation.token))
    before = len(await sent(enrolment))
    await hear(enrolment, "enrolment", registration(stage, site, invitation.token))
    after = (await sent(enrolment))[before:]
    told = [(one.key, type(one.message)) for one in after]
    assert told == [(control_queue(site.site_id), SiteRegistered), ("scheduler", SiteRegistered)]


async def test_a_token_is_worth_nothing_to_a_second_key(stage: Stage, enrolment: App) -> None:
    invitation, site = await invite(stage, enrolment)
    await hear(enrolment, "enrolment", registration(stage, site, invitation.token))
    thief = replace(site, key=IdentityKey.generate())
    assert await hear(enrolment, "enrolment", registration(stage, thief, invitation.token)) == Ack()
    assert await sent_of(enrolment, RegistrationRefused) == [
        (
            control_queue(site.site_id),
            RegistrationRefused(site_id=site.site_id, reason="TOKEN_SPENT", identity_pk=thief.key.public),
        )
    ]
    async with enrolment.db.reading("test") as tx:
        known = await store.site(tx, site.site_id)
    assert isinstance(known, Active)
    assert known.identity_pk == site.key.public


async def test_a_wrong_token_is_refused_and_put_on_record_and_the_right_one_still_works(
    stage: Stage, enrolment: App
) -> None:
    invitation, site = await invite(stage, enrolment)
    await hear(enrolment, "enrolment", registration(stage, site, "x" * 43))
    assert [message.reason for _, message in await sent_of(enrolment, RegistrationRefused)] == ["TOKEN_UNKNOWN"]
    assert [message.code for _, message in await sent_of(enrolment, FaultSeen)] == ["TOKEN_UNKNOWN"]
    await hear(enrolment, "enrolment", registration(stage, site, invitation.token))
    assert len(await sent_of(enrolment, SiteRegistered)) == 5


async def test_a_token_mac_for_another_site_or_federation_does_not_fit(stage: Stage, enrolment: App) -> None:
    invitation, site = await invite(stage, enrolment)
    foreign = make_registration(invitation.token, "other.example", site.site_id, site.key)
    await hear(enrolment, "enrolment", stage.from_site(site, "enrolment", foreign))
    assert [message.reason for _, message in await sent_of(enrolment, RegistrationRefused)] == ["BAD_PROOF"]


async def test_an_expired_invitation_is_refused_and_its_token_wiped(stage: Stage, enrolment: App) -> None:
    invitation, site = await invite(stage, enrolment)
    await stage.clock.advance(timedelta(hours=24).total_seconds())
    assert await enrolment.db.run("wipe", store.wipe_expired_tokens) == 1
    assert await enrolment.db.run("wipe", store.wipe_expired_tokens) == 0
    await hear(enrolment, "enrolment", registration(stage, site, invitation.token))
    assert [message.reason for _, message in await sent_of(enrolment, RegistrationRefused)] == ["TOKEN_EXPIRED"]


async def test_the_token_is_never_stored_in_the_clear_and_gone_after_use(stage: Stage, enrolment: App) -> None:
    invitation, site = await invite(stage, enrolment)
    column = select(store.site_table.c.sealed_token)
    async with enrolment.db.reading("test") as tx:
        sealed = await tx.scalar(column)
    assert sealed
    assert invitation.token.encode() not in sealed
    await hear(enrolment, "enrolment", registration(stage, site, invitation.token))
    async with enrolment.db.reading("test") as tx:
        assert await tx.scalar(column) is None


async def test_a_newer_invitation_under_the_same_name_voids_the_older_one(stage: Stage, enrolment: App) -> None:
    first, old = await invite(stage, enrolment)
    second, new = await invite(stage, enrolment)
    await hear(enrolment, "enrolment", registration(stage, old, first.token))
    assert [message.reason for _, message in await sent_of(enrolment, RegistrationRefused)] == ["TOKEN_EXPIRED"]
    await hear(enrolment, "enrolment", registration(stage, new, second.token))
    assert len(await sent_of(enrolment, SiteRegistered)) == 5


async def test_an_unknown_site_is_parked_without_an_answer_that_nobody_could_receive(
    stage: Stage, enrolment: App
) -> None:
    stranger = stage.hospitals[0]
    outgoing = registration(stage, stranger, "x" * 43)
    assert await hear(enrolment, "enrolment", outgoing) == Dead("unknown_site")
    assert await sent(enrolment) == []


async def test_a_registration_must_come_by_the_sites_own_key(stage: Stage, enrolment: App) -> None:
    invitation, site = await invite(stage, enrolment)
    message = make_registration(invitation.token, FEDERATION, site.site_id, site.key)
    elsewhere = uplink_key(stage.hospitals[1].site_id, "enrolment")
    outgoing = stage.from_site(site, "enrolment", message, key=elsewhere)
    assert await hear(enrolment, "enrolment", outgoing) == Dead("site_mismatch")


@pytest.mark.parametrize("broken", ["signature", "key_id", "size", "other_key", "other_type"])
async def test_what_is_not_a_registration_signed_by_its_own_key_is_not_even_opened(
    stage: Stage, enrolment: App, broken: str
) -> None:
    invitation, site = await invite(stage, enrolment)
    good = registration(stage, site, invitation.token)
    headers = dict(good.headers)
    match broken:
        case "signature":
            bad = replace(good, headers=headers | {SIGNATURE_HEADER: "00" * 64})
        case "key_id":
            bad = replace(good, headers=headers | {KEY_ID_HEADER: "service:enrolment"})
        case "size":
            bad = replace(good, body=good.body + b" " * 5000)
        case "other_key":
            thief = IdentityKey.generate()
            message = make_registration(invitation.token, FEDERATION, site.site_id, site.key)
            bad = stage.from_site(replace(site, key=thief), "enrolment", message)
        case _:
            bad = stage.from_site(site, "enrolment", SiteRegistered(**site.member.model_dump()))
    answer = await enrolment.consumer.handle(delivery(bad, inbox("enrolment")))
    assert answer == Dead("bad_signature")
    assert await sent(enrolment) == []
