"""The life of a document: four eyes, one person stops, the order of arrival does not matter."""

import itertools
from datetime import timedelta
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium_messages.consent import MEANINGS, Act, Deed, Delegation, DocumentKind, PersonCard, Record, Withdrawal
from cohortium_protocol.consent.people import Directory
from cohortium_protocol.consent.records import (
    COMMANDS,
    STARTING,
    TRANSITIONS,
    Active,
    Draft,
    Rejected,
    State,
    Submitted,
    Suspended,
    Terminated,
    advance,
    fold,
    objection,
    standing,
)
from cohortium_protocol.consent.rules import DUTIES, rule_of
from cohortium_protocol.consent.signing import card_digest, record_digest, sign_act, sign_card, verify_act, verify_card
from cohortium_protocol.errors import BadSignature, DocumentRefused, TooFewSignatures
from consent_stage import DAY, NOW, SITES, Person, Plane, seeded
from examples import examples

PLANE = Plane()
SITE = SITES[0]
ADMIN, (BEA, CARL) = PLANE.admin(SITE), PLANE.approvers(SITE)
TERMS = PLANE.terms(SITE)
PEOPLE = Directory.of(PLANE.pin, PLANE.site_publics(), PLANE.cards())
STRANGER = Person("Sam Stranger", seeded("stranger"), "site_approver", SITE)
ELSEWHERE = PLANE.approvers(SITES[1])[0]
HOUR = timedelta(hours=1)


def state_of(document: Any, *deeds: tuple[Deed, Person], directory: Directory = PEOPLE, gap: Any = HOUR) -> State:
    begun = NOW - 10 * DAY
    acts = [PLANE.act(document, deed, by, begun + place * gap) for place, (deed, by) in enumerate(deeds)]
    return fold(document, acts, directory, NOW)


def test_two_people_who_did_not_write_it_make_a_document_count() -> None:
    assert state_of(TERMS) == Draft()
    assert isinstance(state_of(TERMS, ("submit", ADMIN)), Submitted)
    assert isinstance(state_of(TERMS, ("submit", ADMIN), ("approve", BEA)), Submitted)
    state = state_of(TERMS, ("submit", ADMIN), ("approve", BEA), ("approve", CARL))
    assert isinstance(state, Active)
    assert len(state.approvals) == 2


@pytest.mark.parametrize(
    "deeds",
    [
        [("submit", ADMIN), ("approve", BEA), ("approve", BEA)],
        [("submit", BEA), ("approve", BEA), ("approve", CARL)],
        [("submit", ADMIN), ("approve", BEA), ("approve", ADMIN)],
        [("submit", ADMIN), ("approve", BEA), ("approve", STRANGER)],
        [("submit", ADMIN), ("approve", BEA), ("approve", ELSEWHERE)],
        [("submit", ADMIN), ("approve", BEA), ("approve", PLANE.officer)],
        [("approve", BEA), ("approve", CARL)],
        [("approve", BEA), ("submit", ADMIN), ("approve", CARL)],
        [("submit", STRANGER), ("approve", BEA), ("approve", CARL)],
    ],
    ids=["twice", "author", "not-approver", "stranger", "elsewhere", "officer", "unwritten", "too-early", "by-nobody"],
)
def test_four_eyes_cannot_be_had_with_less(deeds: list[tuple[Deed, Person]]) -> None:
    assert not isinstance(state_of(TERMS, *deeds), Active)


def test_one_human_with_two_keys_is_one_human() -> None:
    spare = Person("Bea Braun", seeded("bea's other key"), "site_approver", SITE)
    directory = Directory.of(PLANE.pin, PLANE.site_publics(), (*PLANE.cards(), PLANE.card(spare)))
    twice = state_of(TERMS, ("submit", ADMIN), ("approve", BEA), ("approve", spare), directory=directory)
    assert isinstance(twice, Submitted)


def test_an_agreement_needs_every_party_and_an_officer() -> None:
    both = PLANE.agreement(SITE, parties=SITES[:2])
    signed: list[tuple[Deed, Person]] = [("submit", PLANE.second_officer), ("approve", BEA), ("approve", PLANE.officer)]
    assert isinstance(state_of(both, *signed), Submitted)
    assert isinstance(state_of(both, *signed, ("approve", ELSEWHERE)), Active)


def test_a_study_version_needs_an_officer_and_a_second_person_who_is_not_its_lead() -> None:
    version = PLANE.version()
    assert isinstance(state_of(version, ("submit", PLANE.lead), ("approve", PLANE.officer)), Submitted)
    assert isinstance(
        state_of(version, ("submit", PLANE.lead), ("approve", PLANE.officer), ("approve", PLANE.second_officer)), Active
    )
    assert state_of(version, ("submit", PLANE.officer)) == Draft()


