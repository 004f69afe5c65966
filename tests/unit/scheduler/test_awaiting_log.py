"""No site is asked before the audit log has the window's authorisation; the round waits for it, and says so."""

import asyncio
import re

import pytest
from scheduler_stage import Stage, prove, recruit

from cohortium_kit import sampling
from cohortium_kit.tables import outbox
from cohortium_messages import events
from cohortium_messages.governance import AuthoriseAsked, Authorised, GrantEnded, Permit
from cohortium_messages.ids import StudyId
from cohortium_messages.secure_sum import WindowOpen
from cohortium_messages.witness import EventProven, Logged, ProofAsked
from cohortium_platform import log_wait
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
    for _ in range(6000):
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


async def test_readiness_says_for_how_long_the_log_has_not_answered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler serves while audit is away; it only does not pretend that rounds go on."""
    monkeypatch.setattr(windows, "ASK_AGAIN_S", 0.1)
    monkeypatch.setattr(log_wait, "LIMIT_S", 0.4)

    async def told() -> dict[str, str]:
        answer = await stage.http.get("/readyz")
        assert answer.status_code == 200, answer.text
        found: dict[str, str] = answer.json().get("degraded", {})
        assert answer.json()["status"] == ("degraded" if found else "ready")
        return found

    async def waited_s() -> float:
        text = (await stage.http.get("/metrics")).text
        (line,) = re.findall(r"^cohortium_log_wait_seconds (\S+)$", text, re.MULTILINE)
        return float(line)

    for _ in range(3000):  # the stage does not wait until the service has all of its measures
        if "cohortium_log_wait_seconds" in (await stage.http.get("/metrics")).text:
            break
        await asyncio.sleep(0.01)
    assert await told() == {}
    assert await waited_s() == 0
    await recruit(stage)
    question = (await stage.wait(AuthoriseAsked))[-1]
    permits = tuple(Permit(site_id=site, permitted=True) for site in question.sites)
    await stage.say("consent", Authorised(question_id=question.question_id, run_id=question.run_id, permits=permits))
    authorised = (await stage.wait(events.WindowAuthorised))[-1]
    for _ in range(6000):
        if found := await told():
            break
        await asyncio.sleep(0.01)
    assert re.fullmatch(r"audit has not answered for \d+ s; 1 windows wait for the log's proof", found["log"])
    for _ in range(400):
        if await asked_log(stage) > 1:
            break
        await asyncio.sleep(0.01)
    assert await asked_log(stage) > 1
    assert "log" in await told(), "it has asked again since, and counts from the beginning all the same"
    monkeypatch.setattr(sampling, "FRESH_S", 0.0)
    assert await waited_s() > 0.4
    await prove(stage, authorised.window_id)
    await stage.wait(WindowOpen)
    assert await told() == {}
    assert await waited_s() == 0
