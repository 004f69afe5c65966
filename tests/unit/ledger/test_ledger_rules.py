"""The rules of the budget ledger, one by one."""

import math
from dataclasses import replace
from datetime import date

import pytest
from ledger_stage import ORDER, Q1, Q2, Q3, Book, part_of, plan_of, run_id, window

from cohortium_connector.ledger.view import explain
from cohortium_messages.ids import StudyId
from cohortium_messages.ledger import AccountOpened, LimitsChanged, PlanReserved, StepsMoved
from cohortium_privacy import ledger as rules
from cohortium_privacy.accounting import GaussianSteps, rdp_at
from cohortium_privacy.agreed import AgreedCap
from cohortium_privacy.filter import alpha_star, budget, epsilon_of
from cohortium_privacy.ledger_plan import (
    Exhausted,
    Limits,
    PlanChanged,
    PlannedPart,
    PlanOver,
    PlanUnknown,
    blocks_of,
    quarter_of,
)
from cohortium_privacy.ledger_state import ALL, spent

B = budget(3.0, 1e-5, ORDER)


@pytest.fixture
def book() -> Book:
    return Book()


def left(book: Book, block: str = Q1) -> float:
    account = book.state.accounts[block]
    return account.limit - spent(book.state, block, account.order)


class TestReserve:
    def test_an_account_keeps_the_order_of_its_first_limits(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.01, 5)))
        opened = book.rows[0].entry.fact
        assert isinstance(opened, AccountOpened)
        assert (opened.order, opened.limit) == (ORDER, B)
        book.limits = Limits(8.0, 1e-5)  # a new account would get order 4
        book.reserve(plan_of(2, part_of(0.01, 5)))
        account = book.state.accounts[Q1]
        assert (account.order, account.limit, account.epsilon_max) == (ORDER, budget(8.0, 1e-5, ORDER), 8.0)
        assert [type(row.entry.fact) for row in book.rows].count(LimitsChanged) == 1

    def test_the_whole_plan_is_set_aside_before_a_step_is_taken(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(B / 10, 9)))
        assert math.isclose(left(book), B / 10)
        refused = book.reserve(plan_of(2, part_of(B / 10, 2)))
        assert isinstance(refused, Exhausted)
        assert refused.code == "EPSILON_EXHAUSTED"
        assert not isinstance(book.reserve(plan_of(3, part_of(B / 10, 1))), Exhausted)
        assert abs(left(book)) < 1e-12

    def test_a_refusal_writes_nothing_and_says_what_is_left_and_who_has_it(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(B / 10, 6), study="lung"))
        book.commit(1, window(1))
        rows = len(book.rows)
        refused = book.reserve(plan_of(2, part_of(B / 10, 5)))
        assert isinstance(refused, Exhausted)
        (short,) = refused.shortages
        assert len(book.rows) == rows
        assert math.isclose(short.left, 0.4 * B)
        assert math.isclose(short.wanted, 0.5 * B)
        (lung,) = short.spenders
        assert lung.study_id == "lung"
        assert math.isclose(lung.committed, 0.1 * B)
        assert math.isclose(lung.reserved, 0.5 * B)

    def test_reserving_again_is_known_even_when_the_extract_has_grown(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.1, 5)))
        assert book.reserve(plan_of(1, part_of(0.1, 5), blocks=(Q1, Q2))) == ()
        assert Q2 not in book.state.accounts

    def test_a_plan_cannot_change_once_it_is_reserved(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.1, 5)))
        with pytest.raises(PlanChanged, match="new plan needs a new run"):
            book.reserve(plan_of(1, part_of(0.1, 6)))
        with pytest.raises(PlanChanged):
            book.reserve(plan_of(1, part_of(0.1, 5), part_of(0.1, 1, part="evaluation")))

    def test_all_blocks_or_none(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(B / 2, 1), blocks=(Q1,)))
        refused = book.reserve(plan_of(2, part_of(0.6 * B, 1), blocks=(Q1, Q2)))
        assert isinstance(refused, Exhausted)
        assert refused.blocks == (Q1,)
        assert Q2 not in book.state.accounts

    def test_new_patients_bring_a_fresh_budget(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(B, 1), blocks=(Q1,)))
        assert isinstance(book.reserve(plan_of(2, part_of(B, 1), blocks=(Q1,))), Exhausted)
        assert not isinstance(book.reserve(plan_of(2, part_of(B, 1), blocks=(Q2,))), Exhausted)

    def test_training_and_evaluation_are_paid_by_different_patients(self, book: Book) -> None:
        outcome = book.reserve(plan_of(1, part_of(B / 5, 5), part_of(B, 1, part="evaluation")))
        assert not isinstance(outcome, Exhausted)
        assert abs(left(book)) < 1e-12
        book.commit(1, window(1), "evaluation")
        book.close(1)
        assert abs(left(book)) < 1e-12  # no training was begun, but the test patients did pay

    def test_an_order_without_a_bound_has_no_room(self, book: Book) -> None:
        fine = part_of(0.01, 1)
        prices = tuple(None if order == ORDER else price for order, price in enumerate(fine.prices, start=2))
        parts = (PlannedPart("training", fine.mechanism, 1, 1, prices),)
        refused = book.reserve(replace(plan_of(1, fine), parts=parts, public_order=8))
        assert isinstance(refused, Exhausted)
        assert refused.shortages[0].wanted == math.inf

    def test_limits_that_leave_nothing_refuse_everything(self, book: Book) -> None:
        book.limits = Limits(1e-9, 1e-300)
        refused = book.reserve(plan_of(1, part_of(1e-9, 1)))
        assert isinstance(refused, Exhausted)
        assert refused.code == "EPSILON_EXHAUSTED"
        book.limits = Limits(3.0, 1e-5, {"heart": 1e-12})
        refused = book.reserve(plan_of(1, part_of(1e-9, 1)))
        assert isinstance(refused, Exhausted)
        assert refused.code == "EPSILON_EXHAUSTED"

    @pytest.mark.parametrize(
        "limits", [(0.0, 1e-5, {}), (math.inf, 1e-5, {}), (3.0, 0.0, {}), (3.0, 1.0, {}), (3.0, 1e-5, {"heart": -1.0})]
    )
    def test_limits_that_are_none_are_refused(self, limits: tuple[float, float, dict[str, float]]) -> None:
        with pytest.raises(ValueError, match="epsilon is above 0"):
            Limits(*limits)

    def test_delta_must_suit_the_patients_of_the_block(self, book: Book) -> None:
        crowded = replace(plan_of(1, part_of(0.1, 1)), blocks={Q1: 10_000, Q2: 9_999})
        refused = book.reserve(crowded)
        assert isinstance(refused, Exhausted)
        assert (refused.code, refused.blocks) == ("DELTA_TOO_LARGE", (Q1,))

    def test_a_study_may_have_a_smaller_share_than_the_account(self, book: Book) -> None:
        book.limits = Limits(3.0, 1e-5, {"heart": 2.0})
        own = alpha_star(2.0, 1e-5)
        share = budget(2.0, 1e-5, own) * ORDER / own  # at the order of prices
        assert not isinstance(book.reserve(plan_of(1, part_of(share / 2, 1))), Exhausted)
        refused = book.reserve(plan_of(2, part_of(share * 0.6, 1)))
        assert isinstance(refused, Exhausted)
        assert refused.shortages[0].of_study
        assert not isinstance(book.reserve(plan_of(3, part_of(share * 0.6, 1), study="lung")), Exhausted)

    def test_what_documents_agree_holds_for_all_runs_of_the_study_whatever_block_pays(self, book: Book) -> None:
        cap = AgreedCap(2.0, 1e-5, "data-use terms T-1")
        half = budget(2.0, 1e-5, ORDER) / 2
        first = replace(plan_of(1, part_of(half, 1)), caps=(AgreedCap(2.5, 1e-5, "the approval"), cap))
        second = replace(plan_of(2, part_of(half * 1.1, 1), blocks=(Q2,)), caps=(cap,))
        assert not isinstance(book.reserve(first), Exhausted)
        refused = book.reserve(second)
        assert isinstance(refused, Exhausted)
        assert refused.code == "EPSILON_EXHAUSTED"
        assert refused.agreed is not None
        assert (refused.agreed.cap, refused.shortages) == (cap, ())
        assert refused.agreed.wanted > 2.0 > refused.agreed.spent
        assert "data-use terms T-1 allows epsilon 2 at delta 1e-05 for all its runs" in explain(refused)
        assert not isinstance(book.reserve(replace(second, study_id=StudyId("lung"))), Exhausted)

    def test_what_was_never_begun_makes_room_under_the_agreed_cap(self, book: Book) -> None:
        cap = AgreedCap(2.0, 1e-5, "data-use terms T-1")
        whole = part_of(budget(2.0, 1e-5, ORDER), 1)
        book.reserve(replace(plan_of(1, whole), caps=(cap,)))
        assert isinstance(book.reserve(replace(plan_of(2, whole), caps=(cap,))), Exhausted)
        book.close(1)
        assert not isinstance(book.reserve(replace(plan_of(2, whole), caps=(cap,))), Exhausted)

    def test_lowered_limits_refuse_what_would_still_have_fitted(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(B / 2, 1)))
        book.limits = Limits(1.0, 1e-5)
        refused = book.reserve(plan_of(2, part_of(0.001, 1)))
        assert isinstance(refused, Exhausted)
        assert refused.shortages[0].left < 0

    def test_what_the_filter_lets_through_is_within_epsilon(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(B / 3, 3)))
        assert math.isclose(epsilon_of(spent(book.state, Q1, ORDER), 1e-5, ORDER), 3.0)


