"""What follows what in a run, and what its strict sessions come to: each branch."""

from dataclasses import replace
from typing import Any

import pytest
from course_story import AVERAGING, BOOSTING, CHANGING, NOW, SITES, chain, ended, model

from cohortium_messages.runs import WindowEnd
from cohortium_scheduler.domain.course import (
    NO_CHAIN,
    NO_TRAINING,
    Course,
    EndRun,
    NextWindow,
    Start,
    Training,
    next_step,
    recorded,
    session_start,
)
from cohortium_scheduler.domain.windows import (
    ANYONE,
    Among,
    Planned,
    Refusal,
    Rejoining,
    Remaining,
    Window,
)


def plan(window: Window | None, course: Course = AVERAGING, training: Training = NO_TRAINING, **changes: Any) -> Any:
    return next_step(window, replace(course, **changes), training)


# Averaging, and random trees


def test_a_run_goes_from_statistics_through_rounds_to_its_end() -> None:
    assert plan(None) == NextWindow("statistics", 0, 1)
    assert plan(ended("statistics", round_=0)) == NextWindow("update", 1, 1)
    assert plan(ended("update")) == NextWindow("evaluation", 1, 1)
    assert plan(ended("evaluation")) == NextWindow("update", 2, 1)
    assert plan(ended("evaluation", round_=3)) == EndRun("FINISHED", "")


def test_evaluation_is_done_when_due_and_always_after_the_last_round() -> None:
    assert plan(ended("update"), evaluate_every=2) == NextWindow("update", 2, 1)
    assert plan(ended("update", round_=2), evaluate_every=2) == NextWindow("evaluation", 2, 1)
    assert plan(ended("update", round_=3), evaluate_every=2) == NextWindow("evaluation", 3, 1)
    assert plan(ended("update", round_=3), evaluates=False) == EndRun("FINISHED", "")


def test_a_failed_window_is_tried_again_and_then_fails_the_run() -> None:
    failed = ended("update", "ABORTED", "NOT_ENOUGH_UPLOADS", round_=2)
    assert plan(failed) == NextWindow("update", 2, 2)
    assert plan(replace(failed, attempt=2)) == EndRun("FAILED", "NOT_ENOUGH_UPLOADS")
    assert plan(ended("update", "FAILED", attempt=2)) == EndRun("FAILED", "TOO_MANY_ATTEMPTS")


def test_next_step_of_an_open_window_is_our_error() -> None:
    window = replace(ended(), state=Planned(bytes(16), NOW))
    with pytest.raises(ValueError, match="has not ended"):
        plan(window)
    with pytest.raises(ValueError, match="has not ended"):
        recorded(NO_TRAINING, window)


def test_a_model_of_averages_is_never_refined() -> None:
    assert plan(ended("statistics", round_=0, refine=True)) == NextWindow("update", 1, 1)


# LightGBM

COUNTED = recorded(
    NO_TRAINING, ended("statistics", round_=0, survivors=SITES[:4], model=model(0), training_rows=100, refine=True)
)
REFINED = recorded(COUNTED, ended("refinement", round_=0, survivors=SITES[:3], model=model(1)))


def session(
    state: WindowEnd = "PAUSED", reason: str = "SITE_SILENT", *, trees: int = 0, version: int = 0, **more: Any
) -> Window:
    """A session over the first four sites that ended with so many trees, and the version that holds them."""
    values: dict[str, Any] = {"sites": SITES[:4], "cohort": Among(SITES[:4]), "trees": trees, "steps": 10}
    if version:
        values |= {"model": model(version), "chain": chain(trees)}
    return ended("training", state, reason, **(values | more))


def after(*windows: Window, training: Training = REFINED) -> Training:
    for window in windows:
        training = recorded(training, window)
    return training


def test_bins_are_refined_only_where_the_statistics_ask_for_it() -> None:
    assert plan(None, BOOSTING) == NextWindow("statistics", 0, 1)
    asks = ended("statistics", round_=0, survivors=SITES[:4], model=model(0), refine=True)
    assert plan(asks, BOOSTING, COUNTED) == NextWindow("refinement", 0, 1)
    content = ended("statistics", round_=0, survivors=SITES[:4], model=model(0))
    assert plan(content, BOOSTING, COUNTED) == NextWindow("training", 1, 1, Among(SITES[:4]))


