"""Proofs over HTTP: each must verify with the protocol's own verifier, and wrong questions get a clear answer."""

import asyncio
import io
import json
import zipfile
from typing import Any

import pytest
from sqlalchemy import text, update

from cohortium_audit import store
from cohortium_audit.app import App
from cohortium_audit.store.tables import leaf_table
from cohortium_messages.events import BundleExported
from cohortium_messages.ids import StudyId
from cohortium_messages.oversight import LogReviewed
from cohortium_messages.people import Assignment, Role
from cohortium_messages.topology import inbox
from cohortium_protocol.errors import LogRefused
from cohortium_protocol.logproof import LogProof
from cohortium_protocol.notes import VerifierKey, open_checkpoint
from cohortium_protocol.translog import leaf_hash, verify_consistency, verify_inclusion
from cohortium_verify.quorum import ReleaseWitnesses, check_quorum
from governance_stage import FEDERATION, STUDY, Stage, delivery, sent_of
from people_stage import bearer
from study_story import cosign_latest, signed, study_lines


@pytest.fixture
async def told(stage: Stage, audit: App) -> list[str]:
    """The ids of a whole study's events, with a checkpoint after the first ten."""
    messages = [signed(stage, line) for line in study_lines(stage)]
    for part in (messages[:10], messages[10:]):
        await asyncio.gather(*[audit.consumer.handle(delivery(one, inbox("audit"))) for one in part])
        await audit.db.run("checkpoint", audit.handlers.checkpoint_all)
    return [one.message_id for one in messages]


async def get(stage: Stage, audit: App, path: str, **params: Any) -> Any:
    async with stage.client(audit) as client:
        return await client.get(path, params=params)


async def test_logs_are_listed_with_the_key_that_opens_their_checkpoints(
    stage: Stage, audit: App, told: list[str]
) -> None:
    (log,) = (await get(stage, audit, "/logs")).json()["items"]
    assert (log["log"], log["origin"], log["size"]) == (STUDY, f"{FEDERATION}/audit/{STUDY}", len(told))
    note = (await get(stage, audit, f"/logs/{STUDY}/checkpoint")).text
    checkpoint = open_checkpoint(note, VerifierKey.parse(log["verifier_key"]))
    assert checkpoint.size == len(told)


async def test_every_entry_is_included_in_every_later_size(stage: Stage, audit: App, told: list[str]) -> None:
    lines = (await get(stage, audit, f"/logs/{STUDY}/entries")).content.split(b"\n")[:-1]
    assert [json.loads(line)["event"]["id"] for line in lines] == told
    for index, size in ((0, 1), (3, 10), (9, 10), (0, len(told)), (len(told) - 1, len(told))):
        proof = (await get(stage, audit, f"/logs/{STUDY}/proof/inclusion", index=index, size=size)).json()
        assert proof["leaf_hash"] == leaf_hash(lines[index]).hex()
        hashes = [bytes.fromhex(one) for one in proof["hashes"]]
        verify_inclusion(leaf_hash(lines[index]), index, size, hashes, bytes.fromhex(proof["root"]))


async def test_entries_come_in_pages(stage: Stage, audit: App, told: list[str]) -> None:
    page = (await get(stage, audit, f"/logs/{STUDY}/entries", start=4, end=7)).content.split(b"\n")[:-1]
    assert [json.loads(line)["event"]["id"] for line in page] == told[4:7]


async def test_consistency_holds_between_any_two_sizes(stage: Stage, audit: App, told: list[str]) -> None:
    for old, new in ((1, 2), (7, 10), (8, len(told)), (10, len(told)), (len(told), len(told))):
        params = {"from": old, "to": new}
        proof = (await get(stage, audit, f"/logs/{STUDY}/proof/consistency", **params)).json()
        hashes = [bytes.fromhex(one) for one in proof["hashes"]]
        verify_consistency(old, new, hashes, bytes.fromhex(proof["from_root"]), bytes.fromhex(proof["to_root"]))


async def test_one_event_is_proven_by_one_answer(stage: Stage, audit: App, told: list[str]) -> None:
    answer = (await get(stage, audit, f"/events/{told[5]}/proof")).json()
    checkpoint = open_checkpoint(
        answer["checkpoint"], VerifierKey(f"{FEDERATION}/audit/{STUDY}", stage.files.trust.services.audit)
    )
    proof = answer["proof"]
    hashes = [bytes.fromhex(one) for one in proof["hashes"]]
    leaf = leaf_hash(answer["entry"].encode())
    verify_inclusion(leaf, proof["index"], checkpoint.size, hashes, checkpoint.root)


