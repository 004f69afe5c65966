"""What a withdrawal touches, and where a training without somebody begins: never with a model that learnt from them."""

from datetime import UTC, datetime
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.runs import SessionClosed
from cohortium_messages.secure_sum import ModelRef, Purpose
from cohortium_scheduler.domain.windows import Ended, Window
from cohortium_scheduler.domain.withdrawals import Made, affected, clean_start, in_sum

NOW = datetime(2027, 1, 1, tzinfo=UTC)
RUN = RunId(str(UUID(int=9)))
SITE, *OTHERS = (SiteId(str(UUID(int=number))) for number in range(1, 6))


def window(sequence: int, purpose: Purpose, number: int, sites: list[SiteId], *, released: bool = True) -> Window:
    name = bytes([sequence]) * 16
    state = "RELEASED" if released else "FAILED"
    closed = SessionClosed(run_id=RUN, window_id=name, purpose=purpose, state=state, survivors=tuple(sites))
    return Window(name, RUN, sequence, purpose, number, 1, Ended(state, "", NOW, closed=closed))


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Window], list[Made]]:
    """A run of averaging: each sum with the site or without it, released or not, with an evaluation now and then."""
    windows, made = [], []
    for number in range(draw(st.integers(1, 8))):
        for released in [False] * draw(st.integers(0, 1)) + [True]:
            sites = [*OTHERS, *([SITE] if draw(st.booleans()) else [])]
            purpose: Purpose = "statistics" if number == 0 else "update"
            windows.append(window(len(windows), purpose, number, sites, released=released))
        ref = ModelRef(version=number, model_hash=bytes([number]) * 32)
        made.append(Made(ref, windows[-1].window_id))
        if draw(st.booleans()):
            windows.append(window(len(windows), "evaluation", number, [*OTHERS, SITE]))
    return windows, made


@given(runs(), st.integers(0, 8))
def test_all_after_the_first_sum_with_the_site_learnt_from_it_and_none_before(
    run: tuple[list[Window], list[Made]], from_round: int
) -> None:
    windows, made = run
    by_id = {one.window_id: one for one in windows}
    touched = affected(SITE, windows, made, from_round)
    seen = False
    for one in made:
        assert one.window_id is not None
        seen = seen or in_sum(SITE, by_id[one.window_id], from_round)
        assert (one.model in touched) == seen
    assert affected(SITE, windows, made, inherited=True) == tuple(one.model for one in made)


@given(runs(), st.integers(0, 8))
def test_a_training_begins_with_the_last_model_that_did_not_learn_from_the_site(
    run: tuple[list[Window], list[Made]], from_round: int
) -> None:
    windows, made = run
    start = clean_start(SITE, windows, made, from_round)
    touched = affected(SITE, windows, made, from_round)
    clean = [one.model for one in made if one.model not in touched]
    if start.model is not None:
        assert start.basis == "CHECKPOINT"
        assert start.model == clean[-1]
        assert start.round == start.model.version
    elif touched:
        assert not clean
        assert start.basis == "SITE_IN_STATISTICS"


def test_trees_and_private_plans_begin_with_nothing_and_say_why() -> None:
    windows = [window(0, "statistics", 0, OTHERS), window(1, "update", 1, [*OTHERS, SITE])]
    made = [Made(ModelRef(version=n, model_hash=bytes([n]) * 32), windows[n].window_id) for n in (0, 1)]
    assert clean_start(SITE, windows, made).basis == "CHECKPOINT"
    assert clean_start(SITE, windows, made, boosts=True).basis == "TREES_SHARE_BINS"
    assert clean_start(SITE, windows, made, private=True).basis == "PRIVATE_PLAN"
