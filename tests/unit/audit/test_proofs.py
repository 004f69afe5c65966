"""Who may not act before an event is in the log is told when it is, with a proof that others can check."""

import asyncio
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from cohortium_audit.app import App
from cohortium_audit.domain import LogName
from cohortium_audit.store import logs
from cohortium_audit.store.witnesses import witnesses
from cohortium_kit.bus import Ack, Dead
from cohortium_kit.tables import outbox
from cohortium_messages import events as ev
from cohortium_messages.envelope import Envelope
from cohortium_messages.governance import Permit
from cohortium_messages.ids import StudyId
from cohortium_messages.topology import inbox
from cohortium_messages.witness import CheckpointOffered, EventProven, ProofAsked
from cohortium_protocol.logproof import LogProof, authorisation_id, study_log
from cohortium_protocol.translog import verify_consistency
from governance_stage import FEDERATION, STUDY, Stage, delivery
from study_story import RUN, signed, study_lines

LOG = LogName(STUDY)


def authorised(stage: Stage, window_id: bytes) -> ev.WindowAuthorised:
    permits = tuple(Permit(site_id=site.site_id, permitted=site is not stage.hospitals[0]) for site in stage.hospitals)
    facts = {"run_id": RUN, "window_id": window_id, "round": 1, "purpose": "update"}
    return ev.WindowAuthorised.model_validate(facts | {"params_hash": bytes(32).hex(), "permits": permits})


async def record(stage: Stage, app: App, *messages: ev.WindowAuthorised, times: int = 1) -> None:
    sender = stage.sender("scheduler")
    said = [
        sender.outgoing("events", "-", one, message_id=authorisation_id(one.window_id), study=STUDY) for one in messages
    ]
    taken = await asyncio.gather(*[app.consumer.handle(delivery(one, inbox("audit"))) for one in said * times])
    assert taken == [Ack()] * len(said) * times


async def proven(app: App) -> list[tuple[str, EventProven]]:
    async with app.db.reading("outbox") as tx:
        rows = await tx.rows(outbox.select().where(outbox.c.type == EventProven.type_name).order_by(outbox.c.id))
    return [(row.routing_key, EventProven.model_validate(Envelope.model_validate_json(row.body).data)) for row in rows]


async def asked(stage: Stage, app: App, role: str, window_id: bytes, study: StudyId = STUDY) -> object:
    question = ProofAsked(study_id=study, event_id=authorisation_id(window_id))
    return await app.consumer.handle(delivery(stage.from_service(role, "audit", question), inbox("audit")))


async def test_a_windows_opener_gets_the_proof_in_the_transaction_that_records_it(stage: Stage, audit: App) -> None:
    lines = [delivery(signed(stage, line), inbox("audit")) for line in study_lines(stage)[:9]]
    assert await asyncio.gather(*[audit.consumer.handle(one) for one in lines]) == [Ack()] * 9
    earlier = {one.event_id for _, one in await proven(audit)}
    await audit.db.run("ask", audit.handlers.checkpoint_all)
    await audit.db.run("ask", audit.witnessing.ask_all)  # every hospital is asked to cosign nine entries
    first, second = uuid4().bytes, uuid4().bytes
    await record(stage, audit, authorised(stage, first), authorised(stage, second))
    found = [(role, one) for role, one in await proven(audit) if one.event_id not in earlier]
    assert [(role, UUID(one.event_id).bytes) for role, one in found] == [("scheduler", first), ("scheduler", second)]
    key = study_log(FEDERATION, STUDY, stage.service_key("audit").public)
    notes = set()
    for _, one in found:
        proof = LogProof.parse(one.logged.proof)
        checkpoint = proof.check(key)
        _, event = proof.event("service:scheduler", stage.service_key("scheduler").public)
        assert isinstance(event, ev.WindowAuthorised)
        assert authorisation_id(event.window_id) == one.event_id
        async with audit.db.reading("old") as tx:
            old = await logs.checkpoint(tx, LOG, 9)
        assert old is not None
        (way,) = [way for way in one.continues if way.from_size == 9]
        verify_consistency(9, checkpoint.size, way.hashes, old.root, checkpoint.root)
        notes.add(proof.note)
    assert len(notes) == 1, "events that come together share a checkpoint"


async def test_a_task_is_a_request_to_cosign_and_no_other_one_passes_it(stage: Stage, audit: App) -> None:
    await record(stage, audit, authorised(stage, uuid4().bytes))
    manifest = next(line for line in study_lines(stage) if isinstance(line.message, ev.ManifestRecorded))
    assert await audit.consumer.handle(delivery(signed(stage, manifest), inbox("audit"))) == Ack()
    await audit.db.run("checkpoint", audit.handlers.checkpoint_all)
    assert await audit.db.run("ask", audit.witnessing.ask_all) == 1, "the hospital that gets no task is asked as ever"
    async with audit.db.reading("witnesses") as tx:
        sizes = {site: one.asked_size for site, one in (await witnesses(tx, LOG)).items()}
        offered = await tx.scalar(
            sa.select(sa.func.count()).where(outbox.c.type == CheckpointOffered.type_name).select_from(outbox)
        )
    assert offered == 1
    assert sorted(sizes.values()) == [1, 1, 1, 2]


async def test_asked_again_it_answers_again_and_only_the_emitter(stage: Stage, audit: App) -> None:
    window_id = uuid4().bytes
    assert await asked(stage, audit, "scheduler", window_id) == Ack()
    assert await proven(audit) == []
    await record(stage, audit, authorised(stage, window_id), times=2)
    told = len(await proven(audit))
    assert await asked(stage, audit, "scheduler", window_id) == Ack()
    assert len(await proven(audit)) == told + 1
    assert await asked(stage, audit, "aggregator", window_id) == Ack()
    assert await asked(stage, audit, "scheduler", window_id, StudyId("another")) == Ack()
    assert len(await proven(audit)) == told + 1


@pytest.mark.parametrize("role", ["consent", "enrolment"])
async def test_nobody_else_may_ask(stage: Stage, audit: App, role: str) -> None:
    assert await asked(stage, audit, role, uuid4().bytes) == Dead("sender_not_allowed")
