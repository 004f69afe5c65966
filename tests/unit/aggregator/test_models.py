"""Model versions: made, kept, sent down, bundled, shown."""

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from aggregator_world import STUDY, Window, World, grid_spec, integer_spec
from jsonschema import ValidationError
from safetensors.numpy import load as load_safetensors

from cohortium_kit.memory import MemoryBus
from cohortium_messages import events
from cohortium_messages.ids import RunId
from cohortium_messages.model_schema import ModelSchema
from cohortium_messages.runs import ModelOffered, ModelUnavailable, ModelWanted, RunEnded, SessionClosed
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.topology import bulk_queue, platform_topology, site_topology
from cohortium_protocol.attest import Statement, verify_statement
from cohortium_protocol.chunks import open_model_frame, unwrap_model_key
from cohortium_protocol.keys import SealKey
from cohortium_protocol.parameters import model_hash
from cyclonedx_stage import check_bom

TOKEN = "operator-token-for-tests"
NOISE: dict[str, Any] = STUDY | {"recipe": {"trainer": "benchmark.noise", "parameters": 600_000}}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    made = await World.of(tmp_path, operator_token_file=token)
    yield made
    await made.close()


@pytest.fixture
async def noise_world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.of(tmp_path, study=NOISE)
    yield made
    await made.close()


async def update(world: World, base: ModelRef, size: int = 2) -> ModelRef:
    window = await world.open(world.params("update", grid_spec(size), (base,)))
    vector = np.full(size, 0.1, dtype=np.float32)
    await world.release(window, dict.fromkeys(window.view.indices, vector))
    newest = await world.newest()
    return ModelRef(version=newest.version, model_hash=newest.model_hash)


