"""Data-use terms against requests: a row that fits and a row that does not, for every supported term."""

from datetime import UTC, datetime
from typing import Any

import pytest

from cohortium_messages.duo import DUO_TERMS, DuoTerm, UseRequest
from cohortium_messages.problems import sentence
from cohortium_protocol.consent.duo import MODIFIERS, PERMISSIONS, Request, mismatches, months_after
from consent_stage import NOW, REQUEST, STUDY

GRU = {"code": "GRU"}
T2D, CAD = "MONDO:0005148", "MONDO:0005010"
OPEN = datetime(2027, 1, 1, tzinfo=UTC)

TABLE: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # code, its parameter, a request that fits, a request that does not
    ("NRES", {}, {"aims": ["general"]}, {}),
    ("GRU", {}, {"aims": ["ancestry", "methods"]}, {}),
    ("HMB", {}, {"aims": ["health", "methods"]}, {"aims": ["ancestry"]}),
    ("HMB", {}, {"aims": ["disease"]}, {"aims": ["general"]}),
    ("DS", {"values": [CAD, T2D]}, {"diseases": [CAD]}, {"diseases": [CAD, "MONDO:0004992"]}),
    ("DS", {"values": [CAD]}, {"aims": ["disease", "methods"]}, {"aims": ["health"], "diseases": [CAD]}),
    ("POA", {}, {"aims": ["ancestry"], "diseases": []}, {"aims": ["health", "ancestry"]}),
    ("RS", {"values": ["pediatric"]}, {"research_types": ["pediatric"]}, {"research_types": ["pediatric", "adult"]}),
    ("RS", {"values": ["pediatric"]}, {"research_types": ["pediatric"]}, {}),
    ("NMDS", {}, {"aims": ["health"]}, {"aims": ["health", "methods"]}),
    ("GSO", {}, {"genetic": True}, {"genetic": False}),
    ("NPUNCU", {}, {}, {"for_profit": True}),
    ("NPUNCU", {}, {}, {"commercial": True}),
    ("PUB", {}, {"publishes": True}, {"publishes": False}),
    ("COL", {}, {"collaborates": True}, {"collaborates": False}),
    ("IRB", {}, {"ethics": True}, {"ethics": False}),
    ("GS", {"values": ["DE", "FR"]}, {"regions": ["DE"]}, {"regions": ["DE", "US"]}),
    ("MOR", {"until": OPEN}, {"publishes_from": OPEN}, {"publishes_from": datetime(2026, 12, 31, tzinfo=UTC)}),
    ("MOR", {"until": OPEN}, {"publishes": False}, {}),
    ("TS", {"months": 6}, {"since": datetime(2026, 1, 1, tzinfo=UTC)}, {"since": datetime(2025, 12, 1, tzinfo=UTC)}),
    ("US", {"values": ["u-1", "u-2"]}, {"users": ["u-1"]}, {"users": ["u-3"]}),
    ("US", {"values": ["u-1"]}, {"users": ["u-1"]}, {"users": []}),
    ("PS", {"values": [STUDY]}, {}, {"study": "another-study"}),
    ("IS", {"values": ["Charite"]}, {"institutions": ["Charite"]}, {"institutions": []}),
    ("RTN", {}, {"returns_results": True}, {"returns_results": False}),
    ("CC", {}, {"clinical_care": True}, {}),
    ("NPOA", {}, {"aims": ["health"]}, {"aims": ["health", "ancestry"]}),
    ("NPU", {}, {"commercial": True}, {"for_profit": True}),
    ("NCU", {}, {"for_profit": True}, {"commercial": True}),
]
WITHOUT_A_REFUSAL = {"NRES", "GRU", "CC"}
"""They limit nothing."""


def asked(changes: dict[str, Any]) -> Request:
    values = {**REQUEST, **changes}
    facts = {name: values.pop(name, default) for name, default in (("ethics", True), ("since", NOW), ("study", STUDY))}
    return Request(UseRequest.model_validate(values), facts["study"], facts["ethics"], facts["since"], NOW)


def terms(*raw: dict[str, Any]) -> tuple[DuoTerm, ...]:
    return tuple(DuoTerm.model_validate(one) for one in raw)


@pytest.mark.parametrize(("code", "parameter", "fits", "refused"), TABLE)
def test_each_term_lets_in_what_fits_and_names_itself_where_not(
    code: str, parameter: dict[str, Any], fits: dict[str, Any], refused: dict[str, Any]
) -> None:
    term = {"code": code, **parameter}
    said = terms(term) if code in PERMISSIONS else terms(GRU, term)
    assert mismatches(said, asked(fits)) == ()
    if code not in WITHOUT_A_REFUSAL:
        assert mismatches(said, asked(refused)) == (code,)


def test_the_table_has_every_supported_term_and_the_matcher_a_rule_for_each() -> None:
    assert {row[0] for row in TABLE} == set(DUO_TERMS)
    assert set(PERMISSIONS) == {code for code, term in DUO_TERMS.items() if term.kind == "permission"}
    assert set(MODIFIERS) == {code for code, term in DUO_TERMS.items() if term.kind == "modifier"}
    assert len(DUO_TERMS) == 23
    assert len({term.number for term in DUO_TERMS.values()}) == 23


def test_an_unknown_term_denies_whatever_else_is_there() -> None:
    assert mismatches(terms({"code": "NRES"}, {"code": "XYZ"}), asked({})) == ("XYZ",)
    assert "not supported" in sentence("DUO_MISMATCH:XYZ")


def test_without_a_permission_nothing_is_permitted() -> None:
    assert mismatches(terms({"code": "NCU"}), asked({})) == ("NONE",)


def test_one_of_several_permissions_is_enough() -> None:
    assert mismatches(terms({"code": "POA"}, {"code": "HMB"}), asked({})) == ()
    assert mismatches(terms({"code": "POA"}, {"code": "HMB"}), asked({"aims": ["general"]})) == ("POA", "HMB")


def test_care_needs_a_term_that_allows_it() -> None:
    assert mismatches(terms(GRU), asked({"clinical_care": True})) == ("CC",)
    assert mismatches(terms({"code": "NRES"}), asked({"clinical_care": True})) == ()


def test_all_mismatches_are_named_each_once() -> None:
    said = terms(GRU, {"code": "NCU"}, {"code": "NPU"}, {"code": "NPU"}, {"code": "GSO"})
    assert mismatches(said, asked({"commercial": True, "for_profit": True})) == ("NCU", "NPU", "GSO")


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ({"code": "DS"}, "DS needs values"),
        ({"code": "TS"}, "TS needs months"),
        ({"code": "MOR"}, "MOR needs until"),
        ({"code": "MOR", "until": "2027-01-01T00:00:00"}, "time zone"),
        ({"code": "NCU", "values": ["x"]}, "NCU takes no values"),
        ({"code": "GS", "values": ["DE"], "months": 3}, "GS takes no months"),
        ({"code": "ncu"}, "pattern"),
    ],
)
def test_a_parameter_that_is_missing_or_has_no_place_is_an_error(raw: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        DuoTerm.model_validate(raw)


def test_a_request_for_diseases_names_them() -> None:
    with pytest.raises(ValueError, match="MONDO"):
        UseRequest.model_validate({**REQUEST, "diseases": []})


def test_months_end_on_the_same_day_or_the_last_of_a_shorter_month() -> None:
    assert months_after(datetime(2026, 1, 31, tzinfo=UTC), 1) == datetime(2026, 2, 28, tzinfo=UTC)
    assert months_after(datetime(2026, 11, 30, tzinfo=UTC), 15) == datetime(2028, 2, 29, tzinfo=UTC)
