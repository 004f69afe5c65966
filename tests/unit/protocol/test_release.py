"""A release counts with an officer's, enough hospitals' and the aggregator's signatures, each key in one role."""

from datetime import UTC, datetime

import pytest

from cohortium_protocol.attest import Statement, add_signature, gather, sign_statement
from cohortium_protocol.errors import AttestationRefused
from cohortium_protocol.release import Candidate, Roles, check_release, read_release, sign_release
from cohortium_protocol.signing import IdentityKey

AGGREGATOR, OFFICER, OTHER_OFFICER, SITE, STRANGER = (IdentityKey.generate() for _ in range(5))
PREDICATE = {"federation": "f.example", "study": "s", "study_digest": "00", "run": "r", "model": {"version": 3}}
SUBJECTS = {"model.safetensors": b"m" * 32, "card.json": b"c" * 32}
ROLES = Roles(AGGREGATOR.public, frozenset({OFFICER.public, OTHER_OFFICER.public}), {"site-1": SITE.public})
AT = datetime(2026, 11, 21, tzinfo=UTC)


def candidate(**changes: object) -> Candidate:
    statement = Statement(SUBJECTS, "https://cohortium.org/attestation/model/1", {**PREDICATE, **changes})
    return Candidate.of(sign_statement(statement, [AGGREGATOR]), AGGREGATOR.public)


MODEL = candidate()
SIGNED = sign_release(MODEL, "O. Fficer", AT, OFFICER)


def test_officer_and_aggregator_release_a_model() -> None:
    found = check_release(add_signature(SIGNED, AGGREGATOR), MODEL, ROLES, 0)
    assert (found.officers, found.sites, found.officer_name) == ((OFFICER.public,), (), "O. Fficer")
    assert found.at == "2026-11-21T00:00:00+00:00"
    both = add_signature(add_signature(SIGNED, SITE), AGGREGATOR)
    assert check_release(both, MODEL, ROLES, 1).sites == ("site-1",)


def test_what_lacks_a_role_is_not_released() -> None:
    refused = {
        "signed by the aggregator": SIGNED,
        "signed by 1 more member hospital": add_signature(SIGNED, AGGREGATOR),
        "another's": sign_release(MODEL, "X", AT, STRANGER),
    }
    with pytest.raises(AttestationRefused, match="signed by the aggregator"):
        check_release(refused["signed by the aggregator"], MODEL, ROLES, 0)
    with pytest.raises(AttestationRefused, match="1 more member hospital"):
        check_release(refused["signed by 1 more member hospital"], MODEL, ROLES, 1)
    with pytest.raises(AttestationRefused, match="of this federation"):
        read_release(refused["another's"], MODEL, ROLES)
    without_officer = add_signature(sign_release(MODEL, "S", AT, SITE), AGGREGATOR)
    with pytest.raises(AttestationRefused, match="a governance officer"):
        check_release(without_officer, MODEL, ROLES, 0)


def test_one_key_signs_in_one_role_only() -> None:
    """An aggregator that is named as an officer, or an officer as a hospital, does not sign twice."""
    greedy = Roles(AGGREGATOR.public, frozenset({AGGREGATOR.public}), {"site-1": AGGREGATOR.public})
    with pytest.raises(AttestationRefused, match="a governance officer"):
        check_release(sign_release(MODEL, "A", AT, AGGREGATOR), MODEL, greedy, 0)
    twice = Roles(AGGREGATOR.public, frozenset({OFFICER.public}), {"site-1": OFFICER.public})
    with pytest.raises(AttestationRefused, match="1 more member hospital"):
        check_release(add_signature(SIGNED, AGGREGATOR), MODEL, twice, 1)


def test_a_release_of_another_model_run_or_card_is_refused() -> None:
    full = add_signature(SIGNED, AGGREGATOR)
    with pytest.raises(AttestationRefused, match="other files"):
        read_release(full, candidate(run="another"), ROLES)
    other_card = Statement({**SUBJECTS, "card.json": b"d" * 32}, "x", PREDICATE)
    with pytest.raises(AttestationRefused, match="other files"):
        read_release(full, Candidate(MODEL.attestation, other_card), ROLES)
    renamed = Candidate(MODEL.attestation, Statement(SUBJECTS, "x", {**PREDICATE, "run": "another"}))
    with pytest.raises(AttestationRefused, match="another study, run or model"):
        read_release(full, renamed, ROLES)
    with pytest.raises(AttestationRefused, match="no release"):
        read_release(sign_statement(Statement(MODEL.subjects, "x", PREDICATE), [OFFICER]), MODEL, ROLES)


def test_signatures_are_gathered_once_and_only_those_that_hold() -> None:
    with_site = add_signature(SIGNED, SITE)
    with_stranger = add_signature(SIGNED, STRANGER)
    keys = (OFFICER.public, SITE.public)
    whole = gather((with_stranger, with_site, SIGNED), keys)
    assert read_release(whole, MODEL, ROLES).missing(1) == ()
    assert STRANGER.public.hex()[:8] not in whole.decode()
    assert gather((whole, SIGNED), keys) == whole
    with pytest.raises(AttestationRefused, match="different statements"):
        gather((SIGNED, sign_release(MODEL, "O. Fficer", datetime(2027, 1, 1, tzinfo=UTC), OFFICER)), keys)
