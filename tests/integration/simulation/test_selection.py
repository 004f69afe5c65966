"""A study that asks three of five sites in each round, from its file to the record of its run."""

from collections import Counter
from pathlib import Path

import pytest
from tests.integration.simulation.noise import check_sums, noise_plan, noise_study, started

ROUNDS, SITES, ASKED = 4, ("a", "b", "c", "d", "e"), 3


@pytest.mark.timeout(600)
async def test_each_round_asks_some_and_its_record_says_why(tmp_path: Path) -> None:
    async with started(noise_plan(tmp_path, noise_study(ROUNDS, participants=ASKED), SITES)) as simulation:
        run_id = await simulation.submit()
        status = await simulation.watch(run_id, None)
        await check_sums(simulation, run_id, status)
    asked: Counter[str] = Counter()
    away: set[str] = set()
    for done in status.rounds_done:
        chosen = {choice.site for choice in done.choices if choice.asked}
        assert set(done.cohort) == chosen
        assert len(chosen) == ASKED
        assert {choice.site for choice in done.choices} == set(SITES)
        assert all(choice.reason in ("PASSED_OVER", "ABSENT") for choice in done.choices if not choice.asked)
        away |= {choice.site for choice in done.choices if choice.reason.startswith("ABSENT")}
        asked.update(chosen)
    # On a machine that is too busy to hear a site in time it counts as away, and it may be so in every round.
    assert set(SITES) - away <= set(asked)
    for site in status.sites:
        assert site.asked == site.answered == asked[site.name] == site.updates_used
