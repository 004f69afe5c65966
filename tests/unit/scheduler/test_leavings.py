"""What is made after a withdrawal was traced, and hospitals that refuse a retraining: the case hears of both."""

from datetime import timedelta

from scheduler_stage import Stage, authorise, close, make_all_ready, recruit, released

from cohortium_kit.clock import SystemClock
from cohortium_messages.consent import Effect
from cohortium_messages.governance import GrantEnded, GrantRecorded
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.runs import RunEnded, RunStarted, SessionOpened, TaskRefused
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.withdrawals import (
    EffectDone,
    EffectOrdered,
    EffectRefused,
    EffectStarted,
    ModelsRetired,
    RetireModels,
    RunModel,
    WithdrawalFollowed,
    WithdrawalNoticed,
    WithdrawalTraced,
)

LEFT = b"w" * 32
DECIDED = b"e" * 32


def model(version: int) -> ModelRef:
    """As `released` makes it."""
    return ModelRef(version=version, model_hash=bytes([version]) * 32)


def listed(run_id: str, *versions: int) -> tuple[RunModel, ...]:
    return tuple(RunModel.model_validate({"run_id": run_id, "model": model(version)}) for version in versions)


async def leave(stage: Stage, digest: bytes, site: SiteId, withdrawal: bytes = LEFT) -> None:
    study = StudyId("heart")
    ended = GrantEnded(study_id=study, study_digest=digest, site_id=site, reason="GRANT_WITHDRAWN")
    await stage.say("consent", ended)
    notice = WithdrawalNoticed(
        withdrawal=withdrawal, study_id=study, study_digest=digest, site_id=site, type="institution"
    )
    await stage.say("consent", notice)


async def order(stage: Stage, effect: Effect) -> None:
    await stage.say("consent", EffectOrdered(withdrawal=LEFT, decision=DECIDED, effect=effect))


async def statistics(stage: Stage) -> tuple[str, bytes]:
    """A run whose version 0 learnt from all four."""
    run_id, digest, _ = await recruit(stage)
    await released(stage, 1, 0, parameters=3, training_rows=100)
    return run_id, digest


async def test_models_made_after_a_withdrawal_was_traced_are_followed_each_once(stage: Stage) -> None:
    run_id, digest = await statistics(stage)
    window = await authorise(stage, number=2)
    gone = min(stage.sites)
    await leave(stage, digest, gone)
    (traced,) = await stage.wait(WithdrawalTraced)
    assert (traced.models, traced.sums) == (listed(run_id, 0), 1)
    await make_all_ready(stage, window)
    session = (await stage.wait(SessionOpened, 2))[-1]
    assert gone not in {entry.site_id for entry in session.roster.entries}
    others = tuple(site for site in stage.sites if site != gone)
    await close(stage, window, survivors=others, model=model(1))
    (followed,) = await stage.wait(WithdrawalFollowed)
    assert (followed.withdrawal, followed.models, followed.sums, followed.retired) == (LEFT, listed(run_id, 1), 0, ())
    await order(stage, "stop_future")
    await stage.wait(EffectDone)
    third = await authorise(stage, number=3, denied=1)
    await make_all_ready(stage, third)
    await stage.wait(SessionOpened, 3)
    await close(stage, third, survivors=others, model=model(1))  # an evaluation, which makes nothing
    fourth = await authorise(stage, number=4, denied=1)
    await make_all_ready(stage, fourth)
    await stage.wait(SessionOpened, 4)
    await close(stage, fourth, survivors=others, model=model(2))
    found = await stage.wait(WithdrawalFollowed, 2)
    assert [one.models for one in found] == [listed(run_id, 1), listed(run_id, 2)]
    assert [one.sums for one in found] == [0, 0]


async def test_an_evaluation_that_held_a_patients_rows_is_counted_and_the_run_goes_on(stage: Stage) -> None:
    """No model is made of it, and the word of it is one all the same."""
    _, digest = await statistics(stage)
    window = await authorise(stage, number=2)
    await make_all_ready(stage, window)
    await stage.wait(SessionOpened, 2)
    await close(stage, window, model=model(1))
    evaluation = await authorise(stage, number=3)
    await make_all_ready(stage, evaluation)
    await stage.wait(SessionOpened, 3)
    late = list(stage.sites)[3]
    notice = WithdrawalNoticed(
        withdrawal=LEFT, study_id=StudyId("heart"), study_digest=digest, site_id=late, type="patient_set"
    )
    await stage.say("consent", notice)
    await stage.wait(WithdrawalTraced)
    await close(stage, evaluation, model=model(1))
    (followed,) = await stage.wait(WithdrawalFollowed)
    assert (followed.models, followed.sums) == ((), 1)
    await authorise(stage, number=4)


