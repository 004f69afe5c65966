"""The life of a registration, as a table."""

from dataclasses import replace
from datetime import timedelta
from itertools import product
from uuid import UUID

import pytest

from cohortium_enrolment.domain.sites import (
    TRANSITIONS,
    Active,
    Command,
    Confirmed,
    Ended,
    Enrolled,
    Invited,
    Lapsed,
    Refused,
    Register,
    Replace,
    Revoke,
    Revoked,
    Site,
    advance,
)
from cohortium_kit.testing.clock import START
from cohortium_messages.ids import SiteId

SITE = SiteId(str(UUID(int=1, version=4)))
KEY, OTHER = b"\1" * 32, b"\2" * 32
INVITED = Invited(SITE, "Hospital", START + timedelta(hours=24), b"sealed")
ACTIVE = Active(SITE, "Hospital", KEY, START)
STATES: list[Site] = [INVITED, Lapsed(SITE, "Hospital"), ACTIVE, Revoked(SITE, "Hospital", KEY, "SITE_REVOKED", START)]
COMMANDS: list[Command] = [
    Register(KEY, "FITS", START),
    Register(OTHER, "FITS", START),
    Register(KEY, "BAD_PROOF", START),
    Register(KEY, "TOKEN_UNKNOWN", START),
    Register(KEY, "FITS", START + timedelta(hours=25)),
    Replace(),
    Revoke("SITE_REVOKED", START),
]


@pytest.mark.parametrize(("state", "command"), list(product(STATES, COMMANDS)))
def test_advance_follows_the_table_and_a_repetition_changes_nothing(state: Site, command: Command) -> None:
    after, _ = advance(state, command)
    assert type(after) in TRANSITIONS[type(state), type(command)]
    again, _ = advance(after, command)
    assert again == after


def test_a_good_registration_enrols() -> None:
    after, events = advance(INVITED, Register(KEY, "FITS", START))
    assert after == ACTIVE
    assert events == (Enrolled(SITE, "Hospital", KEY),)


def test_the_same_key_again_is_confirmed_and_another_one_is_refused() -> None:
    assert advance(ACTIVE, Register(KEY, "FITS", START)) == (ACTIVE, (Confirmed(SITE, "Hospital", KEY),))
    assert advance(ACTIVE, Register(OTHER, "FITS", START)) == (ACTIVE, (Refused(SITE, "TOKEN_SPENT"),))


def test_an_invitation_ends_at_its_very_second() -> None:
    end = INVITED.expires_at
    assert advance(INVITED, Register(KEY, "FITS", end))[1] == (Refused(SITE, "TOKEN_EXPIRED"),)
    assert isinstance(advance(INVITED, Register(KEY, "FITS", end - timedelta(microseconds=1)))[0], Active)


def test_a_token_that_does_not_fit_leaves_the_invitation_open() -> None:
    assert advance(INVITED, Register(KEY, "TOKEN_UNKNOWN", START)) == (INVITED, (Refused(SITE, "TOKEN_UNKNOWN"),))


def test_revoking_an_invitation_tells_nobody_and_revoking_a_site_tells_everybody() -> None:
    assert advance(INVITED, Revoke("SITE_REVOKED", START))[1] == ()
    after, events = advance(ACTIVE, Revoke("SITE_REVOKED", START))
    assert events == (Ended(SITE, "SITE_REVOKED"),)
    later = Revoke("SITE_REVOKED", START + timedelta(hours=1))
    assert advance(after, later) == (after, ())


def test_a_revoked_site_never_comes_back() -> None:
    revoked = replace(Revoked(SITE, "Hospital", KEY, "SITE_REVOKED", START))
    assert advance(revoked, Register(KEY, "FITS", START)) == (revoked, (Refused(SITE, "SITE_REVOKED"),))
