"""The scheduler's decisions about windows, cohorts and what comes next."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium_messages.governance import Permit
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.secure_sum import (
    MAX_CHUNK_BYTES,
    ModelRef,
    Ready,
    VectorSpec,
    WindowOpen,
    WindowParams,
)
from cohortium_messages.study import Deadlines
from cohortium_scheduler.domain import (
    TRANSITIONS,
    Bind,
    Cancel,
    Ended,
    EndRun,
    Extend,
    Extended,
    Finished,
    NextWindow,
    Open,
    Opened,
    Planned,
    ReadyReceived,
    Refusal,
    SiteLeft,
    Wait,
    Window,
    advance,
    cohort_now,
    may_start,
    next_step,
    weight_cap,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SITES = tuple(SiteId(str(UUID(int=number))) for number in range(1, 6))
EVERYONE = frozenset(SITES)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def params(**changes: Any) -> WindowParams:
    vector = VectorSpec(
        encoding="grid",
        dimension=10,
        ring_bits=16,
        rotate=True,
        rotation_seed=bytes(32),
        keep=1.0,
        keep_seed=bytes(32),
        clip_norm_l2=1.0,
        range_factor=6.0,
        weight_cap=100,
        chunk_bytes=MAX_CHUNK_BYTES,
    )
    values: dict[str, Any] = {
        "study_id": StudyId("heart"),
        "study_digest": bytes(32),
        "run_id": RunId(str(UUID(int=9))),
        "window_id": bytes(16),
        "purpose": "update",
        "kind": "sync",
        "round": 1,
        "manifest_hash": bytes(32),
        "bases": (ModelRef(version=0, model_hash=bytes(32)),),
        "max_staleness": 0,
        "vector": vector,
        "privacy_mode": "none",
        "target_cohort": 5,
        "least_cohort": 3,
        "deadlines": Deadlines(ready_s=60, upload_s=30, echo_s=15, unmask_s=30),
        "aggregator_seal_pk": bytes(32),
    }
    return WindowParams.model_validate(values | changes)


def ready(site: SiteId) -> Ready:
    key = UUID(site).bytes * 2
    return Ready(
        window_id=bytes(16),
        site_id=site,
        params_hash=bytes(32),
        base_model_hash=bytes(32),
        mask_pk=key,
        seal_pk=key,
        sig=bytes(64),
    )


def planned(**changes: Any) -> Window:
    values: dict[str, Any] = {
        "window_id": bytes(16),
        "run_id": RunId(str(UUID(int=9))),
        "sequence": 1,
        "purpose": "update",
        "round": 1,
        "attempt": 1,
        "state": Planned(bytes(16), NOW),
    }
    return Window(**(values | changes))


def opened(*ready_sites: SiteId, permitted: tuple[SiteId, ...] = SITES, **changes: Any) -> Window:
    permits = tuple(Permit(site_id=site, permitted=site in permitted) for site in SITES)
    window = advance(planned(), Opened(WindowOpen(params=params(**changes), sig=bytes(64)), permits, NOW))
    for site in ready_sites:
        window = advance(window, ReadyReceived(ready(site), NOW))
    return window


def state_of(window: Window) -> Open:
    assert isinstance(window.state, Open)
    return window.state


def ended(
    purpose: str = "update", round_: int = 1, attempt: int = 1, state: str = "RELEASED", reason: str = ""
) -> Window:
    window = planned(purpose=purpose, round=round_, attempt=attempt)
    return advance(window, Finished(state, reason, NOW))  # type: ignore[arg-type]


def test_synchronous_cohort_waits_for_every_present_site() -> None:
    window = opened(*SITES[:4])
    assert cohort_now(state_of(window), EVERYONE, NOW) == Wait()
    assert cohort_now(state_of(window), EVERYONE - {SITES[4]}, NOW) == Bind(tuple(ready(site) for site in SITES[:4]))


def test_a_site_that_refused_is_not_waited_for() -> None:
    window = advance(opened(*SITES[:4]), SiteLeft(Refusal(SITES[4], "COLUMN_MISSING", "age")))
    assert isinstance(cohort_now(state_of(window), EVERYONE, NOW), Bind)


def test_too_few_ready_are_extended_once_then_cancelled() -> None:
    window = opened(*SITES[:2])
    assert cohort_now(state_of(window), EVERYONE, NOW + seconds(59)) == Wait()
    assert cohort_now(state_of(window), EVERYONE, NOW + seconds(60)) == Extend()
    window = advance(window, Extended(NOW + seconds(60)))
    assert cohort_now(state_of(window), EVERYONE, NOW + seconds(61)) == Wait()
    assert cohort_now(state_of(window), EVERYONE, NOW + seconds(120)) == Cancel("NOT_ENOUGH_READY")


def test_at_the_deadline_enough_ready_sites_go_without_the_slow_one() -> None:
    window = opened(*SITES[:3])
    assert isinstance(cohort_now(state_of(window), EVERYONE, NOW + seconds(60)), Bind)


def test_when_enough_sites_refused_the_window_ends_at_once() -> None:
    window = opened()
    for site in SITES[:3]:
        window = advance(window, SiteLeft(Refusal(site, "GRANT_WITHDRAWN")))
    assert cohort_now(state_of(window), EVERYONE, NOW) == Cancel("NOT_ENOUGH_READY")


def test_buffered_cohort_is_bound_by_the_first_that_are_ready() -> None:
    window = opened(*SITES[1:5], kind="buffered", target_cohort=3)
    assert cohort_now(state_of(window), EVERYONE, NOW) == Bind(tuple(ready(site) for site in SITES[1:4]))


def test_buffered_cohort_does_not_wait_for_a_full_buffer_for_ever() -> None:
    window = opened(*SITES[:3], kind="buffered", target_cohort=4)
    assert cohort_now(state_of(window), EVERYONE, NOW + seconds(59)) == Wait()
    assert isinstance(cohort_now(state_of(window), EVERYONE, NOW + seconds(60)), Bind)


def test_a_site_without_a_permit_cannot_become_ready() -> None:
    window = opened(SITES[4], permitted=SITES[:4])
    assert state_of(window).readies == ()


def test_a_repeated_ready_counts_once() -> None:
    window = opened(SITES[0])
    assert advance(window, ReadyReceived(ready(SITES[0]), NOW)) == window


def test_late_commands_change_nothing() -> None:
    over = advance(opened(*SITES[:3]), Finished("CANCELLED", "STOPPED_BY_OPERATOR", NOW))
    for command in (ReadyReceived(ready(SITES[3]), NOW), SiteLeft(Refusal(SITES[0], "X")), Extended(NOW)):
        assert advance(over, command) is over
    assert advance(over, Finished("FAILED", "OTHER", NOW)) is over


@given(
    st.lists(
        st.sampled_from(
            [
                Opened(WindowOpen(params=params(), sig=bytes(64)), (Permit(site_id=SITES[0], permitted=True),), NOW),
                ReadyReceived(ready(SITES[0]), NOW),
                SiteLeft(Refusal(SITES[0], "GRANT_WITHDRAWN")),
                Extended(NOW),
                Finished("CANCELLED", "NOT_ENOUGH_READY", NOW),
            ]
        ),
        max_size=12,
    )
)
def test_only_moves_of_the_table_are_made(commands: list[Any]) -> None:
    window = planned()
    for command in commands:
        after = advance(window, command)
        if after.state.phase != window.state.phase:
            assert after.state.phase in TRANSITIONS[window.state.phase]
        assert advance(after, command) == after, "a command that arrives twice changes nothing"
        window = after


def plan(window: Window | None, **changes: Any) -> NextWindow | EndRun:
    values: dict[str, Any] = {"rounds": 3, "evaluate_every": 1, "evaluates": True, "max_attempts": 2}
    return next_step(window, **(values | changes))


def test_a_run_goes_from_statistics_through_rounds_to_its_end() -> None:
    assert plan(None) == NextWindow("statistics", 0, 1)
    assert plan(ended("statistics", 0)) == NextWindow("update", 1, 1)
    assert plan(ended("update", 1)) == NextWindow("evaluation", 1, 1)
    assert plan(ended("evaluation", 1)) == NextWindow("update", 2, 1)
    assert plan(ended("evaluation", 3)) == EndRun("FINISHED", "")


def test_evaluation_is_done_when_due_and_always_after_the_last_round() -> None:
    assert plan(ended("update", 1), evaluate_every=2) == NextWindow("update", 2, 1)
    assert plan(ended("update", 2), evaluate_every=2) == NextWindow("evaluation", 2, 1)
    assert plan(ended("update", 3), evaluate_every=2) == NextWindow("evaluation", 3, 1)
    assert plan(ended("update", 3), evaluates=False) == EndRun("FINISHED", "")


def test_a_failed_window_is_tried_again_and_then_fails_the_run() -> None:
    failed = ended("update", 2, 1, "ABORTED", "NOT_ENOUGH_UPLOADS")
    assert plan(failed) == NextWindow("update", 2, 2)
    assert plan(replace(failed, attempt=2)) == EndRun("FAILED", "NOT_ENOUGH_UPLOADS")


def test_next_step_of_an_open_window_is_our_error() -> None:
    with pytest.raises(ValueError, match="has not ended"):
        plan(opened())


def test_recruiting_ends_with_all_members_or_with_enough_after_the_grace() -> None:
    assert may_start(4, 4, 3, NOW, NOW, 60)
    assert not may_start(4, 3, 3, NOW, NOW + seconds(59), 60)
    assert may_start(4, 3, 3, NOW, NOW + seconds(60), 60)
    assert not may_start(4, 2, 3, None, NOW + seconds(600), 60)


@given(st.integers(1, 10**9), st.integers(3, 200))
def test_weight_cap_lets_eight_sites_weigh_all_their_rows(rows: int, sites: int) -> None:
    cap = weight_cap(rows, sites)
    if sites <= 8:
        assert cap == rows
    assert cap * sites >= 8 * rows or cap >= rows
    assert cap <= rows


def test_an_ended_window_remembers_why() -> None:
    over = advance(opened(*SITES[:3]), Finished("CANCELLED", "STOPPED_BY_OPERATOR", NOW))
    assert isinstance(over.state, Ended)
    assert (over.state.state, over.state.reason) == ("CANCELLED", "STOPPED_BY_OPERATOR")
