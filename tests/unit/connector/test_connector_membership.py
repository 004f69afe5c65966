"""Enrolment, manifests, offers, approval, refusals by policy, and withdrawal."""

import asyncio
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from connector_session import Session
from connector_world import World
from structlog.testing import capture_logs

from cohortium_connector.commands import LocalSite, NoSuchOffer, NotToBeSigned
from cohortium_connector.ledger.tables import metadata as ledger_metadata
from cohortium_connector.store.tables import metadata
from cohortium_connector.training.runner import TrainingFailed
from cohortium_kit.bus import Ack, Delivery, Disposition
from cohortium_kit.errors import ConfigurationError
from cohortium_kit.memory import MemoryBus
from cohortium_kit.migrate import check_schema
from cohortium_messages.events import FaultSeen, TaskDeclined
from cohortium_messages.governance import (
    GrantGiven,
    GrantWithdrawn,
    ManifestPublished,
    RegisterSite,
    RegistrationRefused,
    SiteRegistered,
)
from cohortium_messages.runs import StudyOffered, TaskRefused
from cohortium_messages.secure_sum import Echo, Ready, VectorSpec
from cohortium_messages.topology import control_queue
from cohortium_protocol.attest import Statement, sign_statement, signers_of
from cohortium_protocol.documents import verify_grant, verify_registration, verify_withdrawal
from cohortium_protocol.release import Candidate, sign_release
from cohortium_protocol.signing import IdentityKey

MANUAL = {"policy": {"approvals": "manual"}}


def faults(world: World) -> list[str]:
    return [event.code for event in world.all(FaultSeen)]


async def refusal(world: World) -> str:
    """The code under which the connector keeps that it was refused, once it does."""
    async with LocalSite.open(world.settings()) as site:
        for _ in range(500):
            if refused := (await site.status()).refused:
                return refused
            await asyncio.sleep(0.02)
    raise AssertionError("not refused")


async def test_the_first_start_registers_with_a_key_that_never_leaves(world: World) -> None:
    async with world.running():
        message = await world.expect(RegisterSite)
        verify_registration(message, "t" * 43, "test-federation")
        key = world.folder / "spool" / "identity.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert stat.S_IMODE((world.folder / "spool").stat().st_mode) == 0o700
        assert stat.S_IMODE((world.folder / "spool" / "spool.db").stat().st_mode) == 0o600
        assert key.read_text().strip() not in json.dumps([str(sent.outgoing.body) for sent in world.sent])
        assert await check_schema(world.app.db, metadata, ledger_metadata) == []


async def test_a_restart_without_invitation_goes_on_as_the_same_site(world: World) -> None:
    async with world.running():
        await world.enrol()
        await world.settled()
    before = world.site_pk
    world.sent.clear()
    async with world.running(invitation_file=None):
        assert world.site_pk == before
        await world.none_of(RegisterSite)


