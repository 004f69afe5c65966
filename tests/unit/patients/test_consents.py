"""What patients decided, and what follows: the rules of 1.5 of the governance design, one table a source."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fhir.resources import consent as fhir_r5
from fhir.resources.R4B import consent as fhir_r4
from hypothesis import given
from hypothesis import strategies as st

from cohortium_connector.training.consents import (
    Decision,
    Excluded,
    SourceUnreadable,
    Word,
    decide,
    moment,
    of_rows,
)
from cohortium_connector.training.fhir_consents import of_fhir

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def outcome(*decisions: Decision, required: bool = True, opted_out: frozenset[str] = frozenset()) -> Excluded | None:
    """Why `p` is excluded, or None."""
    cohort = decide(["p"], decisions, opted_out, required=required, at=NOW)
    assert ("p" in cohort.permitted) == (not cohort.excluded)
    return next(iter(cohort.excluded), None)


def said(
    word: Word, recorded: datetime, since: datetime | None = None, until: datetime | None = None, who: str = "p"
) -> Decision:
    return Decision(who, word, since, until, recorded)


PERMIT, DENY, UNKNOWN = Word.PERMIT, Word.DENY, Word.UNKNOWN


@pytest.mark.parametrize(
    ("decisions", "required", "reason"),
    [
        ((), True, Excluded.NO_RECORD),
        ((), False, None),
        ((said(PERMIT, NOW - DAY),), True, None),
        ((said(DENY, NOW - DAY),), True, Excluded.DENIED),
        ((said(DENY, NOW - DAY),), False, Excluded.DENIED),
        ((said(UNKNOWN, NOW - DAY),), False, Excluded.UNKNOWN),
        ((said(PERMIT, NOW - 2 * DAY), said(DENY, NOW - DAY)), True, Excluded.DENIED),
        ((said(DENY, NOW - 2 * DAY), said(PERMIT, NOW - DAY)), True, None),
        ((said(PERMIT, NOW - DAY), said(DENY, NOW - DAY)), True, Excluded.DENIED),
        ((said(PERMIT, NOW - DAY), said(UNKNOWN, NOW - DAY)), True, Excluded.UNKNOWN),
        ((said(PERMIT, NOW - DAY, until=NOW),), True, Excluded.EXPIRED),
        ((said(PERMIT, NOW - DAY, until=NOW + DAY),), True, None),
        ((said(PERMIT, NOW - DAY, since=NOW + DAY),), True, Excluded.NO_RECORD),
        ((said(PERMIT, NOW - DAY, since=NOW + DAY),), False, Excluded.NO_RECORD),
        ((said(DENY, NOW - 2 * DAY), said(PERMIT, NOW - DAY, since=NOW + DAY)), False, Excluded.NO_RECORD),
        ((said(PERMIT, NOW + DAY),), True, Excluded.NO_RECORD),
        ((said(PERMIT, NOW - DAY), said(DENY, NOW + DAY)), True, Excluded.DENIED),
        ((said(PERMIT, NOW - DAY, who="q"),), True, Excluded.NO_RECORD),
    ],
)
def test_each_rule(decisions: tuple[Decision, ...], required: bool, reason: Excluded | None) -> None:
    assert outcome(*decisions, required=required) is reason


def test_an_opt_out_excludes_whatever_else_was_said() -> None:
    assert outcome(said(PERMIT, NOW - DAY), opted_out=frozenset({"p"})) is Excluded.OPTED_OUT


WORDS = st.sampled_from(list(Word))
DECISIONS = st.lists(
    st.builds(
        Decision,
        person=st.sampled_from("abc"),
        word=WORDS,
        since=st.none() | st.sampled_from([NOW - DAY, NOW + DAY]),
        until=st.none() | st.sampled_from([NOW - DAY, NOW, NOW + DAY]),
        recorded_at=st.sampled_from([NOW - 3 * DAY, NOW - DAY, NOW, NOW + DAY]),
    ),
    max_size=8,
)


@given(decisions=DECISIONS, required=st.booleans())
def test_every_candidate_is_in_or_counted_once(decisions: list[Decision], required: bool) -> None:
    cohort = decide("abca", decisions, frozenset({"c"}), required=required, at=NOW)
    assert len(cohort.permitted) + sum(cohort.excluded.values()) == 3
    assert "c" not in cohort.permitted


@given(decisions=DECISIONS, required=st.booleans())
def test_a_denial_recorded_now_always_ends_it(decisions: list[Decision], required: bool) -> None:
    later = [*decisions, said(DENY, max([NOW, *(one.recorded_at for one in decisions)]), who="a")]
    assert "a" not in decide("abc", later, frozenset(), required=required, at=NOW).permitted


@given(decisions=DECISIONS)
def test_asking_for_consent_never_lets_more_in(decisions: list[Decision]) -> None:
    asked = decide("abc", decisions, frozenset(), required=True, at=NOW).permitted
    assert asked <= decide("abc", decisions, frozenset(), required=False, at=NOW).permitted


@pytest.mark.parametrize(
    ("text", "end", "expected"),
    [
        ("2026-06-01", False, datetime(2026, 6, 1, tzinfo=UTC)),
        ("2026-06-01", True, datetime(2026, 6, 2, tzinfo=UTC)),
        ("2026-06-01T10:00:00+02:00", False, datetime(2026, 6, 1, 8, tzinfo=UTC)),
        ("2026-06-01T10:00:00Z", True, datetime(2026, 6, 1, 10, tzinfo=UTC)),
        ("2026-06", False, datetime(2026, 6, 1, tzinfo=UTC)),
        ("2026", False, datetime(2026, 1, 1, tzinfo=UTC)),
        ("9999-12-31", True, datetime.max.replace(tzinfo=UTC)),
        ("", False, None),
        (None, False, None),
    ],
)
def test_times(text: str | None, end: bool, expected: datetime | None) -> None:
    assert moment(text, end=end) == expected


def rows(*changes: dict[str, str | None]) -> list[dict[str, str | None]]:
    base = {"person_id": "p", "decision": "permit", "recorded_at": "2026-01-01"}
    return [base | change for change in changes]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, None),
        ({"decision": " Permit "}, None),
        ({"decision": "deny"}, Excluded.DENIED),
        ({"decision": "yes"}, Excluded.UNKNOWN),
        ({"decision": None}, Excluded.UNKNOWN),
        ({"valid_to": "2026-05-31"}, Excluded.EXPIRED),
        ({"valid_to": "2026-06-01"}, None),
        ({"valid_to": "soon"}, Excluded.UNKNOWN),
        ({"recorded_at": "31.12.2025"}, Excluded.UNKNOWN),
        ({"purpose": "HRESCH"}, None),
        ({"purpose": "TREAT"}, Excluded.NO_RECORD),
        ({"policy_uri": "urn:oid:1"}, None),
        ({"policy_uri": "urn:oid:2"}, Excluded.NO_RECORD),
        ({"valid_to": "9999-12-31"}, None),
        ({"valid_from": "0001-01-01T00:00:00+02:00"}, Excluded.UNKNOWN),
        ({"person_id": "\tp\u00a0"}, None),
        ({"person_id": "someone"}, Excluded.NO_RECORD),
        ({"person_id": None}, Excluded.NO_RECORD),
    ],
)
def test_a_table(row: dict[str, str | None], reason: Excluded | None) -> None:
    assert outcome(*of_rows(rows(row), "urn:oid:1", "HRESCH")) is reason


@pytest.mark.parametrize(
    ("denied", "permitted", "reason"),
    [
        (None, "2026-05-01", Excluded.DENIED),  # nobody knows when it was said
        ("2026", "2026-05-01", Excluded.DENIED),
        ("2026-03", "2026-03-31", Excluded.DENIED),
        ("2026-03", "2026-04-01", None),
        ("2026-03-01", "2026-03-01T10:00:00Z", Excluded.DENIED),
        ("2026-03-01", "2026-03-02", None),
        ("2026-03-01T09:00:00Z", "2026-03-01T10:00:00Z", None),
    ],
)
def test_a_denial_is_as_late_as_its_time_can_mean(denied: str | None, permitted: str, reason: Excluded | None) -> None:
    denial: dict[str, str | None] = {"decision": "deny", "recorded_at": denied}
    both = rows(denial, {"recorded_at": permitted})
    assert outcome(*of_rows(both, None, None), required=False) is reason


R4: dict[str, Any] = {
    "resourceType": "Consent",
    "status": "active",
    "patient": {"reference": "Patient/p"},
    "dateTime": "2026-01-01",
    "policy": [{"uri": "urn:oid:1"}],
    "provision": {"type": "permit"},
}
R5: dict[str, Any] = {
    "resourceType": "Consent",
    "status": "active",
    "subject": {"reference": "https://fhir.example/Patient/p"},
    "date": "2026-01-01",
    "policyBasis": {"url": "urn:oid:1"},
    "decision": "permit",
}
RESEARCH = [{"code": "HRESCH"}]
TREATMENT = [{"code": "TREAT"}]
THIS, OTHER = ([{"coding": [{"code": f"urn:oid:{number}"}]}] for number in (1, 2))


@pytest.mark.parametrize(
    ("resource", "reason"),
    [
        (R4, None),
        (R5, None),
        (R4 | {"status": "rejected"}, Excluded.DENIED),
        (R4 | {"status": "inactive"}, Excluded.DENIED),
        (R4 | {"status": "draft"}, Excluded.NO_RECORD),
        (R4 | {"status": "entered-in-error"}, Excluded.NO_RECORD),
        (R5 | {"status": "not-done"}, Excluded.NO_RECORD),
        (R5 | {"status": "unknown"}, Excluded.UNKNOWN),
        (R4 | {"status": "something-new"}, Excluded.UNKNOWN),
        (R4 | {"status": None}, Excluded.UNKNOWN),
        (R4 | {"patient": {"identifier": {"value": "p"}}}, None),
        (R4 | {"policy": [{"uri": "urn:oid:2"}]}, Excluded.NO_RECORD),
        (R4 | {"provision": {"type": "deny"}}, Excluded.DENIED),
        (R4 | {"provision": {}}, Excluded.UNKNOWN),
        (R4 | {"provision": {}, "policyRule": {"coding": [{"code": "OPTIN"}]}}, None),
        (R4 | {"provision": {}, "policyRule": {"coding": [{"code": "OPTOUT"}]}}, Excluded.DENIED),
        (R4 | {"provision": {"type": "permit", "period": {"end": "2026-05-01"}}}, Excluded.EXPIRED),
        (R4 | {"provision": {"type": "permit", "purpose": TREATMENT}}, Excluded.UNKNOWN),
        (R4 | {"provision": {"type": "permit", "purpose": RESEARCH}}, None),
        (
            R4 | {"provision": {"type": "deny", "provision": [{"type": "permit", "purpose": RESEARCH}]}},
            None,
        ),
        (
            R4
            | {
                "provision": {
                    "type": "deny",
                    "provision": [{"type": "permit", "purpose": RESEARCH, "period": {"end": "2026-05-01"}}],
                }
            },
            Excluded.DENIED,
        ),
        (
            R4 | {"provision": {"type": "permit", "provision": [{"type": "deny", "purpose": RESEARCH}]}},
            Excluded.DENIED,
        ),
        (
            R4 | {"provision": {"type": "permit", "provision": [{"type": "deny", "purpose": TREATMENT}]}},
            None,
        ),
        (R4 | {"provision": {"type": "permit", "provision": ["nonsense"]}}, Excluded.UNKNOWN),
        (R5 | {"decision": "deny"}, Excluded.DENIED),
        (R5 | {"decision": "maybe"}, Excluded.UNKNOWN),
        (R5 | {"provision": [{"purpose": RESEARCH}]}, Excluded.DENIED),
        (R5 | {"provision": [{"purpose": TREATMENT}]}, None),
        (R5 | {"decision": "deny", "provision": [{"purpose": RESEARCH}]}, None),
        (R5 | {"provision": [{"purpose": RESEARCH, "provision": [{}]}]}, Excluded.UNKNOWN),
        (R5 | {"period": {"end": "2026-05-31"}}, Excluded.EXPIRED),
        (R5 | {"period": {"end": "who knows"}}, Excluded.UNKNOWN),
        (R4 | {"policy": [], "status": "rejected"}, Excluded.DENIED),  # names none: it is about all
        (R4 | {"policy": [], "provision": {"type": "deny"}}, Excluded.DENIED),
        (R4 | {"patient": {"reference": "Patient/p/_history/7"}}, None),
        (R4 | {"patient": {"reference": "Patient/q/_history/p"}}, Excluded.NO_RECORD),
        (R5 | {"subject": {"reference": "Practitioner/p"}}, Excluded.NO_RECORD),
        (R4 | {"provision": {"type": "permit", "actor": [{"role": {}}]}}, Excluded.UNKNOWN),
        (R4 | {"provision": {"type": "permit", "dataPeriod": {"end": "2020"}}}, Excluded.UNKNOWN),
        (R4 | {"modifierExtension": [{"url": "urn:not"}]}, Excluded.UNKNOWN),
        (R4 | {"provision": {"type": "deny", "provision": [{"type": "permit", "code": OTHER}]}}, Excluded.DENIED),
        (
            R4 | {"policy": [], "provision": {"type": "deny", "provision": [{"type": "permit", "code": THIS}]}},
            None,
        ),
        (
            R4
            | {
                "policy": [],
                "provision": {
                    "type": "deny",
                    "provision": [{"type": "permit", "code": OTHER}, {"type": "permit", "code": THIS, "data": [{}]}],
                },
            },
            Excluded.UNKNOWN,
        ),
        (
            R4
            | {
                "policy": [],
                "provision": {
                    "type": "deny",
                    "provision": [{"type": "permit", "code": OTHER}, {"type": "permit", "code": THIS}],
                },
            },
            None,
        ),
        ({"resourceType": "Patient", "id": "p"}, Excluded.NO_RECORD),
    ],
)
def test_fhir(resource: dict[str, Any], reason: Excluded | None, tmp_path: Path) -> None:
    file = tmp_path / "consents.ndjson"
    file.write_text(json.dumps(resource) + "\n\n")
    assert outcome(*of_fhir(file, "urn:oid:1", "HRESCH", NOW)) is reason


@pytest.mark.parametrize(
    "text",
    [
        '{"resourceType": "Cons',
        "[]",
        "nonsense",
        "{}",
        '{"resourceType": "Bundle", "entry": []}',
        "[" * 100_000,
        json.dumps(R4 | {"patient": None}),
        json.dumps(R4 | {"patient": {"reference": "Group/p"}}),
        json.dumps(R4 | {"status": ["active"]}),
    ],
    ids=str,
)
def test_a_file_that_is_cut_short_is_not_one_in_which_nobody_objects(text: str, tmp_path: Path) -> None:
    file = tmp_path / "consents.ndjson"
    file.write_text(json.dumps(R4) + "\n" + text)
    with pytest.raises(SourceUnreadable) as caught:
        list(of_fhir(file, None, None, NOW))
    assert "line 2" in caught.value.local


def test_our_examples_are_consents_as_the_standards_have_them() -> None:
    """The library says so; the connector itself reads the few fields without it."""
    needed = {
        "scope": {"coding": [{"code": "research"}]},
        "category": [{"coding": [{"code": "59284-0"}]}],
        "policyRule": {"coding": [{"code": "OPTIN"}]},
    }
    fhir_r4.Consent.model_validate(R4 | needed)
    fhir_r5.Consent.model_validate({name: value for name, value in R5.items() if name != "policyBasis"})