class TestBlocks:
    """A patient of a quarter is also one of `all`, so one budget must not be spent under two names."""

    def test_all_is_charged_to_every_quarter(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.7 * B, 1), blocks=(ALL,)))
        assert isinstance(book.reserve(plan_of(2, part_of(0.4 * B, 1), blocks=(Q1,))), Exhausted)
        assert not isinstance(book.reserve(plan_of(3, part_of(0.3 * B, 1), blocks=(Q1,))), Exhausted)
        assert math.isclose(spent(book.state, Q1, ORDER), B)

    def test_the_worst_quarter_is_charged_to_all(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.7 * B, 1), blocks=(Q1,)))
        book.reserve(plan_of(2, part_of(0.2 * B, 1), blocks=(Q2,)))
        refused = book.reserve(plan_of(3, part_of(0.4 * B, 1), blocks=(ALL,)))
        assert isinstance(refused, Exhausted)
        assert refused.blocks == (Q1, ALL)
        assert not isinstance(book.reserve(plan_of(4, part_of(0.3 * B, 1), blocks=(ALL,))), Exhausted)
        assert isinstance(book.reserve(plan_of(5, part_of(0.1 * B, 1), blocks=(Q1,))), Exhausted)
        assert not isinstance(book.reserve(plan_of(6, part_of(0.5 * B, 1), blocks=(Q2,))), Exhausted)

    def test_a_patient_without_a_date_puts_everybody_in_one_block(self) -> None:
        days = [date(2024, 1, 1), date(2024, 3, 31), date(2024, 4, 1), date(2023, 12, 31)]
        assert blocks_of(days) == {Q1: 2, Q2: 1, "2023-Q4": 1}
        assert blocks_of([*days, None]) == {ALL: 5}
        assert blocks_of([]) == {}
        assert quarter_of(date(2024, 9, 30)) == Q3

    @pytest.mark.parametrize("blocks", [(), (ALL, Q1), ("2024-Q5",), ("2024",)])
    def test_blocks_that_are_none_are_refused(self, blocks: tuple[str, ...]) -> None:
        with pytest.raises(ValueError, match="quarters"):
            plan_of(1, part_of(0.1, 1), blocks=blocks)


