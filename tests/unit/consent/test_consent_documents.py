"""Documents at the consent service: what it takes, whom it tells, and what that does to grants and questions."""

from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs
from test_grants import RUN, give

from cohortium_consent.app import App
from cohortium_kit.bus import Ack, Dead
from cohortium_messages.consent import ConsentFile, DocumentsShared, Effect, Record, Withdrawal, WithdrawalEffect
from cohortium_messages.events import ConsentActRecorded
from cohortium_messages.governance import AuthoriseAsked, Authorised, GrantEnded, GrantRecorded, Permit, SiteRevoked
from cohortium_messages.papers import StudyPapers
from cohortium_messages.topology import control_queue
from cohortium_protocol.consent.signing import card_digest, record_digest, sign_act
from cohortium_protocol.documents import withdrawal_digest
from consent_stage import DAY, Person, Plane, seeded
from governance_stage import DIGEST, STUDY, Hospital, Stage, hear, sent, sent_of

pytestmark = pytest.mark.usefixtures("members")


@pytest.fixture
def plane(stage: Stage) -> Plane:
    return Plane(
        now=stage.clock.now(),
        study=STUDY,
        study_digest=DIGEST,
        officers=tuple(stage.files.officers),
        site_keys={site.site_id: site.key for site in stage.hospitals},
    )