def test_after_the_refinement_the_counted_sites_train_on_its_bins() -> None:
    assert (REFINED.counted, REFINED.base) == (SITES[:4], model(1))
    window = ended("refinement", round_=0, model=model(1))
    assert plan(window, BOOSTING, REFINED) == NextWindow("training", 1, 1, Among(SITES[:4]))
    failed = ended("refinement", "ABORTED", "NOT_ENOUGH_UPLOADS", round_=0)
    assert plan(failed, BOOSTING, recorded(COUNTED, failed)) == NextWindow("refinement", 0, 2)


def test_a_first_session_that_never_began_is_tried_again_among_the_same() -> None:
    cancelled = ended("training", "CANCELLED", "NOT_ENOUGH_READY", cohort=Among(SITES[:4]))
    training = after(cancelled)
    assert training.roster == ()
    assert plan(cancelled, BOOSTING, training) == NextWindow("training", 1, 2, Among(SITES[:4]))
    assert plan(replace(cancelled, attempt=2), CHANGING, training) == EndRun("FAILED", "NOT_ENOUGH_READY")


def test_a_complete_model_is_evaluated_and_the_run_ends_without_a_reason() -> None:
    window = session("RELEASED", "", trees=50, version=2)
    training = after(window)
    assert training.complete
    assert (training.trees, training.chain, training.checkpoint) == (50, chain(50), model(2))
    assert plan(window, BOOSTING, training) == NextWindow("evaluation", 1, 1)
    assert plan(ended("evaluation"), BOOSTING, training) == EndRun("FINISHED", "")
    assert plan(window, BOOSTING, training, evaluates=False) == EndRun("FINISHED", "")


def test_a_session_that_lost_a_site_goes_on_with_all_of_its_sites_from_the_last_tree() -> None:
    window = session(trees=7, version=2)
    training = after(window)
    step = plan(window, BOOSTING, training)
    assert step == NextWindow("training", 1, 1, Rejoining(SITES[:4]))
    assert session_start(training, step.cohort) == Start(model(1), 7, chain(7), None)


def test_the_roster_is_the_one_that_was_bound_not_all_that_were_asked() -> None:
    training = after(session(sites=SITES[:3]))
    assert training.roster == SITES[:3]
    assert plan(session(sites=SITES[:3]), BOOSTING, training).cohort == Rejoining(SITES[:3])


def test_pauses_with_progress_do_not_count_as_attempts() -> None:
    grew = session(trees=3, version=2, attempt=2)
    assert plan(grew, BOOSTING, after(grew)) == NextWindow("training", 1, 1, Rejoining(SITES[:4]))
    first, again = session(trees=3, version=2), session(trees=3, version=2, attempt=1)
    training = after(first, again)
    assert (training.trees, training.grown, training.sessions, training.steps) == (3, 0, 2, 20)
    assert plan(again, BOOSTING, training) == NextWindow("training", 1, 2, Rejoining(SITES[:4]))


def test_trees_without_a_released_version_do_not_stand() -> None:
    training = after(session(trees=9))
    assert (training.trees, training.chain, training.checkpoint) == (0, NO_CHAIN, None)


def test_trees_never_decrease_but_by_early_stopping_of_the_complete_model() -> None:
    training = after(session(trees=9, version=2), session(trees=4, version=3))
    assert (training.trees, training.checkpoint) == (9, model(2))
    training = after(session("RELEASED", "", trees=6, version=3), training=training)
    assert (training.trees, training.checkpoint, training.complete) == (6, model(3), True)


def test_a_session_without_any_tree_begins_again_with_nothing() -> None:
    window = session()
    assert session_start(after(window), Rejoining(SITES[:4])) == Start(model(1), 0, NO_CHAIN, None)
    with pytest.raises(ValueError, match="statistics"):
        session_start(NO_TRAINING, ANYONE)


