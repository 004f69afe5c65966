"""A private run at a running scheduler: a sum that failed is one of those that were planned."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from scheduler_stage import (
    STUDY,
    Stage,
    authorise,
    close,
    make_all_ready,
    recruit,
    released,
    signed_manifest,
    submit,
)

from cohortium_kit.clock import SystemClock
from cohortium_messages.governance import AuthoriseAsked, GrantRecorded, Manifest, ManifestPublished, Member
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.runs import RunEnded, SessionOpened
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.study_file import parse_study
from cohortium_messages.topology import site_topology
from cohortium_privacy.prices import planned_parts
from cohortium_privacy.windows import course_of, plan_for, usual_plan
from cohortium_protocol.documents import default_collusion, manifest_hash, sign_manifest
from cohortium_protocol.signing import IdentityKey
from cohortium_scheduler.domain.course import NO_TRAINING, EndRun, NextWindow
from cohortium_scheduler.domain.windows import Ended, Window
from cohortium_scheduler.handlers.windows import what_follows

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


async def hospitals(stage: Stage, members: int) -> None:
    """So many hospitals in place of the stage's own."""
    stage.sites.clear()
    stage.sites.update({SiteId(str(uuid4())): IdentityKey.generate() for _ in range(members)})
    for site in stage.sites:
        await stage.bus.declare(site_topology(site))


async def leaves(stage: Stage, manifest: Manifest) -> None:
    """One hospital is taken out of the membership."""
    left = {"version": 2, "prev_hash": manifest_hash(manifest), "members": manifest.members[1:], "signatures": ()}
    smaller = manifest.model_copy(update=left)
    for officer in stage.files.officers:
        smaller = sign_manifest(smaller, officer)
    await stage.say("enrolment", ManifestPublished(manifest=smaller), times=1)


@pytest.mark.parametrize("round_", [1, 2])
def test_who_leaves_during_the_last_window_takes_no_finished_model_away(round_: int) -> None:
    """Its budget is spent, and only a finished run gets a bundle. Before the last window, no other is planned."""
    privacy = {"mode": "site", "epsilon": 8, "delta": 1e-4, "sites": 50}
    federation = {**STUDY["federation"], "rounds": 2, "min_sites": 40}
    study = parse_study(json.dumps({**PRIVATE, "privacy": privacy, "federation": federation}))
    run_id = RunId(str(uuid4()))
    state = Ended("RELEASED", "", SystemClock().now())
    last = Window(bytes(16), run_id, 1 + round_, "update", round_, 1, state)
    for members in (50, 49):
        manifest = Manifest(
            study_id=StudyId("heart"),
            version=1,
            prev_hash=bytes(32),
            study_digest=bytes(32),
            members=tuple(
                Member(site_id=SiteId(str(UUID(int=number))), name=f"site {number}", identity_pk=bytes(32))
                for number in range(members)
            ),
            collusion=default_collusion(members),
            k_min_floor=0,
        )
        step = what_follows(last, study, NO_TRAINING, manifest, 3)
        if round_ == 2:
            assert step == EndRun("FINISHED", "")
        elif members == 50:
            assert step == NextWindow("update", 2, 1)
        else:
            assert step == EndRun("FAILED", "TOO_FEW_MEMBERS")


@pytest.mark.parametrize(("members", "begins"), [(49, False), (50, True)])
async def test_no_run_begins_that_could_not_hide_a_hospital_among_as_many_as_it_promises(
    stage: Stage, members: int, begins: bool
) -> None:
    """All have granted, and they are more than `min_sites`; hospitals would refuse all the same."""
    await hospitals(stage, members)
    privacy = {"mode": "site", "epsilon": 8, "delta": 1e-4, "sites": 50}
    federation = {**STUDY["federation"], "min_sites": 40, "recruiting_deadline_s": 600 if begins else 2}
    stage.study = {**PRIVATE, "privacy": privacy, "federation": federation}
    run_id, digest = await submit(stage)
    manifest = signed_manifest(stage, digest)
    await stage.say("enrolment", ManifestPublished(manifest=manifest), times=1)
    later = SystemClock().now() + timedelta(days=1)
    for site in stage.sites:
        granted = GrantRecorded(
            study_id=StudyId("heart"), study_digest=digest, site_id=site, grant_digest=bytes(32), not_after=later
        )
        await stage.say("consent", granted, times=1)
    if begins:
        assert len((await stage.wait(AuthoriseAsked, 1))[-1].sites) == members
        # One of them leaves the membership while the run is under way.
        await leaves(stage, manifest)
    over = await stage.state_is(run_id, "FAILED")
    assert over["reason"] == "TOO_FEW_MEMBERS"
    asked = [message for _, message in stage.heard if isinstance(message, AuthoriseAsked)]
    assert all(len(message.sites) == members for message in asked)
    assert bool(asked) == begins