@pytest.mark.parametrize("stop", ["suspend", "terminate"])
@pytest.mark.parametrize("by", [ADMIN, BEA, CARL])
def test_one_person_can_always_stop(stop: Deed, by: Person) -> None:
    signed: list[tuple[Deed, Person]] = [("submit", ADMIN), ("approve", BEA), ("approve", CARL)]
    assert isinstance(state_of(TERMS, *signed, (stop, by)), Suspended if stop == "suspend" else Terminated)


def test_nobody_from_another_hospital_can_stop_it() -> None:
    signed: list[tuple[Deed, Person]] = [("submit", ADMIN), ("approve", BEA), ("approve", CARL)]
    assert isinstance(state_of(TERMS, *signed, ("terminate", ELSEWHERE), ("suspend", STRANGER)), Active)


def test_a_suspended_document_comes_back_by_two_people_a_rejected_one_never() -> None:
    signed: list[tuple[Deed, Person]] = [("submit", ADMIN), ("approve", BEA), ("approve", CARL), ("suspend", CARL)]
    assert isinstance(state_of(TERMS, *signed, ("approve", BEA)), Suspended)
    assert isinstance(state_of(TERMS, *signed, ("approve", BEA), ("approve", CARL)), Active)
    refused: list[tuple[Deed, Person]] = [("submit", ADMIN), ("reject", BEA), ("approve", BEA), ("approve", CARL)]
    assert isinstance(state_of(TERMS, *refused), Rejected)


def test_a_withdrawal_needs_one_person() -> None:
    left = Withdrawal(
        type="institution",
        site_id=SITE,
        study_id=PLANE.study,
        study_digest=PLANE.study_digest,
        received_at=NOW,
        effective_at=NOW,
        requested_effect="stop_future",
    )
    state = state_of(left, ("submit", CARL))
    assert standing(left, state, NOW)[0] == "active"
    assert standing(left, state_of(left, ("submit", ELSEWHERE)), NOW)[0] == "draft"


def test_of_one_moment_the_author_s_signature_counts_first_and_a_stop_last() -> None:
    """Which of the digests is smaller must not decide: with twenty authors and a coin it would, half of the time."""
    at = NOW - DAY
    for number in range(20):
        ada = Person(f"Ada {number}", seeded(f"ada {number}"), "site_admin", SITE)
        directory = Directory.of(PLANE.pin, PLANE.site_publics(), (*PLANE.cards(), PLANE.card(ada)))
        acts = [PLANE.act(TERMS, "approve", CARL, at), PLANE.act(TERMS, "approve", BEA, at)]
        acts.append(PLANE.act(TERMS, "submit", ada, at))
        assert isinstance(fold(TERMS, acts, directory, NOW), Active)
        stopped = [PLANE.act(TERMS, "suspend", ada, at), *acts]
        assert isinstance(fold(TERMS, stopped, directory, NOW), Suspended)


def test_an_approval_from_the_future_waits_and_a_stop_does_not() -> None:
    acts = list(PLANE.record(TERMS, ADMIN, BEA, CARL).acts)
    late = [acts[0], acts[1], PLANE.act(TERMS, "approve", CARL, NOW + 6 * timedelta(minutes=1))]
    assert isinstance(fold(TERMS, late, PEOPLE, NOW), Submitted)
    assert isinstance(fold(TERMS, late, PEOPLE, NOW + 2 * timedelta(minutes=1)), Active)
    stopped = [*acts, PLANE.act(TERMS, "terminate", CARL, NOW + 9 * DAY)]
    assert isinstance(fold(TERMS, stopped, PEOPLE, NOW), Terminated)


def test_a_key_counts_only_while_its_card_does() -> None:
    short = [one for one in PLANE.cards() if one.key != BEA.key.public]
    ended = PLANE.card(BEA, not_after=NOW - 20 * DAY)
    directory = Directory.of(PLANE.pin, PLANE.site_publics(), (*short, ended))
    signed: list[tuple[Deed, Person]] = [("submit", ADMIN), ("approve", BEA), ("approve", CARL)]
    assert isinstance(state_of(TERMS, *signed, directory=directory), Submitted)


def test_a_card_that_was_ended_signs_nothing_afterwards_and_keeps_what_it_signed() -> None:
    card = PLANE.card(BEA)
    signed: list[tuple[Deed, Person]] = [("submit", ADMIN), ("approve", BEA), ("approve", CARL)]
    for at, expected in ((NOW - 11 * DAY, Submitted), (NOW - 5 * DAY, Active)):
        stop = sign_act(card_digest(card), "terminate", ADMIN.name, at, ADMIN.key)
        directory = Directory.of(PLANE.pin, PLANE.site_publics(), PLANE.cards(), [stop])
        assert isinstance(state_of(TERMS, *signed, directory=directory), expected)
    other = sign_act(card_digest(card), "terminate", ELSEWHERE.name, NOW - 11 * DAY, ELSEWHERE.key)
    assert isinstance(
        state_of(TERMS, *signed, directory=Directory.of(PLANE.pin, PLANE.site_publics(), PLANE.cards(), [other])),
        Active,
    )


