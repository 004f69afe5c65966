"""The operator's side: invitations, revocation, manifests, and errors that name the field."""

from dataclasses import replace
from typing import Any

import httpx
import pytest
from test_registration import invite, registration

from cohortium_enrolment.app import App
from cohortium_kit.bus import Ack
from cohortium_kit.memory import MemoryBus
from cohortium_messages.events import ManifestRecorded, SiteRevocation
from cohortium_messages.governance import Invitation, Manifest, ManifestPublished, SiteRevoked, TrustDocument
from cohortium_messages.people import Assignment, Role
from cohortium_messages.topology import control_queue, inbox
from cohortium_protocol.documents import manifest_hash, sign_manifest
from cohortium_protocol.signing import IdentityKey
from governance_stage import DIGEST, STUDY, Hospital, Stage, delivery, sent_of
from people_stage import bearer


@pytest.fixture
async def members(stage: Stage, enrolment: App) -> list[Hospital]:
    """Four enrolled hospitals."""
    found = []
    for number in range(4):
        invitation, site = await invite(stage, enrolment, f"Hospital {number}")
        answer = await enrolment.consumer.handle(
            delivery(registration(stage, site, invitation.token), inbox("enrolment"))
        )
        assert answer == Ack()
        found.append(site)
    return found


async def publish(stage: Stage, enrolment: App, manifest: Manifest) -> httpx.Response:
    async with stage.client(enrolment) as client:
        return await client.post("/manifests", json=manifest.model_dump(mode="json"))


async def test_an_invitation_declares_the_sites_queues_and_carries_the_trust_document(
    stage: Stage, enrolment: App
) -> None:
    async with stage.client(enrolment) as client:
        answer = await client.post("/sites", json={"name": "Hospital A"})
        listed = (await client.get("/sites")).json()["items"]
    assert answer.status_code == 201
    invitation = Invitation.model_validate_json(answer.content)
    assert invitation.trust == stage.files.trust
    bus = await stage.bus()
    await bus.check_queue(control_queue(invitation.site_id))
    assert [(site["name"], site["state"]) for site in listed] == [("Hospital A", "invited")]
    assert invitation.token not in str(listed)


async def test_an_invitation_that_is_asked_for_again_under_its_key_is_the_same(stage: Stage, enrolment: App) -> None:
    """The answer may be lost on the way; a second invitation would make the first one's token worthless."""
    key = {"Idempotency-Key": "7c1d0c1e-invite-a"}

    async def ask(client: httpx.AsyncClient, name: str, headers: dict[str, str]) -> httpx.Response:
        return await client.post("/sites", json={"name": name}, headers=headers)

    async with stage.client(enrolment) as client:
        first, again = [await ask(client, "Hospital A", key) for _ in range(2)]
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.content == first.content, "the token, too"
        other = await ask(client, "Hospital B", key)
        assert (other.status_code, other.json()["title"]) == (422, "idempotency_key_reused")
        person = {**key, **bearer(stage, "enrolment", Assignment(role=Role.OPERATOR))}
        theirs = await ask(client, "Hospital C", person)
        assert theirs.json()["site_id"] != first.json()["site_id"], "another person's key is another key"
        assert (await ask(client, "Hospital D", {"Idempotency-Key": "short"})).status_code == 422
        listed = (await client.get("/sites")).json()["items"]
        assert sorted(site["name"] for site in listed) == ["Hospital A", "Hospital C"]
        await stage.clock.advance(25 * 3600)
        late = await ask(client, "Hospital A", key)
        assert (late.status_code, late.json()["title"]) == (409, "invitation_over")
        fresh = await ask(client, "Hospital A", {"Idempotency-Key": "7c1d0c1e-invite-a2"})
        assert fresh.json()["site_id"] != first.json()["site_id"]


async def test_a_used_invitation_is_not_shown_again(stage: Stage, enrolment: App) -> None:
    key = {"Idempotency-Key": "7c1d0c1e-invite-a"}
    async with stage.client(enrolment) as client:
        invitation = Invitation.model_validate_json(
            (await client.post("/sites", json={"name": "Hospital A"}, headers=key)).content
        )
        site = Hospital(invitation.site_id, "Hospital A", IdentityKey.generate())
        used = delivery(registration(stage, site, invitation.token), inbox("enrolment"))
        assert await enrolment.consumer.handle(used) == Ack()
        again = await client.post("/sites", json={"name": "Hospital A"}, headers=key)
    assert (again.status_code, again.json()["title"]) == (409, "invitation_over")
    assert invitation.token not in again.text


async def test_sites_are_told_in_pages_the_oldest_first(stage: Stage, enrolment: App) -> None:
    names = ["D", "A", "C", "B", "E"]
    told, after = list[str](), dict[str, str]()
    async with stage.client(enrolment) as client:
        for name in names:
            await client.post("/sites", json={"name": f"Hospital {name}"})
            await stage.clock.advance(1)
        for _ in names:
            page = (await client.get("/sites", params={"limit": "2", **after})).json()
            told += [site["name"].removeprefix("Hospital ") for site in page["items"]]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
    assert page["next"] is None
    assert told == names


async def test_the_name_of_an_active_site_is_taken_and_no_queue_is_made_for_it(
    stage: Stage, enrolment: App, members: list[Hospital], monkeypatch: pytest.MonkeyPatch
) -> None:
    declared: list[object] = []

    async def declare(_: MemoryBus, topology: object, **__: object) -> None:
        declared.append(topology)

    monkeypatch.setattr(MemoryBus, "declare", declare)
    async with stage.client(enrolment) as client:
        answer = await client.post("/sites", json={"name": members[0].name})
    assert declared == []
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["field"] == "name"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/sites"), ("POST", "/sites"), ("POST", "/manifests"), ("GET", "/manifests/x")]
)
async def test_without_the_operators_token_nothing_is_shown(
    stage: Stage, enrolment: App, method: str, path: str
) -> None:
    async with stage.client(enrolment, token="wrong") as client:
        assert (await client.request(method, path, json={})).status_code == 401


