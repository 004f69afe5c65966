"""A private run at a running scheduler: a sum that failed is one of those that were planned."""

import json
from typing import Any

from scheduler_stage import STUDY, Stage, authorise, close, make_all_ready, recruit, released

from cohortium_messages.governance import AuthoriseAsked
from cohortium_messages.runs import RunEnded, SessionOpened
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.study_file import parse_study
from cohortium_privacy.prices import planned_parts
from cohortium_privacy.windows import course_of, plan_for, usual_plan
from cohortium_protocol.documents import default_collusion

PRIVATE: dict[str, Any] = STUDY | {
    "recipe": {"trainer": "torch.logistic", "local": {"optimizer": "sgd", "lr": 0.5}},
    "privacy": {"mode": "distributed", "epsilon": 4, "delta": 1e-5, "sampling_rate": 0.5, "patients": 800},
}


def made_before() -> None:
    """Plans take a second each, and are remembered: the windows of the test do not wait for them."""
    study = parse_study(json.dumps(PRIVATE))
    collusion = default_collusion(4)
    least = course_of(study, 4, max(3, collusion + 2), collusion).least_sites
    plan = plan_for(study, 4, least, collusion)
    assert plan is not None
    planned_parts(plan, study.rounds)
    usual_plan(study)


async def failed(stage: Stage, number: int, state: str) -> None:
    """One window from question to an end without a release."""
    window = await authorise(stage, number=number)
    await make_all_ready(stage, window)
    await stage.wait(SessionOpened, number)
    await close(stage, window, state, reason="NOT_ENOUGH_SHARES")


async def test_a_sum_that_failed_costs_a_round(stage: Stage) -> None:
    made_before()
    stage.study = PRIVATE
    run_id, _, _ = await recruit(stage)
    await released(stage, 1, 0, parameters=2)
    await failed(stage, 2, "FAILED")
    asked = (await stage.wait(AuthoriseAsked, 3))[-1]
    assert asked.round == 1, "nothing was released yet, so the first round is asked for again"
    told = (await stage.status(run_id))["privacy"]
    assert (told["sums_planned"], told["sums_charged"], told["statement"]["epsilon"]) == (2, 1, 4)
    await released(stage, 3, 1)
    over = await stage.state_is(run_id, "FINISHED")
    assert over["reason"] == "PLAN_SPENT"
    assert [done["number"] for done in over["rounds_done"]] == [1]
    assert over["privacy"]["sums_charged"] == 2
    (ended, *_) = await stage.wait(RunEnded)
    assert ended.model == ModelRef(version=1, model_hash=b"\1" * 32)
    questions = {message.question_id for _, message in stage.heard if isinstance(message, AuthoriseAsked)}
    assert len(questions) == 3, "a third noisy sum was asked for"


async def test_a_sum_that_was_aborted_is_planned_again(stage: Stage) -> None:
    made_before()
    stage.study = PRIVATE
    run_id, _, _ = await recruit(stage)
    await released(stage, 1, 0, parameters=2)
    await failed(stage, 2, "ABORTED")
    await released(stage, 3, 1)
    await released(stage, 4, 2)
    over = await stage.state_is(run_id, "FINISHED")
    assert (over["reason"], over["privacy"]["sums_charged"]) == ("", 2)
    assert [done["number"] for done in over["rounds_done"]] == [1, 2]
