"""A study that asks three of five sites in each round, from its file to the record of its run."""

from collections import Counter
from pathlib import Path

import pytest
from tests.integration.simulation.noise import check_sums, noise_plan, noise_study, started

ROUNDS, SITES, ASKED = 6, ("a", "b", "c", "d", "e"), 3


@pytest.mark.timeout(240)
async def test_each_round_asks_some_and_its_record_says_why(tmp_path: Path) -> None:
    async with started(noise_plan(tmp_path, noise_study(ROUNDS, participants=ASKED), SITES)) as simulation:
        run_id = await simulation.submit()
        status = await simulation.watch(run_id, None)
        await check_sums(simulation, run_id, status)
    asked: Counter[str] = Counter()
    for done in status.rounds_done:
        chosen = {choice.site for choice in done.choices if choice.asked}
        assert set(done.cohort) == chosen
        assert len(chosen) == ASKED
        assert {choice.site for choice in done.choices} == set(SITES)
        reasons = {choice.reason for choice in done.choices if not choice.asked}
        assert reasons == {"PASSED_OVER"}
        asked.update(chosen)
    assert set(asked) == set(SITES)
    for site in status.sites:
        assert site.asked == site.answered == asked[site.name] == site.updates_used
