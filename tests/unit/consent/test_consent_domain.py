"""The policy and the life of a grant, without anything around them."""

from dataclasses import replace
from datetime import timedelta
from itertools import product
from uuid import UUID

import pytest

from cohortium_consent.domain import (
    TRANSITIONS,
    Command,
    Denied,
    GiveAgain,
    Grant,
    Granted,
    GrantRecord,
    Membership,
    Permitted,
    Question,
    Standing,
    Stop,
    Stopped,
    Superseded,
    Withdrawn,
    advance,
    authorise,
    effective,
    first_state,
    state_name,
)
from cohortium_kit.testing.clock import START
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.problems import SENTENCES

SITE = SiteId(str(UUID(int=1, version=4)))
STUDY, DIGEST = StudyId("heart"), b"\1" * 32
GRANT = Grant(STUDY, DIGEST, SITE, b"\2" * 32, START, START + timedelta(days=1), 5, ("Dr. Ada",))
STATES: list[GrantRecord] = [Granted(GRANT), Superseded(GRANT), Withdrawn(GRANT, START, "GRANT_WITHDRAWN")]
COMMANDS: list[Command] = [GiveAgain(), Stop(START, "GRANT_WITHDRAWN"), Stop(START, "SITE_REVOKED")]
MEMBERS = Membership(STUDY, DIGEST, 1, frozenset({SITE}))
GOOD = Standing(frozenset(), MEMBERS, Granted(GRANT))
ASKED = Question(SITE, DIGEST, 1, START + timedelta(hours=1))


@pytest.mark.parametrize(("state", "command"), list(product(STATES, COMMANDS)))
def test_advance_follows_the_table_and_a_repetition_changes_nothing(state: GrantRecord, command: Command) -> None:
    after, _ = advance(state, command)
    assert type(after) is TRANSITIONS[type(state), type(command)]
    assert advance(after, command) == (after, ())


def test_only_a_grant_in_force_can_be_stopped() -> None:
    assert advance(Granted(GRANT), Stop(START, "GRANT_WITHDRAWN"))[1] == (Stopped(GRANT, "GRANT_WITHDRAWN"),)
    assert advance(Superseded(GRANT), Stop(START, "GRANT_WITHDRAWN"))[1] == ()


def test_a_member_with_a_grant_in_force_is_permitted_on_that_grant() -> None:
    assert authorise(GOOD, ASKED) == Permitted(GRANT.grant_digest)


@pytest.mark.parametrize(
    ("standing", "question", "code"),
    [
        (replace(GOOD, revoked_sites=frozenset({SITE})), ASKED, "SITE_REVOKED"),
        (replace(GOOD, membership=None), ASKED, "NOT_A_MEMBER"),
        (replace(GOOD, membership=replace(MEMBERS, members=frozenset())), ASKED, "NOT_A_MEMBER"),
        (GOOD, replace(ASKED, study_digest=b"\7" * 32), "NOT_A_MEMBER"),
        (replace(GOOD, record=None), ASKED, "GRANT_NOT_FOUND"),
        (replace(GOOD, record=Superseded(GRANT)), ASKED, "GRANT_NOT_FOUND"),
        (replace(GOOD, record=Withdrawn(GRANT, START, "GRANT_WITHDRAWN")), ASKED, "GRANT_WITHDRAWN"),
        (GOOD, replace(ASKED, now=START - timedelta(microseconds=1)), "GRANT_NOT_YET_VALID"),
        (GOOD, replace(ASKED, now=GRANT.not_after), "GRANT_EXPIRED"),
        (GOOD, replace(ASKED, round_number=6), "GRANT_ROUNDS_SPENT"),
    ],
)
def test_each_reason_to_deny_has_its_code_and_its_sentence(standing: Standing, question: Question, code: str) -> None:
    assert authorise(standing, question) == Denied(code)
    assert code in SENTENCES


@pytest.mark.parametrize(
    "question",
    [
        replace(ASKED, now=START),
        replace(ASKED, now=GRANT.not_after - timedelta(microseconds=1)),
        replace(ASKED, round_number=0),
        replace(ASKED, round_number=5),
    ],
)
def test_a_grant_covers_its_first_and_its_last_moment_and_round(question: Question) -> None:
    assert authorise(GOOD, question) == Permitted(GRANT.grant_digest)


def test_expiry_follows_from_the_moment_of_the_question() -> None:
    assert state_name(Granted(GRANT), GRANT.not_after - timedelta(seconds=1)) == "granted"
    assert state_name(Granted(GRANT), GRANT.not_after) == "expired"


def test_a_grant_from_before_the_withdrawal_does_not_undo_it_and_one_from_after_it_counts() -> None:
    later = START + timedelta(seconds=1)
    assert first_state(GRANT, later) == Withdrawn(GRANT, later, "GRANT_WITHDRAWN")
    assert first_state(GRANT, START) == Granted(GRANT)
    assert first_state(GRANT, None) == Granted(GRANT)


def test_a_withdrawal_never_waits_for_a_clock() -> None:
    assert effective(START + timedelta(days=3), START) == START
    assert effective(START - timedelta(days=3), START) == START - timedelta(days=3)
