"""What ends by the calendar is in the log once, as soon as consent sees it; and decisions do not wait for that."""

from datetime import timedelta

import pytest
from test_consent_documents import federation_part, hospital_part, permit, post, share
from test_grants import give

from cohortium_consent.app import App
from cohortium_consent.expiry import TOLD_UNTIL
from cohortium_kit.marks import set_mark
from cohortium_messages.oversight import Expired
from cohortium_protocol.consent.signing import record_digest
from cohortium_protocol.documents import grant_digest
from consent_stage import DAY, Plane
from governance_stage import DIGEST, STUDY, Stage, sent_of

pytestmark = pytest.mark.usefixtures("members")


@pytest.fixture
def plane(stage: Stage) -> Plane:
    return Plane(
        now=stage.clock.now(),
        study=STUDY,
        study_digest=DIGEST,
        officers=tuple(stage.files.officers),
        site_keys={site.site_id: site.key for site in stage.hospitals},
    )


async def look(consent: App) -> int:
    return await consent.db.run("tell_expired", consent._expiries.tell)


async def told(consent: App) -> list[tuple[str, str, str]]:
    """Log, kind and record of every event."""
    return [(key.partition(".")[0], one.kind, one.record.hex()) for key, one in await sent_of(consent, Expired)]


async def test_a_grant_that_ended_is_told_once_by_the_clock_that_sees_it(stage: Stage, consent: App) -> None:
    site = stage.hospitals[0]
    grant = await give(stage, consent, site)
    assert await look(consent) == 0
    await stage.clock.advance(timedelta(days=30).total_seconds() - 1)
    assert await look(consent) == 0
    await stage.clock.advance(1)
    assert [await look(consent) for _ in range(2)] == [1, 0]
    await stage.clock.advance(timedelta(days=30).total_seconds())
    assert await look(consent) == 0, "not when the inbox has forgotten it, either"
    assert await told(consent) == [(STUDY, "grant", grant_digest(grant).hex())]
    (_, event), *_ = await sent_of(consent, Expired)
    assert (event.ended_at, event.site_id) == (grant.not_after, site.site_id)


async def test_a_clock_that_was_ahead_does_not_silence_the_calendar_when_it_is_set_right(
    stage: Stage, consent: App
) -> None:
    grant = await give(stage, consent, stage.hospitals[0])
    await look(consent)
    ahead = (stage.clock.now() + 100 * DAY).isoformat()
    await consent.db.run("ran_ahead", lambda tx: set_mark(tx, TOLD_UNTIL, ahead))
    assert await look(consent) == 0, "nothing ended: it begins again from here"
    await stage.clock.advance(timedelta(days=30).total_seconds())
    assert await look(consent) == 1
    assert await told(consent) == [(STUDY, "grant", grant_digest(grant).hex())]


async def test_a_question_that_meets_an_expired_document_tells_the_log_before_the_answer(
    stage: Stage, consent: App, plane: Plane
) -> None:
    """A document of one study is told in its log; one of no single study, there and in the platform's."""
    site = stage.hospitals[0]
    await post(stage, consent, federation_part(plane, site))
    await share(stage, consent, site, hospital_part(plane, site))
    basis = record_digest(plane.parts(site.site_id)["basis"])
    grant = stage.grant(site, basis=basis, begin=stage.clock.now() - DAY, days=240)
    await give(stage, consent, site, grant)
    assert (await permit(stage, consent, site)).permitted
    assert await told(consent) == []
    await stage.clock.advance(timedelta(days=200).total_seconds())
    assert (await permit(stage, consent, site)).deny_code == "ETHICS_EXPIRED"
    ethics = record_digest(plane.parts(site.site_id)["ethics"]).hex()
    assert await told(consent) == [(STUDY, "ethics", ethics)]
    await stage.clock.advance(timedelta(days=400).total_seconds())
    await look(consent)
    found = await told(consent)
    assert len(found) == len(set(found))
    parts = {name: record_digest(document).hex() for name, document in plane.parts(site.site_id).items()}
    assert {log for log, _, record in found if record == parts["agreement"]} == {"-", STUDY}
    assert {record for _, _, record in found} == {*parts.values(), grant_digest(grant).hex()}


async def test_what_was_stopped_before_its_end_does_not_expire(stage: Stage, consent: App) -> None:
    from cohortium_messages.governance import GrantWithdrawn
    from governance_stage import hear

    site = stage.hospitals[0]
    await give(stage, consent, site)
    left: GrantWithdrawn = stage.withdrawal(site)
    await hear(consent, "consent", stage.from_site(site, "consent", left))
    await stage.clock.advance(timedelta(days=60).total_seconds())
    assert await look(consent) == 0
