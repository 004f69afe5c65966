"""The scheduler as a whole on the in-memory bus: everybody else is played by the test, with the real keys."""

import asyncio
from uuid import uuid4

import sqlalchemy as sa
import yaml
from scheduler_stage import STUDY, Stage, authorise, close, make_all_ready, recruit, released, submit

from cohortium_kit.bus import Delivery
from cohortium_kit.clock import SystemClock
from cohortium_kit.migrate import check_schema
from cohortium_messages import events
from cohortium_messages.governance import (
    AuthoriseAsked,
    Authorised,
    GrantEnded,
    Permit,
    SiteRegistered,
    SiteRevoked,
)
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.runs import (
    Presence,
    RunEnded,
    RunStarted,
    SessionOpened,
    StudyOffered,
    TaskRefused,
)
from cohortium_messages.secure_sum import ModelRef, WindowClosed, WindowOpen
from cohortium_messages.topology import (
    control_queue,
    dead_letters,
    uplink_key,
)
from cohortium_protocol.keys import WindowKeys
from cohortium_protocol.signing import IdentityKey, site_key_id
from cohortium_protocol.window import make_ready, verify_window
from cohortium_scheduler import store


async def test_a_run_from_submission_to_its_end(stage: Stage) -> None:
    run_id, digest, manifest = await recruit(stage)
    started = (await stage.wait(RunStarted))[0]
    assert started.study_digest == digest
    submitted = (await stage.wait(events.StudySubmitted))[0]
    assert (submitted.run_id, submitted.study_digest, submitted.governance) == (run_id, digest, STUDY["governance"])
    first = await authorise(stage)
    verify_window(first, stage.files.trust.services.scheduler)
    assert (first.params.purpose, first.params.least_cohort, first.params.bases) == ("statistics", 3, ())
    await make_all_ready(stage, first)
    session = (await stage.wait(SessionOpened))[0]
    assert (session.roster.n, session.roster.t, session.roster.c) == (4, 3, 1)
    assert session.manifest == manifest
    await close(stage, first, model=ModelRef(version=0, model_hash=bytes(32)), parameters=3, training_rows=100)

    second = await released(stage, 2, 1)
    assert second.params.purpose == "update"
    assert second.params.vector.dimension == 3
    assert second.params.vector.weight_cap == 100
    assert second.params.bases == (ModelRef(version=0, model_hash=bytes(32)),)
    third = await released(stage, 3, 1)
    assert third.params.purpose == "evaluation"
    await released(stage, 4, 2)
    await released(stage, 5, 2)
    status = await stage.state_is(run_id, "FINISHED")
    assert [done["number"] for done in status["rounds_done"]] == [1, 2]
    assert [site["updates_used"] for site in status["sites"]] == [2, 2, 2, 2]
    assert (await stage.wait(RunEnded, 5))[0].model == ModelRef(version=2, model_hash=bytes([2]) * 32)
    assert len(await stage.wait(SessionOpened, 5)) == 5, "everything was said twice, and done once"
    states = [event.state for event in await stage.wait(events.RunStateChanged, 3)]
    assert states == ["PREPARING", "TRAINING", "FINISHED"]


async def test_a_run_starts_without_the_last_hospital_after_the_grace(stage: Stage) -> None:
    run_id, _, _ = await recruit(stage, grants=3)
    await stage.wait(RunStarted)
    assert (await stage.status(run_id))["state"] == "PREPARING"


async def test_a_hospital_that_registers_again_is_offered_again_what_is_open(stage: Stage) -> None:
    """It may have lost its spool. Another one, and a hospital that is no member, hear nothing."""
    run_id, _, manifest = await recruit(stage, grants=0)
    back = next(iter(stage.sites))
    stage.heard.clear()
    await stage.say("enrolment", SiteRegistered(site_id=back, name="s", identity_pk=stage.sites[back].public), times=1)
    stranger = SiteId(str(uuid4()))
    await stage.say(
        "enrolment", SiteRegistered(site_id=stranger, name="x", identity_pk=IdentityKey.generate().public), times=1
    )
    (offer,) = await stage.wait(StudyOffered)
    assert (offer.run_id, offer.manifest) == (run_id, manifest)
    await asyncio.sleep(0.3)
    assert [queue for queue, message in stage.heard if isinstance(message, StudyOffered)] == [control_queue(back)]
    await stage.http.post(f"/runs/{run_id}/stop")
    await stage.state_is(run_id, "STOPPED")
    stage.heard.clear()
    await stage.say("enrolment", SiteRegistered(site_id=back, name="s", identity_pk=stage.sites[back].public), times=1)
    await asyncio.sleep(0.3)
    assert not [message for _, message in stage.heard if isinstance(message, StudyOffered)]


