"""What hospitals said of their cohorts, against what each grant froze: a forged history fails for its reason."""

import hashlib
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from cohortium_messages import events as ev
from cohortium_messages.consent import ConsentFile
from cohortium_messages.envelope import Envelope
from cohortium_messages.governance import GrantedCohort, Permit
from cohortium_messages.ids import RunId
from cohortium_messages.papers import StudyPapers
from cohortium_protocol.documents import grant_digest
from cohortium_verify.cohorts import check_cohorts
from cohortium_verify.log import Entry
from cohortium_verify.report import Check
from cohortium_verify.rules import windows_of
from consent_stage import DAY, NOW, SITES, STUDY, Plane

PLANE = Plane()
SITE, OTHER = SITES[0], SITES[1]
RUN = RunId("00000000-0000-4000-8000-0000000000a1")
WINDOW = {"run_id": RUN, "window_id": b"w" * 16}


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


FROZEN = GrantedCohort(
    query_digest=digest("question"),
    source="fhir",
    unit="person",
    band="40-49",
    context=b"c" * 16,
    root=digest("approved"),
    as_of=NOW,
)
GRANT = PLANE.grant(SITE, None, cohort=FROZEN)
TRIAL = PLANE.grant(SITE, None)
OLDER = PLANE.grant(
    SITE, None, cohort=FROZEN.model_copy(update={"root": digest("earlier")}), not_before=GRANT.not_before - DAY
)
NEWER = PLANE.grant(
    SITE, None, cohort=FROZEN.model_copy(update={"root": digest("newer")}), not_before=GRANT.not_before + DAY
)


def snapshot(grant: Any = GRANT, **changes: Any) -> ev.ConsentSnapshot:
    values: dict[str, Any] = {
        **WINDOW,
        "site_id": SITE,
        "grant_digest": grant_digest(grant),
        "source": "fhir",
        "query_digest": FROZEN.query_digest,
        "context": b"d" * 16,
        "root": digest("used"),
        "approved_root": FROZEN.root,
    }
    return ev.ConsentSnapshot.model_validate({**values, **changes})


def window(purpose: str = "update", grant: Any = GRANT) -> list[ev.AuditEvent]:
    """A window that let the hospital in, and its upload."""
    permit = Permit(site_id=SITE, permitted=True, grant_digest=grant_digest(grant))
    params: dict[str, Any] = {"round": 1, "purpose": purpose, "params_hash": bytes(32), "permits": (permit,)}
    upload = ev.UploadSealed(**WINDOW, site_id=SITE, header_hash=bytes(32), bytes=8)
    return [ev.WindowAuthorised(**WINDOW, **params), upload]


def check(told: Sequence[ev.AuditEvent], *, grants: Sequence[Any] = (GRANT, TRIAL)) -> Check:
    papers = StudyPapers(study_id=STUDY, file=ConsentFile(), grants=tuple(grants), withdrawals=())
    entries = [Entry(place, "", _envelope(one, place), one) for place, one in enumerate(told)]
    return check_cohorts(papers, entries, windows_of(entries))


def _envelope(message: ev.AuditEvent, place: int) -> Envelope:
    data = json.loads(message.model_dump_json())
    at = NOW + timedelta(seconds=place)
    return Envelope(id=f"{place:032}", source="/x", type=message.type_name, time=at, data=data)


def test_the_approved_cohort_is_counted() -> None:
    found = check([snapshot(), *window(), snapshot()])
    assert (found.state, found.fact, found.notes) == ("passed", "2 cohorts of 1 hospitals, as they were approved", ())


def test_the_report_says_who_counts_rows_and_who_asked_nobody() -> None:
    rows = {"unit": "row", "source": "none"}
    by_rows = PLANE.grant(SITE, None, cohort=FROZEN.model_copy(update=rows))
    found = check([snapshot(by_rows, **rows), snapshot(TRIAL, site_id=OTHER, source="none")], grants=[by_rows, TRIAL])
    assert found.state == "passed"
    assert found.notes == (
        f"site {SITE} counts rows, not persons: its table does not name them",
        f"site {OTHER} has no consent source: its terms do not ask for one",
    )


