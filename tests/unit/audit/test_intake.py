"""From the bus into the logs: order, repetition, refusals, and a database that is away."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from cohortium_audit.app import App
from cohortium_audit.domain import PLATFORM, LogName
from cohortium_audit.intake import MOST_POSTPONED
from cohortium_audit.store import logs
from cohortium_kit.bus import Ack, Dead, Disposition, Outgoing, Requeue
from cohortium_kit.errors import DatabaseUnavailable
from cohortium_kit.penalties import MOST_REFUSED
from cohortium_kit.testing.clock import ManualClock
from cohortium_messages import events as ev
from cohortium_messages.envelope import SIGNATURE_HEADER
from cohortium_messages.governance import Manifest, ManifestPublished, SiteRegistered, SiteRevoked
from cohortium_messages.ids import StudyId
from cohortium_messages.topology import UPLINK, inbox, uplink_key
from cohortium_protocol.documents import sign_manifest
from cohortium_protocol.signing import IdentityKey
from governance_stage import DIGEST, STUDY, Hospital, Stage, delivery, hear, hospital, sent_of
from study_story import RUN, Line, signed, study_lines, window

LOG = LogName(STUDY)


async def tell(audit: App, *messages: Outgoing) -> list[Disposition]:
    """All at once, in this order, as the broker hands them over."""
    return await asyncio.gather(*[audit.consumer.handle(delivery(one, inbox("audit"))) for one in messages])


async def recorded(audit: App, log: LogName = LOG) -> list[str]:
    """The ids of the events in a log."""
    async with audit.db.reading("test") as tx:
        entries = await logs.entries(tx, log, 0, 10_000)
    return [json.loads(entry)["event"]["id"] for entry in entries]


def shares(stage: Stage, site: Hospital, number: int = 1, **how: Any) -> Outgoing:
    message = ev.SharesGiven(run_id=RUN, window_id=window(number), site_id=site.site_id, survivors_hash=DIGEST)
    return stage.from_site(site, "audit", message, **{"study": STUDY, **how})


async def test_events_are_recorded_in_the_order_of_their_delivery(stage: Stage, audit: App) -> None:
    messages = [signed(stage, line) for line in study_lines(stage)]
    assert await tell(audit, *messages) == [Ack()] * len(messages)
    assert await recorded(audit) == [one.message_id for one in messages]


async def test_an_event_delivered_again_keeps_its_place_and_is_recorded_once(stage: Stage, audit: App) -> None:
    messages = [signed(stage, line) for line in study_lines(stage)[:5]]
    for one in messages:
        assert await hear(audit, "audit", one) == Ack()
    twins = [*messages, *messages]
    assert await tell(audit, *twins) == [Ack()] * 10
    assert await recorded(audit) == [one.message_id for one in messages]


async def test_twins_in_one_batch_are_one(stage: Stage, audit: App) -> None:
    one = signed(stage, study_lines(stage)[0])
    assert await tell(audit, one, one, one) == [Ack()] * 3
    assert await recorded(audit) == [one.message_id]


async def test_each_study_has_its_own_log_and_the_platform_has_one(stage: Stage, audit: App) -> None:
    site = stage.hospitals[0]
    enrolled = ev.SiteEnrolled(site_id=site.site_id, identity_pk=site.key.public)
    submitted = ev.StudySubmitted(study_id=StudyId("other"), study_digest=DIGEST, run_id=RUN)
    mine = signed(stage, study_lines(stage)[0])
    platform = stage.event("enrolment", enrolled, study=None)
    other = stage.event("scheduler", submitted, study=StudyId("other"))
    await tell(audit, mine, platform, other)
    assert await recorded(audit) == [mine.message_id]
    assert await recorded(audit, PLATFORM) == [platform.message_id]
    assert await recorded(audit, LogName("other")) == [other.message_id]


async def test_two_emitters_may_use_one_event_id_and_one_emitter_may_not_use_it_for_two_events(
    stage: Stage, audit: App
) -> None:
    line = study_lines(stage)[1]
    twin = Line("aggregator", ev.WindowEnded(run_id=RUN, window_id=window(1), purpose="update", state="CANCELLED"))
    first = stage.sender("scheduler").outgoing("events", "x", line.message, message_id="event-0001", study=STUDY)
    other = stage.sender("aggregator").outgoing("events", "x", twin.message, message_id="event-0001", study=STUDY)
    changed = stage.sender("scheduler").outgoing(
        "events", "x", ev.RunStateChanged(run_id=RUN, state="FAILED"), message_id="event-0001", study=STUDY
    )
    assert await tell(audit, first, other, changed) == [Ack(), Ack(), Dead("event_id_reused")]
    assert await recorded(audit) == ["event-0001", "event-0001"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("other_site", "site_id_mismatch"),
        ("other_key", "site_mismatch"),
        ("other_role", "event_not_allowed"),
        ("no_study", "study_missing"),
        ("no_member", "not_a_member"),
        ("no_event", "unhandled_type"),
    ],
)
async def test_a_breach_is_parked_and_its_sender_named_once(stage: Stage, audit: App, fault: str, reason: str) -> None:
    site, other = stage.hospitals[:2]
    key_id = f"site:{site.site_id}"
    match fault:
        case "other_site":
            message = ev.SharesGiven(run_id=RUN, window_id=window(1), site_id=other.site_id, survivors_hash=DIGEST)
            outgoing = stage.from_site(site, "audit", message, study=STUDY)
        case "other_key":
            outgoing = shares(stage, site, key=uplink_key(other.site_id, "audit"))
        case "other_role":
            outgoing, key_id = stage.event("consent", study_lines(stage)[1].message), "service:consent"
        case "no_study":
            outgoing = shares(stage, site, study=None)
        case "no_member":
            smaller = stage.manifest(stage.hospitals[1:], digest=b"\5" * 32)
            study = StudyId("smaller")
            smaller = stage_signed(stage, smaller.model_copy(update={"study_id": study, "signatures": ()}))
            published = stage.from_service("enrolment", "audit", ManifestPublished(manifest=smaller))
            assert await hear(audit, "audit", published) == Ack()
            outgoing = shares(stage, site, study=study)
        case _:
            outgoing = stage.from_service("enrolment", "audit", stage.withdrawal(site))
            key_id = "service:enrolment"
    assert await hear(audit, "audit", outgoing) == Dead(reason)
    assert [message for _, message in await sent_of(audit, ev.FaultSeen)] == [
        ev.FaultSeen(key_id=key_id, code=reason.upper())
    ]
    assert await recorded(audit) == []


def stage_signed(stage: Stage, manifest: Manifest) -> Manifest:
    for officer in stage.files.officers:
        manifest = sign_manifest(manifest, officer)
    return manifest


@pytest.mark.parametrize(("seconds", "early"), [(299, False), (301, True), (-299, False), (-86400, False)])
async def test_a_clock_that_is_off_costs_no_evidence_and_one_too_far_ahead_is_named(
    stage: Stage, audit: App, seconds: int, *, early: bool
) -> None:
    site = stage.hospitals[0]
    wrong = ManualClock(stage.clock.now() + timedelta(seconds=seconds))
    message = ev.SharesGiven(run_id=RUN, window_id=window(1), site_id=site.site_id, survivors_hash=DIGEST)
    outgoing = site.sender(wrong).outgoing(UPLINK.name, uplink_key(site.site_id, "audit"), message, study=STUDY)
    assert await hear(audit, "audit", outgoing) == Ack()
    assert await recorded(audit) == [outgoing.message_id]
    named = [message for _, message in await sent_of(audit, ev.FaultSeen)]
    assert named == ([ev.FaultSeen(key_id=f"site:{site.site_id}", code="CLOCK_AHEAD")] if early else [])


async def test_what_nobody_known_signed_names_nobody(stage: Stage, audit: App) -> None:
    site = stage.hospitals[0]
    forged = shares(stage, replace(site, key=IdentityKey.generate()))
    stripped = replace(shares(stage, site), headers={})
    cut = replace(shares(stage, site), headers={**shares(stage, site).headers, SIGNATURE_HEADER: "zz"})
    assert await tell(audit, forged, stripped, cut) == [Dead("bad_signature"), Dead("unsigned"), Dead("bad_signature")]
    assert await sent_of(audit, ev.FaultSeen) == []
    assert await recorded(audit) == []


async def test_a_bad_event_does_not_stop_the_good_ones_around_it(stage: Stage, audit: App) -> None:
    good = [shares(stage, site) for site in stage.hospitals]
    bad = shares(stage, stage.hospitals[0], 2, key=uplink_key(stage.hospitals[1].site_id, "audit"))
    answers = await tell(audit, good[0], bad, *good[1:])
    assert answers == [Ack(), Dead("site_mismatch"), Ack(), Ack(), Ack()]
    assert await recorded(audit) == [one.message_id for one in good]


async def test_a_revoked_site_is_heard_no_more_and_what_it_said_stays(stage: Stage, audit: App) -> None:
    site = stage.hospitals[0]
    before, after = shares(stage, site, 1), shares(stage, site, 2)
    await tell(audit, before)
    revoked = SiteRevoked(site_id=site.site_id, reason="SITE_REVOKED")
    assert await hear(audit, "audit", stage.from_service("enrolment", "audit", revoked)) == Ack()
    assert await tell(audit, after) == [Dead("bad_signature")]
    assert await recorded(audit) == [before.message_id]


async def test_a_revocation_that_overtakes_its_registration_still_counts(stage: Stage, audit: App) -> None:
    site = hospital(8)
    revoked = SiteRevoked(site_id=site.site_id, reason="SITE_REVOKED")
    registered = SiteRegistered(site_id=site.site_id, name=site.name, identity_pk=site.key.public)
    for message in (revoked, registered):
        assert await hear(audit, "audit", stage.from_service("enrolment", "audit", message)) == Ack()
    assert f"site:{site.site_id}" not in audit.directory.keyring.keys
    assert await tell(audit, shares(stage, site)) == [Dead("bad_signature")]


async def test_an_instance_that_has_not_heard_of_the_revocation_refuses_too(stage: Stage, audit: App) -> None:
    """Two instances share the tables; the one that did not get enrolment's word still knows the key."""
    site = stage.hospitals[0]
    revoked = SiteRevoked(site_id=site.site_id, reason="SITE_REVOKED")
    await hear(audit, "audit", stage.from_service("enrolment", "audit", revoked))
    audit.directory.keyring.add(f"site:{site.site_id}", site.key.public)
    assert await tell(audit, shares(stage, site)) == [Dead("site_revoked")]
    assert await recorded(audit) == []


