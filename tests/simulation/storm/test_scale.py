"""Sites that take turns: each is in a sum, and each sum is that of its sites, word for word."""

import pytest

from cohortium_sim.storm.scale import Measured, measure


def said(measured: Measured) -> str:
    outcome = measured.outcome
    return f"{outcome.state}, {outcome.violations[:3]}, {outcome.counted} of {outcome.scenario.sites} sites counted"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_eight_sites_in_cohorts_of_four_are_all_counted() -> None:
    measured = measure(8, 4)
    assert measured.whole, said(measured)
    assert measured.outcome.opened == 2 + 1, "two rounds, and the statistics before them"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_a_thousand_sites_in_cohorts_of_twenty_are_all_counted() -> None:
    """A quarter of an hour of one core, and 2.3 GB."""
    measured = measure(1000, 20)
    assert measured.whole, said(measured)
    assert measured.outcome.opened == 50 + 1