async def test_a_hospital_that_came_back_is_in_its_later_models_by_its_new_grant(stage: Stage) -> None:
    """Its first withdrawal is about what was made before it; a run that begins anew is none of that."""
    run_id, digest, _ = await recruit(stage)
    gone = min(stage.sites)
    await leave(stage, digest, gone)
    (traced,) = await stage.wait(WithdrawalTraced)
    assert traced.models == ()
    assert (await stage.state_is(run_id, "PREPARING"))["state"] == "PREPARING"
    later = SystemClock().now() + timedelta(days=1)
    again = GrantRecorded(
        study_id=StudyId("heart"), study_digest=digest, site_id=gone, grant_digest=b"2" * 32, not_after=later
    )
    await stage.say("consent", again)
    window = await authorise(stage)
    await make_all_ready(stage, window)
    await stage.wait(SessionOpened)
    await close(stage, window, model=model(0), parameters=3, training_rows=100)  # says that the site was in it
    second = await authorise(stage, number=2)
    await make_all_ready(stage, second)
    await stage.wait(SessionOpened, 2)
    assert not [one for _, one in stage.heard if isinstance(one, WithdrawalFollowed)]


async def test_a_model_that_was_on_its_way_when_its_run_was_stopped_is_retired_with_the_others(stage: Stage) -> None:
    run_id, digest = await statistics(stage)
    window = await authorise(stage, number=2)
    await make_all_ready(stage, window)
    await stage.wait(SessionOpened, 2)
    late = list(stage.sites)[3]
    # Patients left: their hospital stays, so that a window that is under way is not waited for.
    notice = WithdrawalNoticed(
        withdrawal=LEFT, study_id=StudyId("heart"), study_digest=digest, site_id=late, type="patient_set"
    )
    await stage.say("consent", notice)
    await stage.wait(WithdrawalTraced)
    await order(stage, "retire")
    first = (await stage.wait(RetireModels, 1, lambda one: one.models == (model(0),)))[0]
    assert (await stage.wait(RunEnded))[0].reason == "MODEL_RETIRED"
    await stage.say("aggregator", ModelsRetired(withdrawal=LEFT, run_id=first.run_id))
    (done,) = await stage.wait(EffectDone)
    assert done.retired == listed(run_id, 0)
    await close(stage, window, model=model(1))  # the aggregator had published it before it heard of the end
    (followed,) = await stage.wait(WithdrawalFollowed)
    assert (followed.models, followed.retired, followed.sums) == (listed(run_id, 1), listed(run_id, 1), 1)
    told = await stage.wait(RetireModels, 5, lambda one: one.models == (model(1),))
    assert {one.run_id for one in told} == {run_id}, "the aggregator and each member"


async def test_officers_hear_why_hospitals_refuse_to_train_again_without_exactly_one(stage: Stage) -> None:
    run_id, digest = await statistics(stage)
    gone, *others = stage.sites
    await leave(stage, digest, gone)
    await stage.wait(WithdrawalTraced)
    await order(stage, "retrain")
    (started,) = await stage.wait(EffectStarted)
    assert started.retrained is not None
    again = started.retrained.run_id
    assert again != run_id
    await stage.wait(RunStarted, 1, lambda one: one.run_id == again)
    for attempt in (0, 1):  # the stage's scheduler tries twice; the first run asked for two windows before it ended
        window = await authorise(stage, number=3 + attempt, unopened=1)
        assert (window.params.run_id, window.params.purpose) == (again, "statistics")
        await make_all_ready(stage, window)
        await stage.wait(SessionOpened, 2 + attempt)
        for site in others:
            refusal = TaskRefused(
                window_id=window.params.window_id, run_id=again, site_id=site, code="COHORT_DIFFERS_BY_ONE"
            )
            await stage.site_says(site, refusal)
        refused = await stage.wait(EffectRefused, 3)
        assert {(one.site_id, one.code, one.run_id) for one in refused} == {
            (site, "COHORT_DIFFERS_BY_ONE", again) for site in others
        }
        await close(stage, window, "ABORTED", reason="NOT_ENOUGH_ECHOES")
    (failed,) = await stage.wait(EffectDone)
    assert (failed.decision, failed.fault) == (DECIDED, "COHORT_DIFFERS_BY_ONE")
    assert (await stage.status(again))["reason"] == "NOT_ENOUGH_ECHOES"
    assert len([one for _, one in stage.heard if isinstance(one, EffectRefused)]) == 3, "each is said once"
