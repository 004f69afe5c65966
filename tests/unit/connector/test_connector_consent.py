"""A study that is no trial: the connector works only on its own signed copies, and asks them at each border."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from connector_session import Session
from connector_world import STUDY, World

from cohortium_connector.commands import LocalSite
from cohortium_connector.consent_commands import LocalConsent
from cohortium_connector.handlers.membership import NotApproved
from cohortium_connector.training.jobs import TakeCohort
from cohortium_messages.consent import ConsentFile, DocumentsShared, Record
from cohortium_messages.governance import GrantGiven
from cohortium_messages.ids import StudyId
from cohortium_messages.runs import TaskRefused
from cohortium_messages.secure_sum import Ready, UploadHeader
from cohortium_messages.study import Study
from cohortium_protocol.consent.intake import NotAccepted
from cohortium_protocol.consent.signing import record_digest
from consent_stage import Plane


@pytest.fixture
async def governed(tmp_path: Path) -> AsyncIterator[World]:
    """The connector runs and was offered a study that needs documents; its settings list the study."""
    world = World(tmp_path)
    world.study = Study.model_validate({**STUDY, "governance": "required"})
    await world.declare()
    async with world.running():
        await world.enrol()
        await world.offer()
        await world.settled()
        yield world


@pytest.fixture
def plane(governed: World) -> Plane:
    return Plane(
        now=governed.clock.now(),
        study=StudyId("heart"),
        study_digest=governed.study.digest(),
        officers=tuple(governed.officers),
        site_keys={governed.site_id: governed.app.desk.identity.key},
    )


def everything(world: World, plane: Plane, **changes: Any) -> ConsentFile:
    records = plane.signed(world.site_id, plane.parts(world.site_id, **changes))
    return ConsentFile(people=plane.cards(), records=tuple(records.values()))


async def share(world: World, file: ConsentFile) -> None:
    await world.say("consent", DocumentsShared(file=file))
    await world.settled()


def stop(world: World, plane: Plane) -> ConsentFile:
    """One approver ends the data-use terms."""
    terms = plane.terms(world.site_id)
    act = plane.act(terms, "terminate", plane.approvers(world.site_id)[0], world.clock.now())
    return ConsentFile(records=(Record(document=terms, acts=(act,)),))


async def test_the_grant_waits_for_the_documents_and_rests_on_them(governed: World, plane: Plane) -> None:
    assert governed.all(GrantGiven) == []
    parts = plane.parts(governed.site_id)
    file = everything(governed, plane)
    await share(governed, file.model_copy(update={"records": file.records[:-1]}))
    assert governed.all(GrantGiven) == []
    await share(governed, file)
    grant = (await governed.expect(GrantGiven)).grant
    assert grant.basis == record_digest(parts["basis"])
    assert grant.approvers == ("bea", "carl")
    assert grant.max_rounds <= 500
    params = governed.params()
    await governed.open(params)
    assert (await governed.expect(Ready)).window_id == params.window_id


async def test_without_documents_no_row_is_read(governed: World) -> None:
    await governed.open(governed.params())
    assert (await governed.expect(TaskRefused)).code == "GRANT_NOT_FOUND"
    async with LocalSite.open(governed.settings()) as site:
        with pytest.raises(NotApproved, match="two people of this hospital"):
            await site.approve("heart", ("Dr. Ada",))
    assert governed.all(GrantGiven) == []
    assert [job for runner in governed.runners for job in runner.jobs] == []


async def test_a_document_that_one_person_ended_refuses_the_next_window(governed: World, plane: Plane) -> None:
    await share(governed, everything(governed, plane))
    await governed.expect(GrantGiven)
    await share(governed, stop(governed, plane))
    await governed.open(governed.params())
    assert (await governed.expect(TaskRefused)).code == "TERMS_TERMINATED"
    assert [type(job) for runner in governed.runners for job in runner.jobs] == [TakeCohort], "for the approval"


async def test_the_documents_are_asked_again_before_the_upload(governed: World, plane: Plane) -> None:
    await share(governed, everything(governed, plane))
    await governed.expect(GrantGiven)
    session = Session(governed, governed.params(), governed.manifest())
    await governed.open(session.params)
    await governed.reaches(session.params.window_id, "READY_SENT")
    await share(governed, stop(governed, plane))
    await session.fix_roster()
    assert (await governed.expect(TaskRefused)).code == "TERMS_TERMINATED"
    await governed.none_of(UploadHeader)
    assert governed.chunks(session.params.window_id) == {}


async def test_expiry_between_the_window_and_the_upload_stops_the_upload(governed: World, plane: Plane) -> None:
    end = governed.clock.now() + timedelta(seconds=4)
    await share(governed, everything(governed, plane, ethics={"expires_on": end}))
    await governed.expect(GrantGiven)
    session = Session(governed, governed.params(), governed.manifest())
    await governed.open(session.params)
    await governed.reaches(session.params.window_id, "READY_SENT")
    while governed.clock.now() < end:
        await governed.clock.sleep(0.1)
    await session.fix_roster()
    assert (await governed.expect(TaskRefused)).code == "ETHICS_EXPIRED"
    assert governed.chunks(session.params.window_id) == {}


async def test_a_study_version_that_promises_other_privacy_than_the_study_is_another_s(
    governed: World, plane: Plane
) -> None:
    await share(governed, everything(governed, plane, version={"epsilon": 1.0}))
    await governed.expect(GrantGiven)
    await governed.open(governed.params())
    assert (await governed.expect(TaskRefused)).code == "STUDY_VERSION_OF_ANOTHER"


async def test_consent_cannot_make_people_or_signatures(governed: World, plane: Plane) -> None:
    """A consent service that lies: cards that nobody signed, and acts with changed words."""
    file = everything(governed, plane)
    bare = tuple(card.model_copy(update={"signatures": ()}) for card in file.people)
    await share(governed, file.model_copy(update={"people": bare}))
    assert governed.all(GrantGiven) == []
    act = file.records[0].acts[0].model_copy(update={"name": "Somebody Else"})
    forged = file.records[0].model_copy(update={"acts": (act,)})
    await share(governed, ConsentFile(records=(forged,)))
    assert await governed.dead() == ["bad_signature"]
    await governed.say("scheduler", DocumentsShared(file=file))
    await governed.settled()
    assert await governed.dead() == ["wrong_sender"]


async def test_the_same_documents_twice_and_in_any_order_are_the_same(governed: World, plane: Plane) -> None:
    file = everything(governed, plane)
    await share(governed, stop(governed, plane))
    await share(governed, file.model_copy(update={"records": tuple(reversed(file.records))}))
    await share(governed, file)
    await governed.open(governed.params())
    # The end came before what it ends, and counts all the same.
    assert (await governed.expect(TaskRefused)).code == "TERMS_TERMINATED"


class TestPeopleInTheHospital:
    async def test_what_they_add_is_shared_with_consent(self, governed: World, plane: Plane) -> None:
        async with LocalConsent.open(governed.settings()) as site:
            verdict = await site.check("heart", 1)
            assert [reason.code for reason in verdict.reasons] == ["GRANT_NOT_FOUND"]
            file = everything(governed, plane)
            assert len(await site.add(file)) >= 5
            assert await site.add(file) == frozenset()
        shared = (await governed.expect(DocumentsShared)).file
        kinds = {record.document.kind for record in shared.records}
        # The study's version is the federation's: the hospital says nothing about it.
        assert kinds == {"agreement", "ethics", "terms", "grant_basis"}
        await governed.expect(GrantGiven)  # the settings list the study
        async with LocalSite.open(governed.settings()) as hospital:
            assert await hospital.approve("heart", ("Dr. Ada",)) is None
        async with LocalConsent.open(governed.settings()) as site:
            assert (await site.check("heart", 1)).reasons == ()
            later = await site.check("heart", 1, governed.clock.now() + timedelta(days=201))
        assert "ETHICS_EXPIRED" in {reason.code for reason in later.reasons} | {"GRANT_EXPIRED"}

    async def test_an_act_without_effect_is_refused_with_the_way_out(self, governed: World, plane: Plane) -> None:
        terms = plane.terms(governed.site_id)
        admin, (bea, _) = plane.admin(governed.site_id), plane.approvers(governed.site_id)
        twice = (plane.act(terms, "submit", bea), plane.act(terms, "approve", bea, plane.now - timedelta(days=29)))
        cards = (plane.card(admin), plane.card(bea))
        async with LocalConsent.open(governed.settings()) as site:
            with pytest.raises(NotAccepted, match="whoever wrote a document cannot approve it"):
                await site.add(ConsentFile(people=cards, records=(Record(document=terms, acts=twice),)))
            assert (await site.file()).records == ()

    async def test_the_hospital_vouches_for_its_own_people_only(self, governed: World, plane: Plane) -> None:
        bare = plane.card(plane.admin(governed.site_id)).model_copy(update={"signatures": ()})
        async with LocalConsent.open(governed.settings()) as site:
            assert site.vouch(bare) == plane.card(plane.admin(governed.site_id))
            with pytest.raises(ValueError, match="not of this hospital"):
                site.vouch(plane.card(plane.lead))
