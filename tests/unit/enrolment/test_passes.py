"""Which login is good and which connection is over, without a broker."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cohortium_enrolment.domain.passes import (
    SKEW,
    Claim,
    Connection,
    Pass,
    PassRules,
    connected_as,
    connections_over,
    judge,
)
from cohortium_enrolment.domain.sites import Active, Invited, Lapsed, Revoked, Site
from cohortium_messages.ids import SiteId
from cohortium_messages.rights import Standing

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ID = SiteId("11111111-1111-4111-8111-111111111111")
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
RULES = PassRules(longest=HOUR, overlap=MINUTE, most_connections=4)
ACTIVE = Active(ID, "Cleveland", bytes(32), NOW - HOUR)
INVITED = Invited(ID, "Cleveland", NOW + HOUR, b"sealed")
REVOKED = Revoked(ID, "Cleveland", bytes(32), "SITE_REVOKED", NOW)


def claim(**changes: Any) -> Claim:
    values = {"issued_at": NOW, "ends_at": NOW + HOUR, "nonce": b"n" * 16, "fits": True}
    return Claim(**{**values, **changes})


def issued(nonce: bytes, *, ago: timedelta, lasts: timedelta = HOUR, standing: Standing = Standing.ACTIVE) -> Pass:
    return Pass(ID, nonce, standing, NOW - ago, NOW - ago + lasts, NOW - ago)


@pytest.mark.parametrize(
    ("site", "changes", "code"),
    [
        (None, {}, "SITE_UNKNOWN"),
        (REVOKED, {}, "SITE_REVOKED"),
        (Lapsed(ID, "Cleveland"), {}, "TOKEN_EXPIRED"),
        (Invited(ID, "Cleveland", NOW, b"sealed"), {}, "TOKEN_EXPIRED"),
        (ACTIVE, {"fits": False}, "LOGIN_BAD_PROOF"),
        (ACTIVE, {"issued_at": NOW + SKEW + timedelta(seconds=1)}, "LOGIN_EARLY"),
        (ACTIVE, {"issued_at": NOW - HOUR, "ends_at": NOW}, "LOGIN_ENDED"),
        (ACTIVE, {"ends_at": NOW + HOUR + timedelta(seconds=1)}, "LOGIN_TOO_LONG"),
        (ACTIVE, {"issued_at": NOW + MINUTE, "ends_at": NOW + MINUTE}, "LOGIN_TOO_LONG"),
    ],
)
def test_why_a_login_is_refused(site: Site | None, changes: dict[str, Any], code: str) -> None:
    assert judge(site, claim(**changes), (), RULES, NOW) == code


@pytest.mark.parametrize(("site", "standing"), [(ACTIVE, Standing.ACTIVE), (INVITED, Standing.INVITED)])
def test_a_good_login_issues_a_pass(site: Site, standing: Standing) -> None:
    found = judge(site, claim(), (), RULES, NOW)
    assert found == Pass(ID, b"n" * 16, standing, NOW, NOW + HOUR, NOW)
    assert judge(site, claim(), [found], RULES, NOW + MINUTE) == found


def test_a_fast_clock_does_not_lengthen_a_pass() -> None:
    ahead = claim(issued_at=NOW + SKEW, ends_at=NOW + SKEW + HOUR)
    found = judge(ACTIVE, ahead, (), RULES, NOW)
    assert isinstance(found, Pass)
    assert found.ends_at == NOW + HOUR


def test_an_older_statement_is_good_in_the_overlap_only() -> None:
    older, newer = issued(b"o" * 16, ago=30 * MINUTE), issued(b"n" * 16, ago=MINUTE / 2)
    again = claim(nonce=b"o" * 16, issued_at=older.issued_at, ends_at=older.ends_at)
    assert judge(ACTIVE, again, [newer, older], RULES, NOW) == older
    assert judge(ACTIVE, again, [newer, older], RULES, NOW + MINUTE) == "LOGIN_RETIRED"


def test_a_statement_never_seen_that_is_older_than_the_newest_is_refused() -> None:
    newest = issued(b"n" * 16, ago=MINUTE)
    hidden = claim(nonce=b"h" * 16, issued_at=newest.issued_at - MINUTE, ends_at=NOW + MINUTE)
    assert judge(ACTIVE, hidden, [newest], RULES, NOW) == "LOGIN_RETIRED"


def test_a_pass_that_has_ended_shuts_nobody_out() -> None:
    """A site whose clock was put back gets in again when its last login has ended."""
    ended = issued(b"e" * 16, ago=2 * HOUR)
    back = claim(issued_at=ended.issued_at - MINUTE, ends_at=ended.issued_at - MINUTE + HOUR)
    assert judge(ACTIVE, back, [ended], RULES, NOW) == "LOGIN_ENDED"
    assert isinstance(judge(ACTIVE, claim(), [ended], RULES, NOW), Pass)


def test_what_was_issued_to_an_invited_site_gains_no_rights() -> None:
    invited = issued(b"n" * 16, ago=MINUTE, standing=Standing.INVITED)
    assert connected_as(ACTIVE, [invited], "invited", NOW) == "LOGIN_RETIRED"
    assert connected_as(ACTIVE, [invited], "active", NOW) == "LOGIN_ENDED"
    both = [invited, judge(ACTIVE, claim(), [invited], RULES, NOW)]
    assert isinstance(both[1], Pass)
    assert both[1].standing is Standing.ACTIVE


@pytest.mark.parametrize("tag", ["", "administrator", "invited", "active "])
def test_only_the_tag_that_the_login_was_given_counts(tag: str) -> None:
    assert connected_as(ACTIVE, [issued(b"n" * 16, ago=MINUTE)], tag, NOW) == "LOGIN_RETIRED"


class TestConnections:
    def over(self, site: Site | None, passes: list[Pass], *connected: timedelta, now: datetime = NOW) -> list[str]:
        sites = {} if site is None else {ID: site}
        listed = [Connection(f"c{number}", ID, NOW - ago) for number, ago in enumerate(connected)]
        return [one.reason for one in connections_over(listed, sites, {ID: passes}, RULES, now)]

    def test_of_a_good_login_none(self) -> None:
        assert self.over(ACTIVE, [issued(b"n" * 16, ago=MINUTE)], MINUTE, MINUTE / 2) == []

    def test_of_a_login_that_ended_or_a_site_that_is_revoked_all(self) -> None:
        one = issued(b"n" * 16, ago=HOUR)
        assert self.over(ACTIVE, [one], HOUR, MINUTE) == ["LOGIN_ENDED"] * 2
        assert self.over(REVOKED, [issued(b"n" * 16, ago=MINUTE)], MINUTE) == ["SITE_REVOKED"]

    def test_older_than_the_newest_login_after_the_overlap(self) -> None:
        passes = [issued(b"n" * 16, ago=2 * MINUTE), issued(b"o" * 16, ago=30 * MINUTE)]
        assert self.over(ACTIVE, passes, 30 * MINUTE, MINUTE) == ["LOGIN_RETIRED"]
        young = [issued(b"n" * 16, ago=MINUTE / 2), issued(b"o" * 16, ago=30 * MINUTE)]
        assert self.over(ACTIVE, young, 30 * MINUTE, MINUTE / 3) == []

    def test_of_the_time_before_registration_when_the_site_is_active(self) -> None:
        invited = issued(b"i" * 16, ago=MINUTE, standing=Standing.INVITED)
        assert self.over(ACTIVE, [invited], MINUTE) == ["LOGIN_ENDED"]

    def test_more_than_the_limit_the_oldest_go(self) -> None:
        ages = [timedelta(seconds=number) for number in range(6)]
        listed = [Connection(f"c{age.seconds}", ID, NOW - age) for age in ages]
        over = connections_over(listed, {ID: ACTIVE}, {ID: [issued(b"n" * 16, ago=MINUTE)]}, RULES, NOW)
        assert {(one.name, one.reason) for one in over} == {
            ("c4", "TOO_MANY_CONNECTIONS"),
            ("c5", "TOO_MANY_CONNECTIONS"),
        }

    def test_of_somebody_else_are_not_ours(self) -> None:
        assert self.over(None, [], HOUR) == []
        listed = [Connection("c", "scheduler", NOW)]
        assert connections_over(listed, {ID: ACTIVE}, {}, RULES, NOW) == []