LOST = ended("training", "CANCELLED", "SITES_LOST", cohort=Rejoining(SITES[:4]), ready=SITES[:3])


def test_lost_sites_end_the_training_and_the_trees_so_far_are_evaluated_and_published() -> None:
    training = after(session(trees=7, version=2), LOST)
    assert plan(LOST, BOOSTING, training) == NextWindow("evaluation", 1, 1)
    assert plan(ended("evaluation"), BOOSTING, training) == EndRun("FINISHED", "SITES_LOST")
    assert plan(LOST, BOOSTING, training, evaluates=False) == EndRun("FINISHED", "SITES_LOST")


def test_lost_sites_fail_a_run_that_has_no_tree() -> None:
    assert plan(LOST, BOOSTING, after(session(), LOST)) == EndRun("FAILED", "SITES_LOST")


def test_where_the_study_allows_it_the_sites_that_were_ready_go_on_from_the_checkpoint() -> None:
    training = after(session(trees=7, version=2), LOST)
    step = plan(LOST, CHANGING, training)
    assert step == NextWindow("training", 1, 1, Remaining(SITES[:3]))
    assert session_start(training, step.cohort) == Start(model(2), 7, chain(7), model(2))


def test_a_change_before_the_first_tree_begins_with_nothing_and_may_replay_later() -> None:
    training = after(session(), LOST)
    step = plan(LOST, CHANGING, training)
    assert session_start(training, step.cohort) == Start(model(1), 0, NO_CHAIN, None)
    smaller = session(trees=2, version=2, sites=SITES[:3], cohort=Remaining(SITES[:3]))
    training = after(smaller, training=training)
    assert session_start(training, Rejoining(SITES[:3])) == Start(model(1), 2, chain(2), None)


def test_too_few_sites_left_are_no_cohort() -> None:
    few = ended("training", "CANCELLED", "SITES_LOST", cohort=Rejoining(SITES[:4]), ready=SITES[:2])
    assert plan(few, CHANGING, after(session(trees=7, version=2), few)) == NextWindow("evaluation", 1, 1)
    training = after(session(trees=7, version=2), LOST)
    assert plan(LOST, CHANGING, training, least_cohort=4) == NextWindow("evaluation", 1, 1)


def test_after_a_change_the_smaller_cohort_is_the_one_that_is_waited_for() -> None:
    smaller = session(trees=9, version=3, sites=SITES[:3], cohort=Remaining(SITES[:3]))
    training = after(session(trees=7, version=2), LOST, smaller)
    assert (training.roster, training.cohort_changes) == (SITES[:3], 1)
    step = plan(smaller, CHANGING, training)
    assert step.cohort == Rejoining(SITES[:3])
    assert session_start(training, step.cohort) == Start(model(1), 9, chain(9), None), "it has journals of its own"


def test_a_cohort_without_journals_starts_from_checkpoints_until_another_cohort_has_new_ones() -> None:
    lost = session("PAUSED", "JOURNAL_UNUSABLE")
    again = session(trees=8, version=3, cohort=Rejoining(SITES[:4]))
    training = after(session(trees=7, version=2), lost, again)
    assert session_start(training, Rejoining(SITES[:4])) == Start(model(3), 8, chain(8), model(3))
    smaller = session(trees=9, version=4, sites=SITES[:3], cohort=Remaining(SITES[:3]))
    training = after(LOST, smaller, training=training)
    assert session_start(training, Rejoining(SITES[:3])) == Start(model(1), 9, chain(9), None)


def test_those_left_are_not_asked_for_again_and_again() -> None:
    gone = ended("training", "CANCELLED", "SITES_LOST", cohort=Remaining(SITES[:3]), ready=SITES[:2])
    training = after(session(trees=7, version=2), LOST, gone)
    assert plan(gone, CHANGING, training) == NextWindow("evaluation", 1, 1)
    reopened = ended("training", "CANCELLED", "MANIFEST_CHANGED", cohort=Remaining(SITES[:3]))
    assert plan(reopened, CHANGING, training) == NextWindow("training", 1, 2, Remaining(SITES[:3]))
    assert plan(replace(reopened, attempt=2), CHANGING, training) == NextWindow("evaluation", 1, 1)