async def collect(world: World, window: Window, index: int, wanted: ModelWanted) -> list[bytes]:
    """Ask for a model and read the frames that come on the site's bulk queue."""
    site = window.sites[index]
    bus = MemoryBus(world.broker, "test")
    await bus.connect()
    await bus.declare(platform_topology())
    await bus.declare(site_topology(site.site_id))
    stop = asyncio.Event()
    sending = asyncio.create_task(world.app.downlink.run(stop))
    await world.site_says(site, wanted)
    frames = []
    offer = await world.last_to(site, ModelOffered)
    assert offer is not None
    have = wanted.have or b"\0"
    missing = sum(not have[k // 8] >> (k % 8) & 1 for k in range(offer.chunks))
    for _ in range(6000):
        while delivery := await bus.get(bulk_queue(site.site_id)):
            frames.append(delivery.body)
        if len(frames) >= missing and not world.app.downlink.busy:
            break
        await asyncio.sleep(0.01)
    stop.set()
    await sending
    await bus.close()
    return frames


async def test_a_member_gets_a_model_in_sealed_chunks(noise_world: World) -> None:
    world = noise_world
    ref = await world.first_model()
    window = world.prepare(world.params("update", grid_spec(2), (ref,)))
    key = SealKey.generate()
    wanted = ModelWanted(
        run_id=world.run_id, version=0, site_id=window.sites[1].site_id, seal_pk=key.public, have=bytes([0b10])
    )
    frames = await collect(world, window, 1, wanted)
    offer = await world.last_to(window.sites[1], ModelOffered)
    assert offer is not None
    assert (offer.size, offer.chunks) == (2_400_000, 3)
    content_key = unwrap_model_key(offer.wrapped_key, world.run_id, 0, key)
    aggregator = world.keys["aggregator"].public
    chunks = {}
    for frame in frames:
        header, content = open_model_frame(frame, content_key, aggregator)
        chunks[header.place.chunk] = content
    assert sorted(chunks) == [0, 2]  # chunk 1 the site had
    path = world.app.ctx.data.model_dir(world.run_id, 0) / "parameters.f32"
    whole = path.read_bytes()
    assert chunks[0] == whole[: offer.chunk_bytes]
    assert chunks[2] == whole[2 * offer.chunk_bytes :]
    assert hashlib.sha256(whole).digest() == offer.parameters_sha256
    assert await world.closed_bytes() >= sum(map(len, frames))


async def test_versions_that_no_window_may_start_from_lose_their_files(tmp_path: Path) -> None:
    federation = STUDY["federation"] | {"max_staleness": 1, "server": {"optimizer": "fedadam", "lr": 0.1}}
    world = await World.of(tmp_path, study=STUDY | {"federation": federation}, keep_every=0)
    ref = await world.first_model()
    for _ in range(3):
        ref = await update(world, ref)
    folder = world.app.ctx.data.root / "models" / world.run_id
    assert sorted(path.name for path in folder.iterdir()) == ["0", "2", "3"]
    assert sorted(path.name for path in (folder / "3").iterdir()) == ["parameters.f32", "state-m.f32", "state-v.f32"]
    assert [path.name for path in (folder / "2").iterdir()] == ["parameters.f32"]
    window = world.prepare(world.params("update", grid_spec(2), (ref,)))
    site = window.sites[1]
    wanted = ModelWanted(run_id=world.run_id, version=1, site_id=site.site_id, seal_pk=SealKey.generate().public)
    await world.site_says(site, wanted)
    refusal = await world.last_to(site, ModelUnavailable)
    assert refusal is not None
    assert refusal.reason == "UPDATE_TOO_STALE"
    lineage = await world.heard(events.ModelReleased)
    assert [(one.model.version, one.parent.version if one.parent else None) for one in lineage] == [
        (0, None),
        (1, 0),
        (2, 1),
        (3, 2),
    ]
    await world.close()


async def test_each_rounds_model_is_kept_so_that_a_study_can_be_trained_again_from_it(tmp_path: Path) -> None:
    study = STUDY | {"federation": STUDY["federation"] | {"max_staleness": 1}}
    world = await World.of(tmp_path, study=study, keep_every=2)
    ref = await world.first_model()
    for _ in range(4):
        ref = await update(world, ref)
    folder = world.app.ctx.data.root / "models" / world.run_id
    assert {"0", "2", "4"} <= {path.name for path in folder.iterdir()}
    assert "1" not in {path.name for path in folder.iterdir()}
    await world.close()


async def test_an_opening_that_was_killed_is_made_again_with_the_same_result(world: World) -> None:
    base = await world.first_model()
    window = await world.open(world.params("update", grid_spec(2), (base,)))
    for index in window.view.indices:
        await window.upload(index, np.array([0.25, 0.5], dtype=np.float32))
    await window.echo_and_unmask()
    job = await world.app.opener._load(window.params.window_id)
    assert job is not None
    _, first = await asyncio.to_thread(world.app.opener._make, job)  # files are there, the record is not
    await world.restart()
    await world.app.opener.open(window.params.window_id)
    newest = await world.newest()
    assert newest.version == 1
    assert newest.model_hash == first.model.model_hash  # type: ignore[union-attr]
    await world.app.opener.open(window.params.window_id)
    assert len([one for one in await world.heard(SessionClosed) if one.purpose == "update"]) == 1


async def test_a_finished_run_gives_a_signed_bundle(world: World) -> None:
    ref = await update(world, await world.first_model())
    evaluation = await world.open(world.params("evaluation", integer_spec(303), (ref,)))
    counts = np.zeros(303, dtype=np.int64)
    counts[10], counts[160], counts[300] = 3, 2, 5
    counts[210], counts[260] = int(3 * 0.105 * 2**32), int(2 * 0.605 * 2**32)
    await world.release(evaluation, dict.fromkeys(evaluation.view.indices, counts))
    async with client(world) as http:
        early = await http.get(f"/runs/{world.run_id}/model")
    assert early.status_code == 409
    assert early.json()["state"] == "RUNNING"
    ended = RunEnded(run_id=world.run_id, study_id=world.study.name, state="FINISHED", model=ref)
    await world.say("scheduler", ended)
    assert await world.app.bundler.bundle_finished() == 1
    assert await world.app.bundler.bundle_finished() == 0
    (bundled,) = await world.heard(events.ModelBundled)
    async with client(world) as http:
        archive = await http.get(f"/runs/{world.run_id}/model")
        listed = (await http.get(f"/runs/{world.run_id}/models")).json()
    files = {info: archive_file(archive.content, info) for info in names(archive.content)}
    assert set(files) == {
        "model.safetensors",
        "preprocessing.json",
        "study.json",
        "schema.json",
        "card.json",
        "card.md",
        "mlbom.cdx.json",
        "attestation.dsse.json",
    }
    assert hashlib.sha256(files["attestation.dsse.json"]).digest() == bundled.attestation_sha256
    statement = verify_statement(files["attestation.dsse.json"], [world.keys["aggregator"].public], 1)
    assert {name: hashlib.sha256(files[name]).digest() for name in statement.subjects} == statement.subjects
    tensors = load_safetensors(files["model.safetensors"])
    assert tensors["layers.0.weight"].shape == (1, 1)
    flat = np.concatenate([tensors["layers.0.weight"].ravel(), tensors["layers.0.bias"]]).astype("<f4")
    assert model_hash(hashlib.sha256(flat.tobytes()).digest(), files["preprocessing.json"]) == ref.model_hash
    card = json.loads(files["card.json"])
    assert card["metrics"][0]["auc"] == pytest.approx(1.0)
    assert card["secure_sum"] | {"n": 4, "t": 3, "c": 1, "k_min": 3} == card["secure_sum"]
    assert "No formal privacy guarantee" in files["card.md"].decode()
    assert [(one["version"], one["stored"]) for one in listed["versions"]] == [(0, True), (1, True)]
    assert listed["bundled"]
    check_papers(files, statement)
    assert (world.app.ctx.data.bundle_dir(world.run_id) / "model.safetensors").exists()


def check_papers(files: dict[str, bytes], statement: Statement) -> None:
    """The schema and the bill of materials are signed, and say what the other files say."""
    assert {"schema.json", "mlbom.cdx.json"} <= statement.subjects.keys()
    schema = ModelSchema.model_validate_json(files["schema.json"])
    assert ([one.name for one in schema.inputs], schema.columns) == (["age"], ("age",))
    assert (schema.output.kind, schema.output.classes) == ("probability", ("0", "1"))
    bom = check_bom(files["mlbom.cdx.json"])
    model = bom["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "heart", "1")
    assert {"type": "auc", "value": "1", "slice": "test rows of all sites (20)"} in model["modelCard"][
        "quantitativeAnalysis"
    ]["performanceMetrics"]
    listed = {one["name"]: one["hashes"][0]["content"] for one in bom["components"] if one["type"] == "file"}
    others = statement.subjects.keys() - {"mlbom.cdx.json"}
    assert listed == {name: statement.subjects[name].hex() for name in others}
    refs = {one["bom-ref"] for one in bom["components"]}
    assert set(bom["dependencies"][0]["dependsOn"]) == refs
    broken = json.loads(files["mlbom.cdx.json"])
    broken["metadata"]["component"]["modelCard"]["modelParameters"]["approach"]["type"] = "telepathy"
    with pytest.raises(ValidationError, match="telepathy"):
        check_bom(json.dumps(broken).encode())


async def test_a_run_without_a_model_is_never_bundled(world: World) -> None:
    await world.say("scheduler", RunEnded(run_id=world.run_id, study_id=world.study.name, state="FINISHED"))
    await world.app.bundler.bundle_finished()
    assert await world.app.bundler.bundle_finished() == 0
    assert not await world.heard(events.ModelBundled)


async def test_http_says_what_is_wrong(world: World) -> None:
    unknown = RunId("00000000-0000-4000-8000-000000000000")
    async with client(world) as http:
        missing = await http.get(f"/runs/{unknown}/models")
        invalid = await http.get("/runs/nonsense/models")
        http.headers["Authorization"] = "Bearer wrong"
        stranger = await http.get(f"/runs/{world.run_id}/models")
    assert (missing.status_code, missing.json()["title"]) == (404, "RUN_NOT_FOUND")
    assert missing.headers["content-type"] == "application/problem+json"
    assert invalid.status_code == 422
    assert stranger.status_code == 401


def client(world: World) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=world.app.http)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)


def names(content: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.namelist()


def archive_file(content: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(name)