async def test_the_trust_document_is_public(stage: Stage, enrolment: App) -> None:
    async with stage.client(enrolment, token="") as client:
        answer = await client.get("/trust")
    assert TrustDocument.model_validate_json(answer.content) == stage.files.trust


async def test_revoking_tells_every_service_once_and_lists_the_site_as_revoked(
    stage: Stage, enrolment: App, members: list[Hospital]
) -> None:
    async with stage.client(enrolment) as client:
        for _ in range(2):
            answer = await client.post(f"/sites/{members[0].site_id}/revoke")
            assert answer.json()["state"] == "revoked"
        missing = await client.post("/sites/00000000-0000-4000-8000-00000000ffff/revoke")
    assert missing.status_code == 404
    assert sorted(key for key, _ in await sent_of(enrolment, SiteRevoked)) == [
        "aggregator",
        "audit",
        "consent",
        "scheduler",
    ]
    assert len(await sent_of(enrolment, SiteRevocation)) == 1


async def test_a_draft_signed_by_the_officers_is_published_to_services_and_members_once(
    stage: Stage, enrolment: App, members: list[Hospital]
) -> None:
    request = {"study_id": STUDY, "study_digest": DIGEST.hex(), "site_ids": [site.site_id for site in members]}
    async with stage.client(enrolment) as client:
        draft = Manifest.model_validate_json((await client.post("/manifests/draft", json=request)).content)
    for officer in stage.files.officers:
        draft = sign_manifest(draft, officer)
    for _ in range(2):
        answer = await publish(stage, enrolment, draft)
        assert answer.status_code == 201
        assert answer.json()["manifest_hash"] == manifest_hash(draft).hex()
    told = {key for key, _ in await sent_of(enrolment, ManifestPublished)}
    assert told == {"scheduler", "aggregator", "consent", "audit", *(control_queue(s.site_id) for s in members)}
    assert len(await sent_of(enrolment, ManifestPublished)) == 8
    assert [event.manifest_hash for _, event in await sent_of(enrolment, ManifestRecorded)] == [manifest_hash(draft)]


async def test_the_next_version_follows_the_last_one_and_both_can_be_read(
    stage: Stage, enrolment: App, members: list[Hospital]
) -> None:
    first = stage.manifest(members)
    assert (await publish(stage, enrolment, first)).status_code == 201
    second = stage.manifest(members[:3], previous=first)
    assert (await publish(stage, enrolment, second)).status_code == 201
    async with stage.client(enrolment) as client:
        newest = (await client.get(f"/manifests/{STUDY}")).json()
        oldest = (await client.get(f"/manifests/{STUDY}", params={"version": 1})).json()
        missing = await client.get("/manifests/unknown")
        assert (await client.get(f"/manifests/{STUDY}", params={"version": 1 << 64})).status_code == 422
    assert newest["manifest"]["version"] == 2
    assert oldest["manifest_hash"] == manifest_hash(first).hex()
    assert missing.status_code == 404


def _broken(stage: Stage, members: list[Hospital], broken: str) -> Manifest:
    good = stage.manifest(members)
    resigned: dict[str, Any] = {}
    match broken:
        case "one_signature":
            return good.model_copy(update={"signatures": good.signatures[:1]})
        case "stranger_signs":
            bare = good.model_copy(update={"signatures": good.signatures[:1]})
            return sign_manifest(bare, IdentityKey.generate())
        case "edited_after":
            return good.model_copy(update={"k_min_floor": 3})
        case "version":
            resigned = {"version": 2}
        case "prev_hash":
            resigned = {"prev_hash": b"\1" * 32}
        case "not_enrolled":
            return stage.manifest([*members[:3], stage.hospitals[0]])
        case "other_key":
            return stage.manifest([*members[:3], replace(members[3], key=IdentityKey.generate())])
        case "other_name":
            return stage.manifest([*members[:3], replace(members[3], name="Somebody else")])
    changed = good.model_copy(update={**resigned, "signatures": ()})
    for officer in stage.files.officers:
        changed = sign_manifest(changed, officer)
    return changed


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        ("one_signature", "signatures"),
        ("stranger_signs", "signatures"),
        ("edited_after", "signatures"),
        ("version", "version"),
        ("prev_hash", "prev_hash"),
        ("not_enrolled", "site_id"),
        ("other_key", "identity_pk"),
        ("other_name", "name"),
    ],
)
async def test_a_manifest_that_does_not_fit_is_refused_and_the_field_named(
    stage: Stage, enrolment: App, members: list[Hospital], broken: str, field: str
) -> None:
    answer = await publish(stage, enrolment, _broken(stage, members, broken))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].endswith(field)
    assert await sent_of(enrolment, ManifestPublished) == []


async def test_a_revoked_site_can_be_no_member(stage: Stage, enrolment: App, members: list[Hospital]) -> None:
    async with stage.client(enrolment) as client:
        await client.post(f"/sites/{members[3].site_id}/revoke")
        request = {"study_id": STUDY, "study_digest": DIGEST.hex(), "site_ids": [s.site_id for s in members]}
        draft = await client.post("/manifests/draft", json=request)
    assert draft.status_code == 422
    assert draft.json()["errors"][0]["field"] == "site_ids.3"
    assert (await publish(stage, enrolment, stage.manifest(members))).status_code == 422