async def test_a_registration_that_is_not_answered_is_sent_again(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr("cohortium_connector.upkeep.REGISTER_FIRST_S", 0.05)
    async with world.running():
        first = await world.expect(RegisterSite)
        assert await world.expect(RegisterSite) == first


async def test_a_refused_registration_waits_for_a_person(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr("cohortium_connector.upkeep.REGISTER_FIRST_S", 0.05)
    async with world.running():
        await world.expect(RegisterSite)
        await world.say("enrolment", RegistrationRefused(site_id=world.site_id, reason="TOKEN_EXPIRED"))
        assert await refusal(world) == "TOKEN_EXPIRED"
        world.sent.clear()
        await world.none_of(RegisterSite)


async def test_a_refused_connector_takes_nothing_from_the_one_that_is_the_site(world: World) -> None:
    """A used invitation in a second folder: what comes for the site is held, and goes back at the refusal."""
    async with world.running():
        await world.expect(RegisterSite)
        for _ in range(40):
            await world.offer()
        await world.settled(registered=False)
        async with LocalSite.open(world.settings()) as site:
            assert await site.offers() == ()
        await world.say("enrolment", RegistrationRefused(site_id=world.site_id, reason="TOKEN_SPENT"))
        assert await refusal(world) == "TOKEN_SPENT"
        real: list[str] = []

        async def take(delivery: Delivery) -> Disposition:
            real.append(delivery.type)
            return Ack()

        subscription = await world.bus.consume(control_queue(world.site_id), take, prefetch=100)
        await world.until(lambda: len(real) >= 40 * world.repeat)
        await world.offer()
        await world.until(lambda: len(real) >= 41 * world.repeat)
        await subscription.cancel()
        assert set(real) == {StudyOffered.type_name}
        assert await world.dead() == []
        async with LocalSite.open(world.settings()) as site:
            assert await site.offers() == ()


async def test_what_waits_when_a_site_comes_back_without_its_spool_is_handled_after_the_answer(world: World) -> None:
    async with world.running():
        await world.expect(RegisterSite)
        for _ in range(40):
            await world.offer()
        await world.say("enrolment", SiteRegistered(site_id=world.site_id, name="H", identity_pk=world.site_pk))
        await world.settled()
        async with LocalSite.open(world.settings()) as site:
            (offer,) = await site.offers()
            assert offer.study == world.study.name


async def test_a_refusal_of_somebody_elses_key_does_not_stop_our_registration(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr("cohortium_connector.upkeep.REGISTER_FIRST_S", 0.05)
    async with world.running():
        await world.expect(RegisterSite)
        theirs = IdentityKey.generate().public
        refusal = RegistrationRefused(site_id=world.site_id, reason="BAD_PROOF", identity_pk=theirs)
        await world.say("enrolment", refusal)
        await world.settled(registered=False)
        world.sent.clear()
        await world.expect(RegisterSite)
        async with LocalSite.open(world.settings()) as site:
            assert not (await site.status()).refused


async def test_another_key_registered_under_our_id_is_a_fault(world: World) -> None:
    async with world.running():
        await world.expect(RegisterSite)
        other = IdentityKey.generate().public
        await world.say("enrolment", SiteRegistered(site_id=world.site_id, name="Hospital", identity_pk=other))
        await world.settled(registered=False)
        assert faults(world) == ["REGISTERED_OTHER_KEY"]
        async with LocalSite.open(world.settings()) as site:
            assert not (await site.status()).registered


async def test_a_wrong_namespace_is_named_where_the_queues_are_awaited(world: World) -> None:
    world.make_bus = lambda: MemoryBus(world.broker, "elsewhere")
    app = await world.build()
    with capture_logs() as logs:
        stop = asyncio.Event()
        task = asyncio.create_task(app.run(stop))
        for _ in range(250):
            if any(line["event"] == "queue_awaited" for line in logs):
                break
            await asyncio.sleep(0.02)
        stop.set()
        await asyncio.wait_for(task, 20)
    waited = next(line for line in logs if line["event"] == "queue_awaited")
    assert waited["error"] == "QueueMissing"
    assert "`namespace` in connector.yaml" in waited["reason"]


async def test_a_trust_document_that_the_pinned_officers_did_not_sign_stops_the_start(world: World) -> None:
    strangers = [IdentityKey.generate().public.hex() for _ in range(2)]
    with pytest.raises(ConfigurationError, match="governance_keys"):
        await world.build(governance_keys=strangers)


async def test_without_invitation_the_first_start_says_what_is_missing(world: World) -> None:
    with pytest.raises(ConfigurationError, match="invitation_file"):
        await world.build(invitation_file=None)


async def test_the_queues_are_awaited_until_the_platform_has_them(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("cohortium_connector.intake.FIRST_WAIT_S", 0.02)
    world = World(tmp_path)
    await world.bus.connect()
    async with world.running():
        await world.declare()
        await world.enrol()
        await world.offer()
        await world.expect(GrantGiven)


# Offers


async def test_a_listed_study_is_granted_at_once(joined: World) -> None:
    grant = joined.all(GrantGiven)[0].grant
    verify_grant(grant, joined.site_pk)
    assert (grant.study_digest, grant.site_id) == (joined.study.digest(), joined.site_id)
    assert grant.not_after - grant.not_before > timedelta(days=364)


async def test_an_offer_that_comes_again_gets_no_second_grant(joined: World) -> None:
    await joined.offer()
    await joined.settled()
    assert len(joined.all(GrantGiven)) == 1


async def test_a_study_that_is_not_listed_waits_for_a_person(world: World) -> None:
    async with world.running(**MANUAL):
        await world.enrol()
        await world.offer()
        await world.settled()
        await world.open(world.params())
        assert (await world.expect(TaskRefused)).code == "GRANT_NOT_FOUND"
        async with LocalSite.open(world.settings(**MANUAL)) as site:
            offer = (await site.offers())[0]
            assert (offer.study, offer.state, offer.permission) == ("heart", "OFFERED", "GRANT_NOT_FOUND")
            assert offer.members == ("Peer 0", "Peer 1", "Peer 2", "Hospital")
            assert await site.approve("heart", ("Dr Grant", "Dr Second")) is not None
            assert await site.approve("heart", ("Dr Grant",)) is None
            with pytest.raises(NoSuchOffer):
                await site.approve("kidney", ("Dr Grant",))
        grant = (await world.expect(GrantGiven)).grant
        assert grant.approvers == ("Dr Grant", "Dr Second")
        await world.open(world.params())
        await world.expect(Ready)


async def test_a_wildcard_approves_with_a_warning(world: World) -> None:
    with capture_logs() as logs:
        async with world.running(policy={"approvals": "listed", "approved_studies": ["*"]}):
            await world.enrol()
            await world.offer()
            await world.expect(GrantGiven)
    assert [log["log_level"] for log in logs if log["event"] == "study_approved_by_wildcard"] == ["warning"]


async def test_an_offer_with_another_digest_than_its_study_is_a_fault(joined: World) -> None:
    offer = joined.offer_message()
    await joined.say("scheduler", offer.model_copy(update={"study_digest": bytes(32)}))
    await joined.settled()
    assert faults(joined) == ["STUDY_DIGEST_WRONG"]


# Manifests


async def test_a_manifest_that_officers_did_not_sign_is_a_fault(joined: World) -> None:
    manifest = joined.manifest(version=2, previous=joined.manifest())
    await joined.say(
        "enrolment", ManifestPublished(manifest=manifest.model_copy(update={"signatures": manifest.signatures[:1]}))
    )
    await joined.settled()
    assert faults(joined) == ["TOO_FEW_SIGNATURES"]


async def test_the_chain_of_manifests_is_neither_forked_nor_turned_back(joined: World) -> None:
    first = joined.manifest()
    second = joined.manifest(version=2, previous=first)
    await joined.say("enrolment", ManifestPublished(manifest=second))
    await joined.say("enrolment", ManifestPublished(manifest=first))
    await joined.say("enrolment", ManifestPublished(manifest=joined.manifest(version=2, previous=first, collusion=2)))
    await joined.say("enrolment", ManifestPublished(manifest=joined.manifest(version=3, previous=first)))
    await joined.settled()
    assert sorted(faults(joined)) == ["DOCUMENT_REFUSED", "MANIFEST_FORKED"]
    await joined.open(joined.params())
    assert (await joined.expect(TaskRefused)).code == "MANIFEST_CHANGED"


async def test_a_manifest_without_this_site_ends_its_part(joined: World) -> None:
    first = joined.manifest()
    members = [member for member in first.members if member.site_id != joined.site_id]
    second = joined.manifest(version=2, previous=first, members=tuple(members))
    await joined.say("enrolment", ManifestPublished(manifest=second))
    await joined.open(joined.params())
    assert (await joined.expect(TaskRefused)).code == "NOT_A_MEMBER"


# Policy


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"study_digest": bytes(32)}, "STUDY_UNKNOWN"),
        ({"run_id": "11111111-1111-4111-8111-111111111111"}, "STUDY_UNKNOWN"),
        ({"manifest_hash": bytes(32)}, "MANIFEST_CHANGED"),
        ({"round": 200_000}, "GRANT_ROUNDS_SPENT"),
        ({"round": 6}, "POLICY_REFUSED"),
        ({"kind": "buffered"}, "POLICY_REFUSED"),
        ({"aggregator_seal_pk": bytes(32)}, "POLICY_REFUSED"),
    ],
)
async def test_a_window_outside_the_grant_is_refused_before_a_row_is_read(
    joined: World, changes: dict[str, Any], code: str
) -> None:
    await joined.open(joined.params(**changes))
    assert (await joined.expect(TaskRefused)).code == code
    assert (await joined.expect(TaskDeclined)).code == code
    assert joined.runners[0].jobs == []


