"""A finished model is a candidate until an officer, and the hospitals that the study asks for, signed its release."""

import io
import json
import zipfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from aggregator_world import STUDY, World

from cohortium_aggregator.store.releases import waiting_for_log
from cohortium_kit.bus import Dead
from cohortium_messages import events
from cohortium_messages.runs import RunEnded
from cohortium_messages.witness import EventProven, ProofAsked
from cohortium_protocol.attest import add_signature
from cohortium_protocol.encoding import sha256
from cohortium_protocol.release import Candidate, Roles, check_release, sign_release
from cohortium_protocol.signing import IdentityKey
from task_log import TaskLog

TOKEN = "operator-token-for-tests"
NOTHING = {
    "payload": "",
    "payloadType": "application/vnd.in-toto+json",
    "signatures": [{"keyid": "0" * 64, "sig": ""}],
}
AT = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    made = await World.of(tmp_path, study=STUDY | {"release_sites": 1}, operator_token_file=token)
    ref = await made.first_model()
    await made.say("scheduler", RunEnded(run_id=made.run_id, study_id=made.study.name, state="FINISHED", model=ref))
    yield made
    await made.close()


def client(world: World) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=world.app.http), base_url="http://test", headers=headers)


def read(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


async def unproven(world: World) -> int:
    """How many releases the aggregator says wait for the log's proof."""
    async with world.app.ctx.db.reading("test") as tx:
        return len(await waiting_for_log(tx))


async def event_id_of(world: World, event: events.ReleaseSigned) -> str:
    await world.hear()
    return next(sent.message_id for sent in world.sent if sent.message == event)


async def test_a_candidate_becomes_a_release_with_an_officer_and_a_hospital(world: World) -> None:
    officer, (site_id, site) = world.officers[0], next(iter(world.identities.items()))
    path = f"/runs/{world.run_id}/release"
    async with client(world) as http:
        early = await http.post(path, json=NOTHING)
        assert (early.status_code, early.json()["title"]) == (409, "MODEL_NOT_READY")
        assert await world.app.bundler.bundle_finished() == 1
        archive = await http.get(f"/runs/{world.run_id}/model")
        assert f"candidate-{world.run_id}" in archive.headers["content-disposition"]
        files = read(archive.content)
        assert "release.dsse.json" not in files
        model = Candidate.of(files["attestation.dsse.json"], world.keys["aggregator"].public)

        async def offer(envelope: bytes) -> httpx.Response:
            return await http.post(path, json=json.loads(envelope))

        stranger = await offer(sign_release(model, "X", AT, IdentityKey.generate()))
        assert (stranger.status_code, stranger.json()["title"]) == (422, "RELEASE_REFUSED")
        alone = await offer(sign_release(model, "S", AT, site))
        assert "a governance officer" in alone.json()["detail"]
        signed = sign_release(model, "O. Fficer", AT, officer)
        for _ in range(2):  # the same key again is one signature
            waiting = (await offer(signed)).json()
            assert (waiting["state"], waiting["missing"]) == ("waiting", ["1 more member hospital"])
        again_by_officer = await offer(add_signature(signed, officer))
        assert again_by_officer.json()["state"] == "waiting"
        assert not await world.heard(events.ReleaseSigned)
        assert await unproven(world) == 0, "signatures are waited for, and no answer of audit's"
        done = (await offer(add_signature(signed, site))).json()
        assert (done["state"], done["missing"], done["sites"]) == (
            "waiting",
            ["the audit log's proof of it"],
            [site_id],
        )
        assert "release.dsse.json" not in read((await http.get(f"/runs/{world.run_id}/model")).content)
        assert await unproven(world) == 1
        (event,) = await world.heard(events.ReleaseSigned)
        assert {one.event_id for one in await world.heard(ProofAsked)} == {await event_id_of(world, event)}
        log = TaskLog(
            world.app.ctx.trust.federation, world.study.name, IdentityKey.generate(), world.keys["aggregator"]
        )
        log.role = "aggregator"
        logged = log.prove(*log.add(event))
        proven = EventProven(study_id=world.study.name, event_id=await event_id_of(world, event), logged=logged)
        assert await world.say("scheduler", proven) == Dead("sender_not_allowed")
        await world.say("audit", proven)
        assert (await offer(signed)).json()["state"] == "released"
        assert await unproven(world) == 0
        later = await offer(sign_release(model, "O. Fficer", datetime(2027, 1, 1, tzinfo=UTC), officer))
        assert (later.status_code, later.json()["title"]) == (409, "MODEL_RELEASED")

        (world.app.ctx.data.bundle_dir(world.run_id) / "release.dsse.json").unlink()  # as after a crash
        archive = await http.get(f"/runs/{world.run_id}/model")
        assert f"model-{world.run_id}" in archive.headers["content-disposition"]
        assert (await http.get(f"/runs/{world.run_id}/models")).json()["released"]
    (event,) = await world.heard(events.ReleaseSigned)
    release = read(archive.content)["release.dsse.json"]
    assert read(archive.content)["release.tlog-proof"].decode() == logged.proof
    assert event.release_sha256 == sha256(release)
    assert event.attestation_sha256 == sha256(model.attestation)
    assert (event.officers, event.sites) == ((officer.public,), (site_id,))
    roles = Roles(world.keys["aggregator"].public, frozenset({officer.public}), {site_id: site.public})
    assert check_release(release, model, roles, 1).officer_name == "O. Fficer"
