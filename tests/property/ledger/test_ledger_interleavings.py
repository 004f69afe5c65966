"""Whatever happens in whatever order, twice, or half: no account is charged more than it has, and nothing that may
still be opened is ever given back.

The machine plays the connector and, beside it, keeps the truth: which masked vectors are outside, and of which it is
proven that they stay masked. The ledger is never shown the truth.
"""

import math
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule
from ledger_stage import ORDER, Q1, Q2, Q3, Book, part_of, plan_of, run_id, window

from cohortium_messages.ids import RunId
from cohortium_messages.ledger import Part
from cohortium_privacy import ledger as rules
from cohortium_privacy.filter import alpha_star, budget
from cohortium_privacy.ledger_plan import Exhausted, LedgerPlan, Limits, PlanOver
from cohortium_privacy.ledger_state import ALL, spent
from examples import examples

B = budget(3.0, 1e-5, ORDER)
BLOCKS = st.sampled_from([(Q1,), (Q2,), (Q1, Q2), (Q1, Q2, Q3), (ALL,)])
PRICES = st.sampled_from([B / 1000, B / 100, B / 20, B / 7, B / 3, B])
PARTS: tuple[Part, ...] = ("training", "evaluation")


@dataclass
class Truth:
    """One run as it really is. `outside`: windows with this site's vector in them, by part; `masked`: those of them
    that are proven never to be opened."""

    plan: LedgerPlan
    outside: dict[bytes, Part] = field(default_factory=dict)
    masked: set[bytes] = field(default_factory=set)
    over: bool = False

    def loss(self) -> float:
        """What a patient may lose to whoever opens everything that can be opened."""
        can_open = [self.outside[one] for one in self.outside.keys() - self.masked]
        return max(_price(self.plan, part) * can_open.count(part) for part in PARTS)


def _price(plan: LedgerPlan, part: Part) -> float:
    prices = [one.prices[ORDER - 2] for one in plan.parts if one.part == part]
    return prices[0] or 0.0 if prices else 0.0


