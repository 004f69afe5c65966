"""A withdrawal's course keeps to its table, whatever comes in whichever order, and ends only with a receipt's facts."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from cohortium_consent.withdrawals import (
    TRANSITIONS,
    Case,
    Close,
    Closed,
    Command,
    Decide,
    Decision,
    Finish,
    Limits,
    Proven,
    Received,
    Start,
    Trace,
    Verify,
    advance,
    deadlines,
    working_days_after,
)
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.withdrawals import EffectDone, WithdrawalTraced

NOW = datetime(2027, 3, 5, 12, tzinfo=UTC)  # a Friday
DIGEST = b"w" * 32
DECISIONS = [
    Decision(bytes([number]) * 32, effect, ("olga", "otto"), NOW) for number, effect in ((1, "retrain"), (2, "retire"))
]  # type: ignore[arg-type]


def case() -> Case:
    site, study = SiteId("10000000-0000-4000-8000-000000000001"), StudyId("heart")
    return Case(DIGEST, "institution", site, study, b"s" * 32, "retrain", NOW, state=Received(NOW))


def commands(at: datetime) -> st.SearchStrategy[Command]:
    decision = st.sampled_from(DECISIONS)
    traced = WithdrawalTraced(withdrawal=DIGEST, without=(), models=(), sums=0)
    fault = st.sampled_from([None, "TOO_MANY_ATTEMPTS"])
    return st.one_of(
        st.just(Verify(at)),
        st.just(Trace(traced, at)),
        st.builds(Decide, decision, st.just(at)),
        st.builds(lambda one: Start(one.digest, None, at), decision),
        st.builds(
            lambda one, why: Finish(EffectDone(withdrawal=DIGEST, decision=one.digest, fault=why), at), decision, fault
        ),
        st.just(Close(at)),
    )


@given(st.lists(commands(NOW), max_size=40))
def test_only_what_the_table_allows_happens(course: list[Command]) -> None:
    now = case()
    for command in course:
        after = advance(now, command)
        if after is not now:
            assert type(after.state) in TRANSITIONS[type(now.state), type(command)]
        assert advance(after, command) is after or type(after.state) is type(advance(after, command).state)
        if isinstance(after.state, Proven | Closed):
            assert after.done is not None
            assert after.decision is not None
            assert after.done.decision == after.decision.digest
            assert after.done.fault is None
            assert after.traced is not None
        now = after


def test_the_straight_course_and_a_decision_that_comes_early() -> None:
    traced = WithdrawalTraced(withdrawal=DIGEST, without=(), models=(), sums=0)
    first, second = DECISIONS
    course: list[tuple[Command, str]] = [
        (Verify(NOW), "VERIFIED"),
        (Decide(first, NOW), "VERIFIED"),
        (Decide(second, NOW), "VERIFIED"),  # the first one counts
        (Trace(traced, NOW), "EFFECT_DECIDED"),
        (Start(first.digest, None, NOW), "EXECUTING"),
        (Finish(EffectDone(withdrawal=DIGEST, decision=first.digest, fault="STOPPED"), NOW), "EXECUTING"),
        (Decide(second, NOW), "EFFECT_DECIDED"),  # what could not be carried out may be decided anew
        (Start(second.digest, None, NOW), "EXECUTING"),
        (Finish(EffectDone(withdrawal=DIGEST, decision=second.digest), NOW), "PROVEN"),
        (Close(NOW), "CLOSED"),
    ]
    now = case()
    for command, word in course:
        now = advance(now, command)
        assert now.word == word


def test_what_is_late_is_overdue_and_stays_so_when_it_is_met() -> None:
    limits = Limits()
    fresh = advance(case(), Verify(NOW + timedelta(seconds=10)))
    assert not [one for one in deadlines(fresh, limits, NOW + timedelta(seconds=20)) if one.overdue]
    late = [one.name for one in deadlines(fresh, limits, NOW + timedelta(days=13)) if one.overdue]
    assert late == ["EFFECTIVE"]
    late = [one.name for one in deadlines(fresh, limits, NOW + timedelta(days=15)) if one.overdue]
    assert late == ["EFFECTIVE", "DECIDED"]
    traced = WithdrawalTraced(withdrawal=DIGEST, without=(), models=(), sums=0)
    met = advance(fresh, Trace(traced, NOW + timedelta(hours=1)))
    (effective,) = [one for one in deadlines(met, limits, NOW + timedelta(days=1)) if one.overdue]
    assert (effective.name, effective.met_at) == ("EFFECTIVE", NOW + timedelta(hours=1))


def test_working_days_leave_out_weekends() -> None:
    assert working_days_after(NOW, 1) == NOW + timedelta(days=3)
    assert working_days_after(NOW, 10) == NOW + timedelta(days=14)
