"""The audit service asks hospitals to cosign, keeps what verifies, and shows what a quorum has seen."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from cohortium_audit.app import App
from cohortium_audit.domain import LogName
from cohortium_audit.store import logs
from cohortium_audit.witnessing import ASK_AGAIN_S
from cohortium_kit.bus import Ack, Dead
from cohortium_kit.tables import outbox
from cohortium_messages.envelope import Envelope
from cohortium_messages.governance import Manifest, ManifestPublished
from cohortium_messages.ids import SiteId
from cohortium_messages.oversight import StudyCosigned
from cohortium_messages.topology import inbox
from cohortium_messages.witness import CheckpointCosigned, CheckpointElsewhere, CheckpointOffered
from cohortium_protocol.documents import sign_manifest
from cohortium_protocol.notes import Checkpoint, VerifierKey
from cohortium_protocol.witness import (
    NOTHING,
    Continues,
    CosignerKey,
    Held,
    Request,
    cosign,
    cosignatures,
    judge,
    quorum,
    witness_name,
)
from governance_stage import FEDERATION, STUDY, Hospital, Stage, delivery, sent_of
from study_story import signed, study_lines, witness_key

LOG = LogName(STUDY)
ORIGIN = f"{FEDERATION}/audit/{STUDY}"


async def record(stage: Stage, app: App, first: int, last: int) -> None:
    part = [delivery(signed(stage, line), inbox("audit")) for line in study_lines(stage)[first:last]]
    assert await asyncio.gather(*[app.consumer.handle(one) for one in part]) == [Ack()] * len(part)
    await app.db.run("checkpoint", app.handlers.checkpoint_all)


async def asked(app: App) -> dict[SiteId, list[Request]]:
    """Every request so far, by the site that it went to."""
    found: dict[SiteId, list[Request]] = {}
    async with app.db.reading("outbox") as tx:
        for row in await tx.rows(outbox.select().order_by(outbox.c.id)):
            envelope = Envelope.model_validate_json(row.body)
            if envelope.type == CheckpointOffered.type_name:
                message = CheckpointOffered.model_validate(envelope.data)
                site = SiteId(row.routing_key.split(".")[1])
                found.setdefault(site, []).append(Request.parse(message.request))
    return found


async def ask(app: App) -> int:
    return await app.db.run("ask", app.witnessing.ask_all)


async def latest(app: App) -> logs.SignedCheckpoint:
    async with app.db.reading("latest") as tx:
        found = await logs.latest_checkpoint(tx, LOG)
    assert found is not None
    return found


def cosigned(stage: Stage, site: Hospital, checkpoint: logs.SignedCheckpoint) -> CheckpointCosigned:
    key = witness_key(site)
    line = cosign(
        Checkpoint(ORIGIN, checkpoint.size, checkpoint.root), witness_name(FEDERATION, site.site_id), key, 1_700_000_000
    )
    return CheckpointCosigned(
        study_id=STUDY,
        site_id=site.site_id,
        size=checkpoint.size,
        root=checkpoint.root,
        witness_key=key.public,
        line=line,
    )


async def tell(stage: Stage, app: App, site: Hospital, message: CheckpointCosigned | CheckpointElsewhere) -> object:
    return await app.consumer.handle(delivery(stage.from_site(site, "audit", message, study=STUDY), inbox("audit")))


async def test_each_member_is_asked_once_and_from_where_it_stands(stage: Stage, audit: App) -> None:
    key = VerifierKey(ORIGIN, stage.service_key("audit").public)
    await record(stage, audit, 0, 7)
    assert await ask(audit) == len(stage.hospitals)
    assert await ask(audit) == 0  # one request at a time
    first = await latest(audit)
    site = stage.hospitals[0]
    held: Held = NOTHING
    requests = (await asked(audit))[SiteId(site.site_id)]
    verdict = judge(requests[0], held, key)
    assert verdict == Continues(Checkpoint(ORIGIN, first.size, first.root))
    await record(stage, audit, 7, 20)
    assert await tell(stage, audit, site, cosigned(stage, site, first)) == Ack()
    requests = (await asked(audit))[SiteId(site.site_id)]
    second = await latest(audit)
    assert len(requests) == 2  # asked again at once, since the log has grown
    assert judge(requests[1], Held(first.size, first.root), key) == Continues(
        Checkpoint(ORIGIN, second.size, second.root)
    )


async def test_a_silent_site_is_asked_again(stage: Stage, audit: App) -> None:
    await record(stage, audit, 0, 7)
    assert await ask(audit) == len(stage.hospitals)
    await stage.clock.advance(ASK_AGAIN_S + 1)
    assert await ask(audit) == len(stage.hospitals)


async def test_a_site_that_stands_elsewhere_is_asked_from_there(stage: Stage, audit: App) -> None:
    await record(stage, audit, 0, 7)
    first = await latest(audit)
    await record(stage, audit, 7, 20)
    await ask(audit)
    site = stage.hospitals[1]
    elsewhere = CheckpointElsewhere(study_id=STUDY, site_id=site.site_id, size=first.size)
    assert await tell(stage, audit, site, elsewhere) == Ack()
    request = (await asked(audit))[SiteId(site.site_id)][-1]
    key = VerifierKey(ORIGIN, stage.service_key("audit").public)
    assert isinstance(judge(request, Held(first.size, first.root), key), Continues)
    ahead = CheckpointElsewhere(study_id=STUDY, site_id=site.site_id, size=1000)
    assert await tell(stage, audit, site, ahead) == Dead("checkpoint_unknown")


async def test_what_a_quorum_cosigned_is_shown_with_their_lines(stage: Stage, audit: App) -> None:
    await record(stage, audit, 0, 7)
    await ask(audit)
    first = await latest(audit)
    async with stage.client(audit) as client:
        for site in stage.hospitals[:2]:
            await tell(stage, audit, site, cosigned(stage, site, first))
        answer = await client.get(f"/logs/{STUDY}/checkpoint?witnessed=true")
        assert (answer.status_code, answer.json()["title"]) == (404, "not_witnessed")
        await tell(stage, audit, stage.hospitals[2], cosigned(stage, stage.hospitals[2], first))
        await record(stage, audit, 7, 20)
        note = (await client.get(f"/logs/{STUDY}/checkpoint?witnessed=true")).text
        seen = (await client.get(f"/logs/{STUDY}/witnesses")).json()["items"]
        page = (await client.get(f"/logs/{STUDY}/witnesses", params={"limit": 2})).json()
        rest = (await client.get(f"/logs/{STUDY}/witnesses", params={"after": page["next"]})).json()
    assert (page["items"] + rest["items"], rest["next"]) == (seen, None)
    checkpoint = Checkpoint(ORIGIN, first.size, first.root)
    keys = [CosignerKey(witness_name(FEDERATION, s.site_id), witness_key(s).public) for s in stage.hospitals]
    assert len(cosignatures(note, checkpoint, keys)) == 3
    assert {one["site_id"]: one["size"] for one in seen} == {
        site.site_id: first.size if place < 3 else 0 for place, site in enumerate(stage.hospitals)
    }


async def test_a_quorum_is_told_to_the_platforms_log_once(stage: Stage, audit: App) -> None:
    await record(stage, audit, 0, 7)
    await ask(audit)
    first = await latest(audit)
    for place, site in enumerate(stage.hospitals):
        for _ in range(2):  # what comes twice is one cosignature
            await tell(stage, audit, site, cosigned(stage, site, first))
        assert len(await sent_of(audit, StudyCosigned)) == (place >= 2), "three of four are the quorum"
    ((key, event),) = await sent_of(audit, StudyCosigned)
    assert key == f"-.{StudyCosigned.type_name}"
    assert (event.study_id, event.size, event.root) == (STUDY, first.size, first.root)
    assert set(event.sites) == {site.site_id for site in stage.hospitals[:3]}


async def admit(stage: Stage, app: App, previous: Manifest, sites: Sequence[Hospital], collusion: int = 1) -> Manifest:
    """The officers publish the next membership: these hospitals alone, of which so many may collude."""
    drawn_up = stage.manifest(sites, previous=previous)
    manifest = drawn_up.model_copy(update={"collusion": collusion, "signatures": ()})
    for officer in stage.files.officers:
        manifest = sign_manifest(manifest, officer)
    published = stage.from_service("enrolment", "audit", ManifestPublished(manifest=manifest))
    assert await app.consumer.handle(delivery(published, inbox("audit"))) == Ack()
    return manifest


async def test_a_quorum_is_told_once_though_the_membership_grows_after_it(stage: Stage, audit: App) -> None:
    await record(stage, audit, 0, 7)
    smaller = await admit(stage, audit, stage.manifest(), stage.hospitals[:3], collusion=0)
    await ask(audit)
    first = await latest(audit)
    for site in stage.hospitals[: quorum(3, smaller.collusion)]:
        await tell(stage, audit, site, cosigned(stage, site, first))
    assert len(await sent_of(audit, StudyCosigned)) == 1
    larger = await admit(stage, audit, smaller, stage.hospitals)
    assert quorum(4, larger.collusion) > quorum(3, smaller.collusion)
    await ask(audit)
    for site in stage.hospitals[quorum(3, smaller.collusion) :]:
        assert await tell(stage, audit, site, cosigned(stage, site, first)) == Ack()
    assert len(await sent_of(audit, StudyCosigned)) == 1


async def test_a_quorum_is_told_though_the_membership_shrank_before_its_last_line(stage: Stage, audit: App) -> None:
    await record(stage, audit, 0, 7)
    await ask(audit)
    first = await latest(audit)
    for site in stage.hospitals[:2]:
        await tell(stage, audit, site, cosigned(stage, site, first))
    assert await sent_of(audit, StudyCosigned) == []
    smaller = await admit(stage, audit, stage.manifest(), stage.hospitals[:3], collusion=0)
    assert quorum(3, smaller.collusion) == 2, "the lines that are there are a quorum now"
    assert await tell(stage, audit, stage.hospitals[2], cosigned(stage, stage.hospitals[2], first)) == Ack()
    ((_, event),) = await sent_of(audit, StudyCosigned)
    assert set(event.sites) == {site.site_id for site in stage.hospitals[:3]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": 6}, "checkpoint_unknown"),
        ({"root": bytes(32)}, "checkpoint_unknown"),
        ({"witness_key": bytes(32)}, "bad_cosignature"),
        ({"line": "\u2014 nobody AAAA"}, "bad_cosignature"),
        ({"study_id": "another"}, "not_asked"),
    ],
)
async def test_what_does_not_verify_is_parked(stage: Stage, audit: App, change: dict[str, object], reason: str) -> None:
    await record(stage, audit, 0, 7)
    await ask(audit)
    message = cosigned(stage, stage.hospitals[0], await latest(audit)).model_copy(update=change)
    assert await tell(stage, audit, stage.hospitals[0], message) == Dead(reason)


async def test_nobody_cosigns_for_another(stage: Stage, audit: App) -> None:
    await record(stage, audit, 0, 7)
    await ask(audit)
    message = cosigned(stage, stage.hospitals[0], await latest(audit))
    assert await tell(stage, audit, stage.hospitals[1], message) == Dead("sender_not_allowed")


async def test_a_database_that_was_put_back_is_noticed(stage: Stage, audit: App) -> None:
    """The witness holds a checkpoint that the log signed and that this database has never seen."""
    await record(stage, audit, 0, 7)
    await ask(audit)
    lost = replace(await latest(audit), size=9, root=b"\7" * 32)
    assert await tell(stage, audit, stage.hospitals[0], cosigned(stage, stage.hospitals[0], lost)) == Dead(
        "checkpoint_unknown"
    )


async def test_a_line_that_was_lost_on_the_way_is_asked_for_again(stage: Stage, audit: App) -> None:
    """A connector that stopped between its file and its answer holds the checkpoint; the log may never grow again."""
    await record(stage, audit, 0, 7)
    await ask(audit)
    first, site = await latest(audit), stage.hospitals[0]
    elsewhere = CheckpointElsewhere(study_id=STUDY, site_id=site.site_id, size=first.size)
    assert await tell(stage, audit, site, elsewhere) == Ack()
    request = (await asked(audit))[SiteId(site.site_id)][-1]
    held = Held(first.size, first.root)
    assert judge(request, held, VerifierKey(ORIGIN, stage.service_key("audit").public)) == Continues(
        Checkpoint(ORIGIN, first.size, first.root)
    )
    assert await ask(audit) == 0  # it is under way
    assert await tell(stage, audit, site, cosigned(stage, site, first)) == Ack()
    await stage.clock.advance(ASK_AGAIN_S + 1)
    assert await ask(audit) == len(stage.hospitals) - 1  # the others were silent


async def test_a_line_without_an_end_does_not_run_into_the_next_hospitals(stage: Stage, audit: App) -> None:
    await record(stage, audit, 0, 7)
    await ask(audit)
    first = await latest(audit)
    for site in stage.hospitals[:3]:
        message = cosigned(stage, site, first)
        unended = message.model_copy(update={"line": message.line.removesuffix("\n")})
        assert await tell(stage, audit, site, unended) == Ack()
    async with stage.client(audit) as client:
        note = (await client.get(f"/logs/{STUDY}/checkpoint?witnessed=true")).text
    checkpoint = Checkpoint(ORIGIN, first.size, first.root)
    keys = [CosignerKey(witness_name(FEDERATION, s.site_id), witness_key(s).public) for s in stage.hospitals]
    assert len(cosignatures(note, checkpoint, keys)) == 3


async def test_a_site_that_went_back_is_asked_from_there_after_a_while(stage: Stage, audit: App) -> None:
    """Two connectors with two spools would else be asked in turn, without end."""
    await record(stage, audit, 0, 7)
    await ask(audit)
    first, site = await latest(audit), stage.hospitals[0]
    await tell(stage, audit, site, cosigned(stage, site, first))
    await record(stage, audit, 7, 20)
    await ask(audit)
    before = len((await asked(audit))[SiteId(site.site_id)])
    nothing = CheckpointElsewhere(study_id=STUDY, site_id=site.site_id, size=0)
    assert await tell(stage, audit, site, nothing) == Ack()
    assert await ask(audit) == 0
    assert len((await asked(audit))[SiteId(site.site_id)]) == before
    await stage.clock.advance(ASK_AGAIN_S + 1)
    await ask(audit)
    request = (await asked(audit))[SiteId(site.site_id)][before]
    assert isinstance(judge(request, NOTHING, VerifierKey(ORIGIN, stage.service_key("audit").public)), Continues)