async def test_a_site_or_study_not_heard_of_yet_is_asked_to_wait(stage: Stage, audit: App) -> None:
    for outgoing in (shares(stage, hospital(9)), shares(stage, stage.hospitals[0], study=StudyId("unheard"))):
        task = asyncio.ensure_future(audit.consumer.handle(delivery(outgoing, inbox("audit"))))
        while not task.done():
            await stage.clock.advance(1)
            await asyncio.sleep(0.01)
        assert task.result() == Requeue()
    assert await recorded(audit) == []


async def test_a_site_s_events_of_studies_that_nobody_knows_hold_up_no_other_site(stage: Stage, audit: App) -> None:
    """Each one that waits takes a place from all others, so a few may wait; the rest is parked at once, and forgotten
    where it is too much."""
    noisy, calm = stage.hospitals[:2]
    many = MOST_POSTPONED + 26
    unknown = [shares(stage, noisy, number, study=StudyId(f"unheard-{number}")) for number in range(many)]
    tasks = [asyncio.ensure_future(audit.consumer.handle(delivery(one, inbox("audit")))) for one in unknown]
    for _ in range(6000):
        if sum(task.done() for task in tasks) == many - MOST_POSTPONED:
            break
        await asyncio.sleep(0.01)
    answers = [task.result() for task in tasks if task.done()]
    assert Counter(answers) == {Dead("manifest_unknown"): MOST_REFUSED + 1, Ack(): 25 - MOST_REFUSED}
    good = shares(stage, calm)
    assert await tell(audit, good) == [Ack()]
    assert await recorded(audit) == [good.message_id]
    while not all(task.done() for task in tasks):
        await stage.clock.advance(1)
        await asyncio.sleep(0.01)
    assert sum(task.result() == Requeue() for task in tasks) == MOST_POSTPONED


