"""Runs of LightGBM through the whole scheduler: sessions that pause, sites that come back, and sites that do not."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from scheduler_stage import STUDY, Stage, authorise, close, make_all_ready, recruit, released, submit

from cohortium_kit.clock import SystemClock
from cohortium_messages import events
from cohortium_messages.governance import AuthoriseAsked, Authorised, Permit
from cohortium_messages.ids import SiteId
from cohortium_messages.runs import Presence, RunEnded, SessionOpened, TaskRefused
from cohortium_messages.secure_sum import ModelRef, WindowClosed, WindowOpen
from cohortium_protocol.keys import WindowKeys
from cohortium_protocol.window import make_ready
from cohortium_scheduler import store
from cohortium_scheduler.domain.course import NO_CHAIN, NO_TRAINING, Training
from cohortium_scheduler.domain.windows import ANYONE, Among, Rejoining, Remaining

CHAIN = bytes([7]) * 32


def model(version: int) -> ModelRef:
    return ModelRef(version=version, model_hash=bytes([version]) * 32)


def boosting(stage: Stage, **federation: Any) -> None:
    """Make the stage's study one of LightGBM. Sites that stay away are given up soon."""
    recipe = {"trainer": "lightgbm", "rounds": 40}
    values = {"min_sites": 3, "deadlines": {"ready_s": 30, "step_s": 5}, "rejoin_s": 30}
    stage.study = STUDY | {"recipe": recipe, "federation": values | federation}


async def ready(stage: Stage, window: WindowOpen, *sites: SiteId) -> None:
    base = window.params.bases[-1].model_hash
    for site in sites:
        await stage.site_says(site, make_ready(window.params, site, base, WindowKeys.generate(), stage.sites[site]))


async def prepared(stage: Stage, *, refine: bool = False) -> tuple[str, int]:
    """A run up to its first training window; how many windows there have been."""
    run_id, _, _ = await recruit(stage)
    await released(stage, 1, 0, training_rows=200, parameters=0, refine=refine)
    if refine:
        await released(stage, 2, 1)
    return run_id, 2 if refine else 1


async def first_session(stage: Stage, number: int) -> WindowOpen:
    window = await authorise(stage, number=number)
    await make_all_ready(stage, window)
    await stage.wait(SessionOpened, number)
    return window


async def paused(stage: Stage, window: WindowOpen, *, trees: int, version: int = 0, **more: Any) -> None:
    values: dict[str, Any] = {"trees": trees, "steps": 100, "chain": CHAIN if trees else bytes(32)}
    if version:
        values["model"] = model(version)
    await close(stage, window, "PAUSED", **({"reason": "SITE_SILENT"} | values | more))


async def evaluated(stage: Stage, number: int, *, unopened: int = 0) -> None:
    window = await authorise(stage, number=number, unopened=unopened)
    assert window.params.purpose == "evaluation"
    await make_all_ready(stage, window)
    await stage.wait(SessionOpened, len([1 for _, m in stage.heard if isinstance(m, SessionOpened)]) + 1)
    await close(stage, window)


async def test_a_paused_session_goes_on_with_all_of_its_sites(stage: Stage) -> None:
    boosting(stage)
    run_id, done = await prepared(stage, refine=True)
    window = await first_session(stage, done + 1)
    strict = window.params.strict
    assert strict is not None
    assert (window.params.purpose, window.params.kind, window.params.round) == ("training", "strict", 1)
    assert (strict.rounds, strict.trees_done, strict.chain, strict.from_model) == (40, 0, NO_CHAIN, None)
    assert (strict.total_rows, strict.step_s) == (200, 5)
    assert window.params.bases == (model(1),)
    await paused(stage, window, trees=12, version=2)

    again = await authorise(stage, number=done + 2)
    strict = again.params.strict
    assert strict is not None
    assert (strict.trees_done, strict.chain, strict.from_model) == (12, CHAIN, None)
    assert again.params.bases == (model(1),), "sites replay their journals on the same bins"
    assert (window.params.deadlines.ready_s, again.params.deadlines.ready_s) == (30, 30)
    sites = list(stage.sites)
    await ready(stage, again, *sites[:3])
    await asyncio.sleep(0.3)
    assert len(await stage.wait(SessionOpened, done + 1)) == done + 1, "three are enough for any other window"
    await ready(stage, again, sites[3])
    sessions = await stage.wait(SessionOpened, done + 2)
    rosters = [tuple(entry.site_id for entry in session.roster.entries) for session in sessions[-2:]]
    assert rosters[0] == rosters[1]
    await close(stage, again, model=model(3), trees=40, steps=300, chain=bytes([9]) * 32)

    await evaluated(stage, done + 3)
    status = await stage.state_is(run_id, "FINISHED")
    assert status["reason"] == ""
    assert status["boosting"] == {"trees": 40, "rounds": 40, "sessions": 2, "steps": 400, "cohort_changes": 0}
    (trained,) = status["rounds_done"]
    assert (trained["number"], trained["model_version"], trained["trees"]) == (1, 3, 40)
    assert (len(trained["cohort"]), trained["dropped"]) == (4, []), "it came back"
    assert status["attempts_failed"] == 0, "a pause with new trees is no failure"
    assert [site["updates_used"] for site in status["sites"]] == [2, 2, 2, 2]
    states = [event.state for event in await stage.wait(events.RunStateChanged, 3)]
    assert states == ["PREPARING", "TRAINING", "FINISHED"]