class TestCommit:
    def test_one_upload_is_one_use_however_often_it_is_told(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.1, 3), blocks=(Q1, Q2)))
        first = book.commit(1, window(1))
        assert isinstance(first, tuple)
        assert [(fact.block, fact.first_step) for fact in first if isinstance(fact, StepsMoved)] == [(Q1, 0), (Q2, 0)]
        assert book.commit(1, window(1)) == ()
        assert [one.committed for one in book.state.of_run(run_id(1))] == [1, 1]

    def test_a_plan_has_no_more_rounds_than_it_reserved(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.1, 2)))
        book.commit(1, window(1))
        book.commit(1, window(2))
        over = book.commit(1, window(3))
        assert isinstance(over, Exhausted)
        assert (over.code, over.shortages) == ("EPSILON_EXHAUSTED", ())

    def test_local_training_and_its_upload_are_one_use(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.1, 3, steps_per_use=20)))
        book.commit(1, None)
        assert book.commit(1, None) == ()  # it crashed, and trains again: nothing has left
        uploaded = book.commit(1, window(1))
        assert isinstance(uploaded, tuple)
        (move,) = uploaded
        assert isinstance(move, StepsMoved)
        assert (move.reason, move.first_step, move.steps) == ("UPLOADED", 0, 20)
        (holding,) = book.state.of_run(run_id(1))
        assert (holding.committed, holding.reserved) == (1, 2)

    def test_training_again_after_an_upload_that_failed_is_a_new_use(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.1, 3)))
        for number in (1, 2):
            book.commit(1, None)
            book.commit(1, window(number))
        (holding,) = book.state.of_run(run_id(1))
        assert (holding.committed, holding.reserved) == (2, 1)

    def test_what_was_never_reserved_cannot_begin(self, book: Book) -> None:
        with pytest.raises(PlanUnknown, match="reserve it first"):
            book.commit(1, window(1))
        book.reserve(plan_of(1, part_of(0.1, 1)))
        with pytest.raises(PlanUnknown, match="evaluation"):
            book.commit(1, window(1), "evaluation")

    def test_nothing_begins_on_a_closed_plan(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.1, 3)))
        book.commit(1, window(1))
        book.close(1)
        assert book.commit(1, window(1)) == ()
        with pytest.raises(PlanOver):
            book.commit(1, window(2))
        with pytest.raises(PlanOver):
            book.commit(1, None)
        with pytest.raises(PlanOver):
            book.reserve(plan_of(1, part_of(0.1, 3)))