async def post(stage: Stage, consent: App, file: ConsentFile, status: int = 200) -> Any:
    async with stage.client(consent) as client:
        answer = await client.post(
            "/documents", content=file.model_dump_json(), headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == status, answer.text
    return answer.json()


async def share(stage: Stage, consent: App, site: Hospital, file: ConsentFile) -> Any:
    return await hear(consent, "consent", stage.from_site(site, "consent", DocumentsShared(file=file)))


async def permit(
    stage: Stage, consent: App, site: Hospital, governance: Any = "required", round_number: int = 1
) -> Permit:
    asked = AuthoriseAsked(
        question_id=b"\1" * 16,
        run_id=RUN,
        study_id=STUDY,
        study_digest=DIGEST,
        round=round_number,
        sites=(site.site_id,),
        governance=governance,
    )
    assert await hear(consent, "consent", stage.from_service("scheduler", "consent", asked)) == Ack()
    return (await sent_of(consent, Authorised))[-1][1].permits[0]


def grant_on(stage: Stage, plane: Plane, site: Hospital) -> Any:
    basis = record_digest(plane.parts(site.site_id)["basis"])
    return stage.grant(site, basis=basis, begin=stage.clock.now() - DAY)


def federation_part(plane: Plane, site: Hospital) -> ConsentFile:
    """What officers and the study's lead signed."""
    return ConsentFile(
        people=(plane.card(plane.lead),), records=(plane.signed(site.site_id, plane.parts(site.site_id))["version"],)
    )


def hospital_part(plane: Plane, site: Hospital, but: str = "") -> ConsentFile:
    signed = plane.signed(site.site_id, plane.parts(site.site_id))
    people = (plane.admin(site.site_id), *plane.approvers(site.site_id))
    names = [name for name in ("agreement", "ethics", "terms", "basis") if name != but]
    return ConsentFile(people=tuple(map(plane.card, people)), records=tuple(signed[name] for name in names))


async def test_a_governed_study_is_permitted_once_everything_is_signed(
    stage: Stage, consent: App, plane: Plane
) -> None:
    site = stage.hospitals[0]
    grant = await give(stage, consent, site, grant_on(stage, plane, site))
    assert (await permit(stage, consent, site)).deny_code == "STUDY_VERSION_NOT_FOUND"
    assert await sent_of(consent, GrantRecorded) == []
    await post(stage, consent, federation_part(plane, site))
    assert (await permit(stage, consent, site)).deny_code == "APPROVAL_NOT_FOUND"
    assert await share(stage, consent, site, hospital_part(plane, site)) == Ack()
    said = await permit(stage, consent, site)
    assert said.permitted
    assert said.permit_digest is not None
    assert said.until == grant.not_after
    # Scheduler and aggregator are told of the grant at the moment when it begins to count.
    told = [(key, recorded.site_id) for key, recorded in await sent_of(consent, GrantRecorded)]
    assert told == [("scheduler", site.site_id), ("aggregator", site.site_id)]


async def test_a_grant_without_documents_is_enough_for_a_trial_only(stage: Stage, consent: App, plane: Plane) -> None:
    site = stage.hospitals[0]
    await give(stage, consent, site)
    assert (await permit(stage, consent, site, "trial")).permitted
    await post(stage, consent, federation_part(plane, site))
    assert (await permit(stage, consent, site)).deny_code == "GRANT_UNGOVERNED"


async def test_a_newer_document_ends_what_rested_on_the_older_until_people_approve_anew(
    stage: Stage, consent: App, plane: Plane
) -> None:
    site = stage.hospitals[0]
    await post(stage, consent, federation_part(plane, site))
    await share(stage, consent, site, hospital_part(plane, site))
    await give(stage, consent, site, grant_on(stage, plane, site))
    parts = plane.parts(site.site_id)
    terms = plane.terms(site.site_id, number="T-2", supersedes=record_digest(parts["terms"]))
    admin, (bea, carl) = plane.admin(site.site_id), plane.approvers(site.site_id)
    assert await share(stage, consent, site, ConsentFile(records=(plane.record(terms, admin, bea, carl),))) == Ack()
    ended = await sent_of(consent, GrantEnded)
    assert [(key, one.reason) for key, one in ended] == [
        ("scheduler", "TERMS_SUPERSEDED"),
        ("aggregator", "TERMS_SUPERSEDED"),
    ]
    assert (await permit(stage, consent, site)).deny_code == "TERMS_SUPERSEDED"
    async with stage.client(consent) as client:
        views = (await client.get("/documents", params={"kind": "terms"})).json()["items"]
        papers = StudyPapers.model_validate((await client.get(f"/studies/{STUDY}/papers")).json())
    assert {one["digest"]: one["standing"] for one in views} == {
        record_digest(parts["terms"]).hex(): "superseded",
        record_digest(terms).hex(): "active",
    }
    # Whoever judges the permits later must see what took the place of what.
    assert record_digest(terms) in {record_digest(one.document) for one in papers.file.records}
    told = [one for one in await recorded_about(consent, terms) if one.study == STUDY]
    assert [one.message.deed for one in told] == ["submit", "approve", "approve"]
    basis = plane.basis(site.site_id, {**parts, "terms": terms})
    again = stage.grant(site, basis=record_digest(basis), begin=stage.clock.now() - DAY)
    await share(stage, consent, site, ConsentFile(records=(plane.record(basis, admin, bea, carl),)))
    await give(stage, consent, site, again)
    assert (await permit(stage, consent, site)).permitted


def decision(plane: Plane, site: Hospital, left: bytes, effect: Effect) -> ConsentFile:
    """What the lead and an officer decide about who left."""
    made = WithdrawalEffect(
        withdrawal=left,
        site_id=site.site_id,
        study_id=STUDY,
        study_digest=DIGEST,
        effect=effect,
        decided_at=plane.now,
    )
    return ConsentFile(records=(plane.record(made, plane.lead, plane.officer),))


async def cases(stage: Stage, consent: App) -> list[dict[str, Any]]:
    async with stage.client(consent) as client:
        return (await client.get("/withdrawals")).raise_for_status().json()["items"]  # type: ignore[no-any-return]


async def hospital_joins(stage: Stage, consent: App, plane: Plane, **terms: Any) -> Hospital:
    """Its documents are on record, with these data-use terms; its grant is given."""
    site = stage.hospitals[0]
    parts = plane.parts(site.site_id, terms=terms)
    signed = plane.signed(site.site_id, parts)
    people = (plane.lead, plane.admin(site.site_id), *plane.approvers(site.site_id))
    await post(stage, consent, ConsentFile(people=tuple(map(plane.card, people)), records=tuple(signed.values())))
    begin = stage.clock.now() - DAY
    await give(stage, consent, site, stage.grant(site, basis=record_digest(parts["basis"]), begin=begin))
    return site


async def test_no_less_is_decided_about_a_hospital_that_left_than_its_terms_promise(
    stage: Stage, consent: App, plane: Plane
) -> None:
    site = await hospital_joins(stage, consent, plane, withdrawal_effect="retrain")
    left = stage.withdrawal(site)
    early = decision(plane, site, withdrawal_digest(left), "stop_future")
    await post(stage, consent, early)  # nobody knows yet what it is about
    await hear(consent, "consent", stage.from_site(site, "consent", left))
    (case,) = await cases(stage, consent)
    assert (case["requested_effect"], case["agreed_effect"], case["decision"]) == ("stop_future", "retrain", None)
    again = early.model_copy(
        update={"records": (early.records[0].model_copy(update={"acts": early.records[0].acts[:1]}),)}
    )
    for weak in (early, again, decision(plane, site, withdrawal_digest(left), "stop_future")):
        problem = await post(stage, consent, weak, 422)
        assert problem["type"].endswith("effect_below_terms")
        assert "stop_future is less than the data-use terms" in problem["detail"]
        assert "retrain at least" in problem["detail"]
    assert (await cases(stage, consent))[0]["decision"] is None
    await post(stage, consent, decision(plane, site, withdrawal_digest(left), "retire"))
    assert (await cases(stage, consent))[0]["decision"]["effect"] == "retire"


async def test_a_weak_decision_that_came_first_is_warned_of_once(stage: Stage, consent: App, plane: Plane) -> None:
    site = await hospital_joins(stage, consent, plane, withdrawal_effect="retrain")
    left = stage.withdrawal(site)
    await post(stage, consent, decision(plane, site, withdrawal_digest(left), "stop_future"))
    await hear(consent, "consent", stage.from_site(site, "consent", left))
    with capture_logs() as logged:
        for number in ("T-7", "T-8", "T-9"):  # whatever document comes in
            terms = plane.terms(site.site_id, number=number)
            await post(stage, consent, ConsentFile(records=(plane.record(terms, plane.admin(site.site_id)),)))
    warned = [one for one in logged if one["event"] == "decision_below_terms"]
    assert [one["withdrawal"] for one in warned] == [withdrawal_digest(left).hex()]
    assert "retrain at least" in warned[0]["reason"]


async def test_what_was_promised_holds_though_the_hospital_was_revoked(
    stage: Stage, consent: App, plane: Plane
) -> None:
    site = await hospital_joins(stage, consent, plane, withdrawal_effect="retire")
    gone = SiteRevoked(site_id=site.site_id, reason="SITE_REVOKED")
    await hear(consent, "consent", stage.from_service("enrolment", "consent", gone))
    document = Withdrawal(
        type="regulator",
        site_id=site.site_id,
        study_id=STUDY,
        study_digest=DIGEST,
        received_at=plane.now,
        effective_at=plane.now,
        requested_effect="stop_future",
    )
    await post(stage, consent, ConsentFile(records=(plane.record(document, plane.officer),)))
    assert [one["agreed_effect"] for one in await cases(stage, consent)] == ["retire"]


@pytest.mark.parametrize(
    ("terms", "kind", "agreed"),
    [
        ({"withdrawal_effect": "retire", "patient_withdrawal_effect": "retrain"}, "patient_set", "retrain"),
        ({"withdrawal_effect": "retrain"}, "patient_set", "retrain"),
        ({"patient_withdrawal_effect": "retire"}, "patient_set", "retire"),
        ({"withdrawal_effect": "retire", "patient_withdrawal_effect": "stop_future"}, "regulator", "retire"),
    ],
)
async def test_terms_promise_for_patients_and_hospitals_apart(
    stage: Stage, consent: App, plane: Plane, terms: dict[str, Any], kind: str, agreed: str
) -> None:
    site = await hospital_joins(stage, consent, plane, **terms)
    values = {"type": kind, "site_id": site.site_id, "study_id": STUDY, "study_digest": DIGEST}
    moments = {"received_at": plane.now - DAY, "effective_at": plane.now, "requested_effect": "stop_future"}
    document = Withdrawal.model_validate({**values, **moments})
    await post(stage, consent, ConsentFile(records=(plane.record(document, plane.approvers(site.site_id)[0]),)))
    assert [one["agreed_effect"] for one in await cases(stage, consent)] == [agreed]


async def recorded_about(consent: App, document: Any) -> list[Any]:
    """What was put on record about a document, in every log."""
    found = await sent(consent)
    digest = record_digest(document)
    return [one for one in found if isinstance(one.message, ConsentActRecorded) and one.message.record == digest]


async def test_one_person_who_stops_a_document_takes_the_hospital_out_and_two_bring_it_back(
    stage: Stage, consent: App, plane: Plane
) -> None:
    site = stage.hospitals[0]
    await post(stage, consent, federation_part(plane, site))
    await share(stage, consent, site, hospital_part(plane, site))
    await give(stage, consent, site, grant_on(stage, plane, site))
    terms = plane.terms(site.site_id)
    bea, carl = plane.approvers(site.site_id)
    stop = plane.act(terms, "suspend", carl, stage.clock.now())
    await share(stage, consent, site, ConsentFile(records=(Record(document=terms, acts=(stop,)),)))
    told = await sent_of(consent, GrantEnded)
    assert [(key, one.site_id, one.reason) for key, one in told] == [
        ("scheduler", site.site_id, "TERMS_SUSPENDED"),
        ("aggregator", site.site_id, "TERMS_SUSPENDED"),
    ]
    assert (await permit(stage, consent, site)).deny_code == "TERMS_SUSPENDED"
    await stage.clock.advance(60)
    again = tuple(plane.act(terms, "approve", by, stage.clock.now()) for by in (bea, carl))
    await share(stage, consent, site, ConsentFile(records=(Record(document=terms, acts=again),)))
    assert (await permit(stage, consent, site)).permitted
    assert [key for key, _ in await sent_of(consent, GrantRecorded)] == ["scheduler", "aggregator"] * 2


async def test_expiry_needs_no_message(stage: Stage, consent: App, plane: Plane) -> None:
    site = stage.hospitals[0]
    await post(stage, consent, federation_part(plane, site))
    await share(stage, consent, site, hospital_part(plane, site))
    basis = record_digest(plane.parts(site.site_id)["basis"])
    await give(stage, consent, site, stage.grant(site, basis=basis, begin=stage.clock.now() - DAY, days=240))
    await stage.clock.advance(timedelta(days=199).total_seconds())
    assert (await permit(stage, consent, site)).permitted
    await stage.clock.advance(timedelta(days=1).total_seconds())
    assert (await permit(stage, consent, site)).deny_code == "ETHICS_EXPIRED"


async def test_every_act_is_an_event_with_an_opaque_person(stage: Stage, consent: App, plane: Plane) -> None:
    site = stage.hospitals[0]
    await share(stage, consent, site, hospital_part(plane, site, but="agreement"))
    found = await sent_of(consent, ConsentActRecorded)
    events = [event for _, event in found]
    # Terms are of no single study: they are told of in the platform's log, and in that of the study that rests on them.
    for log in ("-", STUDY):
        told = [event for key, event in found if key.startswith(f"{log}.") and event.kind == "terms"]
        assert [(event.kind, event.deed, event.person) for event in told] == [
            ("terms", "submit", "ada"),
            ("terms", "approve", "bea"),
            ("terms", "approve", "carl"),
        ]
    assert {event.standing for event in events} == {"active"}
    assert "Braun" not in "".join(event.model_dump_json() for event in events)


async def test_hospitals_get_what_concerns_them_and_nothing_else(stage: Stage, consent: App, plane: Plane) -> None:
    site, other = stage.hospitals[:2]
    await post(stage, consent, federation_part(plane, site))
    got = {key for key, _ in await sent_of(consent, DocumentsShared)}
    assert got == {control_queue(one.site_id) for one in stage.hospitals}  # the study's version is everybody's
    await post(stage, consent, hospital_part(plane, other))
    shared = [
        (key, record.document.kind)
        for key, message in await sent_of(consent, DocumentsShared)
        for record in message.file.records
    ]
    assert {key for key, kind in shared if kind != "study_version"} == {control_queue(other.site_id)}


class TestWhatIsNotTaken:
    async def test_another_hospital_s_document(self, stage: Stage, consent: App, plane: Plane) -> None:
        site, other = stage.hospitals[:2]
        assert await share(stage, consent, site, hospital_part(plane, other)) == Dead("not_its_document")

    async def test_a_signature_that_was_changed(self, stage: Stage, consent: App, plane: Plane) -> None:
        file = hospital_part(plane, stage.hospitals[0])
        act = file.records[0].acts[0].model_copy(update={"name": "Somebody Else"})
        forged = file.records[0].model_copy(update={"acts": (act,)})
        said = await post(stage, consent, file.model_copy(update={"records": (forged,)}), 422)
        assert said["title"] == "bad_signature"

    async def test_a_card_that_nobody_vouches_for(self, stage: Stage, consent: App, plane: Plane) -> None:
        card = plane.card(plane.approvers(stage.hospitals[0].site_id)[0]).model_copy(update={"signatures": ()})
        said = await post(stage, consent, ConsentFile(people=(card,)), 422)
        assert (said["title"], said["errors"][0]["field"]) == ("card_refused", "people.0")

    @pytest.mark.parametrize(
        ("deed", "who", "code"),
        [
            ("approve", "admin", "role_missing"),
            ("approve", "stranger", "signer_unknown"),
            ("approve", "bea", "signed_already"),
            ("submit", "carl", "wrong_state"),
        ],
    )
    async def test_an_act_that_does_nothing(
        self, stage: Stage, consent: App, plane: Plane, deed: Any, who: str, code: str
    ) -> None:
        site = stage.hospitals[0].site_id
        bea, carl = plane.approvers(site)
        people = {"admin": plane.admin(site), "bea": bea, "carl": carl}
        people["stranger"] = Person("Sam Stranger", seeded("stranger"), "site_approver", site)
        terms = plane.terms(site)
        half = plane.record(terms, plane.admin(site), bea)
        cards = tuple(map(plane.card, (plane.admin(site), bea, carl)))
        await post(stage, consent, ConsentFile(people=cards, records=(half,)))
        act = plane.act(terms, deed, people[who], stage.clock.now())
        said = await post(stage, consent, ConsentFile(records=(Record(document=terms, acts=(act,)),)), 422)
        assert said["title"] == code
        assert people[who].name in said["detail"]
        # All of a file, or nothing: the document stands as it did.
        async with stage.client(consent) as client:
            page = (await client.get("/documents", params={"kind": "terms"})).json()
        assert [item["standing"] for item in page["items"]] == ["submitted"]

    async def test_a_signature_from_the_future(self, stage: Stage, consent: App, plane: Plane) -> None:
        site = stage.hospitals[0].site_id
        terms = plane.terms(site)
        act = plane.act(terms, "submit", plane.admin(site), stage.clock.now() + timedelta(minutes=6))
        file = ConsentFile(people=(plane.card(plane.admin(site)),), records=(Record(document=terms, acts=(act,)),))
        assert (await post(stage, consent, file, 422))["title"] == "in_the_future"

    async def test_a_signature_dated_before_what_it_follows(self, stage: Stage, consent: App, plane: Plane) -> None:
        """It would be on record and never count, whoever waits for it."""
        site = stage.hospitals[0].site_id
        terms, bea, now = plane.terms(site), plane.approvers(site)[0], stage.clock.now()
        people = tuple(map(plane.card, (plane.admin(site), bea)))
        submitted = Record(document=terms, acts=(plane.act(terms, "submit", plane.admin(site), now),))
        await post(stage, consent, ConsentFile(people=people, records=(submitted,)))
        for moment, status in ((now - timedelta(seconds=2), 422), (now, 200)):
            approval = Record(document=terms, acts=(plane.act(terms, "approve", bea, moment),))
            said = await post(stage, consent, ConsentFile(records=(approval,)), status)
            assert said.get("title", "dated_too_early") == "dated_too_early"

    async def test_without_the_operator_s_token_nobody_gets_in(self, stage: Stage, consent: App) -> None:
        async with stage.client(consent, token="guess") as client:
            for method, path in (("POST", "/documents"), ("GET", "/documents"), ("GET", f"/documents/{'ab' * 32}")):
                assert (await client.request(method, path, json={})).status_code == 401


async def test_a_card_is_ended_by_one_person_of_the_hospital(stage: Stage, consent: App, plane: Plane) -> None:
    site, other = stage.hospitals[:2]
    card = plane.card(plane.approvers(site.site_id)[0])
    await share(stage, consent, site, hospital_part(plane, site))
    admin, theirs = plane.admin(site.site_id), plane.admin(other.site_id)
    end = sign_act(card_digest(card), "terminate", admin.name, stage.clock.now(), admin.key)
    wrong = sign_act(card_digest(card), "terminate", theirs.name, stage.clock.now(), theirs.key)
    refused = await post(stage, consent, ConsentFile(people=(plane.card(theirs),), ended_cards=(wrong,)), 422)
    assert refused["title"] == "role_missing"
    await share(stage, consent, site, ConsentFile(ended_cards=(end,)))
    events = [event for _, event in await sent_of(consent, ConsentActRecorded)]
    assert (events[-1].kind, events[-1].deed, events[-1].person) == ("person", "terminate", "ada")
    await stage.clock.advance(60)
    bea = plane.approvers(site.site_id)[0]
    act = plane.act(plane.terms(site.site_id), "suspend", bea, stage.clock.now())
    file = ConsentFile(records=(Record(document=plane.terms(site.site_id), acts=(act,)),))
    assert await share(stage, consent, site, file) == Dead("signer_unknown")


async def test_pages_hold_every_document_once(stage: Stage, consent: App, plane: Plane) -> None:
    for site in stage.hospitals:
        await post(stage, consent, hospital_part(plane, site))
    seen: list[str] = []
    async with stage.client(consent) as client:
        after: dict[str, str] = {}
        for _ in range(20):
            page = (await client.get("/documents", params={"limit": "3", **after})).json()
            assert len(page["items"]) <= 3
            seen += [item["digest"] for item in page["items"]]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
        one = (await client.get(f"/documents/{seen[0]}")).json()
    assert len(seen) == len(set(seen)) == 16
    assert record_digest(ConsentFile.model_validate(one).records[0].document).hex() in seen


async def test_a_dry_run_names_every_reason_with_object_and_day(stage: Stage, consent: App, plane: Plane) -> None:
    site = stage.hospitals[0]
    await post(stage, consent, federation_part(plane, site))
    await share(stage, consent, site, hospital_part(plane, site))
    await give(stage, consent, site, grant_on(stage, plane, site))
    at = (stage.clock.now() + timedelta(days=29)).isoformat()
    later = (stage.clock.now() + timedelta(days=20)).isoformat()
    terms = plane.terms(site.site_id)
    stop = plane.act(terms, "terminate", plane.admin(site.site_id), stage.clock.now())
    params = {"study": STUDY, "site": site.site_id, "round": "1"}
    async with stage.client(consent) as client:
        fine = (await client.get("/authorise", params={**params, "at": later})).json()["items"][0]
        assert fine["permitted"]
        assert fine["until"] is not None
        gone = (await client.get("/authorise", params={**params, "at": at})).json()["items"][0]
        assert gone["deny_code"] == "GRANT_EXPIRED"
        await share(stage, consent, site, ConsentFile(records=(Record(document=terms, acts=(stop,)),)))
        said = (await client.get("/authorise", params=params)).json()["items"][0]
    assert said["deny_code"] == "TERMS_TERMINATED"
    assert "data-use terms T-1" in said["reasons"][0]["sentence"]


async def test_the_papers_of_a_study_are_what_its_permits_rest_on(stage: Stage, consent: App, plane: Plane) -> None:
    site = stage.hospitals[0]
    await post(stage, consent, federation_part(plane, site))
    await share(stage, consent, site, hospital_part(plane, site))
    grant = stage.grant(site, basis=record_digest(plane.parts(site.site_id)["basis"]))
    await give(stage, consent, site, grant)
    async with stage.client(consent) as client:
        papers = StudyPapers.model_validate_json((await client.get(f"/studies/{STUDY}/papers")).content)
        assert papers.grants == (grant,)
        kinds = {one.document.kind for one in papers.file.records}
        assert kinds == {"study_version", "agreement", "ethics", "terms", "grant_basis"}
        other = StudyPapers.model_validate_json((await client.get("/studies/another/papers")).content)
        assert (other.file.records, other.grants) == ((), ())
