"""A round's deadlines come from what sites reported and did, are what the sites are told, and the record says why."""

from typing import Any

import pytest
from scheduler_stage import STUDY, Stage, authorise, close, make_all_ready, recruit, released
from test_private_params import PRIVACY

from cohortium_kit.clock import SystemClock
from cohortium_messages.ids import SiteId
from cohortium_messages.preflight import Capacity, PreflightCheck, PreflightReport
from cohortium_messages.runs import SessionOpened
from cohortium_messages.secure_sum import ModelRef, WindowOpen
from cohortium_scheduler.domain.pace import REPORT_LEAST_S, REPORT_SLACK, UPLOAD_LEAST_S

PARAMETERS = 2_000_000
TRAINING_S, SLOW_TRAINING_S = 1.0, 50.0
LIMITS = {"ready_s": 3600, "upload_s": 900}


async def report(stage: Stage, site: SiteId, training_s: float | None = TRAINING_S) -> None:
    told = PreflightReport(
        site_id=site,
        made_at=SystemClock().now(),
        connector="1",
        checks=(PreflightCheck(name="line", state="ok"),),
        capacity=Capacity(cpus=2, memory_mb=8000, up_mbit_s=8, down_mbit_s=64, training_s=training_s),
    )
    await stage.site_says(site, told)


async def counted(stage: Stage) -> str:
    """A run whose statistics are known: four sites with no rows to speak of, and a model of two million parameters."""
    stage.study = {
        **STUDY,
        "metrics": [],
        "federation": {**STUDY["federation"], "rounds": 3, "deadlines": LIMITS},
        **stage.study,
    }
    run_id, _, _ = await recruit(stage)
    await released(stage, 1, 0, parameters=PARAMETERS, training_rows=4)
    return run_id


async def round_of(stage: Stage, number: int, **more: Any) -> WindowOpen:
    window = await authorise(stage, number=number)
    await make_all_ready(stage, window)
    await stage.wait(SessionOpened, number)
    await close(stage, window, model=ModelRef(version=number, model_hash=bytes([number]) * 32), **more)
    return window


async def test_reports_set_a_rounds_deadlines_and_the_record_names_them(stage: Stage) -> None:
    stage.study = {}
    slow, *others = stage.sites
    run_id = await counted(stage)
    for site in others:
        await report(stage, site)
    await report(stage, slow, SLOW_TRAINING_S)

    window = await authorise(stage, number=2)
    status = await stage.status(run_id)
    pace = status["window"]["pace"]
    by_name = {site["site"]: site for site in pace["sites"]}
    (slowest,) = [by_name[site["name"]] for site in status["sites"] if site["site_id"] == slow]
    # Eight megabytes down at 64 Mbit/s, and the probe; its work is more than the round's.
    assert slowest["expected_s"] == pytest.approx(1 + SLOW_TRAINING_S)
    assert slowest["source"] == "report"
    assert pace["ready_s"] == pytest.approx(REPORT_SLACK * (1 + SLOW_TRAINING_S))
    assert sorted(site["ready_s"] for site in pace["sites"])[:3] == [REPORT_LEAST_S] * 3
    # Four megabytes up at 8 Mbit/s.
    assert pace["upload_s"] == window.params.deadlines.upload_s == UPLOAD_LEAST_S
    assert window.params.deadlines.ready_s == LIMITS["ready_s"]

    await make_all_ready(stage, window)
    await stage.wait(SessionOpened, 2)
    survivors = tuple(site for site in stage.sites if site != slow)
    model = ModelRef(version=2, model_hash=bytes(32))
    await close(stage, window, model=model, survivors=survivors, dropped=(slow,))
    third = await authorise(stage, number=3)
    assert third.params.deadlines.upload_s == 2 * UPLOAD_LEAST_S, "an upload did not come in time"
    status = await stage.status(run_id)
    assert {site["source"] for site in status["window"]["pace"]["sites"]} == {"blended"}
    assert status["rounds_done"][-1]["pace"] == pace, "of a round that is over it stays on record"


async def test_where_one_site_has_not_said_anything_the_studys_deadlines_hold(stage: Stage) -> None:
    stage.study = {}
    others = list(stage.sites)[1:]
    run_id = await counted(stage)
    for site in others:
        await report(stage, site)
    window = await authorise(stage, number=2)
    pace = (await stage.status(run_id))["window"]["pace"]
    assert (pace["ready_s"], pace["upload_s"]) == (LIMITS["ready_s"], LIMITS["upload_s"])
    assert window.params.deadlines.upload_s == LIMITS["upload_s"]
    assert sorted(site["source"] for site in pace["sites"]) == ["report"] * 3 + ["unknown"]


async def test_too_few_uploads_count_against_all_of_the_cohort(stage: Stage) -> None:
    stage.study = {}
    await counted(stage)
    for site in stage.sites:
        await report(stage, site)
    window = await round_of(stage, 2, state="ABORTED", reason="NOT_ENOUGH_UPLOADS")
    again = await authorise(stage, number=3)
    assert again.params.round == window.params.round
    assert again.params.deadlines.upload_s == 2 * UPLOAD_LEAST_S
    await make_all_ready(stage, again)
    await stage.wait(SessionOpened, 3)
    await close(stage, again, model=ModelRef(version=3, model_hash=bytes(32)))
    after = await authorise(stage, number=4)
    assert after.params.deadlines.upload_s == 2 * UPLOAD_LEAST_S, "one upload in time forgot the miss"


async def test_where_privacy_is_promised_deadlines_are_the_studys(stage: Stage) -> None:
    stage.study = {"privacy": {"mode": "local"} | PRIVACY["local"], "metrics": ["auc"]}
    run_id = await counted(stage)
    for site in stage.sites:
        await report(stage, site)
    window = await authorise(stage, number=2)
    assert window.params.deadlines.upload_s == LIMITS["upload_s"]
    assert (await stage.status(run_id))["window"]["pace"] is None