@pytest.mark.parametrize(
    "changes", [{"clip_norm_l2": 1e5}, {"ring_bits": 32}, {"dimension": 7}, {"keep": 0.5}, {"encoding": "integer"}]
)
async def test_a_vector_that_the_study_does_not_say_is_refused(joined: World, changes: dict[str, Any]) -> None:
    params = joined.update_params(joined.model(1)[0])
    vector = VectorSpec.model_validate({**params.vector.model_dump(), **changes})
    await joined.open(params.model_copy(update={"vector": vector}))
    assert (await joined.expect(TaskRefused)).code == "POLICY_REFUSED"


async def test_a_hospital_that_demands_a_larger_cohort_gets_it(world: World) -> None:
    digest = world.study.digest().hex()
    async with world.running(policy={"approvals": "listed", "approved_studies": [digest], "min_cohort": 4}):
        await world.enrol()
        await world.offer()
        await world.expect(GrantGiven)
        await world.open(world.params())
        assert (await world.expect(TaskRefused)).code == "COHORT_TOO_SMALL"
        again = Session(world, world.params(least_cohort=4), world.manifest())
        await again.up_to_upload()
        fewer = {i: header for i, header in again.headers.items() if i != again.view.others(again.me)[0]}
        await world.say("aggregator", again.show(fewer))
        assert (await world.expect(TaskRefused)).code == "COHORT_TOO_SMALL"
        assert world.all(Echo) == []