class TestRefund:
    def test_a_proven_window_gives_its_use_back_to_the_plan(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.1, 2)))
        book.commit(1, window(1))
        before = left(book)
        book.refund(1, window(1))
        assert left(book) == before  # the plan goes on and will try again
        assert book.refund(1, window(1)) == ()
        assert book.commit(1, window(1)) == ()  # told late: that sum is never opened
        book.commit(1, window(2))
        book.commit(1, window(3))
        assert isinstance(book.commit(1, window(4)), Exhausted)

    def test_after_the_end_of_the_run_the_account_has_it(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.1, 2)))
        book.commit(1, window(1))
        book.close(1)
        assert math.isclose(B - left(book), 0.1)
        book.refund(1, window(1))
        assert left(book) == B
        assert book.refund(1, window(1)) == ()

    def test_only_what_the_window_holds_is_given_back(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.1, 3)))
        book.commit(1, window(1))
        book.commit(1, None)
        assert book.refund(1, window(2)) == ()
        book.refund(1, window(1))
        book.close(1)
        assert math.isclose(B - left(book), 0.1)  # local training that left in no upload stays charged

    def test_a_plan_that_never_began_is_given_back_whole(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.1, 5), blocks=(Q1, Q2)))
        book.close(1)
        assert (left(book), left(book, Q2)) == (B, B)
        assert book.close(1) == ()

    def test_closing_gives_back_exactly_what_was_not_begun(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.1, 6)))
        for number in range(1, 5):
            book.commit(1, window(number))
        book.refund(1, window(1))
        book.refund(1, window(3))
        book.close(1)
        assert math.isclose(B - left(book), 0.2)
        released = [row.entry.fact for row in book.rows if isinstance(row.entry.fact, StepsMoved)]
        never = [(fact.first_step, fact.steps) for fact in released if fact.reason == "NEVER_STARTED"]
        assert never == [(0, 1), (2, 1), (4, 2)]


class TestFreeze:
    def test_nothing_more_is_begun_on_what_is_frozen_and_what_a_proof_frees_is_free(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.1, 3)))
        book.commit(1, window(1))
        book.write(rules.freeze(book.state, Q3, "ROWS_LOST"))
        assert isinstance(book.commit(1, window(2)), Exhausted)
        refused = book.reserve(plan_of(2, part_of(0.1, 1), blocks=(Q3,)))
        assert isinstance(refused, Exhausted)
        assert refused.code == "LEDGER_FROZEN"
        book.refund(1, window(1))
        assert rules.freeze(book.state, Q3, "ROWS_LOST") == ()

    def test_a_site_that_leaves_a_study_begins_nothing_more_of_it_and_goes_on_with_others(self, book: Book) -> None:
        book.reserve(plan_of(1, part_of(0.1, 3)))
        book.commit(1, window(1))
        book.close(1)
        with pytest.raises(PlanOver):
            book.commit(1, window(2))
        assert not isinstance(book.reserve(plan_of(2, part_of(0.1, 1))), Exhausted)

    def test_patients_who_come_after_the_loss_are_not_frozen(self, book: Book) -> None:
        book.write(rules.freeze(book.state, Q2, "ROWS_LOST"))
        for block in (Q1, Q2, ALL):
            refused = book.reserve(plan_of(1, part_of(0.1, 1), blocks=(block,)))
            assert isinstance(refused, Exhausted), block
        assert not isinstance(book.reserve(plan_of(1, part_of(0.1, 1), blocks=(Q3,))), Exhausted)
        assert rules.freeze(book.state, Q1, "ROWS_LOST") == ()


def test_prices_are_those_of_the_accountant() -> None:
    part = part_of(0.2, 3, steps_per_use=4)
    (one,) = part.mechanism
    event = GaussianSteps(one.noise_multiplier, 1.0, one.steps)
    assert [rdp_at((event,), order) / 3 for order in range(2, 65)] == pytest.approx(list(part.prices))


def test_a_reservation_has_the_whole_mechanism_and_a_price_at_every_order() -> None:
    book = Book()
    book.reserve(plan_of(1, part_of(0.1, 2)))
    fact = book.rows[1].entry.fact
    assert isinstance(fact, PlanReserved)
    assert (fact.rdp, fact.order, fact.state) == (0.2, ORDER, "RESERVED")
    assert fact.prices[2 * ORDER - 2] == pytest.approx(0.2)