def delegation(lender: Person, to: Person, **changes: Any) -> Delegation:
    values: dict[str, Any] = {
        "site_id": lender.site_id,
        "from_key": lender.key.public,
        "to_key": to.key.public,
        "role": lender.role,
        "not_before": NOW - 20 * DAY,
        "not_after": NOW + 20 * DAY,
        "cause": "leave",
    }
    return Delegation.model_validate({**values, **changes})


def test_who_signs_for_somebody_is_both_of_them() -> None:
    lent = PEOPLE.with_delegations([delegation(BEA, ADMIN)])
    by_carl: list[tuple[Deed, Person]] = [("submit", PLANE.admin(SITE)), ("approve", CARL)]
    # The author may not approve with a lent role either.
    assert isinstance(state_of(TERMS, *by_carl, ("approve", ADMIN), directory=lent), Submitted)
    deputy = Person("Dana Deputy", seeded("deputy"), "site_admin", SITE)
    people = Directory.of(PLANE.pin, PLANE.site_publics(), (*PLANE.cards(), PLANE.card(deputy)))
    lent = people.with_delegations([delegation(BEA, deputy)])
    assert isinstance(state_of(TERMS, *by_carl, ("approve", deputy), directory=people), Submitted)
    assert isinstance(state_of(TERMS, *by_carl, ("approve", deputy), directory=lent), Active)
    both: list[tuple[Deed, Person]] = [("submit", PLANE.admin(SITE)), ("approve", BEA), ("approve", deputy)]
    assert isinstance(state_of(TERMS, *both, directory=lent), Submitted)


def test_nobody_lends_what_they_have_not() -> None:
    deputy = Person("Dana Deputy", seeded("deputy"), "site_admin", SITE)
    people = Directory.of(PLANE.pin, PLANE.site_publics(), (*PLANE.cards(), PLANE.card(deputy)))
    lent = people.with_delegations([delegation(ADMIN, deputy, role="site_approver")])
    by_carl: list[tuple[Deed, Person]] = [("submit", PLANE.admin(SITE)), ("approve", CARL), ("approve", deputy)]
    assert isinstance(state_of(TERMS, *by_carl, directory=lent), Submitted)


def test_a_delegation_is_written_by_the_one_who_lends() -> None:
    lent = delegation(BEA, ADMIN)
    rule = rule_of(lent)
    by = PEOPLE.signer(CARL.key.public, NOW)
    assert objection(STARTING, COMMANDS["submit"](by, NOW), rule) == "NOT_THE_LENDER"
    assert isinstance(state_of(lent, ("submit", BEA), ("approve", ADMIN), ("approve", CARL)), Active)


PERSONS = (ADMIN, BEA, CARL, ELSEWHERE, STRANGER, PLANE.officer)
DEEDS: tuple[Deed, ...] = get_args(Deed)
SIGNED = st.lists(st.tuples(st.sampled_from(DEEDS), st.sampled_from(PERSONS), st.integers(0, 12)), max_size=9)


@given(SIGNED, st.randoms(use_true_random=False))
@settings(max_examples=examples(150), deadline=None)
def test_the_order_and_number_of_arrivals_do_not_matter(signed: list[tuple[Deed, Person, int]], dice: Any) -> None:
    acts = [PLANE.act(TERMS, deed, by, NOW - DAY + hours * HOUR) for deed, by, hours in signed]
    shuffled = [*acts, *acts[:3]]
    dice.shuffle(shuffled)
    assert fold(TERMS, shuffled, PEOPLE, NOW) == fold(TERMS, acts, PEOPLE, NOW)


@given(SIGNED)
@settings(max_examples=examples(150), deadline=None)
def test_what_counts_was_approved_by_two_who_did_not_write_it(signed: list[tuple[Deed, Person, int]]) -> None:
    state = fold(TERMS, [PLANE.act(TERMS, d, by, NOW - DAY + h * HOUR) for d, by, h in signed], PEOPLE, NOW)
    if isinstance(state, Active):
        hands = (state.author, *state.approvals)
        assert len(hands) >= 3
        assert all(not one.names & other.names for one, other in itertools.combinations(hands, 2))