class Hospital(RuleBasedStateMachine):
    """Reserves, trains, uploads, is told twice, dies half-way, gets certificates, ends runs."""

    runs = Bundle("runs")
    uploads = Bundle("uploads")

    def __init__(self) -> None:
        super().__init__()
        self.book = Book()
        self.truth: dict[int, Truth] = {}
        self.windows = 0

    # What the connector does

    @rule(
        target=runs,
        blocks=BLOCKS,
        price=PRICES,
        uses=st.integers(1, 6),
        evaluation=st.one_of(st.none(), PRICES),
        study=st.sampled_from(["heart", "lung"]),
        dies=st.booleans(),
    )
    def reserve(
        self, blocks: tuple[str, ...], price: float, uses: int, evaluation: float | None, study: str, dies: bool
    ) -> int | None:
        number = len(self.truth) + 1
        parts = [part_of(price, uses)]
        parts += [] if evaluation is None else [part_of(evaluation, 1, part="evaluation")]
        plan = plan_of(number, *parts, blocks=blocks, study=study)
        if dies:
            rules.reserve(self.book.state, plan, self.book.limits)  # and nothing is written
        outcome = self.book.reserve(plan)
        wanted = max(price * uses, evaluation or 0.0)
        if isinstance(outcome, Exhausted):
            assert wanted > 0.999 * self._room(blocks)
            return None
        self.truth[number] = Truth(plan)
        return number

    def _room(self, blocks: tuple[str, ...]) -> float:
        """What is really left for a plan on these blocks, counted from the plans that were let in."""
        quarters = (Q1, Q2, Q3) if ALL in blocks else blocks
        return B - max(self._held(block) for block in quarters)

    def _held(self, block: str) -> float:
        mine = (one for one in self.truth.values() if {block, ALL} & set(one.plan.blocks))
        return math.fsum(max(self._charged(one, part) for part in PARTS) for one in mine)

    def _charged(self, one: Truth, part: Part) -> float:
        holdings = self.book.state.of_run(one.plan.run_id, part)
        return holdings[0].charged(ORDER) if holdings else 0.0

    @rule(number=runs)
    def reserve_again(self, number: int | None) -> None:
        if number is None:
            return
        truth = self.truth[number]
        try:
            assert self.book.reserve(truth.plan) == ()
        except PlanOver:
            assert truth.over

    @rule(number=runs)
    def train_locally(self, number: int | None) -> None:
        if number is not None and not self.truth[number].over:
            self.book.commit(number, None)

    @rule(target=uploads, number=runs, part=st.sampled_from(PARTS), dies=st.sampled_from(["", "before", "between"]))
    def upload(self, number: int | None, part: Part, dies: str) -> tuple[int, bytes] | None:
        if number is None or not self.book.state.of_run(run_id(number), part):
            return None
        truth = self.truth[number]
        self.windows += 1
        name = window(self.windows)
        try:
            if dies:
                rules.commit(self.book.state, run_id(number), part, name)
            outcome = None if dies == "before" else self.book.commit(number, name, part)
        except PlanOver:
            assert truth.over
            return None
        if outcome is None or isinstance(outcome, Exhausted):
            return None  # nothing may leave
        if dies != "between":
            truth.outside[name] = part
        return number, name

    @rule(told=uploads)
    def upload_told_again(self, told: tuple[int, bytes] | None) -> None:
        """Also by a process that died between charging and sending: now it sends, and is not charged again."""
        if told is None:
            return
        number, name = told
        holding = next(one for one in self.book.state.of_run(run_id(number)) if name in (*one.bound, *one.excluded))
        assert self.book.commit(number, name, holding.plan.part) == ()
        if name in holding.bound:
            self.truth[number].outside[name] = holding.plan.part

    # What it is told

    @rule(told=uploads, dies=st.booleans())
    def proven_masked(self, told: tuple[int, bytes] | None, dies: bool) -> None:
        """A certificate: from now on, and for ever, this window's sum cannot hold this site."""
        if told is None:
            return
        number, name = told
        self.truth[number].masked.add(name)
        if dies:
            rules.refund(self.book.state, run_id(number), name, "ECHO_CERT", bytes(32))
            return
        self.book.refund(number, name)
        assert self.book.refund(number, name) == ()

    @rule(number=runs)
    def run_ends(self, number: int | None) -> None:
        if number is not None:
            self.truth[number].over = True
            self.book.close(number)
            assert self.book.close(number) == ()

    @rule(number=consumes(runs))
    def forgotten(self, number: int | None) -> None:
        """Nobody asks for this run again; what it has stays."""

    @precondition(lambda self: self.book.rows)
    @rule()
    def restart(self) -> None:
        self.book.state = self.book.replayed()

    # What must hold

    @invariant()
    def accounts_hold_what_they_promise(self) -> None:
        for block, account in self.book.state.accounts.items():
            total = spent(self.book.state, block, account.order)
            assert total <= account.limit * (1 + 1e-9)
            assert self._loss(block) <= total * (1 + 1e-9)

    def _loss(self, block: str) -> float:
        """The most that a patient of the block can really lose."""
        quarters = (Q1, Q2, Q3) if block == ALL else (block,)
        return max(
            math.fsum(one.loss() for one in self.truth.values() if {quarter, ALL} & set(one.plan.blocks))
            for quarter in quarters
        )

    @invariant()
    def every_use_is_in_one_place(self) -> None:
        for holding in self.book.state.holdings.values():
            truth = self.truth[_number(holding.plan.run_id)]
            can_open = {
                name for name, part in truth.outside.items() if part == holding.plan.part and name not in truth.masked
            }
            assert can_open <= holding.bound.keys()
            used = sorted(holding.bound.values())
            assert len(set(used)) == len(used)
            assert not holding.unbound & set(used)
            assert holding.reserved + holding.committed <= holding.plan.steps

    @invariant()
    def a_plan_that_was_let_in_can_be_finished(self) -> None:
        """Whatever other studies reserve: rounds that are neither used nor lost may still begin."""
        for number, truth in self.truth.items():
            for holding in self.book.state.of_run(run_id(number)):
                if not truth.over:
                    assert holding.reserved + holding.committed == holding.plan.steps


def _number(run: RunId) -> int:
    return int(run.rpartition("-")[2])


TestHospital = Hospital.TestCase
TestHospital.settings = settings(
    max_examples=examples(60), stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_the_machine_would_notice_a_refund_of_what_is_used() -> None:
    """The invariants are no decoration: a ledger that frees without proof breaks them."""
    machine = Hospital()
    number = machine.reserve(blocks=(Q1,), price=B / 7, uses=2, evaluation=None, study="heart", dies=False)
    machine.upload(number=number, part="training", dies="")
    assert number is not None
    machine.run_ends(number=number)
    machine.accounts_hold_what_they_promise()
    machine.book.refund(number, window(1))
    try:
        machine.accounts_hold_what_they_promise()
    except AssertionError:
        return
    raise AssertionError("the loss is larger than what is charged, and nobody noticed")


def test_limits_of_a_study_hold_beside_those_of_the_account() -> None:
    """A share far below the account's ε is held at its own order, 16, where the account's 7 would leave nothing."""
    book = Book(limits=Limits(3.0, 1e-5, {"heart": 1.0}))
    share = budget(1.0, 1e-5, alpha_star(1.0, 1e-5)) * ORDER / alpha_star(1.0, 1e-5)
    assert budget(1.0, 1e-5, ORDER) < 0 < share
    taken = 0
    while not isinstance(book.reserve(plan_of(taken + 1, part_of(share / 4, 1))), Exhausted):
        taken += 1
    assert taken == 4
    assert not isinstance(book.reserve(plan_of(9, part_of(share, 1), study="lung")), Exhausted)