async def test_trees_are_published_when_a_site_does_not_come_back(stage: Stage) -> None:
    boosting(stage, rejoin_s=0.4)
    run_id, done = await prepared(stage)
    window = await first_session(stage, done + 1)
    await paused(stage, window, trees=5, version=1)
    again = await authorise(stage, number=done + 2)
    assert again.params.deadlines.ready_s == 0.4
    await ready(stage, again, *list(stage.sites)[:3])
    ended = await stage.wait(WindowClosed, 4, lambda closed: closed.window_id == again.params.window_id)
    assert {closed.reason for closed in ended} == {"SITES_LOST"}
    await evaluated(stage, done + 3)
    status = await stage.state_is(run_id, "FINISHED")
    assert status["reason"] == "SITES_LOST"
    assert "fewer trees" in status["sentence"]
    over = await stage.wait(RunEnded, 5)
    assert (over[0].state, over[0].reason, over[0].model) == ("FINISHED", "SITES_LOST", model(1))
    (trained,) = status["rounds_done"]
    names = {site["site_id"]: site["name"] for site in status["sites"]}
    assert (trained["trees"], len(trained["cohort"])) == (5, 4)
    assert trained["dropped"] == [names[list(stage.sites)[3]]]
    assert [site["updates_used"] for site in status["sites"]] == [1] * 4, "its rows are in the sums before it was lost"


async def test_a_run_without_trees_fails_when_a_site_does_not_come_back(stage: Stage) -> None:
    boosting(stage, rejoin_s=0.3)
    run_id, done = await prepared(stage)
    await paused(stage, await first_session(stage, done + 1), trees=0)
    await authorise(stage, number=done + 2)
    status = await stage.state_is(run_id, "FAILED")
    assert (status["reason"], status["rounds_done"], status["boosting"]["trees"]) == ("SITES_LOST", [], 0)


async def test_the_others_go_on_from_the_checkpoint_where_the_study_allows_it(stage: Stage) -> None:
    boosting(stage, rejoin_s=0.5, allow_cohort_change=True)
    run_id, done = await prepared(stage)
    await paused(stage, await first_session(stage, done + 1), trees=5, version=1)
    again = await authorise(stage, number=done + 2)
    stayed = sorted(list(stage.sites)[:3])
    await ready(stage, again, *stayed)
    changed = await authorise(stage, number=done + 3)
    strict = changed.params.strict
    assert strict is not None
    assert (strict.trees_done, strict.chain, strict.from_model) == (5, CHAIN, model(1))
    assert changed.params.bases == (model(1),)
    question = (await stage.wait(AuthoriseAsked, done + 3))[-1]
    assert sorted(question.sites) == stayed, "only those who may be in the cohort are asked for"
    await ready(stage, changed, *stayed)
    session = (await stage.wait(SessionOpened, done + 2))[-1]
    assert sorted(entry.site_id for entry in session.roster.entries) == stayed
    await close(stage, changed, model=model(2), trees=40, steps=10, chain=CHAIN)
    await evaluated(stage, done + 4)
    status = await stage.state_is(run_id, "FINISHED")
    assert (status["reason"], status["boosting"]["cohort_changes"]) == ("", 1)
    (trained,) = status["rounds_done"]
    assert (len(trained["cohort"]), len(trained["dropped"])) == (3, 1)
    assert sorted(site["updates_used"] for site in status["sites"]) == [1, 2, 2, 2]


async def test_a_withdrawn_grant_ends_the_wait_before_anybody_is_asked(stage: Stage) -> None:
    boosting(stage)
    run_id, done = await prepared(stage)
    await paused(stage, await first_session(stage, done + 1), trees=5, version=1)
    gone = next(iter(stage.sites))
    for number in (done + 2, done + 3):
        question = (await stage.wait(AuthoriseAsked, number))[-1]
        permits = tuple(
            Permit(site_id=site, permitted=site != gone, deny_code="GRANT_WITHDRAWN" if site == gone else None)
            for site in question.sites
        )
        answer = Authorised(question_id=question.question_id, run_id=question.run_id, permits=permits)
        await stage.say("consent", answer)
        await stage.wait(events.WindowEnded, number - done - 1, lambda event: event.reason == "SITE_REFUSED")
    await evaluated(stage, done + 4, unopened=2)
    assert (await stage.state_is(run_id, "FINISHED"))["reason"] == "SITES_LOST"