async def test_one_event_is_proven_by_one_text_that_stands_alone(stage: Stage, audit: App, told: list[str]) -> None:
    await audit.db.run("checkpoint", audit.handlers.checkpoint_all)
    await cosign_latest(stage, audit)
    answer = await get(stage, audit, f"/events/{told[5]}/tlog-proof")
    assert answer.headers["content-type"].startswith("text/plain")
    proof = LogProof.parse(answer.text)
    key = VerifierKey(f"{FEDERATION}/audit/{STUDY}", stage.files.trust.services.audit)
    assert proof.check(key).size == len(told)
    assert json.loads(proof.entry)["event"]["id"] == told[5]
    assert proof.note.count("\n— ") == 1 + len(stage.hospitals), "the log's signature and each hospital's"
    changed = answer.text.replace(f"index {proof.index}", f"index {proof.index + 1}")
    with pytest.raises(LogRefused):
        LogProof.parse(changed).check(key)


async def test_an_event_is_proven_in_a_checkpoint_that_a_quorum_cosigned(
    stage: Stage, audit: App, told: list[str]
) -> None:
    path, key = (
        f"/events/{told[5]}/tlog-proof",
        VerifierKey(f"{FEDERATION}/audit/{STUDY}", stage.files.trust.services.audit),
    )
    await cosign_latest(stage, audit, sites=stage.hospitals[:2])
    early = await get(stage, audit, path, witnessed=True)
    assert (early.status_code, early.json()["title"]) == (404, "not_witnessed")
    await cosign_latest(stage, audit, sites=stage.hospitals[2:3])
    last = signed(stage, study_lines(stage)[1])
    await audit.consumer.handle(delivery(last, inbox("audit")))
    proof = LogProof.parse((await get(stage, audit, path, witnessed=True)).text)
    checkpoint = proof.check(key)
    assert checkpoint.size == len(told), "the newest with a quorum, and not the newest"
    assert proof.note.count("\n— ") == 1 + 3
    late = await get(stage, audit, f"/events/{last.message_id}/tlog-proof", witnessed=True)
    assert late.status_code == 404, "the event came after what the hospitals cosigned"
    views = (await get(stage, audit, f"/logs/{STUDY}/witnesses")).json()["items"]
    said = ReleaseWitnesses(manifest=stage.manifest(), announcements=[one["announcement"] for one in views[:3]])
    found = check_quorum(proof, checkpoint, said, said.manifest, FEDERATION)
    assert found == tuple(sorted(site.site_id for site in stage.hospitals[:3]))


@pytest.mark.parametrize(
    ("path", "params", "status"),
    [
        (f"/logs/{STUDY}/proof/inclusion", {"index": 99_999}, 422),
        (f"/logs/{STUDY}/proof/inclusion", {"index": 5, "size": 5}, 422),
        (f"/logs/{STUDY}/proof/inclusion", {"index": -1}, 422),
        (f"/logs/{STUDY}/entries", {"start": 1 << 63, "end": 1 << 64}, 422),
        (f"/logs/{STUDY}/proof/consistency", {"from": 9, "to": 3}, 422),
        (f"/logs/{STUDY}/proof/consistency", {"from": 1, "to": 99_999}, 422),
        ("/logs/unknown/checkpoint", {}, 404),
        ("/logs/unknown/entries", {}, 404),
        ("/logs/-/checkpoint", {}, 404),
        ("/logs/Not%20A%20Log/checkpoint", {}, 422),
        ("/events/nothing-0001/proof", {}, 404),
        ("/events/nothing-0001/tlog-proof", {}, 404),
        ("/studies/unknown/bundle", {}, 404),
    ],
)
async def test_a_question_outside_the_log_is_told_so(
    stage: Stage, audit: App, told: list[str], path: str, params: dict[str, Any], status: int
) -> None:
    answer = await get(stage, audit, path, **params)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


