"""Permits are judged anew from the signed documents: every wrong one is found, whatever consent said of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

import pytest

from cohortium_messages import events as ev
from cohortium_messages.consent import Act, ConsentFile, DataUseTerms, Record
from cohortium_messages.duo import DuoTerm
from cohortium_messages.envelope import Envelope
from cohortium_messages.governance import GrantWithdrawn, Manifest, Member, Permit, SiteGrant
from cohortium_messages.ids import RunId
from cohortium_messages.papers import StudyPapers
from cohortium_protocol.consent.authorise import Dossier, Permitted, authorise
from cohortium_protocol.consent.files import of_study
from cohortium_protocol.consent.signing import act_digest, record_digest
from cohortium_protocol.documents import FIRST, UNSIGNED, grant_digest, sign_withdrawal
from cohortium_verify.consent import check_consent
from cohortium_verify.log import Entry
from cohortium_verify.report import Check
from cohortium_verify.rules import windows_of
from consent_stage import DAY, NOW, SITES, STUDY, STUDY_DIGEST, Plane

RUN = RunId("00000000-0000-4000-8000-0000000000aa")
PLANE = Plane()
MINUTE = timedelta(minutes=1)
SITE = SITES[0]
FILE = PLANE.file(*SITES)


def basis_of(file: ConsentFile, site: str = SITE) -> bytes:
    return next(
        record_digest(one.document)
        for one in file.records
        if one.document.kind == "grant_basis" and one.document.site_id == site
    )


GRANTS = tuple(PLANE.grant(site, basis_of(FILE, site)) for site in SITES)


def permit(site_grant: SiteGrant, file: ConsentFile = FILE, now: datetime = NOW) -> Permit:
    """What an honest consent answers."""
    dossier = Dossier.judge(file, PLANE.pin, PLANE.site_publics(), now)
    digest = grant_digest(site_grant)
    answer = authorise(PLANE.question(site_grant.site_id, now=now), site_grant, digest, dossier)
    assert isinstance(answer, Permitted), answer
    return Permit(
        site_id=site_grant.site_id,
        permitted=True,
        grant_digest=digest,
        permit_digest=answer.digest,
        until=answer.until,
    )


PERMITS = tuple(permit(one) for one in GRANTS)


@dataclass(frozen=True)
class Story:
    """One window, authorised at `at`, and the papers that go with the log."""

    at: datetime = NOW
    file: ConsentFile = FILE
    grants: tuple[SiteGrant, ...] = GRANTS
    permits: tuple[Permit, ...] = PERMITS
    withdrawals: tuple[GrantWithdrawn, ...] = ()
    acts: tuple[tuple[Act, datetime], ...] = ()
    round: int = 1
    papers: bool = True
    governed: frozenset[bytes] = field(default=frozenset())
    governance: Literal["required", "trial"] | None = None
    submitted: tuple[ev.StudySubmitted, ...] | None = None

    def check(self) -> Check:
        members = tuple(Member(site_id=site, name="H", identity_pk=key) for site, key in PLANE.site_publics().items())
        manifest = Manifest(
            study_id=STUDY,
            version=1,
            prev_hash=FIRST,
            study_digest=STUDY_DIGEST,
            members=members,
            collusion=1,
            k_min_floor=0,
        )
        papers = StudyPapers(study_id=STUDY, file=self.file, grants=self.grants, withdrawals=self.withdrawals)
        entries = self._entries()
        windows = windows_of(entries)
        return check_consent(
            papers if self.papers else None, PLANE.pin, (manifest,), entries, windows, governed=self.governed
        )

    def _submitted(self) -> tuple[ev.StudySubmitted, ...]:
        return (submission(self.governance),) if self.submitted is None else self.submitted

    def _entries(self) -> list[Entry]:
        authorised = ev.WindowAuthorised(
            run_id=RUN,
            window_id=b"w" * 16,
            round=self.round,
            purpose="update",
            params_hash=b"p" * 32,
            permits=self.permits,
        )
        said: list[tuple[ev.AuditEvent, datetime]] = [
            *((one, NOW - DAY) for one in self._submitted()),
            *((recorded(act), moment) for act, moment in self.acts),
            (authorised, self.at),
        ]
        return [
            Entry(index, "service:x", envelope_of(message, moment), message)
            for index, (message, moment) in enumerate(said)
        ]


def submission(governance: Literal["required", "trial"] | None) -> ev.StudySubmitted:
    return ev.StudySubmitted(study_id=STUDY, study_digest=STUDY_DIGEST, run_id=RUN, governance=governance)


def recorded(act: Act) -> ev.ConsentActRecorded:
    return ev.ConsentActRecorded(
        record=act.record,
        kind="ethics",
        act=act_digest(act),
        deed=act.deed,
        person="somebody",
        at=act.at,
        standing="suspended",
    )


def envelope_of(message: ev.AuditEvent, at: datetime) -> Envelope:
    data: dict[str, Any] = json.loads(message.model_dump_json())
    return Envelope(id=act_id(at), source="/x", type=message.type_name, time=at, data=data)


def act_id(at: datetime) -> str:
    return f"{int(at.timestamp() * 1000):032}"


def test_an_honest_verdict_follows_from_the_documents() -> None:
    check = Story().check()
    assert (check.state, check.notes) == ("passed", ()), check.failures
    assert "3 permits judged anew from 13 documents" in check.fact


def test_the_papers_of_a_study_are_all_that_its_permits_rest_on() -> None:
    other = PLANE.record(PLANE.terms(SITE, number="T-9"), PLANE.admin(SITE))
    more = FILE.model_copy(update={"records": (*FILE.records, other)})
    part = of_study(more, STUDY)
    assert set(digests(part)) == set(digests(FILE))
    assert Story(file=part).check().state == "passed"


def digests(file: ConsentFile) -> list[bytes]:
    return [record_digest(one.document) for one in file.records]


def without(kind: str) -> ConsentFile:
    return FILE.model_copy(update={"records": tuple(one for one in FILE.records if one.document.kind != kind)})


def changed(kind: str, **changes: Any) -> ConsentFile:
    """The documents of one kind say something else, under the signatures that they had."""
    records = [
        one.model_copy(update={"document": one.document.model_copy(update=changes)})
        if one.document.kind == kind
        else one
        for one in FILE.records
    ]
    return FILE.model_copy(update={"records": tuple(records)})


def mismatched() -> Story:
    """Consent let a study in that asks for a use which one hospital's terms exclude: all signed, the verdict wrong."""
    terms = {"uses": (DuoTerm(code="POA"),)}
    parts = PLANE.parts(SITE, terms=terms)
    assert isinstance(parts["terms"], DataUseTerms)
    mine = {record_digest(one.document) for one in PLANE.signed(SITE, PLANE.parts(SITE)).values()}
    others = [one for one in FILE.records if record_digest(one.document) not in mine]
    shared = [one for one in FILE.records if one.document.kind == "study_version"]
    records: dict[bytes, Record] = {
        record_digest(one.document): one for one in (*others, *shared, *PLANE.signed(SITE, parts).values())
    }
    file = ConsentFile(people=FILE.people, records=tuple(records.values()))
    grant = PLANE.grant(SITE, record_digest(parts["basis"]))
    lie = PERMITS[0].model_copy(update={"grant_digest": grant_digest(grant)})
    return Story(file=file, grants=(grant, *GRANTS[1:]), permits=(lie, *PERMITS[1:]))


