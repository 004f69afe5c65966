"""A hospital proves to its auditor who was in a cohort and who was not, and cannot prove what is not so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium_protocol.cohorts import CohortProofRefused, check_proof, commitment, prove, tag_of, tags_of
from cohortium_protocol.translog import EMPTY_ROOT

SALT, CONTEXT = b"s" * 32, b"c" * 16
PERSONS = st.sets(st.text(min_size=1, max_size=8), max_size=40)


@given(persons=PERSONS, asked=st.text(min_size=1, max_size=8))
def test_whatever_is_true_is_proven(persons: set[str], asked: str) -> None:
    tags = tags_of(SALT, CONTEXT, persons)
    proof = prove(tags, SALT, CONTEXT, asked)
    assert proof.present == (asked in persons)
    check_proof(proof, commitment(tags))


@given(persons=st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=40), other=st.text(min_size=1, max_size=8))
def test_the_contrary_is_not(persons: set[str], other: str) -> None:
    tags = tags_of(SALT, CONTEXT, persons)
    root, somebody = commitment(tags), min(persons)
    there = prove(tags, SALT, CONTEXT, somebody)
    with pytest.raises(CohortProofRefused):
        check_proof(there.model_copy(update={"present": False}), root)
    neighbours = [place for one in persons - {somebody} for place in prove(tags, SALT, CONTEXT, one).places]
    for first in neighbours:
        for second in (None, *neighbours):
            places = (first,) if second is None else (first, second)
            with pytest.raises(CohortProofRefused):
                check_proof(there.model_copy(update={"present": False, "places": places}), root)
    if other not in persons:
        absent = prove(tags, SALT, CONTEXT, other)
        with pytest.raises(CohortProofRefused):
            check_proof(absent.model_copy(update={"present": True}), root)
        with pytest.raises(CohortProofRefused):
            check_proof(absent.model_copy(update={"person": somebody}), root)


def test_nobody_is_in_an_empty_cohort() -> None:
    proof = prove([], SALT, CONTEXT, "anybody")
    assert not proof.present
    check_proof(proof, EMPTY_ROOT)
    with pytest.raises(CohortProofRefused):
        check_proof(proof.model_copy(update={"root": b"\1" * 32}), b"\1" * 32)


def test_a_proof_is_about_one_cohort() -> None:
    tags = tags_of(SALT, CONTEXT, ["a", "b"])
    with pytest.raises(CohortProofRefused, match="another cohort"):
        check_proof(prove(tags, SALT, CONTEXT, "a"), commitment(tags_of(b"t" * 32, CONTEXT, ["a", "b"])))


def test_equal_cohorts_with_other_salts_cannot_be_told_to_be_equal() -> None:
    assert tag_of(SALT, CONTEXT, "a") != tag_of(b"t" * 32, CONTEXT, "a") != tag_of(SALT, b"d" * 16, "a")