async def test_a_study_without_a_table_is_refused(world: World) -> None:
    async with world.running(datasets={"other": {"path": "/x.csv"}}):
        await world.enrol()
        await world.offer()
        await world.expect(GrantGiven)
        await world.open(world.params())
        assert (await world.expect(TaskRefused)).code == "DATA_NOT_FOUND"


# Withdrawal


async def test_a_withdrawal_stops_the_study_at_once_and_wipes_it(joined: World) -> None:
    session = Session(joined, joined.params(), joined.manifest())
    await session.up_to_upload()
    spool = joined.app.desk.spool
    assert list(spool.products.iterdir())
    async with LocalSite.open(joined.settings()) as site:
        assert await site.withdraw("heart") == 1
        assert await site.withdraw("heart") == 0
        assert [offer.state for offer in await site.offers()] == ["WITHDRAWN"]
    withdrawn = await joined.expect(GrantWithdrawn)
    verify_withdrawal(withdrawn, joined.site_pk)
    await joined.say("aggregator", session.show())
    await joined.settled()
    assert [*spool.products.iterdir(), *spool.uploads.iterdir()] == []
    assert (await joined.state(session.params.window_id)).state.phase == "SPENT"
    await joined.open(joined.params())
    assert (await joined.expect(TaskRefused)).code == "GRANT_WITHDRAWN"
    await joined.offer()
    await joined.settled()
    assert len(joined.all(GrantGiven)) == 1


async def test_a_withdrawal_ends_a_training(joined: World) -> None:
    joined.runners[0].hold.clear()
    await joined.open(joined.update_params(joined.model(1)[0]))
    await joined.give_model(1)
    await joined.until_busy()
    async with LocalSite.open(joined.settings()) as site:
        await site.withdraw("heart")
        status = await site.status()
    assert status.windows == ()
    await joined.until_idle()
    joined.runners[0].hold.set()
    await joined.none_of(Ready)


async def test_a_training_whose_files_a_withdrawal_took_is_no_failed_training(
    joined: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storm's seed 1002: the model was deleted between the end of the study here and the end of the process."""
    left = asyncio.Event()

    async def taken(job: object, **_: object) -> None:
        try:
            async with LocalSite.open(joined.settings()) as site:
                await site.withdraw("heart")
        finally:  # the workshop may see it first, and end this job
            left.set()
        raise TrainingFailed("FileNotFoundError")

    monkeypatch.setattr(joined.runners[0], "run", taken)
    with capture_logs() as logs:
        await joined.open(joined.update_params(joined.model(1)[0]))
        await joined.give_model(1)
        await asyncio.wait_for(left.wait(), 60)
        await joined.until_idle()
    assert [one["event"] for one in logs if one["log_level"] == "error"] == []
    await joined.none_of(TaskRefused)


async def test_the_state_can_be_seen_without_the_running_connector(joined: World) -> None:
    await joined.open(joined.params())
    await joined.expect(Ready)
    async with LocalSite.open(joined.settings()) as site:
        status = await site.status()
    assert (status.name, status.registered, status.federation) == ("Hospital", True, "test-federation")
    assert [(window.phase, window.purpose) for window in status.windows] == [("READY_SENT", "statistics")]


async def test_a_hospital_signs_a_models_release_after_an_officer_has(joined: World) -> None:
    await joined.offer()
    await joined.settled()
    aggregator, officer = joined.services["aggregator"], joined.officers[0]

    def candidate(study_digest: str) -> Candidate:
        statement = Statement({"card.json": b"c" * 32}, "x", {"study_digest": study_digest})
        return Candidate.of(sign_statement(statement, [aggregator]), aggregator.public)

    mine, other = candidate(joined.study.digest().hex()), candidate("00" * 32)
    release = sign_release(mine, "O. Fficer", datetime(2026, 11, 21, tzinfo=UTC), officer)
    async with LocalSite.open(joined.settings()) as site:
        signed = await site.sign_release(mine.attestation, release)
        assert joined.site_pk in signers_of(signed, [joined.site_pk])
        with pytest.raises(NotToBeSigned, match="a governance officer"):
            await site.sign_release(mine.attestation, sign_release(mine, "A", datetime.now(UTC), aggregator))
        with pytest.raises(NotToBeSigned, match="other files"):
            await site.sign_release(other.attestation, release)
        unknown = sign_release(other, "O. Fficer", datetime.now(UTC), officer)
        with pytest.raises(NoSuchOffer, match="never offered"):
            await site.sign_release(other.attestation, unknown)