async def test_a_site_without_its_journal_makes_all_go_on_from_the_checkpoint(stage: Stage) -> None:
    boosting(stage)
    _, done = await prepared(stage)
    await paused(stage, await first_session(stage, done + 1), trees=5, version=1)
    again = await authorise(stage, number=done + 2)
    site = next(iter(stage.sites))
    params = again.params
    refused = TaskRefused(window_id=params.window_id, run_id=params.run_id, site_id=site, code="JOURNAL_UNUSABLE")
    await stage.site_says(site, refused)
    after = await authorise(stage, number=done + 3)
    assert after.params.strict is not None
    assert (after.params.strict.from_model, after.params.strict.trees_done) == (model(1), 5)
    await ready(stage, after, *list(stage.sites)[:3])
    await asyncio.sleep(0.2)
    assert len(await stage.wait(SessionOpened, done + 1)) == done + 1, "still the same cohort, and all of it"


async def test_sites_that_the_statistics_did_not_count_are_in_no_session(stage: Stage) -> None:
    boosting(stage)
    await recruit(stage)
    window = await authorise(stage)
    await make_all_ready(stage, window)
    await stage.wait(SessionOpened, 1)
    counted = tuple(list(stage.sites)[:3])
    await close(stage, window, survivors=counted, model=model(0), training_rows=100)
    question = (await stage.wait(AuthoriseAsked, 2))[-1]
    assert question.sites == counted


async def test_a_run_that_has_not_begun_shows_no_tree(stage: Stage) -> None:
    boosting(stage)
    run_id, _ = await submit(stage)
    status = await stage.status(run_id)
    assert (status["state"], status["rounds_done"], status["boosting"]["trees"]) == ("RECRUITING", [], 0)


async def test_people_see_the_trees_of_an_open_session_by_its_sites_word(stage: Stage) -> None:
    boosting(stage)
    run_id, done = await prepared(stage)
    await first_session(stage, done + 1)
    for site, progress in zip(stage.sites, (0.25, 0.3, 0.275), strict=False):
        told = Presence(site_id=site, state="training", progress=progress, sent_at=SystemClock().now())
        await stage.bus.publish(stage.site_sender(site).outgoing("uplink", f"site.{site}.presence", told))
    await asyncio.sleep(0.2)
    status = await stage.status(run_id)
    assert status["boosting"]["trees"] == 12
    assert status["window"]["purpose"] == "training"
    (line,) = (await stage.http.get("/runs")).json()["items"]
    assert (line["boosting"]["trees"], line["boosting"]["rounds"]) == (0, 40), "what stands, without the sites' word"


@pytest.mark.parametrize("cohort", [ANYONE, Among, Rejoining, Remaining])
async def test_what_sessions_rest_on_outlives_the_process(stage: Stage, cohort: Any) -> None:
    boosting(stage)
    await recruit(stage)
    await stage.wait(AuthoriseAsked)
    sites = tuple(stage.sites)
    training = Training(sites, model(1), sites[:3], 12, CHAIN, model(2), replays=False, sessions=3, steps=99)
    now = SystemClock().now()
    async with stage.db.transaction("test_save") as tx:
        run_id = (await store.unfinished_runs(tx))[0][0]
        run = await store.find_run(tx, run_id)
        window = await store.newest_window(tx, run_id)
        assert run is not None
        assert window is not None
        await store.save_run(tx, replace(run, training=training), now)
        changed = replace(window, cohort=cohort if cohort is ANYONE else cohort(sites))
        await store.save_window(tx, changed, now)
    async with stage.db.reading("test_load") as tx:
        found = await store.find_run(tx, run_id)
        assert found is not None
        assert found.training == training
        assert await store.newest_window(tx, run_id) == changed


async def test_rows_of_the_version_before_have_no_sessions(stage: Stage) -> None:
    await recruit(stage)
    await stage.wait(AuthoriseAsked)
    async with stage.db.transaction("test_blank") as tx:
        await tx.execute(sa.update(store.run_table).values(training_json=None))
        await tx.execute(sa.update(store.window_table).values(cohort_json=None))
        run_id = (await store.unfinished_runs(tx))[0][0]
        run, window = await store.find_run(tx, run_id), await store.newest_window(tx, run_id)
    assert run is not None
    assert run.training == NO_TRAINING
    assert window is not None
    assert window.cohort == ANYONE
