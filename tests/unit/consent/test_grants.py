"""Grants and withdrawals over the bus, and what the scheduler is told."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from cohortium_consent.app import App
from cohortium_kit.bus import Ack, Dead, Requeue
from cohortium_messages.events import FaultSeen, GrantStarted, GrantStopped
from cohortium_messages.governance import (
    AuthoriseAsked,
    Authorised,
    GrantEnded,
    GrantGiven,
    GrantRecorded,
    ManifestPublished,
    Permit,
    SiteGrant,
    SiteRegistered,
    SiteRevoked,
)
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.topology import inbox, uplink_key
from cohortium_protocol.documents import grant_digest
from cohortium_protocol.signing import IdentityKey
from governance_stage import DIGEST, STUDY, Hospital, Stage, delivery, hear, hospital, sent, sent_of

RUN = RunId("00000000-0000-4000-8000-0000000000aa")


async def give(stage: Stage, consent: App, site: Hospital, grant: SiteGrant | None = None) -> SiteGrant:
    given = grant or stage.grant(site)
    assert await hear(consent, "consent", stage.from_site(site, "consent", GrantGiven(grant=given))) == Ack()
    return given


async def ask(
    stage: Stage, consent: App, *sites: Hospital, round_number: int = 1, **changes: Any
) -> dict[SiteId, Permit]:
    values: dict[str, Any] = {
        "question_id": b"\1" * 16,
        "run_id": RUN,
        "study_id": STUDY,
        "study_digest": DIGEST,
        "round": round_number,
        "sites": tuple(site.site_id for site in sites),
        "governance": "trial",
    }
    message = AuthoriseAsked(**{**values, **changes})
    assert await hear(consent, "consent", stage.from_service("scheduler", "consent", message)) == Ack()
    key, answer = (await sent_of(consent, Authorised))[-1]
    assert key == "scheduler"
    assert answer.question_id == message.question_id
    return {permit.site_id: permit for permit in answer.permits}


@pytest.mark.usefixtures("members")
async def test_a_grant_is_recorded_told_to_the_services_and_put_in_the_log(stage: Stage, consent: App) -> None:
    site = stage.hospitals[0]
    grant = await give(stage, consent, site)
    told = [(key, one.grant_digest, one.not_after) for key, one in await sent_of(consent, GrantRecorded)]
    assert told == [(service, grant_digest(grant), grant.not_after) for service in ("scheduler", "aggregator")]
    ((_, started),) = await sent_of(consent, GrantStarted)
    assert (started.site_id, started.grant_digest) == (site.site_id, grant_digest(grant))


@pytest.mark.usefixtures("members")
async def test_the_answer_permits_who_granted_and_says_why_not_of_the_others(stage: Stage, consent: App) -> None:
    granted, silent = stage.hospitals[:2]
    grant = await give(stage, consent, granted)
    permits = await ask(stage, consent, granted, silent)
    assert permits[granted.site_id] == Permit(site_id=granted.site_id, permitted=True, grant_digest=grant_digest(grant))
    assert permits[silent.site_id] == Permit(site_id=silent.site_id, permitted=False, deny_code="GRANT_NOT_FOUND")


@pytest.mark.usefixtures("members")
async def test_a_grant_expires_by_itself(stage: Stage, consent: App) -> None:
    site = stage.hospitals[0]
    await give(stage, consent, site, stage.grant(site, days=1))
    assert (await ask(stage, consent, site))[site.site_id].permitted
    await stage.clock.advance(timedelta(days=1).total_seconds())
    assert (await ask(stage, consent, site))[site.site_id].deny_code == "GRANT_EXPIRED"


@pytest.mark.usefixtures("members")
async def test_a_withdrawal_ends_the_grant_at_once_for_scheduler_aggregator_and_log(stage: Stage, consent: App) -> None:
    site = stage.hospitals[0]
    await give(stage, consent, site)
    await stage.clock.advance(1)
    await hear(consent, "consent", stage.from_site(site, "consent", stage.withdrawal(site)))
    assert sorted(key for key, _ in await sent_of(consent, GrantEnded)) == ["aggregator", "scheduler"]
    assert {message.reason for _, message in await sent_of(consent, GrantEnded)} == {"GRANT_WITHDRAWN"}
    assert len(await sent_of(consent, GrantStopped)) == 1
    assert (await ask(stage, consent, site))[site.site_id].deny_code == "GRANT_WITHDRAWN"


@pytest.mark.usefixtures("members")
async def test_a_withdrawal_dated_ahead_counts_now(stage: Stage, consent: App) -> None:
    site = stage.hospitals[0]
    await give(stage, consent, site)
    withdrawal = stage.withdrawal(site, at=stage.clock.now() + timedelta(days=5))
    await hear(consent, "consent", stage.from_site(site, "consent", withdrawal))
    assert (await ask(stage, consent, site))[site.site_id].deny_code == "GRANT_WITHDRAWN"


@pytest.mark.usefixtures("members")
async def test_the_old_grant_sent_again_does_not_undo_a_withdrawal_and_a_new_one_does(
    stage: Stage, consent: App
) -> None:
    site = stage.hospitals[0]
    old = await give(stage, consent, site)
    delayed = stage.grant(site, max_rounds=3)
    await stage.clock.advance(1)
    await hear(consent, "consent", stage.from_site(site, "consent", stage.withdrawal(site)))
    await give(stage, consent, site, old)
    await give(stage, consent, site, delayed)
    assert (await ask(stage, consent, site))[site.site_id].deny_code == "GRANT_WITHDRAWN"
    await stage.clock.advance(1)
    new = await give(stage, consent, site, stage.grant(site))
    assert (await ask(stage, consent, site))[site.site_id].grant_digest == grant_digest(new)
    assert [key for key, _ in await sent_of(consent, GrantRecorded)] == ["scheduler", "aggregator"] * 2


@pytest.mark.usefixtures("members")
async def test_a_withdrawal_that_overtakes_its_grant_still_counts(stage: Stage, consent: App) -> None:
    site = stage.hospitals[0]
    grant = stage.grant(site)
    await stage.clock.advance(1)
    await hear(consent, "consent", stage.from_site(site, "consent", stage.withdrawal(site)))
    await give(stage, consent, site, grant)
    assert (await ask(stage, consent, site))[site.site_id].deny_code == "GRANT_WITHDRAWN"
    assert await sent_of(consent, GrantRecorded) == []


@pytest.mark.usefixtures("members")
async def test_a_newer_grant_takes_the_older_ones_place(stage: Stage, consent: App) -> None:
    site = stage.hospitals[0]
    await give(stage, consent, site)
    await stage.clock.advance(1)
    newer = await give(stage, consent, site, stage.grant(site, max_rounds=20))
    assert (await ask(stage, consent, site, round_number=15))[site.site_id].grant_digest == grant_digest(newer)


async def test_a_grant_that_comes_before_the_manifest_counts_when_it_comes(stage: Stage, consent: App) -> None:
    site = stage.hospitals[0]
    registered = SiteRegistered(site_id=site.site_id, name=site.name, identity_pk=site.key.public)
    await hear(consent, "consent", stage.from_service("enrolment", "consent", registered))
    await give(stage, consent, site)
    assert await sent_of(consent, GrantRecorded) == []
    assert (await ask(stage, consent, site))[site.site_id].deny_code == "NOT_A_MEMBER"
    published = ManifestPublished(manifest=stage.manifest())
    await hear(consent, "consent", stage.from_service("enrolment", "consent", published, study=STUDY))
    assert [key for key, _ in await sent_of(consent, GrantRecorded)] == ["scheduler", "aggregator"]
    assert (await ask(stage, consent, site))[site.site_id].permitted


@pytest.mark.usefixtures("members")
async def test_a_revoked_sites_grants_end_and_its_word_counts_no_more(stage: Stage, consent: App) -> None:
    site = stage.hospitals[0]
    await give(stage, consent, site)
    revoked = SiteRevoked(site_id=site.site_id, reason="SITE_REVOKED")
    await hear(consent, "consent", stage.from_service("enrolment", "consent", revoked))
    assert {message.reason for _, message in await sent_of(consent, GrantEnded)} == {"SITE_REVOKED"}
    assert (await ask(stage, consent, site))[site.site_id].deny_code == "SITE_REVOKED"
    again = stage.from_site(site, "consent", GrantGiven(grant=stage.grant(site, max_rounds=3)))
    assert await hear(consent, "consent", again) == Dead("bad_signature")


@pytest.mark.usefixtures("members")
async def test_a_revocation_that_overtakes_its_registration_still_counts(stage: Stage, consent: App) -> None:
    """Two instances take the two messages at once; a stopped one may come with its own much later."""
    site = hospital(8)
    revoked = SiteRevoked(site_id=site.site_id, reason="SITE_REVOKED")
    registered = SiteRegistered(site_id=site.site_id, name=site.name, identity_pk=site.key.public)
    for message in (revoked, registered):
        assert await hear(consent, "consent", stage.from_service("enrolment", "consent", message)) == Ack()
    await consent.consumer.load_keys()
    assert f"site:{site.site_id}" not in consent.consumer._keys.keys


@pytest.mark.usefixtures("members")
async def test_a_manifest_that_leaves_a_site_out_ends_its_grant(stage: Stage, consent: App) -> None:
    for site in stage.hospitals:
        await give(stage, consent, site)
    smaller = stage.manifest(stage.hospitals[:3], previous=stage.manifest())
    published = ManifestPublished(manifest=smaller)
    await hear(consent, "consent", stage.from_service("enrolment", "consent", published, study=STUDY))
    ended = {(message.site_id, message.reason) for _, message in await sent_of(consent, GrantEnded)}
    assert ended == {(stage.hospitals[3].site_id, "NOT_A_MEMBER")}
    permits = await ask(stage, consent, *stage.hospitals)
    assert [permits[site.site_id].permitted for site in stage.hospitals] == [True, True, True, False]


@pytest.mark.usefixtures("members")
async def test_an_unsigned_or_unlinked_manifest_is_parked(stage: Stage, consent: App) -> None:
    good = stage.manifest(stage.hospitals[:3], previous=stage.manifest())
    for bad, reason in [
        (good.model_copy(update={"signatures": good.signatures[:1]}), "too_few_signatures"),
        (stage.manifest(stage.hospitals[:3], previous=stage.manifest(digest=b"\5" * 32)), "document_refused"),
    ]:
        outgoing = stage.from_service("enrolment", "consent", ManifestPublished(manifest=bad))
        assert await hear(consent, "consent", outgoing) == Dead(reason)


@pytest.mark.usefixtures("members")
async def test_a_manifest_whose_predecessor_is_missing_waits(stage: Stage, consent: App) -> None:
    second = stage.manifest(previous=stage.manifest())
    third = stage.manifest(stage.hospitals[:3], previous=second)
    outgoing = stage.from_service("enrolment", "consent", ManifestPublished(manifest=third))
    answer = await _while_time_passes(stage, consent.consumer.handle(delivery(outgoing, inbox("consent"))))
    assert answer == Requeue()


async def _while_time_passes(stage: Stage, handling: Any) -> Any:
    task = asyncio.ensure_future(handling)
    while not task.done():
        await stage.clock.advance(1)
        await asyncio.sleep(0.01)
    return task.result()


async def test_a_site_that_consent_has_not_heard_of_yet_is_asked_to_wait(stage: Stage, consent: App) -> None:
    site = stage.hospitals[0]
    outgoing = stage.from_site(site, "consent", GrantGiven(grant=stage.grant(site)))
    answer = await _while_time_passes(stage, consent.consumer.handle(delivery(outgoing, inbox("consent"))))
    assert answer == Requeue()
    assert await sent(consent) == []


@pytest.mark.usefixtures("members")
async def test_nobody_waits_for_the_key_of_a_site_in_whose_name_another_one_speaks(stage: Stage, consent: App) -> None:
    stranger, other = hospital(9), stage.hospitals[0]
    message = GrantGiven(grant=stage.grant(stranger))
    forged = stage.from_site(stranger, "consent", message, key=uplink_key(other.site_id, "consent"))
    assert await hear(consent, "consent", forged) == Dead("bad_signature")
    assert await sent_of(consent, FaultSeen) == []


@pytest.mark.usefixtures("members")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("other_site", "site_mismatch"),
        ("other_key", "site_mismatch"),
        ("resigned", "bad_document_signature"),
        ("edited", "bad_document_signature"),
        ("backwards", "document_refused"),
        ("no_zone", "time_without_zone"),
        ("wrong_sender", "sender_not_allowed"),
    ],
)
async def test_a_breach_is_parked_with_its_reason_and_the_sender_is_named_in_the_log(
    stage: Stage, consent: App, fault: str, reason: str
) -> None:
    site, other = stage.hospitals[:2]
    good = stage.grant(site)
    key = None
    match fault:
        case "other_site":
            grant = stage.grant(other)
        case "other_key":
            grant, key = good, uplink_key(other.site_id, "consent")
        case "resigned":
            grant = stage.grant(replace(site, key=IdentityKey.generate()))
        case "edited":
            grant = good.model_copy(update={"max_rounds": 999})
        case "backwards":
            grant = stage.grant(site, days=-1)
        case _:
            grant = stage.grant(site, not_after=datetime(2027, 1, 1))  # noqa: DTZ001 - the fault
    if fault == "wrong_sender":
        asked = AuthoriseAsked(
            question_id=b"\1" * 16, run_id=RUN, study_id=STUDY, study_digest=DIGEST, round=1, sites=(site.site_id,)
        )
        outgoing = stage.from_service("aggregator", "consent", asked)
    else:
        outgoing = stage.from_site(site, "consent", GrantGiven(grant=grant), key=key)
    before = len(await sent(consent))
    assert await consent.consumer.handle(delivery(outgoing, inbox("consent"))) == Dead(reason)
    left = (await sent(consent))[before:]
    key_id = "service:aggregator" if fault == "wrong_sender" else f"site:{site.site_id}"
    assert [one.message for one in left] == [FaultSeen(key_id=key_id, code=reason.upper())]
    assert [one.key for one in left] == [f"-.{FaultSeen.type_name}"]