def test_a_site_that_refuses_is_asked_again_and_then_left_out_where_that_is_allowed() -> None:
    refused = ended(
        "training",
        "CANCELLED",
        "SITE_REFUSED",
        cohort=Rejoining(SITES[:4]),
        refusals=(Refusal(SITES[1], "DATA_CHANGED"),),
    )
    training = after(session(trees=7, version=2), refused)
    assert plan(refused, BOOSTING, training) == NextWindow("training", 1, 2, Rejoining(SITES[:4]))
    last = replace(refused, attempt=2)
    assert plan(last, BOOSTING, training) == NextWindow("evaluation", 1, 1)
    assert plan(last, CHANGING, training).cohort == Remaining((SITES[0], SITES[2], SITES[3]))


def test_a_site_that_is_silent_in_session_after_session_is_left_out_where_that_is_allowed() -> None:
    silent = session(trees=7, version=2, attempt=2, cohort=Rejoining(SITES[:4]), dropped=(SITES[0],))
    training = after(session(trees=7, version=2), silent)
    assert plan(silent, CHANGING, training).cohort == Remaining(SITES[1:4])
    assert plan(silent, BOOSTING, training) == NextWindow("evaluation", 1, 1)
    nobody = session(trees=7, version=2, attempt=2, cohort=Rejoining(SITES[:4]))
    assert plan(nobody, CHANGING, training) == NextWindow("evaluation", 1, 1)


def test_a_run_without_a_tree_fails_with_what_ended_its_sessions() -> None:
    silent = session(reason="SESSION_LOST", attempt=2)
    assert plan(silent, BOOSTING, after(silent)) == EndRun("FAILED", "SESSION_LOST")


@pytest.mark.parametrize("state", ["ABORTED", "FAILED", "FAILED_INTEGRITY"])
def test_a_session_that_broke_is_tried_again_and_never_passes_for_a_lost_site(state: WindowEnd) -> None:
    broken = session(state, "CANARY_MISMATCH")
    training = after(session(trees=7, version=2), broken)
    assert plan(broken, CHANGING, training) == NextWindow("training", 1, 2, Rejoining(SITES[:4]))
    assert plan(replace(broken, attempt=2), CHANGING, training) == EndRun("FAILED", "CANARY_MISMATCH")


@pytest.mark.parametrize(
    "lost",
    [
        session("PAUSED", "JOURNAL_UNUSABLE"),
        session("FAILED", "JOURNAL_UNUSABLE"),
        ended(
            "training",
            "CANCELLED",
            "SITE_REFUSED",
            cohort=Rejoining(SITES[:4]),
            refusals=(Refusal(SITES[1], "JOURNAL_UNUSABLE"),),
        ),
    ],
)
def test_without_its_journal_a_site_goes_on_from_the_checkpoint_with_the_same_others(lost: Window) -> None:
    training = after(session(trees=7, version=2), lost)
    step = plan(lost, BOOSTING, training)
    assert step == NextWindow("training", 1, 2, Rejoining(SITES[:4]))
    assert session_start(training, step.cohort) == Start(model(2), 7, chain(7), model(2))


def test_an_evaluation_that_fails_is_tried_again_whatever_the_model() -> None:
    failed = ended("evaluation", "ABORTED", "NOT_ENOUGH_UPLOADS")
    training = after(session(trees=7, version=2))
    assert plan(failed, BOOSTING, training) == NextWindow("evaluation", 1, 2)
    assert plan(replace(failed, attempt=2), BOOSTING, training) == EndRun("FAILED", "NOT_ENOUGH_UPLOADS")


def test_sums_of_other_purposes_say_nothing_of_the_training() -> None:
    training = after(session(trees=7, version=2))
    for window in (ended("evaluation"), ended("update"), ended("statistics", "ABORTED", round_=0, survivors=SITES)):
        assert recorded(training, window) == training