async def test_a_run_does_not_start_with_too_few_grants(stage: Stage) -> None:
    run_id, _, _ = await recruit(stage, grants=2)
    await asyncio.sleep(0.5)
    assert (await stage.status(run_id))["state"] == "RECRUITING"


async def test_recruiting_ends_at_its_deadline_and_names_who_is_missing(stage: Stage) -> None:
    run_id, _, _ = await recruit(stage, grants=2)
    for _ in range(6000):
        if sum(site["state"] != "invited" for site in (await stage.status(run_id))["sites"]) == 2:
            break
        await asyncio.sleep(0.01)
    async with stage.db.transaction("age") as tx:
        await tx.execute(sa.text("UPDATE run SET created_at = created_at - 91 * 86400"))
    status = await stage.state_is(run_id, "FAILED")
    assert (status["reason"], status["ended_at"] is not None) == ("RECRUITING_EXPIRED", True)
    missing = set(list(stage.sites)[2:])
    assert {site["site_id"] for site in status["sites"] if site["code"] == "GRANT_NOT_FOUND"} == missing
    ended = (await stage.wait(events.RunStateChanged))[-1]
    assert (ended.state, set(ended.missing)) == ("FAILED", missing)
    assert len(await stage.wait(RunEnded, 5)) == 5, "the aggregator and each member hear of it"
    again, _ = await submit(stage)
    assert again != run_id


async def test_refusals_leave_the_others_to_go_on_and_people_see_why(stage: Stage) -> None:
    run_id, _, _ = await recruit(stage)
    window = await authorise(stage)
    sites = list(stage.sites)
    await stage.site_says(
        sites[0],
        TaskRefused(
            window_id=window.params.window_id,
            run_id=window.params.run_id,
            site_id=sites[0],
            code="COLUMN_MISSING",
            column="age",
        ),
    )
    for site in sites[1:]:
        message = make_ready(window.params, site, bytes(32), WindowKeys.generate(), stage.sites[site])
        await stage.site_says(site, message)
    session = (await stage.wait(SessionOpened))[0]
    assert sites[0] not in {entry.site_id for entry in session.roster.entries}
    shown = {site["site_id"]: site for site in (await stage.status(run_id))["sites"]}
    assert shown[sites[0]]["code"] == "COLUMN_MISSING"
    assert "column" in shown[sites[0]]["sentence"].lower()


async def test_a_withdrawn_grant_takes_the_site_out_of_the_open_window(stage: Stage) -> None:
    _, digest, _ = await recruit(stage)
    window = await authorise(stage)
    sites = list(stage.sites)
    ended = GrantEnded(study_id=StudyId("heart"), study_digest=digest, site_id=sites[0], reason="GRANT_WITHDRAWN")
    await stage.say("consent", ended)
    for site in sites[1:]:
        message = make_ready(window.params, site, bytes(32), WindowKeys.generate(), stage.sites[site])
        await stage.site_says(site, message)
    session = (await stage.wait(SessionOpened))[0]
    assert sites[0] not in {entry.site_id for entry in session.roster.entries}


async def test_a_failed_session_is_tried_again_then_the_run_fails_with_its_reason(stage: Stage) -> None:
    run_id, _, _ = await recruit(stage)
    for number in (1, 2):
        window = await authorise(stage, number=number)
        await make_all_ready(stage, window)
        await stage.wait(SessionOpened, number)
        await close(stage, window, "ABORTED", reason="NOT_ENOUGH_UPLOADS")
    status = await stage.state_is(run_id, "FAILED")
    assert status["reason"] == "NOT_ENOUGH_UPLOADS"
    assert "uploads" in status["sentence"]


async def test_too_few_permits_end_the_window_before_any_site_is_asked(stage: Stage) -> None:
    run_id, _, _ = await recruit(stage)
    for number in (1, 2):
        question = (await stage.wait(AuthoriseAsked, number))[-1]
        permits = tuple(Permit(site_id=site, permitted=False, deny_code="GRANT_EXPIRED") for site in question.sites)
        answer = Authorised(question_id=question.question_id, run_id=question.run_id, permits=permits)
        await stage.say("consent", answer)
        await stage.wait(events.WindowEnded, number)
    await stage.state_is(run_id, "FAILED")
    assert not [message for _, message in stage.heard if isinstance(message, WindowOpen)]


async def test_an_operator_stops_a_run_and_the_sites_hear_of_it(stage: Stage) -> None:
    run_id, _, _ = await recruit(stage)
    await authorise(stage)
    answer = await stage.http.post(f"/runs/{run_id}/stop")
    assert answer.json()["state"] == "STOPPED"
    await stage.wait(WindowClosed, 4, lambda closed: closed.reason == "STOPPED_BY_OPERATOR")
    await stage.wait(RunEnded, 5)


