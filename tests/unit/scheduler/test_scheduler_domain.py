"""The scheduler's decisions about windows, cohorts and what comes next."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium_messages.governance import Permit
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.problems import SENTENCES
from cohortium_messages.secure_sum import (
    MAX_CHUNK_BYTES,
    ModelRef,
    Ready,
    VectorSpec,
    WindowOpen,
    WindowParams,
)
from cohortium_messages.study import Deadlines
from cohortium_scheduler.domain.cohorts import (
    NOT_ENOUGH_READY,
    SITE_REFUSED,
    SITES_LOST,
    Bind,
    Cancel,
    Extend,
    Wait,
    asked,
    cannot_open,
    cohort_now,
    may_start,
    weight_cap,
)
from cohortium_scheduler.domain.course import JOURNAL_UNUSABLE
from cohortium_scheduler.domain.windows import (
    ANYONE,
    TRANSITIONS,
    Among,
    Cohort,
    Ended,
    Extended,
    Finished,
    Open,
    Opened,
    Permitted,
    Planned,
    ReadyReceived,
    Refusal,
    Rejoining,
    Remaining,
    SiteLeft,
    Window,
    advance,
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
    window = advance(planned(), Permitted(WindowOpen(params=params(**changes), sig=bytes(64)), permits, NOW))
    window = advance(window, Opened(NOW))
    for site in ready_sites:
        window = advance(window, ReadyReceived(ready(site), NOW))
    return window


def state_of(window: Window) -> Open:
    assert isinstance(window.state, Open)
    return window.state


def test_synchronous_cohort_waits_for_every_present_site() -> None:
    window = opened(*SITES[:4])
    assert cohort_now(state_of(window), ANYONE, EVERYONE, NOW) == Wait()
    assert cohort_now(state_of(window), ANYONE, EVERYONE - {SITES[4]}, NOW) == Bind(
        tuple(ready(site) for site in SITES[:4])
    )


def test_a_site_that_refused_is_not_waited_for() -> None:
    window = advance(opened(*SITES[:4]), SiteLeft(Refusal(SITES[4], "COLUMN_MISSING", "age")))
    assert isinstance(cohort_now(state_of(window), ANYONE, EVERYONE, NOW), Bind)


def test_too_few_ready_are_extended_once_then_cancelled() -> None:
    window = opened(*SITES[:2])
    assert cohort_now(state_of(window), ANYONE, EVERYONE, NOW + seconds(59)) == Wait()
    assert cohort_now(state_of(window), ANYONE, EVERYONE, NOW + seconds(60)) == Extend()
    window = advance(window, Extended(NOW + seconds(60)))
    assert cohort_now(state_of(window), ANYONE, EVERYONE, NOW + seconds(61)) == Wait()
    assert cohort_now(state_of(window), ANYONE, EVERYONE, NOW + seconds(120)) == Cancel("NOT_ENOUGH_READY")


def test_at_the_deadline_enough_ready_sites_go_without_the_slow_one() -> None:
    window = opened(*SITES[:3])
    assert isinstance(cohort_now(state_of(window), ANYONE, EVERYONE, NOW + seconds(60)), Bind)


def test_when_enough_sites_refused_the_window_ends_at_once() -> None:
    window = opened()
    for site in SITES[:3]:
        window = advance(window, SiteLeft(Refusal(site, "GRANT_WITHDRAWN")))
    assert cohort_now(state_of(window), ANYONE, EVERYONE, NOW) == Cancel("NOT_ENOUGH_READY")


def test_buffered_cohort_is_bound_by_the_first_that_are_ready() -> None:
    window = opened(*SITES[1:5], kind="buffered", target_cohort=3)
    assert cohort_now(state_of(window), ANYONE, EVERYONE, NOW) == Bind(tuple(ready(site) for site in SITES[1:4]))


def test_buffered_cohort_does_not_wait_for_a_full_buffer_for_ever() -> None:
    window = opened(*SITES[:3], kind="buffered", target_cohort=4)
    assert cohort_now(state_of(window), ANYONE, EVERYONE, NOW + seconds(59)) == Wait()
    assert isinstance(cohort_now(state_of(window), ANYONE, EVERYONE, NOW + seconds(60)), Bind)


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
                Permitted(WindowOpen(params=params(), sig=bytes(64)), (Permit(site_id=SITES[0], permitted=True),), NOW),
                Opened(NOW),
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


FOUR = SITES[:4]


def strict(*ready_sites: SiteId, cohort: Cohort, **changes: Any) -> Window:
    permits = tuple(Permit(site_id=site, permitted=True) for site in asked(cohort, SITES))
    values: dict[str, Any] = {"purpose": "training", "kind": "strict"}
    permitted = Permitted(WindowOpen(params=params(**(values | changes)), sig=bytes(64)), permits, NOW)
    window = advance(advance(planned(purpose="training", cohort=cohort), permitted), Opened(NOW))
    for site in ready_sites:
        window = advance(window, ReadyReceived(ready(site), NOW))
    return window


def test_a_session_that_goes_on_waits_for_each_of_its_sites_though_one_is_not_seen() -> None:
    window = strict(*FOUR[:3], cohort=Rejoining(FOUR))
    gone = EVERYONE - {FOUR[3]}
    assert cohort_now(state_of(window), window.cohort, gone, NOW + seconds(59)) == Wait()
    assert cohort_now(state_of(window), window.cohort, gone, NOW + seconds(60)) == Cancel("SITES_LOST")
    window = advance(window, ReadyReceived(ready(FOUR[3]), NOW))
    assert cohort_now(state_of(window), window.cohort, gone, NOW) == Bind(tuple(ready(site) for site in FOUR))


def test_a_session_that_goes_on_ends_its_wait_when_one_of_its_sites_refuses() -> None:
    window = advance(strict(*FOUR[:3], cohort=Rejoining(FOUR)), SiteLeft(Refusal(FOUR[3], "JOURNAL_UNUSABLE")))
    assert cohort_now(state_of(window), window.cohort, EVERYONE, NOW) == Cancel("SITE_REFUSED")


def test_the_first_session_is_bound_like_any_cohort() -> None:
    window = strict(*FOUR[:3], cohort=Among(FOUR))
    assert cohort_now(state_of(window), window.cohort, EVERYONE, NOW) == Wait()
    assert isinstance(cohort_now(state_of(window), window.cohort, EVERYONE - {FOUR[3]}, NOW), Bind)
    assert isinstance(cohort_now(state_of(window), window.cohort, EVERYONE, NOW + seconds(60)), Bind)
    too_few = strict(*FOUR[:2], cohort=Among(FOUR))
    assert cohort_now(state_of(too_few), too_few.cohort, EVERYONE, NOW + seconds(60)) == Extend()


def test_the_remaining_sites_are_not_waited_for_a_second_time() -> None:
    window = strict(*FOUR[:2], cohort=Remaining(FOUR))
    assert cohort_now(state_of(window), window.cohort, EVERYONE, NOW + seconds(59)) == Wait()
    assert cohort_now(state_of(window), window.cohort, EVERYONE, NOW + seconds(60)) == Cancel("SITES_LOST")
    for site in FOUR[:2]:
        window = advance(window, SiteLeft(Refusal(site, "DATA_CHANGED")))
    assert cohort_now(state_of(window), window.cohort, EVERYONE, NOW) == Cancel("SITES_LOST")
    three = strict(*FOUR[:3], cohort=Remaining(FOUR))
    assert isinstance(cohort_now(state_of(three), three.cohort, EVERYONE, NOW + seconds(60)), Bind)


def test_consent_is_asked_only_for_sites_that_may_be_in_the_cohort() -> None:
    assert asked(ANYONE, SITES) == SITES
    for cohort in (Among(FOUR), Rejoining(FOUR), Remaining(FOUR)):
        assert asked(cohort, SITES) == FOUR


def permits(*denied: SiteId) -> tuple[Permit, ...]:
    return tuple(
        Permit(site_id=site, permitted=site not in denied, deny_code="GRANT_WITHDRAWN" if site in denied else None)
        for site in FOUR
    )


def test_a_window_is_not_opened_without_the_permits_that_its_cohort_needs() -> None:
    for cohort in (ANYONE, Among(FOUR), Rejoining(FOUR), Remaining(FOUR)):
        assert cannot_open(cohort, permits(), 3) is None
    withdrawn = Refusal(FOUR[1], "GRANT_WITHDRAWN")
    assert cannot_open(ANYONE, permits(FOUR[1]), 3) is None
    assert cannot_open(Remaining(FOUR), permits(FOUR[1]), 3) is None
    assert cannot_open(Rejoining(FOUR), permits(FOUR[1]), 3) == ("SITE_REFUSED", (withdrawn,))
    two = (withdrawn, Refusal(FOUR[2], "GRANT_WITHDRAWN"))
    assert cannot_open(ANYONE, permits(*FOUR[1:3]), 3) == ("NOT_ENOUGH_READY", two)
    assert cannot_open(Among(FOUR), permits(*FOUR[1:3]), 3) == ("NOT_ENOUGH_READY", two)
    assert cannot_open(Remaining(FOUR), permits(*FOUR[1:3]), 3) == ("SITES_LOST", two)


@pytest.mark.parametrize("code", [NOT_ENOUGH_READY, SITES_LOST, SITE_REFUSED, JOURNAL_UNUSABLE])
def test_each_reason_of_the_scheduler_has_its_sentence(code: str) -> None:
    assert code in SENTENCES


def test_an_ended_window_remembers_who_was_ready_and_who_was_denied() -> None:
    over = advance(strict(*FOUR[:3], cohort=Rejoining(FOUR)), Finished("CANCELLED", "SITES_LOST", NOW))
    assert isinstance(over.state, Ended)
    assert over.state.ready == FOUR[:3]
    denied = (Refusal(FOUR[0], "GRANT_WITHDRAWN"),)
    unopened = advance(planned(), Finished("CANCELLED", "SITE_REFUSED", NOW, denied=denied))
    assert isinstance(unopened.state, Ended)
    assert unopened.state.refusals == denied


@given(
    st.sets(st.sampled_from(FOUR)),
    st.sets(st.sampled_from(FOUR)),
    st.sets(st.sampled_from(SITES)),
    st.integers(0, 200),
    st.sampled_from([Rejoining(FOUR), Remaining(FOUR), Among(FOUR), Rejoining(FOUR[:3])]),
)
def test_no_cohort_holds_a_site_that_its_window_is_not_for(
    ready_sites: set[SiteId], refusing: set[SiteId], present: set[SiteId], after_s: int, cohort: Cohort
) -> None:
    window = strict(*sorted(ready_sites), cohort=cohort)
    for site in sorted(refusing):
        window = advance(window, SiteLeft(Refusal(site, "DATA_CHANGED")))
    decision = cohort_now(state_of(window), window.cohort, frozenset(present), NOW + seconds(after_s))
    if isinstance(decision, Bind):
        bound = {entry.site_id for entry in decision.readies}
        assert bound <= set(asked(cohort, SITES))
        assert len(bound) >= 3
        assert not bound & refusing
        if isinstance(cohort, Rejoining):
            assert bound == set(cohort.sites)
