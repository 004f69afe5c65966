"""A run begins with the times that its sites needed in the study's run before."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from test_private_params import PRIVACY
from test_scheduler_params import STUDY

from cohortium_kit.db import Database
from cohortium_kit.migrate import migrate
from cohortium_kit.testing.clock import ManualClock
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_scheduler import store
from cohortium_scheduler.choosing import TIMES_LAST, with_earlier_times
from cohortium_scheduler.domain.pace import LEAST_WAIT_S, SLACK, ready_within
from cohortium_scheduler.domain.selection import (
    ENOUGH,
    REMEMBERED,
    TAKEN_OVER,
    Standing,
    after_window,
    taken_over,
)
from cohortium_scheduler.handlers.recruiting import Recruiting

SLOW, QUICK, NEW = (SiteId(str(UUID(int=number))) for number in (1, 2, 3))
CLOCK = ManualClock()
PRIVATE = f"privacy: {json.dumps({'mode': 'local'} | PRIVACY['local'])}\n"
KNOWN = {
    SLOW: Standing(passed=2, asked=20, answered=19, seconds=tuple(float(100 + number) for number in range(REMEMBERED))),
    QUICK: Standing(asked=4, answered=4, seconds=(9.0, 10.0, 11.0)),
    NEW: Standing(passed=3),
}


def study(recipe: str = "{trainer: torch.logistic}", more: str = "") -> Study:
    return parse_study(STUDY % (recipe, "{rounds: 3}") + more)


def run(number: int, of: Study, **known: Any) -> store.Run:
    return store.Run(RunId(str(UUID(int=number))), of, of.digest(), "RECRUITING", "", created_at=CLOCK.now(), **known)


def test_only_the_newest_times_are_taken_over() -> None:
    begun = taken_over(KNOWN)
    assert set(begun) == {SLOW, QUICK}
    assert begun[SLOW] == Standing(seconds=KNOWN[SLOW].seconds[-TAKEN_OVER:], earlier=TAKEN_OVER)
    assert begun[QUICK] == Standing(seconds=(9.0, 10.0, 11.0), earlier=3)
    assert TAKEN_OVER >= ENOUGH
    assert ready_within(begun[QUICK], None) == max(LEAST_WAIT_S, SLACK * 11.0)


def test_they_are_forgotten_as_the_run_learns() -> None:
    standings, seen = taken_over(KNOWN), []
    for _ in range(REMEMBERED):
        standings = after_window(standings, [SLOW], {SLOW: 5.0}, None)
        seen.append(standings[SLOW].earlier)
        assert len(standings[SLOW].seconds) <= REMEMBERED
    assert seen[0] == TAKEN_OVER
    assert seen[-1] == 0
    assert standings[SLOW].usual_s == 5.0


@pytest.mark.parametrize(
    ("before", "now", "days"),
    [
        (study("{trainer: torch.mlp, hidden: [4]}"), study(), 0),
        (study(), study(more=PRIVATE), 0),
        (study(more=PRIVATE), study(), 0),
        (study(), study(), TIMES_LAST.days + 1),
    ],
    ids=["other work", "a private run", "a private run before", "long ago"],
)
def test_other_times_say_nothing(before: Study, now: Study, days: int) -> None:
    earlier, fresh = run(1, before, standings=KNOWN), run(2, now)
    assert with_earlier_times(fresh, earlier, CLOCK.now() + timedelta(days=days)) == fresh


async def test_a_run_that_begins_has_them_on_record(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/scheduler.db", schema="scheduler", clock=CLOCK)
    await migrate(db, "cohortium_scheduler")

    async def record(*_: Any, **__: Any) -> None:
        pass

    recruiting = Recruiting(cast("Any", SimpleNamespace(clock=CLOCK, record=record)), cast("Any", None))
    try:
        async with db.transaction("runs") as tx:
            first = await recruiting.submit(tx, study())
            assert first.standings == {}
            ended = replace(first, state="FINISHED", ended_at=CLOCK.now(), standings=KNOWN)
            await store.save_run(tx, ended, CLOCK.now())
            second = await recruiting.submit(tx, study())
            assert second.run_id != first.run_id
            assert second.standings == taken_over(KNOWN)
            assert await store.find_run(tx, second.run_id) == second
    finally:
        await db.close()
