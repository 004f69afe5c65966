"""No site is asked before the audit log has the window's authorisation; the round waits for it, and says so."""

import asyncio

import pytest
from scheduler_stage import Stage, prove, recruit

from cohortium_kit.tables import outbox
from cohortium_messages import events
from cohortium_messages.governance import AuthoriseAsked, Authorised, GrantEnded, Permit
from cohortium_messages.ids import StudyId
from cohortium_messages.secure_sum import WindowOpen
from cohortium_messages.witness import EventProven, Logged, ProofAsked
from cohortium_protocol.logproof import authorisation_id
from cohortium_scheduler.handlers import windows


async def asked_log(stage: Stage) -> int:
    async with stage.db.reading("outbox") as tx:
        return len(await tx.rows(outbox.select().where(outbox.c.type == ProofAsked.type_name)))


async def test_a_window_opens_when_the_log_has_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "ASK_AGAIN_S", 0.1)
    run_id, digest, _ = await recruit(stage)
    question = (await stage.wait(AuthoriseAsked))[-1]
    permits = tuple(Permit(site_id=site, permitted=True) for site in question.sites)
    await stage.say("consent", Authorised(question_id=question.question_id, run_id=question.run_id, permits=permits))
    authorised = (await stage.wait(events.WindowAuthorised))[-1]
    for _ in range(400):
        if await asked_log(stage) > 1:
            break
        await asyncio.sleep(0.01)
    assert await asked_log(stage) > 1, "it asks again, and goes on waiting"
    logged = Logged(proof="a proof that only sites read, long enough")
    proven = EventProven(study_id=StudyId("heart"), event_id=authorisation_id(authorised.window_id), logged=logged)
    await stage.say("consent", proven)
    await stage.say("audit", proven.model_copy(update={"event_id": authorisation_id(bytes(16))}))
    await stage.say("audit", proven.model_copy(update={"event_id": "no-window-at-all"}))
    left = question.sites[0]
    ended = GrantEnded(study_id=StudyId("heart"), study_digest=digest, site_id=left, reason="GRANT_WITHDRAWN")
    await stage.say("consent", ended)
    assert (await stage.status(run_id))["window"]["phase"] == "AUTHORISED"
    assert not [message for _, message in stage.heard if isinstance(message, WindowOpen)]
    await prove(stage, authorised.window_id)
    opened = await stage.wait(WindowOpen, len(question.sites) - 1)
    assert len(opened) == len(question.sites) - 1, "who left in the meantime is not asked"
    assert {one.logged for one in opened} == {logged}
