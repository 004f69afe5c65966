"""A site that made an attempt fail, by proof, is left out of the next one; nobody is for anything less."""

from dataclasses import replace
from typing import Any
from uuid import UUID

from course_story import SITES, ended

from cohortium_messages.governance import Permit
from cohortium_messages.ids import SiteId
from cohortium_scheduler.choosing import LEFT_OUT, without_blamed
from cohortium_scheduler.domain.windows import Planned, Window

PERMITS = tuple(Permit(site_id=site, permitted=True, grant_digest=bytes(32)) for site in SITES)
BAD = SITES[1]


def failed(**closed: Any) -> Window:
    window = ended("update", "FAILED", "SHARES_INCONSISTENT", round_=3, attempt=1, **closed)
    return replace(window, sequence=5)


def planned(before: Window, **changes: Any) -> Window:
    state = Planned(bytes(16), before.state.ended_at)  # type: ignore[union-attr]
    return replace(before, sequence=6, attempt=2, state=state, **changes)


def test_the_next_attempt_goes_without_the_dealer_that_made_the_last_one_fail() -> None:
    before = failed(blamed=(BAD,))
    permits = without_blamed(planned(before), [before, planned(before)], PERMITS, 3)
    assert [(one.site_id, one.permitted, one.deny_code) for one in permits] == [
        (site, site != BAD, LEFT_OUT if site == BAD else None) for site in SITES
    ]


def test_another_round_asks_it_again() -> None:
    before = failed(blamed=(BAD,))
    assert without_blamed(planned(before, round=4), [before], PERMITS, 3) == PERMITS


def test_nobody_is_left_out_without_proof_or_where_too_few_would_be_left() -> None:
    assert without_blamed(planned(failed()), [failed()], PERMITS, 3) == PERMITS
    before = failed(blamed=(BAD,))
    assert without_blamed(planned(before), [before], PERMITS, len(SITES)) == PERMITS


def test_who_is_denied_already_stays_denied_for_its_own_reason() -> None:
    before = failed(blamed=(BAD,))
    denied = Permit(site_id=SiteId(str(UUID(int=77))), permitted=False, deny_code="GRANT_NOT_FOUND")
    assert without_blamed(planned(before), [before], (*PERMITS, denied), 3)[-1] == denied