def left(at: datetime) -> GrantWithdrawn:
    unsigned = GrantWithdrawn(study_id=STUDY, study_digest=STUDY_DIGEST, site_id=SITE, at=at, sig=UNSIGNED)
    return sign_withdrawal(unsigned, PLANE.site_keys[SITE])


def suspension(at: datetime) -> tuple[Act, ConsentFile]:
    """One approver of a hospital suspends its ethics approval."""
    ethics = next(one for one in FILE.records if one.document.kind == "ethics" and one.document.site_id == SITE)
    act = PLANE.act(ethics.document, "suspend", PLANE.approvers(SITE)[0], at)
    stopped = ethics.model_copy(update={"acts": (*ethics.acts, act)})
    records = tuple(stopped if one is ethics else one for one in FILE.records)
    return act, FILE.model_copy(update={"records": records})


def suspended(at: datetime, told_at: datetime) -> Story:
    act, file = suspension(at)
    return Story(file=file, acts=((act, told_at),))


def replaced(known_at: datetime) -> Story:
    """Newer data-use terms took the place of those that the grant rests on: signed long ago, on record since then."""
    terms = next(one.document for one in FILE.records if one.document.kind == "terms" and one.document.site_id == SITE)
    newer = PLANE.terms(SITE, number="T-2", supersedes=record_digest(terms))
    record = PLANE.record(newer, PLANE.admin(SITE), *PLANE.approvers(SITE))
    file = FILE.model_copy(update={"records": (*FILE.records, record)})
    return Story(file=file, acts=tuple((act, known_at) for act in record.acts))


