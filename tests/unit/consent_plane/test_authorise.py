"""The decision: one row per deny code, what it says, and that it can only become stricter."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium_messages.consent import ConsentFile, Record, Withdrawal
from cohortium_messages.duo import DUO_TERMS, DuoTerm
from cohortium_messages.problems import SENTENCES, sentence
from cohortium_protocol.consent.authorise import Denied, Dossier, Permitted, Question, authorise, told
from cohortium_protocol.consent.intake import NotAccepted, check_file
from cohortium_protocol.consent.signing import record_digest
from cohortium_protocol.documents import canonical, grant_digest
from consent_stage import DAY, NOW, SITES, Plane
from examples import examples

PLANE = Plane()
SITE = SITES[0]
CARDS = PLANE.cards()
NAMES = ("version", "agreement", "ethics", "terms", "basis")
PREFIX = {"version": "STUDY_VERSION", "basis": "APPROVAL"}


def decide(
    records: dict[str, Record],
    *,
    question: Question | None = None,
    ungoverned: bool = False,
    now: datetime = NOW,
    **grant_changes: Any,
) -> Permitted | Denied:
    question = replace(question or PLANE.question(SITE), now=now)
    basis = record_digest(records["basis"].document) if "basis" in records else b"?" * 32
    grant = PLANE.grant(SITE, None if ungoverned else basis, **grant_changes)
    file = ConsentFile(people=CARDS, records=tuple(records.values()))
    return authorise(question, grant, grant_digest(grant), Dossier.judge(file, PLANE.pin, PLANE.site_publics(), now))


def in_order(**changes: dict[str, Any]) -> dict[str, Record]:
    return PLANE.signed(SITE, PLANE.parts(SITE, **changes))


def without(name: str) -> dict[str, Record]:
    records = in_order()
    del records[name]
    return records


def with_deed(name: str, deed: Any, by: Any = None) -> dict[str, Record]:
    records = in_order()
    who = by or (PLANE.officer if name == "version" else PLANE.approvers(SITE)[0])
    act = PLANE.act(records[name].document, deed, who, NOW - DAY)
    records[name] = records[name].model_copy(update={"acts": (*records[name].acts, act)})
    return records


def half_signed(name: str) -> dict[str, Record]:
    records = in_order()
    return {**records, name: records[name].model_copy(update={"acts": records[name].acts[:2]})}


def left(kind: Any = "institution", **changes: Any) -> dict[str, Record]:
    values = {
        "type": kind,
        "site_id": SITE,
        "study_id": PLANE.study,
        "study_digest": PLANE.study_digest,
        "received_at": NOW - DAY,
        "effective_at": NOW + 9 * DAY,
        "requested_effect": "stop_future",
    }
    document = Withdrawal.model_validate({**values, **changes})
    return {**in_order(), "withdrawal": PLANE.record(document, PLANE.approvers(SITE)[1])}


def test_a_permit_names_what_it_rests_on_and_when_the_first_of_it_ends() -> None:
    records = in_order()
    said = decide(records)
    assert isinstance(said, Permitted)
    assert said.evidence.terms == record_digest(records["terms"].document)
    assert said.until == NOW + 100 * DAY  # the grant; the documents last longer
    soon = decide(in_order(ethics={"expires_on": NOW + 3 * DAY}))
    assert isinstance(soon, Permitted)
    assert soon.until == NOW + 3 * DAY


def test_documents_from_before_the_cap_keep_their_digests() -> None:
    """Signatures under them are over a JSON that has no such field."""
    for document in (PLANE.terms(SITE), PLANE.parts(SITE)["basis"]):
        assert b"privacy_cap" not in canonical(document)
    assert b'"privacy_cap":{"delta":0.00001,"epsilon":2}' in canonical(PLANE.terms(SITE, privacy_cap=CAP))


def test_permits_of_two_rounds_sites_or_documents_have_two_digests() -> None:
    digests = [
        said.digest
        for records, question in (
            (in_order(), PLANE.question(SITE, 1)),
            (in_order(), PLANE.question(SITE, 2)),
            (in_order(agreement={"number": "DPA-8"}), PLANE.question(SITE, 1)),
        )
        if isinstance(said := decide(records, question=question), Permitted)
    ]
    assert len(set(digests)) == 3


CAP = {"epsilon": 2.0, "delta": 1e-5}


def newer(name: str, **changes: Any) -> Any:
    """Another document of the same kind that says it takes the place of the usual one."""
    parts = PLANE.parts(SITE)
    found = {"supersedes": record_digest(parts[name])}
    if name == "basis":
        return PLANE.basis(SITE, parts, **found, **changes)
    make = {
        "version": PLANE.version,
        "agreement": partial(PLANE.agreement, SITE),
        "ethics": partial(PLANE.ethics, SITE),
    }
    return {**make, "terms": partial(PLANE.terms, SITE)}[name](**found, **changes)


def signers(name: str) -> list[Any]:
    bea, carl = PLANE.approvers(SITE)
    if name == "version":
        return [PLANE.lead, PLANE.officer, PLANE.second_officer]
    return [PLANE.admin(SITE), bea, PLANE.officer if name in ("agreement", "ethics") else carl]


def replaced(name: str, *, signatures: int = 3, deeds: tuple[tuple[Any, datetime], ...] = (), **changes: Any) -> Any:
    """Everything in order, and a newer document beside one of it, with so many of its signatures."""
    document = newer(name, **changes)
    record = PLANE.record(document, *signers(name)[:signatures]) if signatures else Record(document=document)
    acts = [PLANE.act(document, deed, signers(name)[1], at) for deed, at in deeds]
    return {**in_order(), "newer": record.model_copy(update={"acts": (*record.acts, *acts)})}


OTHER = {"study_id": "another-study"}
ROWS: list[tuple[str, Callable[[], Permitted | Denied]]] = [
    ("STUDY_VERSION_OF_ANOTHER", lambda: decide(in_order(version={"study_digest": b"x" * 32}))),
    (
        "STUDY_VERSION_OF_ANOTHER",
        lambda: decide(in_order(), question=PLANE.question(SITE, epsilon=8.0, knows_study=True)),
    ),
    ("AGREEMENT_OF_ANOTHER", lambda: decide(in_order(agreement={"parties": (SITES[1],)}))),
    ("ETHICS_OF_ANOTHER", lambda: decide(in_order(ethics=OTHER))),
    ("ETHICS_OF_ANOTHER", lambda: decide(in_order(ethics={"protocol_sha256": b"q" * 32}))),
    ("TERMS_OF_ANOTHER", lambda: decide(in_order(terms={"site_id": SITES[1]}))),
    ("APPROVAL_OF_ANOTHER", lambda: decide(in_order(basis=OTHER))),
    ("GRANT_UNGOVERNED", lambda: decide(in_order(), ungoverned=True)),
    ("GRANT_EXCEEDS_APPROVAL", lambda: decide(in_order(), max_rounds=501)),
    ("GRANT_EXCEEDS_APPROVAL", lambda: decide(in_order(), not_after=NOW + 260 * DAY)),
    ("GRANT_EXCEEDS_APPROVAL", lambda: decide(in_order(), not_before=NOW - 41 * DAY)),
    ("GRANT_ROUNDS_SPENT", lambda: decide(in_order(), question=PLANE.question(SITE, 501))),
    ("GRANT_ROUNDS_SPENT", lambda: decide(in_order(version={"rounds": 5}), question=PLANE.question(SITE, 6))),
    ("GRANT_WITHDRAWN", lambda: decide(left())),
    ("GRANT_WITHDRAWN", lambda: decide(left("regulator"))),
    ("MODEL_EGRESS_REFUSED", lambda: decide(in_order(terms={"model_egress": "never"}))),
    ("EPSILON_ABOVE_TERMS", lambda: decide(in_order(terms={"epsilon_max": 1.0}))),
    ("EPSILON_ABOVE_TERMS", lambda: decide(in_order(version={"epsilon": 3.0}, terms={"epsilon_max": 1.0}))),
    ("EPSILON_ABOVE_APPROVAL", lambda: decide(in_order(version={"epsilon": 3.0}, basis={"max_epsilon": 1.0}))),
    ("EPSILON_ABOVE_TERMS", lambda: decide(in_order(version={"epsilon": 3.0}, terms={"privacy_cap": CAP}))),
    ("EPSILON_ABOVE_TERMS", lambda: decide(in_order(terms={"privacy_cap": CAP}))),
    ("EPSILON_ABOVE_APPROVAL", lambda: decide(in_order(version={"epsilon": 3.0}, basis={"privacy_cap": CAP}))),
    ("DUO_MISMATCH:NMDS", lambda: decide(in_order(terms={"uses": (DuoTerm(code="POA"), DuoTerm(code="NMDS"))}))),
]
for _name in NAMES:
    _prefix = PREFIX.get(_name, _name.upper())
    ROWS.append((f"{_prefix}_NOT_FOUND", lambda name=_name: decide(without(name))))
    ROWS.append((f"{_prefix}_NOT_APPROVED", lambda name=_name: decide(half_signed(name))))
    ROWS.append((f"{_prefix}_SUSPENDED", lambda name=_name: decide(with_deed(name, "suspend"))))
    ROWS.append((f"{_prefix}_SUPERSEDED", lambda name=_name: decide(replaced(name))))
    ROWS.append((f"{_prefix}_TERMINATED", lambda name=_name: decide(with_deed(name, "terminate"))))
    _, _last = PLANE.parts(SITE)[_name].period  # type: ignore[union-attr]
    ROWS.append((f"{_prefix}_EXPIRED", lambda name=_name, at=_last: decide(in_order(), now=at)))
    ROWS.append((f"{_prefix}_NOT_YET_VALID", lambda name=_name: decide(_later(name))))


def _later(name: str) -> dict[str, Record]:
    document = PLANE.parts(SITE)[name]
    field = document.period_fields[0]  # type: ignore[union-attr]
    return in_order(**{name: {field: NOW + DAY}})


ROWS = [row for row in ROWS if row[0] != "DUO_MISMATCH:NMDS"] + [
    ("DUO_MISMATCH:POA", lambda: decide(in_order(terms={"uses": (DuoTerm(code="POA"),)}))),
    ("DUO_MISMATCH:GSO", lambda: decide(in_order(terms={"uses": (DuoTerm(code="GRU"), DuoTerm(code="GSO"))}))),
    ("DUO_MISMATCH:XYZ", lambda: decide(in_order(terms={"uses": (DuoTerm(code="GRU"), DuoTerm(code="XYZ"))}))),
]


@pytest.mark.parametrize(("code", "ask"), ROWS, ids=[f"{row[0]}-{number}" for number, row in enumerate(ROWS)])
def test_each_thing_that_is_out_of_order_denies_under_its_code(
    code: str, ask: Callable[[], Permitted | Denied]
) -> None:
    said = ask()
    assert isinstance(said, Denied)
    assert code in {reason.code for reason in said.reasons}
    assert all(reason.code.partition(":")[0] in SENTENCES for reason in said.reasons)


def test_the_rows_have_every_code_of_a_document() -> None:
    tested = {code.partition(":")[0] for code, _ in ROWS}
    mine = {
        code
        for code in SENTENCES
        if code.startswith(("STUDY_VERSION_", "AGREEMENT_", "ETHICS_", "TERMS_", "APPROVAL_"))
    }
    assert mine - tested == {"AGREEMENT_FAILED", "AGREEMENT_REFUSED"}  # strict sessions agree on models, too
    assert {"DUO_MISMATCH", "GRANT_UNGOVERNED", "GRANT_EXCEEDS_APPROVAL", "MODEL_EGRESS_REFUSED"} <= tested


BEGUN = NOW - 30 * DAY + timedelta(minutes=2)
"""When the second person approved a document of `PLANE.record`."""


def test_a_document_is_replaced_when_the_newer_one_counts_and_not_before() -> None:
    for unsigned in (replaced("terms", signatures=0), replaced("terms", signatures=2)):
        assert isinstance(decide(unsigned), Permitted)
    said = decide(replaced("terms"))
    assert isinstance(said, Denied)
    assert [(one.code, one.thing, one.moment) for one in said.reasons] == [
        ("TERMS_SUPERSEDED", "data-use terms T-1", BEGUN)
    ]


def test_a_permit_ends_where_the_newer_document_begins() -> None:
    later = replaced("ethics", approved_on=NOW + 5 * DAY)
    said = decide(later)
    assert isinstance(said, Permitted)
    assert said.until == NOW + 5 * DAY
    after = decide(later, now=NOW + 5 * DAY)
    assert isinstance(after, Denied)
    assert after.code == "ETHICS_SUPERSEDED"


@pytest.mark.parametrize("deed", ["suspend", "terminate"])
def test_what_was_replaced_does_not_come_back_when_the_newer_document_is_stopped(deed: Any) -> None:
    said = decide(replaced("terms", deeds=((deed, NOW - DAY),)))
    assert isinstance(said, Denied)
    assert said.code == "TERMS_SUPERSEDED"


def test_a_document_that_was_ended_before_it_began_took_nobody_s_place() -> None:
    early = replaced("terms", effective_from=NOW - 2 * DAY, deeds=(("terminate", NOW - 3 * DAY),))
    assert isinstance(decide(early), Permitted)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("terms", {"site_id": SITES[1]}), ("ethics", OTHER), ("agreement", {"parties": (SITES[1],)})],
)
def test_a_document_about_something_else_takes_nobody_s_place_and_is_not_taken(
    name: str, changes: dict[str, Any]
) -> None:
    records = in_order()
    document = newer(name, **changes)
    places = {"terms": SITES[1], "agreement": SITES[1]}
    site = places.get(name, SITE)
    bea, carl = PLANE.approvers(site)
    record = PLANE.record(document, PLANE.admin(site), bea, carl if name == "terms" else PLANE.officer)
    assert isinstance(decide({**records, "newer": record}), Permitted)
    known = ConsentFile(people=CARDS, records=tuple(records.values()))
    with pytest.raises(NotAccepted, match="cannot take the place of") as refused:
        check_file(known, ConsentFile(records=(record,)), PLANE.pin, PLANE.site_publics(), NOW)
    assert refused.value.code == "supersedes_another"


def test_the_hospital_goes_on_once_its_people_approve_the_study_on_the_newer_document() -> None:
    records = replaced("terms")
    parts = PLANE.parts(SITE) | {"terms": records["newer"].document}
    again = PLANE.record(PLANE.basis(SITE, parts), *signers("basis"))
    assert isinstance(decide({**records, "basis": again}), Permitted)


def test_a_reason_is_told_with_its_object_its_day_and_the_way_out() -> None:
    said = decide(in_order(ethics={"expires_on": NOW - DAY, "approved_on": NOW - 9 * DAY}))
    assert isinstance(said, Denied)
    assert [reason.code for reason in said.reasons] == ["ETHICS_EXPIRED", "DUO_MISMATCH:IRB"]
    assert told(said.reasons[0]) == (
        "The ethics approval has ended; the hospital can record the board's new decision. "
        "(ethics approval EK 12/26, 2026-05-31 12:00 UTC)"
    )
    assert "NCU: for purposes that are not commercial" in sentence("DUO_MISMATCH:NCU")


def test_patients_who_leave_do_not_end_the_hospital_s_grant() -> None:
    assert isinstance(decide(left("patient_set")), Permitted)


def test_a_hospital_comes_back_with_a_grant_that_begins_after_it_left() -> None:
    gone = left(received_at=NOW - 3 * DAY)
    assert isinstance(decide(gone), Denied)
    assert isinstance(decide(gone, not_before=NOW - 2 * DAY), Permitted)


def test_documents_of_another_hospital_do_not_help() -> None:
    other = PLANE.signed(SITES[1], PLANE.parts(SITES[1]))
    said = decide({**without("terms"), "theirs": other["terms"]})
    assert isinstance(said, Denied)
    assert said.code == "TERMS_NOT_FOUND"


def test_a_signature_of_a_person_nobody_vouches_for_is_none() -> None:
    records = in_order()
    bare = ConsentFile(people=(), records=tuple(records.values()))
    grant = PLANE.grant(SITE, record_digest(records["basis"].document))
    said = authorise(
        PLANE.question(SITE), grant, grant_digest(grant), Dossier.judge(bare, PLANE.pin, PLANE.site_publics(), NOW)
    )
    assert isinstance(said, Denied)
    # Without anybody known, nobody submitted anything.
    assert {"STUDY_VERSION_NOT_APPROVED", "APPROVAL_NOT_APPROVED"} <= {reason.code for reason in said.reasons}


LEFT = left()


@given(st.integers(-200 * 24, 500 * 24), st.integers(0, 500))
@settings(max_examples=examples(40), deadline=None)
def test_no_run_after_a_withdrawal(hours: int, round_number: int) -> None:
    """Whatever the moment and the round: a grant that begins before a withdrawal never permits again."""
    at = NOW + timedelta(hours=hours)
    question = PLANE.question(SITE, round_number)
    said = decide(LEFT, question=question, now=at)
    assert isinstance(said, Denied)
    assert at < NOW - 30 * DAY or "GRANT_WITHDRAWN" in {reason.code for reason in said.reasons}


@given(st.integers(0, 200 * 24), st.lists(st.sampled_from([*NAMES]), min_size=1, max_size=2, unique=True))
@settings(max_examples=examples(40), deadline=None)
def test_what_one_person_stopped_stays_stopped(hours: int, names: list[str]) -> None:
    records = in_order()
    for name in names:
        records[name] = with_deed(name, "terminate")[name]
    assert isinstance(decide(records, now=NOW + timedelta(hours=hours)), Denied)


@given(st.integers(-30 * 24, 400 * 24), st.integers(1, 300 * 24))
@settings(max_examples=examples(40), deadline=None)
def test_a_permit_holds_exactly_until_the_moment_it_names(hours: int, lasts: int) -> None:
    """Expiry follows from the moment: permitted before `until`, denied from then on; nothing is written in between."""
    end = NOW + timedelta(hours=lasts)
    records = in_order(ethics={"expires_on": end})
    at = NOW + timedelta(hours=hours)
    said = decide(records, now=at)
    last = min(end, NOW + 100 * DAY)
    if isinstance(said, Permitted):
        assert said.until == last
    if NOW - 20 * DAY <= at < last:
        assert isinstance(said, Permitted)
        assert isinstance(decide(records, now=last - timedelta(microseconds=1)), Permitted)
    if at >= end:
        assert isinstance(said, Denied)
        assert "ETHICS_EXPIRED" in {reason.code for reason in said.reasons}


def test_taking_any_signature_away_denies() -> None:
    records = in_order()
    for name, place in itertools.product(NAMES, range(3)):
        acts = records[name].acts
        fewer = records[name].model_copy(update={"acts": (*acts[:place], *acts[place + 1 :])})
        assert isinstance(decide({**records, name: fewer}), Denied), (name, place)


def test_the_table_of_terms_is_named_in_sentences() -> None:
    assert all(DUO_TERMS[code].meaning in sentence(f"DUO_MISMATCH:{code}") for code in DUO_TERMS)
