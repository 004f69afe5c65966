"""Hospitals are shown, by proof, which of their events the log holds, in checkpoints that they cosigned."""

import json

from test_witnessing import admit, ask, asked, cosigned, latest, record, tell

from cohortium_audit.app import App
from cohortium_kit.bus import Ack, Dead, Disposition
from cohortium_kit.tables import outbox
from cohortium_messages.envelope import SIGNATURE_HEADER, Envelope
from cohortium_messages.events import UploadSealed
from cohortium_messages.ids import SiteId
from cohortium_messages.topology import control_queue, inbox
from cohortium_messages.witness import CheckpointElsewhere, EventsIncluded, InclusionAsked
from cohortium_protocol.logproof import entry_bytes
from cohortium_protocol.signing import site_key_id
from cohortium_protocol.translog import leaf_hash, verify_inclusion
from governance_stage import DIGEST, STUDY, Hospital, Stage, delivery
from study_story import RUN

Event = tuple[str, bytes]
"""An event's id, and the leaf that its hospital makes of it."""


async def report(stage: Stage, app: App, site: Hospital, number: int) -> Event:
    """One event of a hospital, recorded."""
    event = UploadSealed(
        run_id=RUN, window_id=number.to_bytes(16, "big"), site_id=site.site_id, header_hash=DIGEST, bytes=number
    )
    out = stage.from_site(site, "audit", event, study=STUDY)
    assert await app.consumer.handle(delivery(out, inbox("audit"))) == Ack()
    signature = bytes.fromhex(out.headers[SIGNATURE_HEADER])
    return out.message_id, leaf_hash(entry_bytes(json.loads(out.body), site_key_id(site.site_id), signature))


async def asks(stage: Stage, app: App, site: Hospital, *event_ids: str, of: Hospital | None = None) -> Disposition:
    asked = InclusionAsked(study_id=STUDY, site_id=(of or site).site_id, event_ids=event_ids)
    return await app.consumer.handle(delivery(stage.from_site(site, "audit", asked, study=STUDY), inbox("audit")))


async def answers(app: App, site: Hospital) -> list[EventsIncluded]:
    async with app.db.reading("outbox") as tx:
        rows = await tx.rows(outbox.select().where(outbox.c.routing_key == control_queue(site.site_id)))
    envelopes = [Envelope.model_validate_json(row.body) for row in rows]
    return [EventsIncluded.model_validate(one.data) for one in envelopes if one.type == EventsIncluded.type_name]


async def cosign(stage: Stage, app: App, site: Hospital) -> tuple[int, bytes]:
    """The hospital cosigns the newest checkpoint: its size and root."""
    await app.db.run("checkpoint", app.handlers.checkpoint_all)
    await ask(app)
    newest = await latest(app)
    assert await tell(stage, app, site, cosigned(stage, site, newest)) == Ack()
    return newest.size, newest.root


async def test_events_are_proven_in_the_checkpoint_that_the_hospital_cosigned(stage: Stage, audit: App) -> None:
    site = stage.hospitals[0]
    await record(stage, audit, 0, 7)
    first, second = await report(stage, audit, site, 1), await report(stage, audit, site, 2)
    size, root = await cosign(stage, audit, site)
    later = await report(stage, audit, site, 3)
    await audit.db.run("checkpoint", audit.handlers.checkpoint_all)  # signed, and not cosigned
    assert await asks(stage, audit, site, first[0], later[0], second[0], "00000000-never-said") == Ack()
    (answer,) = await answers(audit, site)
    assert answer.size == size
    proven = {one.event_id: one for one in answer.events}
    assert proven.keys() == {first[0], second[0]}
    for event_id, leaf in (first, second):
        verify_inclusion(leaf, proven[event_id].index, size, proven[event_id].hashes, root)
    await cosign(stage, audit, site)
    assert await asks(stage, audit, site, later[0]) == Ack()
    assert [one.event_id for one in (await answers(audit, site))[-1].events] == [later[0]]


async def test_what_cannot_be_proven_is_not_answered(stage: Stage, audit: App) -> None:
    site, other = stage.hospitals[0], stage.hospitals[1]
    event_id, _ = await report(stage, audit, site, 1)
    assert await asks(stage, audit, site, event_id) == Ack()  # it cosigned nothing yet
    await cosign(stage, audit, site)
    await cosign(stage, audit, other)
    assert await asks(stage, audit, other, event_id) == Ack()  # another hospital's event
    assert await answers(audit, site) == await answers(audit, other) == []


async def test_who_was_taken_out_of_the_study_cosigns_once_more_and_has_its_last_words_proven(
    stage: Stage, audit: App
) -> None:
    site, others = stage.hospitals[3], stage.hospitals[:3]
    await report(stage, audit, site, 1)
    size, _ = await cosign(stage, audit, site)
    await admit(stage, audit, stage.manifest(), others)
    last, leaf = await report(stage, audit, site, 2)
    assert await asks(stage, audit, site, last) == Ack()  # no checkpoint holds it yet
    await audit.db.run("checkpoint", audit.handlers.checkpoint_all)
    await ask(audit)
    offered = (await asked(audit))[SiteId(site.site_id)]
    assert len(offered) == 1, "no member is asked for every checkpoint any more"
    assert await asks(stage, audit, site, last) == await asks(stage, audit, site, last) == Ack()
    offered = (await asked(audit))[SiteId(site.site_id)]
    assert [one.old for one in offered] == [0, size], "once, while it is under way"
    newest = await latest(audit)
    assert await tell(stage, audit, site, cosigned(stage, site, newest)) == Ack()
    assert await asks(stage, audit, site, last) == Ack()
    (answer,) = await answers(audit, site)
    (proven,) = answer.events
    assert (proven.event_id, answer.size) == (last, newest.size)
    verify_inclusion(leaf, proven.index, answer.size, proven.hashes, newest.root)
    await record(stage, audit, 0, 7)
    assert await asks(stage, audit, site, last) == Ack()
    assert len((await asked(audit))[SiteId(site.site_id)]) == 2, "what is proven asks for nothing more"


async def test_nobody_asks_for_another(stage: Stage, audit: App) -> None:
    site, other = stage.hospitals[0], stage.hospitals[1]
    event_id, _ = await report(stage, audit, site, 1)
    await cosign(stage, audit, site)
    assert await asks(stage, audit, other, event_id, of=site) == Dead("sender_not_allowed")
    assert await answers(audit, other) == []


async def test_a_hospital_that_lost_its_files_is_answered_from_where_it_stands(stage: Stage, audit: App) -> None:
    site = stage.hospitals[0]
    event_id, _ = await report(stage, audit, site, 1)
    await cosign(stage, audit, site)
    elsewhere = CheckpointElsewhere(study_id=STUDY, site_id=site.site_id, size=0)
    assert await tell(stage, audit, site, elsewhere) == Ack()
    assert await asks(stage, audit, site, event_id) == Ack()
    assert await answers(audit, site) == []