async def test_a_site_that_goes_on_sending_what_is_refused_fills_no_disk_and_loses_nothing_good(
    stage: Stage, audit: App
) -> None:
    site = stage.hospitals[0]
    bad = [shares(stage, site, number, study=None) for number in range(3 * MOST_REFUSED)]
    answers = [answer for one in bad for answer in await tell(audit, one)]
    assert answers == [Dead("study_missing")] * (MOST_REFUSED + 1) + [Ack()] * (2 * MOST_REFUSED - 1)
    told = await sent_of(audit, ev.FaultSeen)
    assert len(told) == MOST_REFUSED + 1
    assert told[-1][1].code == "TOO_MANY_REFUSED"
    good = shares(stage, site)
    assert await tell(audit, good) == [Ack()]
    assert await recorded(audit) == [good.message_id]


async def test_nobody_waits_for_the_key_of_a_site_in_whose_name_another_one_speaks(stage: Stage, audit: App) -> None:
    forged = shares(stage, hospital(9), key=uplink_key(stage.hospitals[0].site_id, "audit"))
    assert await hear(audit, "audit", forged) == Dead("bad_signature")
    assert await sent_of(audit, ev.FaultSeen) == []


async def test_while_the_database_is_away_events_are_held_and_then_recorded(
    stage: Stage, audit: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, failures = audit.db.run, iter([DatabaseUnavailable("away"), DatabaseUnavailable("away")])

    async def sometimes(name: str, work: Any) -> Any:
        failure = next(failures, None) if name == "append_events" else None
        if failure is not None:
            raise failure
        return await run(name, work)

    monkeypatch.setattr(audit.db, "run", sometimes)
    messages = [signed(stage, line) for line in study_lines(stage)[:8]]
    telling = asyncio.ensure_future(tell(audit, *messages))
    while not telling.done():
        await stage.clock.advance(1)
        await asyncio.sleep(0.01)
    assert telling.result() == [Ack()] * 8
    assert await recorded(audit) == [one.message_id for one in messages]


async def test_one_entry_that_cannot_be_written_takes_no_other_with_it(
    stage: Stage, audit: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [shares(stage, site) for site in stage.hospitals]
    append = audit.handlers.append

    async def fails_for_one(tx: Any, batch: Any) -> Any:
        if any(entry.event_id == messages[1].message_id for entry in batch):
            raise RuntimeError("a bug of ours")
        return await append(tx, batch)

    monkeypatch.setattr(audit.handlers, "append", fails_for_one)
    answers = await asyncio.gather(
        *[audit.consumer.handle(delivery(one, inbox("audit"))) for one in messages], return_exceptions=True
    )
    assert [answers[0], *answers[2:]] == [Ack()] * 3
    assert isinstance(answers[1], RuntimeError)  # the bus makes a dead letter of it
    assert len(await recorded(audit)) == 3
