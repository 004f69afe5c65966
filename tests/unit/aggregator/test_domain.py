"""The window's state machine by itself."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cohortium_aggregator.domain.advance import advance, due_at
from cohortium_aggregator.domain.states import (
    CODES,
    TRANSITIONS,
    Aborting,
    AskAbort,
    Collecting,
    EchoArrived,
    Echoing,
    Ended,
    FaultFound,
    MemberLeft,
    MembershipChanged,
    Opening,
    OpenSum,
    RunOver,
    SetAside,
    SharesArrived,
    SharesUnusable,
    ShowCertificate,
    ShowSurvivors,
    State,
    SumRefused,
    SumReleased,
    Terms,
    TimePassed,
    Timers,
    Unmasking,
    UploadArrived,
    UploadSeen,
    VoteArrived,
    WindowOver,
)
from cohortium_aggregator.domain.strict_states import (
    AssembleModel,
    Assembling,
    ModelAssembled,
    Progress,
    SessionBroken,
    SessionLives,
    SessionTaken,
    SiteStopped,
    Stepping,
    TrainingDone,
)
from cohortium_aggregator.store.windows import ADAPTERS
from cohortium_protocol.survivors import SurvivorSet
from cohortium_protocol.window import RosterView

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=31)
U = SurvivorSet(0, (1, 2, 3), b"\x07", (b"1" * 32, b"2" * 32, b"3" * 32), b"U" * 32)
ECHOES = {1: b"a" * 64, 2: b"b" * 64, 3: b"c" * 64}


def terms(n: int = 4, least: int = 3) -> Terms:
    view = SimpleNamespace(
        n=n,
        t=3,
        k_min=3,
        collusion=1,
        indices=range(1, n + 1),
        window_id=bytes(16),
        roster_hash=bytes(32),
        entry=lambda index: index,
    )
    return Terms(cast("RosterView", view), 0, Timers(30, 15, 30), NOW + timedelta(seconds=300), least)


CHAIN = bytes(range(32))
BEGUN = Progress(0, bytes(32), steps=3, sums=1)
GROWN = Progress(7, CHAIN, steps=900, sums=450, bytes_up=10, bytes_down=20)


STATES: list[State] = [
    Collecting(LATER, {1: b"1" * 32}, frozenset({(1, 2)}), frozenset({3}), 0),
    Echoing(U, LATER, {1: b"a" * 64}, 2),
    Unmasking(U, ECHOES, LATER, 3, frozenset({1}), 1),
    Opening(U, ECHOES, frozenset({1, 2, 3})),
    Aborting("NOT_ENOUGH_UPLOADS", LATER, LATER, {2: b"v" * 64}, 1),
    Ended("RELEASED", "", U, ECHOES),
    Ended("ABORTED", "NOT_ENOUGH_UPLOADS", votes=ECHOES),
    Stepping(Progress(0, bytes(32)), LATER),
    Stepping(BEGUN, LATER, "us:1"),
    Stepping(GROWN, LATER, "us:1"),
    Assembling("PAUSED", "SITE_SILENT", GROWN, 7, frozenset({2})),
    Assembling("RELEASED", "", GROWN, 5),
    Ended("PAUSED", "SITE_SILENT", progress=GROWN, gone=frozenset({2})),
    Opening(U, ECHOES, frozenset({1, 2, 3}), left=frozenset({3})),
]
COMMANDS: list[Any] = [
    UploadArrived(4, b"4" * 32),
    UploadSeen(4),
    MemberLeft(3),
    MembershipChanged(),
    EchoArrived(2, U.digest, b"b" * 64),
    EchoArrived(2, bytes(32), b"b" * 64),
    SharesArrived(2, U.digest),
    SharesArrived(2, bytes(32)),
    VoteArrived(1, b"v" * 64),
    TimePassed(),
    SumReleased(),
    SumRefused("FAILED", "SUM_NOT_FINITE"),
    SharesUnusable(frozenset({1, 2, 3}), 1),
    RunOver("STOPPED_BY_OPERATOR"),
    SessionTaken("us:1", LATER),
    SessionTaken("us:2", LATER),
    SessionLives("us:1", LATER, GROWN),
    SessionBroken("us:1", "PAUSED", "SITE_SILENT", GROWN, frozenset({2})),
    SessionBroken("us:1", "FAILED", "MODEL_REFUSED", BEGUN),
    TrainingDone("us:1", GROWN, 5),
    SiteStopped(2, "PAUSED", "RESTARTED"),
    SiteStopped(2, "FAILED", "DATA_CHANGED"),
    ModelAssembled(),
]


def test_a_window_ends_at_once_when_fewer_are_left_than_its_noise_needs() -> None:
    """And goes on, over as many, where no noise was shared out."""
    state = Collecting(LATER, {1: b"1" * 32, 2: b"2" * 32, 3: b"3" * 32})
    ended, events = advance(terms(least=4), state, MemberLeft(4), NOW)
    assert isinstance(ended, Aborting)
    assert [event for event in events if isinstance(event, AskAbort)]
    assert not [event for event in events if isinstance(event, ShowSurvivors)]
    assert isinstance(advance(terms(least=3), state, MemberLeft(4), NOW)[0], Echoing)


def test_the_transition_table_is_total() -> None:
    assert TRANSITIONS.keys() == CODES.keys()
    assert set().union(*TRANSITIONS.values()) <= CODES.keys()
    assert not TRANSITIONS[Ended]


@pytest.mark.parametrize("state", STATES)
def test_a_state_survives_the_database(state: State) -> None:
    adapter = ADAPTERS[CODES[type(state)]]
    assert adapter.validate_json(adapter.dump_json((state,))) == (state,)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("state", STATES)
def test_a_command_that_comes_twice_changes_nothing_the_second_time(state: State, command: Any) -> None:
    once, _ = advance(terms(), state, command, NOW)
    twice, events = advance(terms(), once, command, NOW)
    if isinstance(command, SharesUnusable) and isinstance(once, Opening | Unmasking):
        return  # each is a new attempt with the shares at hand
    assert twice == once
    assert not [
        event for event in events if isinstance(event, OpenSum | AssembleModel | WindowOver | ShowSurvivors | AskAbort)
    ]


@pytest.mark.parametrize("state", STATES)
def test_what_is_due_is_done_when_it_is_due(state: State) -> None:
    due = due_at(terms(), state)
    if due is None:
        assert advance(terms(), state, TimePassed(), NOW + timedelta(days=99)) == (state, ())
        return
    assert advance(terms(), state, TimePassed(), due - timedelta(seconds=1)) == (state, ())
    after, _ = advance(terms(), state, TimePassed(), due)
    assert after != state
    again = due_at(terms(), after)
    assert again is None or again > due


def test_an_ended_window_stays_ended() -> None:
    for command in COMMANDS:
        for state in (state for state in STATES if isinstance(state, Ended)):
            assert advance(terms(), state, command, LATER)[0] is state


def test_survivors_never_change_once_fixed() -> None:
    for state in (STATES[1], STATES[2], STATES[3]):
        for command in COMMANDS:
            after, _ = advance(terms(), state, command, NOW)
            if isinstance(after, Echoing | Unmasking | Opening):
                assert after.survivors == U


def test_only_a_site_outside_u_is_shown_the_certificate_again() -> None:
    _, events = advance(terms(), STATES[5], UploadSeen(4), NOW)
    assert events == (ShowCertificate(frozenset({4}), None),)
    assert advance(terms(), STATES[5], UploadSeen(1), NOW)[1] == ()


def test_unusable_shares_wait_for_one_more_answer() -> None:
    opening = Opening(U, ECHOES, frozenset({1, 2, 3}))
    waiting, events = advance(terms(), opening, SharesUnusable(frozenset({1, 2, 3}), 2), NOW)
    assert isinstance(waiting, Unmasking)
    assert (waiting.need, events) == (4, ())
    assert advance(terms(), waiting, SharesArrived(4, U.digest), NOW)[1] == (OpenSum(),)


def ended(outcome: Any, reason: str, progress: Progress, *gone: int) -> tuple[State, Any]:
    return Ended(outcome, reason, progress=progress, gone=frozenset(gone)), (WindowOver(outcome, reason),)


def assembling(reason: str, *gone: int) -> tuple[State, Any]:
    return Assembling("PAUSED", reason, GROWN, 7, frozenset(gone)), (AssembleModel(),)


@pytest.mark.parametrize(
    ("command", "reason", "gone"),
    [
        (SessionTaken("us:2", LATER), "SESSION_LOST", ()),
        (SessionBroken("us:1", "PAUSED", "STEP_REFUSED", GROWN, frozenset({3})), "STEP_REFUSED", (3,)),
        (SiteStopped(2, "PAUSED", "RESTARTED"), "RESTARTED", (2,)),
        (MembershipChanged(), "MANIFEST_CHANGED", ()),
    ],
)
def test_a_session_that_cannot_go_on_keeps_the_rounds_that_stand(
    command: Any, reason: str, gone: tuple[int, ...]
) -> None:
    with_trees = Stepping(GROWN, LATER, "us:1")
    assert advance(terms(), with_trees, command, NOW) == assembling(reason, *gone)
    without = Stepping(BEGUN, LATER, "us:1")
    after, events = advance(terms(), without, command, NOW)
    if isinstance(command, SessionBroken):
        assert (after, events) == assembling(reason, *gone)  # the owner knows more than the record
    else:
        assert (after, events) == ended("PAUSED", reason, BEGUN, *gone)


@pytest.mark.parametrize(
    ("state", "gone"),
    [
        (Stepping(GROWN, LATER, "us:1"), {4}),
        (Assembling("PAUSED", "SITE_SILENT", GROWN, 7, frozenset({3})), {3, 4}),
        (Assembling("RELEASED", "", GROWN, 5), {4}),
    ],
)
def test_nothing_comes_of_a_session_of_a_site_that_leaves_before_its_model_is_there(
    state: Stepping | Assembling, gone: set[int]
) -> None:
    after, events = advance(terms(), state, MemberLeft(4), NOW)
    over, told = ended("PAUSED", "SITE_LEFT", GROWN, *gone)
    assert (after, events) == (over, (SetAside(frozenset({4}), opened=True), *told))
    assert advance(terms(), after, ModelAssembled(), NOW) == (after, ())
    unbegun = Stepping(Progress(0, bytes(32)), LATER)
    assert advance(terms(), unbegun, MemberLeft(4), NOW)[1][0] == SetAside(frozenset({4}), opened=False)


def test_only_the_owner_speaks_for_a_session() -> None:
    state = Stepping(GROWN, LATER, "us:1")
    for command in (
        SessionLives("us:2", LATER, BEGUN),
        SessionBroken("us:2", "PAUSED", "SITE_SILENT", BEGUN),
        TrainingDone("us:2", BEGUN, 1),
    ):
        assert advance(terms(), state, command, NOW) == (state, ())


def test_a_session_is_taken_once() -> None:
    fresh = Stepping(Progress(0, bytes(32)), LATER)
    taken, events = advance(terms(), fresh, SessionTaken("us:1", LATER), NOW)
    assert (taken, events) == (Stepping(fresh.progress, LATER, "us:1"), ())
    lost, _ = advance(terms(), taken, SessionTaken("us:2", LATER), NOW)
    assert isinstance(lost, Ended)
    assert (lost.outcome, lost.reason) == ("PAUSED", "SESSION_LOST")


def test_a_session_that_no_site_begins_ends_and_names_all_of_them() -> None:
    fresh = Stepping(Progress(0, bytes(32)), LATER)
    assert advance(terms(), fresh, TimePassed(), LATER) == ended("PAUSED", "SITE_SILENT", fresh.progress, 1, 2, 3, 4)
    held = Stepping(GROWN, LATER, "us:1")
    assert advance(terms(), held, TimePassed(), LATER) == assembling("SESSION_LOST")


def test_a_finished_training_keeps_its_best_rounds() -> None:
    done, events = advance(terms(), Stepping(GROWN, LATER, "us:1"), TrainingDone("us:1", GROWN, 5), NOW)
    assert (done, events) == (Assembling("RELEASED", "", GROWN, 5), (AssembleModel(),))
    assert advance(terms(), done, ModelAssembled(), NOW) == ended("RELEASED", "", GROWN)
    assert advance(terms(), done, SumRefused("FAILED", "MODEL_REFUSED"), NOW) == ended("FAILED", "MODEL_REFUSED", GROWN)
    assert advance(terms(), done, RunOver("STOPPED_BY_OPERATOR"), NOW) == ended("FAILED", "STOPPED_BY_OPERATOR", GROWN)


def arrive(agreed: Terms, *uploads: tuple[int, set[int]]) -> tuple[State, list[Any]]:
    """Uploads in this order; each with those before it that it conflicts with."""
    state: State = Collecting(LATER)
    said: list[Any] = []
    for index, conflicts in uploads:
        state, events = advance(agreed, state, UploadArrived(index, bytes([index]) * 32, frozenset(conflicts)), NOW)
        said += events
    return state, said


ORDERS = {
    "the liar last": [(1, set()), (2, set()), (4, set()), (3, {1, 2, 4})],
    "the liar first": [(3, set()), (1, {3}), (2, {3}), (4, {3})],
    "the liar between": [(1, set()), (3, {1}), (2, {3}), (4, {3})],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_who_conflicts_with_more_than_can_lie_is_left_out_and_nobody_else(order: list[tuple[int, set[int]]]) -> None:
    state, said = arrive(terms(), *order)
    assert isinstance(state, Echoing)
    assert state.survivors.members == (1, 2, 4)
    assert [one.index for one in said if isinstance(one, FaultFound) and one.code == "EDGE_COMMITS_FALSE"] == [3]


def test_of_a_pair_that_conflicts_alone_nobody_can_say_who_lies() -> None:
    state, said = arrive(terms(5), (1, set()), (2, {1}), (3, set()), (4, set()), (5, set()))
    assert isinstance(state, Echoing)
    assert state.survivors.members == (3, 4, 5)
    assert {one.code for one in said if isinstance(one, FaultFound)} == {"EDGE_COMMITS_DIFFER"}
    given_up, _ = arrive(terms(), (1, set()), (2, {1}), (3, set()), (4, set()))
    assert isinstance(given_up, Aborting), "two of four are too few"


def test_a_conflict_is_no_reason_to_give_up_while_it_may_turn_out_to_be_one_liars() -> None:
    state, _ = arrive(terms(), (3, set()), (1, {3}))
    assert isinstance(state, Collecting)
    late, _ = advance(terms(), state, TimePassed(), LATER)
    assert isinstance(late, Collecting), "the time runs once more, as for any window with too few uploads"
