"""What stops work that is under way: a document that is suspended, and a withdrawal that others signed."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from connector_world import STUDY, AheadClock, World

from cohortium_connector.commands import LocalSite
from cohortium_connector.consent_commands import LocalConsent
from cohortium_messages.consent import ConsentFile, DocumentsShared, Record, Withdrawal, WithdrawalType
from cohortium_messages.governance import GrantGiven, GrantWithdrawn
from cohortium_messages.ids import StudyId
from cohortium_messages.runs import TaskRefused
from cohortium_messages.secure_sum import Ready
from cohortium_messages.study import Study
from cohortium_messages.withdrawals import WorkWiped
from cohortium_protocol.documents import verify_withdrawal
from consent_stage import Person, Plane


@pytest.fixture
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """The connector runs and was offered a study; `param`: how it is governed."""
    world = World(tmp_path)
    world.study = Study.model_validate({**STUDY, "governance": getattr(request, "param", "required")})
    await world.declare()
    async with world.running():
        await world.enrol()
        await world.offer()
        await world.settled()
        yield world


@pytest.fixture
def plane(world: World) -> Plane:
    return Plane(
        now=world.clock.now(),
        study=StudyId("heart"),
        study_digest=world.study.digest(),
        officers=tuple(world.officers),
        site_keys={world.site_id: world.app.desk.identity.key},
    )


async def share(world: World, file: ConsentFile) -> None:
    await world.say("consent", DocumentsShared(file=file))
    await world.settled()


async def granted(world: World, plane: Plane) -> None:
    """Everything is signed that the study needs; a trial needs nothing."""
    records = plane.signed(world.site_id, plane.parts(world.site_id))
    await share(world, ConsentFile(people=plane.cards(), records=tuple(records.values())))
    await world.expect(GrantGiven)


async def training(world: World) -> None:
    """A training process is under way, and stays so until it is ended."""
    world.runners[0].hold.clear()
    await world.open(world.update_params(world.model(1)[0]))
    await world.give_model(1)
    await world.until_busy()


def left(world: World, plane: Plane, by: Person, kind: WithdrawalType = "regulator") -> ConsentFile:
    """Signed by one person, which is enough."""
    now = world.clock.now()
    document = Withdrawal(
        type=kind,
        site_id=world.site_id,
        study_id=StudyId("heart"),
        study_digest=world.study.digest(),
        received_at=now,
        effective_at=now,
        from_round=1 if kind == "patient_set" else None,
        requested_effect="retire",
    )
    return ConsentFile(records=(Record(document=document, acts=(plane.act(document, "submit", by, now),)),))


async def test_a_suspended_document_ends_the_training_that_rests_on_it(world: World, plane: Plane) -> None:
    await granted(world, plane)
    await training(world)
    terms, approver = plane.terms(world.site_id), plane.approvers(world.site_id)[0]
    act = plane.act(terms, "suspend", approver, world.clock.now())
    await share(world, ConsentFile(records=(Record(document=terms, acts=(act,)),)))
    await world.until_idle()
    world.runners[0].hold.set()
    assert (await world.expect(TaskRefused)).code == "TERMS_SUSPENDED"
    wiped = await world.expect(WorkWiped)
    assert (wiped.code, wiped.study_digest) == ("TERMS_SUSPENDED", world.study.digest())
    await world.none_of(Ready)
    assert list(world.app.desk.spool.products.iterdir()) == []
    assert world.all(GrantWithdrawn) == [], "a suspension is no withdrawal"
    async with LocalSite.open(world.settings()) as site:
        assert [offer.state for offer in await site.offers()] == ["APPROVED"]


@pytest.mark.parametrize(
    ("name", "field", "code"),
    [
        ("agreement", "effective_to", "AGREEMENT_EXPIRED"),
        ("ethics", "expires_on", "ETHICS_EXPIRED"),
        ("basis", "not_after", "GRANT_EXPIRED"),  # the grant goes no further than its approval
    ],
)
async def test_what_ends_by_the_calendar_ends_the_training_that_rests_on_it(
    world: World, plane: Plane, name: str, field: str, code: str
) -> None:
    """Nobody says anything: the hospital's own clock and its own copies of the documents do."""
    ends = {name: {field: world.clock.now() + timedelta(minutes=10)}}
    records = plane.signed(world.site_id, plane.parts(world.site_id, **ends))
    await share(world, ConsentFile(people=plane.cards(), records=tuple(records.values())))
    await world.expect(GrantGiven)
    await training(world)
    assert isinstance(world.clock, AheadClock)
    world.clock.ahead_s += 600
    await world.until_idle()
    world.runners[0].hold.set()
    assert (await world.expect(TaskRefused)).code == code
    wiped = await world.expect(WorkWiped)
    assert (wiped.code, wiped.study_digest) == (code, world.study.digest())
    await world.none_of(Ready)
    assert list(world.app.desk.spool.products.iterdir()) == []
    await world.open(world.params())
    assert (await world.expect(TaskRefused)).code == code, "nor is a row read for the next window"


@pytest.mark.parametrize("world", ["required", "trial"], indirect=True)
async def test_a_withdrawal_that_an_officer_signed_is_carried_out_at_the_hospital(world: World, plane: Plane) -> None:
    await granted(world, plane)
    await training(world)
    file = left(world, plane, plane.officer)
    await share(world, file)
    await world.until_idle()
    world.runners[0].hold.set()
    withdrawn = await world.expect(GrantWithdrawn)
    verify_withdrawal(withdrawn, world.site_pk)
    wiped = await world.expect(WorkWiped)
    assert (wiped.code, wiped.windows) == ("GRANT_WITHDRAWN", 1)
    spool = world.app.desk.spool
    assert [*spool.products.iterdir(), *spool.uploads.iterdir()] == []
    await world.none_of(Ready)
    await share(world, file)
    await world.open(world.params())
    assert (await world.expect(TaskRefused)).code == "GRANT_WITHDRAWN"
    assert (len(world.all(GrantWithdrawn)), len(world.all(WorkWiped))) == (1, 1), "once"


async def test_a_withdrawal_counts_as_soon_as_its_signers_card_is_known(world: World, plane: Plane) -> None:
    await granted(world, plane)
    late = Person("Nora New", plane.second_officer.key.from_seed(b"n" * 32), "site_admin", world.site_id)
    await share(world, left(world, plane, late, "institution"))
    assert world.all(GrantWithdrawn) == [], "nobody knows who signed it"
    await share(world, ConsentFile(people=(plane.card(late),)))
    assert len(world.all(GrantWithdrawn)) == 1


async def test_patients_who_leave_do_not_take_their_hospital_with_them(world: World, plane: Plane) -> None:
    await granted(world, plane)
    await share(world, left(world, plane, plane.admin(world.site_id), "patient_set"))
    params = world.params()
    await world.open(params)
    assert (await world.expect(Ready)).window_id == params.window_id
    assert world.all(GrantWithdrawn) == []


async def test_a_person_in_the_hospital_adds_a_signed_withdrawal_to_its_own_spool(world: World, plane: Plane) -> None:
    await granted(world, plane)
    await training(world)
    async with LocalConsent.open(world.settings(), world.clock) as consent:
        await consent.add(left(world, plane, plane.admin(world.site_id), "institution"))
    await world.until_idle()
    world.runners[0].hold.set()
    assert (await world.expect(WorkWiped)).code == "GRANT_WITHDRAWN"
    assert len(world.all(GrantWithdrawn)) == 1