FORGED: dict[str, tuple[Callable[[], Story], str]] = {
    "the documents are left out": (lambda: Story(papers=False), "they are not in this bundle"),
    "a document is swapped": (lambda: Story(file=changed("terms", number="T-2")), "does not hold"),
    "terms are missing": (lambda: Story(file=without("terms")), "TERMS_NOT_FOUND"),
    "ethics had expired": (lambda: Story(at=NOW + 220 * DAY), "ETHICS_EXPIRED"),
    "the agreement had ended": (lambda: Story(at=NOW + 301 * DAY), "AGREEMENT_EXPIRED"),
    "a use that the terms exclude": (mismatched, "DUO_MISMATCH"),
    "a grant that had ended": (lambda: Story(at=NOW + 101 * DAY), "outside the time of the grant"),
    "a grant that is not there": (lambda: Story(grants=GRANTS[1:]), "not in consent.json"),
    "a grant that the site did not sign": (
        lambda: Story(grants=(GRANTS[0].model_copy(update={"max_rounds": 999}), *GRANTS)),
        "the site did not sign",
    ),
    "a permit on other documents": (
        lambda: Story(permits=(PERMITS[0].model_copy(update={"permit_digest": b"x" * 32}), *PERMITS[1:])),
        "rests on other documents",
    ),
    "a permit of a governed study without documents": (
        lambda: Story(permits=(PERMITS[0].model_copy(update={"permit_digest": None}), *PERMITS[1:])),
        f"site {SITE} was permitted without any document",
    ),
    "the run was never put on record": (lambda: Story(submitted=()), "its study was never put on record"),
    "governed and a trial at once": (
        lambda: Story(submitted=(submission("required"), submission("trial"))),
        "said to be a trial",
    ),
    "a trial, of a study that asks for documents": (
        lambda: Story(governance="trial", governed=frozenset({STUDY_DIGEST})),
        "said to be a trial",
    ),
    "a replayed permit, in a later round": (lambda: Story(round=400), "was permitted in round 400, and granted 300"),
    "a run after a withdrawal": (lambda: Story(withdrawals=(left(NOW - 2 * MINUTE),)), "after it withdrew"),
    "a run after a suspension on record": (
        lambda: suspended(NOW - 3 * MINUTE, NOW - 2 * MINUTE),
        "ETHICS_SUSPENDED",
    ),
    "a run on terms that were replaced": (lambda: replaced(NOW - 2 * MINUTE), "TERMS_SUPERSEDED"),
    "an act on record is kept back": (
        lambda: replace(suspended(NOW + DAY, NOW + DAY), file=FILE),
        "is not among the documents",
    ),
    "a document of nobody's": (
        lambda: Story(file=FILE.model_copy(update={"people": ()})),
        "STUDY_VERSION_NOT_APPROVED",
    ),
    "an approval that came after the window": (
        lambda: Story(acts=tuple((act, NOW + DAY) for act in FILE.records[0].acts)),
        "NOT_APPROVED",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_wrong_verdict_is_found(name: str) -> None:
    story, text = FORGED[name]
    check = story().check()
    assert check.state == "failed"
    assert any(text in str(failure) for failure in check.failures), [str(one) for one in check.failures]


def test_what_stopped_later_is_no_fault_of_the_verdict_before() -> None:
    """Though a person may date a suspension back, and an end may come while the question is on its way."""
    assert suspended(NOW - DAY, NOW + MINUTE).check().state == "passed"
    for seconds in (-30, 30, 90):
        check = replaced(NOW + timedelta(seconds=seconds)).check()
        assert check.state == "passed", (seconds, check.failures)
    assert Story(withdrawals=(left(NOW + MINUTE),)).check().state == "passed"
    ethics = NOW + 200 * DAY
    long = tuple(PLANE.grant(site, basis_of(FILE, site), not_after=NOW + 240 * DAY) for site in SITES)
    permits = tuple(permit(one) for one in long)
    late = Story(at=ethics + timedelta(seconds=5), grants=long, permits=permits).check()
    assert (late.state, len(late.notes)) == ("passed", 3), late.failures


def without_digests(**changes: Any) -> Story:
    """A hospital is permitted on its grant alone."""
    grant = PLANE.grant(SITE, None)
    plain = Permit(site_id=SITE, permitted=True, grant_digest=grant_digest(grant))
    return Story(file=ConsentFile(), grants=(grant,), permits=(plain,), **changes)


def test_the_log_alone_says_that_a_study_asks_for_documents() -> None:
    """Without the documents, without the study file, and with permits that name no document."""
    forged = without_digests(governance="required")
    assert [str(one) for one in replace(forged, papers=False).check().failures] == [
        f"entry 0: run {RUN} is of a study that asks for signed documents, and they are not in this bundle; "
        "fetch it again with `cohortium audit export`",
        f"entry 1: site {SITE} was permitted without any document, in a study that asks for signed ones",
    ]
    nobody = replace(forged, papers=False, permits=()).check()
    assert [one.index for one in nobody.failures] == [0], "though nobody was permitted yet"
    assert "STUDY_VERSION_NOT_FOUND" in str(forged.check().failures[0])
    assert Story(governance="required").check().state == "passed"


def test_a_scheduler_does_not_leave_out_what_it_said_before() -> None:
    """Logs from before that word go on with it, and are read as far as they tell."""
    silent, trial, required = submission(None), submission("trial"), submission("required")
    for first in (trial, required):
        (failure,) = Story(submitted=(silent, first, silent)).check().failures[-1:]
        assert (failure.index, "is left out, and the log says it since entry 1" in failure.text) == (2, True)
    assert Story(submitted=(silent, silent, required)).check().state == "passed"
    told_later = without_digests(submitted=(silent, trial))
    for papers in (True, False):
        check = replace(told_later, papers=papers).check()
        assert check.state == "passed"
        assert check.notes == ("entry 0 is from before logs said whether a study asks for signed documents",)


def test_a_trial_needs_no_documents() -> None:
    trial = without_digests(governance="trial")
    assert trial.check().state == "passed"
    assert replace(trial, papers=False).check().notes == ()
    trial = without_digests()
    before = replace(trial, papers=False).check()
    assert before.notes == ("entry 0 is from before logs said whether a study asks for signed documents",)
    assert (trial.check().state, trial.check().notes) == ("passed", before.notes)
    assert replace(trial, papers=False).check().state == "passed"
    check = replace(trial, governed=frozenset({STUDY_DIGEST})).check()
    assert any("STUDY_VERSION_NOT_FOUND" in str(failure) for failure in check.failures)
