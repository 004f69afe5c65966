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
    Follow,
    Limits,
    Proven,
    Received,
    Refuse,
    Start,
    Trace,
    Verify,
    advance,
    deadlines,
    working_days_after,
)
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.withdrawals import EffectDone, EffectRefused, RunModel, WithdrawalFollowed, WithdrawalTraced

NOW = datetime(2027, 3, 5, 12, tzinfo=UTC)  # a Friday
DIGEST = b"w" * 32
DECISIONS = [
    Decision(bytes([number]) * 32, effect, ("olga", "otto"), NOW) for number, effect in ((1, "retrain"), (2, "retire"))
]  # type: ignore[arg-type]


SITE = SiteId("10000000-0000-4000-8000-000000000001")
RUN = RunId("a0000000-0000-4000-8000-00000000000a")


def models(*versions: int) -> tuple[RunModel, ...]:
    return tuple(
        RunModel(run_id=RUN, model=ModelRef(version=version, model_hash=bytes([version]) * 32)) for version in versions
    )


def followed(*versions: int, retired: tuple[int, ...] = ()) -> WithdrawalFollowed:
    return WithdrawalFollowed(withdrawal=DIGEST, models=models(*versions), sums=0, retired=models(*retired))


def refused(decision: Decision, code: str = "COHORT_DIFFERS_BY_ONE") -> EffectRefused:
    return EffectRefused(withdrawal=DIGEST, decision=decision.digest, run_id=RUN, site_id=SITE, code=code)


def case() -> Case:
    site, study = SITE, StudyId("heart")
    return Case(DIGEST, "institution", site, study, b"s" * 32, "retrain", NOW, state=Received(NOW))


def commands(at: datetime) -> st.SearchStrategy[Command]:
    decision = st.sampled_from(DECISIONS)
    traced = WithdrawalTraced(withdrawal=DIGEST, without=(), models=(), sums=0)
    fault = st.sampled_from([None, "TOO_MANY_ATTEMPTS"])
    return st.one_of(
        st.just(Verify(at)),
        st.just(Trace(traced, at)),
        st.builds(lambda version: Follow(followed(version), at), st.integers(1, 5)),
        st.builds(lambda one: Refuse(refused(one), at), decision),
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
        if after.traced is not None:
            assert len(set(after.traced.models)) == len(after.traced.models)
        if now.traced is not None:
            assert after.traced is not None
            assert set(after.traced.models) >= set(now.traced.models), "what is listed stays listed"
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


def at_effective() -> Case:
    traced = WithdrawalTraced(withdrawal=DIGEST, without=(), models=models(0, 1), sums=2)
    return advance(advance(case(), Verify(NOW)), Trace(traced, NOW))


def listed(now: Case) -> tuple[RunModel, ...]:
    assert now.traced is not None
    return now.traced.models


def test_the_list_follows_what_is_made_until_the_case_is_closed() -> None:
    now = advance(at_effective(), Follow(followed(2), NOW))
    assert (now.word, listed(now)) == ("EFFECTIVE", models(0, 1, 2))
    assert advance(now, Follow(followed(2), NOW)) is now
    retire = DECISIONS[1]
    done = EffectDone(withdrawal=DIGEST, decision=retire.digest, retired=models(0, 1, 2))
    for command in (Decide(retire, NOW), Follow(followed(2), NOW), Start(retire.digest, None, NOW), Finish(done, NOW)):
        now = advance(now, command)
    now = advance(now, Follow(followed(3, retired=(3,)), NOW))
    assert (now.word, listed(now)) == ("PROVEN", models(0, 1, 2, 3))
    assert now.done is not None
    assert now.done.retired == models(0, 1, 2, 3)
    closed = advance(now, Close(NOW))
    assert advance(closed, Follow(followed(4), NOW)) is closed


def test_who_refuses_a_retraining_stands_in_the_case_until_it_is_decided_anew() -> None:
    first, second = DECISIONS
    assert advance(at_effective(), Refuse(refused(first), NOW)).refused == ()
    now = advance(advance(at_effective(), Decide(first, NOW)), Start(first.digest, None, NOW))
    assert advance(now, Refuse(refused(second), NOW)) is now, "of another decision"
    now = advance(now, Refuse(refused(first), NOW))
    assert [(one.site_id, one.code) for one in now.refused] == [(SITE, "COHORT_DIFFERS_BY_ONE")]
    assert advance(now, Refuse(refused(first), NOW)) is now
    fault = EffectDone(withdrawal=DIGEST, decision=first.digest, fault="COHORT_DIFFERS_BY_ONE")
    now = advance(advance(now, Finish(fault, NOW)), Decide(second, NOW))
    assert advance(now, Start(second.digest, None, NOW)).refused == ()


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