async def test_the_bundle_holds_all_parts_and_is_up_to_the_moment(stage: Stage, audit: App, told: list[str]) -> None:
    last = signed(stage, study_lines(stage)[1])
    await audit.consumer.handle(delivery(last, inbox("audit")))
    answer = await get(stage, audit, f"/studies/{STUDY}/bundle")
    (exported,) = [message for _, message in await sent_of(audit, BundleExported)]
    assert (exported.study_id, exported.size, exported.person) == (STUDY, len(told) + 1, None)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = set(archive.namelist())
        lines = archive.read("entries.jsonl").split(b"\n")[:-1]
        readme = archive.read("README.txt").decode()
    assert {"trust.json", "manifests/000001.json", "proofs/consistency.json", "proofs/inclusion.json"} <= names
    assert {name for name in names if name.startswith("checkpoints/")} == {
        f"checkpoints/{size:012}.txt" for size in (10, len(told), len(told) + 1)
    }
    assert len(lines) == len(told) + 1
    assert f"up to its checkpoint of {len(told) + 1} entries" in readme


async def test_asking_twice_signs_one_checkpoint(stage: Stage, audit: App, told: list[str]) -> None:
    first = (await get(stage, audit, f"/logs/{STUDY}/checkpoint")).text
    assert (await get(stage, audit, f"/logs/{STUDY}/checkpoint")).text == first
    async with audit.db.reading("test") as tx:
        assert len(await store.logs.checkpoints(tx, STUDY, 10_000)) == 2


async def test_a_changed_database_is_noticed_before_a_bundle_leaves(stage: Stage, audit: App, told: list[str]) -> None:
    async with audit.db.transaction("tamper") as tx:
        await tx.execute(text("DROP TRIGGER leaf_is_final"))  # as somebody does who owns the tables
        await tx.execute(update(leaf_table).where(leaf_table.c.idx == 3).values(data=b"{}"))
    async with stage.client(audit) as client:
        client._transport.raise_app_exceptions = False  # type: ignore[attr-defined]
        answer = await client.get(f"/studies/{STUDY}/bundle")
    assert answer.status_code == 500


async def test_without_the_operators_token_nothing_is_shown(stage: Stage, audit: App, told: list[str]) -> None:
    async with stage.client(audit, token="wrong") as client:
        assert (await client.get("/logs")).status_code == 401
        assert (await client.get(f"/studies/{STUDY}/bundle")).status_code == 401


async def test_a_study_lead_sees_the_logs_of_the_own_study_only(stage: Stage, audit: App, told: list[str]) -> None:
    async with stage.client(audit) as client:
        for study, sees in ((STUDY, True), (StudyId("another-study"), False)):
            headers = bearer(stage, "audit", Assignment(role=Role.STUDY_LEAD, study_id=study))
            listed = (await client.get("/logs", headers=headers)).json()["items"]
            assert [one["log"] for one in listed] == ([STUDY] if sees else [])
            for path in (f"/events/{told[0]}/proof", f"/logs/{STUDY}/entries", f"/studies/{STUDY}/bundle"):
                assert (await client.get(path, headers=headers)).status_code == (200 if sees else 403), path


async def test_a_review_is_on_record_with_its_person_and_the_root_that_was_reviewed(
    stage: Stage, audit: App, told: list[str]
) -> None:
    said = {"size": 10, "finding": "NOTHING_FOUND"}
    auditor = bearer(stage, "audit", Assignment(role=Role.AUDITOR))
    async with stage.client(audit) as client:
        path = f"/logs/{STUDY}/reviews"
        made = [await client.post(path, json=said, headers=auditor) for _ in range(2)]
        assert [one.status_code for one in made] == [201, 201]
        beyond = await client.post(path, json={**said, "size": len(told) + 1}, headers=auditor)
        assert (beyond.status_code, beyond.json()["title"]) == (422, "outside_the_log")
        nobody = await client.post(path, json=said)
        assert nobody.status_code == 403, "the operator's token is nobody's name"
        lead = bearer(stage, "audit", Assignment(role=Role.STUDY_LEAD, study_id=StudyId(STUDY)))
        assert (await client.post(path, json=said, headers=lead)).json()["title"] == "role_missing"
        of_ten = (await client.get(f"/logs/{STUDY}/proof/inclusion", params={"index": 0, "size": 10})).json()["root"]
    ((key, event),) = await sent_of(audit, LogReviewed)
    assert key == f"-.{LogReviewed.type_name}", "where a study's own witnesses are not asked to sign again"
    assert (event.study_id, event.size, event.root.hex(), event.person) == (STUDY, 10, of_ten, "p-0001")
    assert made[0].json()["event_id"] == made[1].json()["event_id"]