async def test_a_ready_with_a_strangers_key_is_parked_and_not_counted(stage: Stage) -> None:
    await recruit(stage)
    window = await authorise(stage)
    first, second = list(stage.sites)[:2]
    forged = make_ready(window.params, first, bytes(32), WindowKeys.generate(), stage.sites[second])
    await stage.site_says(second, forged)
    letter = await _dead_letter(stage)
    assert letter.headers["cohortium-reason"] == "wrong_sender"


async def test_a_ready_signed_wrongly_inside_is_recorded_as_a_fault(stage: Stage) -> None:
    await recruit(stage)
    window = await authorise(stage)
    first, second = list(stage.sites)[:2]
    forged = make_ready(window.params, first, bytes(32), WindowKeys.generate(), stage.sites[second])
    await stage.site_says(first, forged)
    fault = (await stage.wait(events.FaultSeen))[0]
    assert fault.key_id == site_key_id(first)


async def test_a_message_by_another_sites_routing_key_is_parked(stage: Stage) -> None:
    await recruit(stage)
    window = await authorise(stage)
    first, second = list(stage.sites)[:2]
    message = make_ready(window.params, first, bytes(32), WindowKeys.generate(), stage.sites[first])
    await stage.site_says(first, message, key=uplink_key(second, "scheduler"))
    assert (await _dead_letter(stage)).headers["cohortium-reason"] == "wrong_routing_key"


async def _dead_letter(stage: Stage) -> Delivery:
    for _ in range(6000):
        letter = await stage.bus.get(dead_letters("scheduler"))
        if letter is not None:
            return letter
        await asyncio.sleep(0.01)
    raise AssertionError("no dead letter")


async def test_presence_is_shown_and_a_silent_site_is_not_waited_for(stage: Stage) -> None:
    run_id, _, _ = await recruit(stage)
    site = next(iter(stage.sites))
    now = SystemClock().now()
    outgoing = stage.site_sender(site).outgoing(
        "uplink", f"site.{site}.presence", Presence(site_id=site, state="training", progress=0.5, sent_at=now)
    )
    await stage.bus.publish(outgoing)
    await asyncio.sleep(0.1)
    shown = {one["site_id"]: one for one in (await stage.status(run_id))["sites"]}
    assert (shown[site]["state"], shown[site]["progress"]) == ("training", 0.5)


async def test_the_same_study_twice_is_one_run(stage: Stage) -> None:
    assert await submit(stage) == await submit(stage)


async def test_a_bad_study_file_is_refused_with_line_and_field(stage: Stage) -> None:
    bad = yaml.safe_dump(STUDY | {"federation": {"rounds": 0}})
    answer = await stage.http.post("/studies", content=bad)
    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert "federation.rounds" in answer.json()["detail"]


async def test_only_the_operator_may_ask(stage: Stage) -> None:
    for method, path in (("POST", "/studies"), ("GET", "/runs"), ("GET", f"/runs/{uuid4()}")):
        answer = await stage.http.request(method, path, headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 401


async def test_an_unknown_run_is_named_in_the_answer(stage: Stage) -> None:
    run_id = str(uuid4())
    answer = await stage.http.get(f"/runs/{run_id}")
    assert answer.status_code == 404
    assert run_id in answer.json()["detail"]


async def test_migrations_make_the_tables_that_the_code_means(stage: Stage) -> None:
    assert await check_schema(stage.db, store.metadata) == []


async def test_a_revoked_sites_key_does_not_come_back_with_a_late_registration(stage: Stage) -> None:
    """A message that was parked and is sent again comes after what was said since."""
    site, key = next(iter(stage.sites.items()))
    registered = SiteRegistered(site_id=site, name="s", identity_pk=key.public)
    unknown, other = list(stage.sites.items())[1]
    await stage.say("enrolment", registered)
    for gone in (site, unknown):
        await stage.say("enrolment", SiteRevoked(site_id=gone, reason="SITE_REVOKED"))
    await stage.say("enrolment", registered.model_copy(update={"name": "again"}))
    await stage.say("enrolment", SiteRegistered(site_id=unknown, name="late", identity_pk=other.public))
    last, last_key = list(stage.sites.items())[2]
    await stage.say("enrolment", SiteRegistered(site_id=last, name="last", identity_pk=last_key.public))
    for _ in range(400):
        async with stage.db.reading("test") as tx:
            good = await store.site_keys.good(tx)
        if last in good:
            break
        await asyncio.sleep(0.01)
    assert good == {last: last_key.public}