@pytest.mark.parametrize(
    ("forged", "words"),
    [
        (snapshot(approved_root=digest("used")), "held its cohort against another one than its grant froze"),
        (snapshot(query_digest=digest("another")), "asked for its cohort in another way than was approved"),
        (snapshot(source="none"), "asked for its cohort in another way than was approved"),
        (snapshot(unit="row"), "asked for its cohort in another way than was approved"),
        (snapshot(site_id=OTHER), "took a cohort under another hospital's grant"),
    ],
)
def test_another_cohort_than_the_approved_one_is_refuted(forged: ev.ConsentSnapshot, words: str) -> None:
    (failure,) = check([snapshot(), forged]).failures
    assert words in failure.text
    assert failure.index == 1


def test_an_upload_of_whom_nothing_was_said_is_refuted() -> None:
    (failure,) = check(window()).failures
    assert f"site {SITE} uploaded in run {RUN} and said nothing of its cohort" in failure.text


@pytest.mark.parametrize(
    "said_instead",
    [
        snapshot(grant_digest=digest("nobody's grant")),
        snapshot(TRIAL),
        snapshot(OLDER, approved_root=digest("earlier")),
        snapshot(site_id=OTHER, grant_digest=grant_digest(TRIAL)),
    ],
    ids=["unknown grant", "grant without a cohort", "earlier approval", "another hospital"],
)
def test_a_cohort_under_another_grant_than_the_runs_counts_for_nothing(said_instead: ev.ConsentSnapshot) -> None:
    failures = check([*window(), said_instead], grants=[GRANT, TRIAL, OLDER]).failures
    assert any("said nothing of its cohort" in one.text for one in failures)
    stranger = [one.index for one in failures if "a grant that is not in consent.json" in one.text]
    assert stranger == ([2] if said_instead.grant_digest == digest("nobody's grant") else [])


def test_an_approval_anew_while_the_run_goes_on_is_in_order() -> None:
    """Before a grant froze a cohort, and from one such grant to the next."""
    after = snapshot(NEWER, approved_root=digest("newer"))
    grants = [GRANT, TRIAL, NEWER]
    assert check([snapshot(TRIAL), *window(grant=TRIAL), snapshot(), *window()], grants=grants).state == "passed"
    assert check([after, *window()], grants=grants).state == "passed"
    assert check([snapshot(), *window(grant=NEWER)], grants=grants).state == "failed"
    assert check([snapshot(grant_digest=digest("nobody's grant")), *window(grant=TRIAL)]).state == "passed"


def session(*, sums: int = 3, taken: bool = True) -> list[ev.AuditEvent]:
    """A strict session, of which its sites say no upload."""
    authorised, _ = window("training")
    task = ev.TaskTaken(**WINDOW, site_id=SITE, grant_digest=grant_digest(GRANT))
    params: dict[str, Any] = {"sites": (SITE, OTHER), "steps": sums, "sums": sums, "trees": 1, "chain": bytes(32)}
    summed = ev.StrictSessionSummed(**WINDOW, roster_hash=bytes(32), **params)
    return [authorised, *([task] if taken else []), summed]


def test_a_strict_session_of_whom_nothing_was_said_is_refuted() -> None:
    (failure,) = check(session()).failures
    assert (failure.index, f"site {SITE} was in a strict session in run {RUN}" in failure.text) == (2, True)
    assert check([snapshot(), *session()]).state == "passed"
    assert check(session(sums=0)).state == "passed", "nothing of the table left the hospital"
    assert check(session(taken=False)).state == "passed", "its events are missing, which another check notes"


def test_a_trial_and_sums_that_read_no_row_need_no_cohort() -> None:
    assert check([*window(grant=TRIAL), *window("statistics")]).state == "passed"
    assert check([]).fact == "no cohort was taken"