@given(SIGNED)
@settings(max_examples=examples(100), deadline=None)
def test_nothing_brings_an_ended_document_back(signed: list[tuple[Deed, Person, int]]) -> None:
    acts = list(PLANE.record(TERMS, ADMIN, BEA, CARL).acts)
    acts.append(PLANE.act(TERMS, "terminate", CARL, NOW - DAY))
    acts += [PLANE.act(TERMS, deed, by, NOW - DAY + (hours + 1) * HOUR) for deed, by, hours in signed]
    assert isinstance(fold(TERMS, acts, PEOPLE, NOW), Terminated)


@given(SIGNED)
@settings(max_examples=examples(100), deadline=None)
def test_advance_does_only_what_the_table_says(signed: list[tuple[Deed, Person, int]]) -> None:
    state: State = STARTING
    rule = rule_of(TERMS)
    for deed, by, _ in signed:
        command = COMMANDS[deed](PEOPLE.signer(by.key.public, NOW), NOW)
        after = advance(state, command, rule)
        if after != state:
            assert type(after) in TRANSITIONS[type(state), type(command)]
            assert objection(state, command, rule) is None
        state = after


def test_every_kind_of_document_has_its_duties_and_every_deed_its_meaning() -> None:
    assert set(DUTIES) == set(get_args(DocumentKind))
    assert set(MEANINGS) == set(DEEDS) == set(COMMANDS)
    assert all(duty.people == 2 for kind, duty in DUTIES.items() if not kind.startswith("withdrawal"))
    decides = DUTIES["withdrawal_effect"]
    assert (decides.people, decides.each) == (1, ("officer",))  # beside its author: two people


def test_expiry_follows_from_the_moment() -> None:
    state = state_of(TERMS, ("submit", ADMIN), ("approve", BEA), ("approve", CARL))
    first, last = TERMS.period
    for moment, word in (
        (first - DAY, "not_yet"),
        (first, "active"),
        (last - 61 * DAY, "active"),
        (last - 60 * DAY, "expiring"),
        (last - timedelta(microseconds=1), "expiring"),
        (last, "expired"),
    ):
        assert standing(TERMS, state, moment)[0] == word


class TestSignatures:
    def test_an_act_is_bound_to_record_name_moment_and_meaning(self) -> None:
        act = PLANE.act(TERMS, "approve", BEA)
        verify_act(act)
        changed: list[Act] = [
            act.model_copy(update=update)
            for update in (
                {"record": b"r" * 32},
                {"deed": "terminate", "meaning": MEANINGS["terminate"]},
                {"name": "Carl Conti"},
                {"at": NOW},
                {"key": CARL.key.public},
            )
        ]
        for one in changed:
            with pytest.raises(BadSignature):
                verify_act(one)

    def test_a_meaning_that_is_not_the_deed_s_is_no_act(self) -> None:
        act = PLANE.act(TERMS, "approve", BEA)
        with pytest.raises(ValueError, match="meaning of reject"):
            Act.model_validate(act.model_dump(mode="json") | {"deed": "reject"})

    def test_every_field_of_a_document_changes_its_digest(self) -> None:
        changed = TERMS.model_copy(update={"number": "T-2"})
        assert record_digest(changed) != record_digest(TERMS)
        assert record_digest(TERMS) == record_digest(type(TERMS).model_validate_json(TERMS.model_dump_json()))

    def test_a_hospital_vouches_for_its_own_people_only(self) -> None:
        sites = {site: key.public for site, key in PLANE.site_keys.items()}
        verify_card(PLANE.card(BEA), PLANE.pin, sites)
        verify_card(PLANE.card(PLANE.lead), PLANE.pin, sites)
        bare: PersonCard = PLANE.card(BEA).model_copy(update={"signatures": ()})
        for key in (PLANE.site_keys[SITES[1]], PLANE.officers[0], BEA.key):
            with pytest.raises(TooFewSignatures):
                verify_card(sign_card(bare, key), PLANE.pin, sites)
        with pytest.raises(DocumentRefused):
            verify_card(PLANE.card(BEA), PLANE.pin, {})

    def test_one_officer_cannot_make_a_study_lead(self) -> None:
        bare = PLANE.card(PLANE.lead).model_copy(update={"signatures": ()})
        twice = sign_card(sign_card(bare, PLANE.officers[0]), PLANE.officers[0])
        with pytest.raises(TooFewSignatures, match="1 of 2"):
            verify_card(twice, PLANE.pin, {})

    def test_an_unknown_field_or_kind_is_refused(self) -> None:
        raw = PLANE.record(TERMS, ADMIN).model_dump(mode="json")
        raw["document"]["remark"] = "free text"
        with pytest.raises(ValueError, match="remark"):
            Record.model_validate(raw)
        raw["document"]["kind"] = "permission_slip"
        with pytest.raises(ValueError, match="permission_slip"):
            Record.model_validate(raw)
