"""What a chain of ledger entries says: accounts, plans, and in which state each step is.

`apply` is the only thing that changes it, one entry at a time, and refuses an entry that cannot follow. The same
function replays a stored chain and takes in what is about to be written, so a ledger can hold nothing that its own
check would not let pass.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.ledger import (
    FIRST_ORDER,
    AccountOpened,
    LedgerEntry,
    LedgerFact,
    LedgerFrozen,
    LimitsChanged,
    Part,
    PlanClosed,
    PlanReserved,
    StepsMoved,
    StepState,
)

ALL = "all"
"""The block of a table without dates. Its patients are in some quarter too, so the two are always charged together."""
TRANSITIONS: dict[StepState, tuple[StepState, ...]] = {
    "RESERVED": ("COMMITTED", "RELEASED_BACK"),
    "COMMITTED": ("COMMITTED", "RELEASED_BACK"),
    "RELEASED_BACK": ("RESERVED",),
}
"""COMMITTED follows COMMITTED when steps of local training, begun before, leave in an upload. RESERVED follows
RELEASED_BACK only where a proof freed a step of a plan that goes on: it was never used, and is tried again."""

Key = tuple[str, RunId, Part]


class EntryRefused(ValueError):
    """An entry that cannot follow the entries before it."""


@dataclass(frozen=True, slots=True)
class Account:
    """A block of patients. `order` is fixed; `limit` is B(ε_max, δ, order), and nothing adds up to more."""

    block: str
    epsilon_max: float
    delta: float
    order: int
    limit: float


@dataclass(frozen=True, slots=True)
class Holding:
    """What one plan's part has of one account. Uses are counted from 0; one is `steps_per_use` steps.

    Every use is in exactly one place: from `fresh` to `end`, never taken; in `returned`, reserved again; in `unbound`,
    begun and in no upload; in `bound`, in the upload of a window; or in none of them, given back (`out`, if it was
    begun once). `excluded` are windows whose sums were proven never to hold this site.
    """

    plan: PlanReserved
    fresh: int
    end: int
    returned: frozenset[int] = frozenset()
    unbound: frozenset[int] = frozenset()
    bound: Mapping[bytes, int] = field(default_factory=dict)
    out: frozenset[int] = frozenset()
    excluded: frozenset[bytes] = frozenset()
    releases: int = 0
    closed: bool = False

    @property
    def key(self) -> Key:
        return self.plan.block, self.plan.run_id, self.plan.part

    @property
    def reserved(self) -> int:
        """Uses that are set aside and not begun."""
        return self.end - self.fresh + len(self.returned)

    @property
    def committed(self) -> int:
        """Uses that are begun, and count as used until something proves otherwise."""
        return len(self.unbound) + len(self.bound)

    @property
    def next_use(self) -> int | None:
        """The use that is taken next, None where the plan has no more."""
        if self.returned:
            return min(self.returned)
        return self.fresh if self.fresh < self.end else None

    def price(self, order: int, uses: int) -> float:
        """Rényi divergence of so many uses at this order; infinite where there is no bound."""
        one = self.plan.prices[order - FIRST_ORDER]
        if uses == 0:
            return 0.0
        return math.inf if one is None else one * uses

    def charged(self, order: int) -> float:
        """All that is set aside or used, at this order."""
        return self.price(order, self.reserved + self.committed)


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry: its number, and the hash that the next one names."""

    sequence: int = 0
    entry_hash: bytes = bytes(32)


@dataclass(frozen=True, slots=True)
class LedgerState:
    """Everything that the entries up to `head` say."""

    head: Head = Head()
    accounts: Mapping[str, Account] = field(default_factory=dict)
    holdings: Mapping[Key, Holding] = field(default_factory=dict)
    frozen_until: str = ""

    def is_frozen(self, block: str) -> bool:
        """Whether nothing more may be reserved or begun on this block."""
        return bool(self.frozen_until) and (block == ALL or block <= self.frozen_until)

    def of_run(self, run_id: RunId, part: Part | None = None) -> tuple[Holding, ...]:
        """What a plan has, block by block; of one part, or of both."""
        return tuple(one for key, one in self.holdings.items() if key[1] == run_id and part in (None, key[2]))


def spent(state: LedgerState, block: str, order: int, study_id: StudyId | None = None) -> float:
    """The most that any patient of this block is charged at this order: by all studies, or by one.

    What is on `all` is paid by the patients of every quarter too; the account `all` itself stands for its worst
    quarter.
    """
    whole = math.fsum(run_costs(state, ALL, order, study_id).values())
    if block != ALL:
        return math.fsum((whole, *run_costs(state, block, order, study_id).values()))
    quarters = {key[0] for key in state.holdings} - {ALL}
    worst = (math.fsum(run_costs(state, quarter, order, study_id).values()) for quarter in quarters)
    return whole + max(worst, default=0.0)


def run_costs(state: LedgerState, block: str, order: int, study_id: StudyId | None = None) -> dict[RunId, float]:
    """What each run is charged on one block itself, at this order.

    A run's training and its evaluation are paid by different patients, so of both only the larger counts.
    """
    costs: dict[RunId, float] = {}
    for (where, run_id, _), holding in state.holdings.items():
        if where == block and study_id in (None, holding.plan.study_id):
            costs[run_id] = max(costs.get(run_id, 0.0), holding.charged(order))
    return costs


def bearing_on(state: LedgerState, block: str) -> tuple[Holding, ...]:
    """Every plan that patients of this block pay for, or may: for `all`, every plan there is."""
    return tuple(one for key, one in state.holdings.items() if block == ALL or key[0] in (block, ALL))


# --------------------------------------------------------------------------------------------------- taking entries in


def follow(state: LedgerState, entry: LedgerEntry, entry_hash: bytes, site_id: SiteId) -> LedgerState:
    """The state after a whole entry: its place in the chain, its site, its fact. Raises `EntryRefused`."""
    if (entry.sequence, entry.prev_hash) != (state.head.sequence + 1, state.head.entry_hash):
        raise EntryRefused(f"entry {entry.sequence} does not follow entry {state.head.sequence}")
    if entry.site_id != site_id:
        raise EntryRefused(f"entry {entry.sequence} is of another site")
    return replace(apply(state, entry.fact), head=Head(entry.sequence, entry_hash))


def apply(state: LedgerState, fact: LedgerFact) -> LedgerState:
    """The state after one fact; `head` is left as it is. Raises `EntryRefused` for one that cannot be."""
    match fact:
        case AccountOpened(block=block):
            if block in state.accounts:
                raise EntryRefused(f"account {block} is opened twice")
            opened = Account(block, fact.epsilon_max, fact.delta, fact.order, fact.limit)
            return replace(state, accounts={**state.accounts, block: opened})
        case LimitsChanged(block=block):
            account = _account(state, block)
            changed = replace(account, epsilon_max=fact.epsilon_max, delta=fact.delta, limit=fact.limit)
            return replace(state, accounts={**state.accounts, block: changed})
        case LedgerFrozen(until=until):
            return replace(state, frozen_until=max(state.frozen_until, until))
        case PlanReserved():
            return _set(state, _reserved(state, fact))
        case StepsMoved():
            return _set(state, _moved(_holding(state, (fact.block, fact.run_id, fact.part)), fact))
        case PlanClosed():
            holding = _holding(state, (fact.block, fact.run_id, fact.part))
            if holding.closed or holding.reserved:
                raise EntryRefused(f"plan {fact.run_id} cannot close on {fact.block} now")
            return _set(state, replace(holding, closed=True))
        case _:
            assert_never(fact)


def _set(state: LedgerState, holding: Holding) -> LedgerState:
    return replace(state, holdings={**state.holdings, holding.key: holding})


def _account(state: LedgerState, block: str) -> Account:
    account = state.accounts.get(block)
    if account is None:
        raise EntryRefused(f"there is no account {block}")
    return account


def _holding(state: LedgerState, key: Key) -> Holding:
    holding = state.holdings.get(key)
    if holding is None:
        raise EntryRefused(f"plan {key[1]} has nothing reserved on {key[0]}")
    return holding


def _reserved(state: LedgerState, plan: PlanReserved) -> Holding:
    account = _account(state, plan.block)
    uses, rest = divmod(plan.steps, plan.steps_per_use)
    holding = Holding(plan, fresh=0, end=uses)
    if holding.key in state.holdings:
        raise EntryRefused(f"plan {plan.run_id} is reserved twice on {plan.block}")
    if rest or plan.order != account.order or plan.rdp != holding.charged(account.order):
        raise EntryRefused(f"plan {plan.run_id} is not priced as account {plan.block} is")
    return holding


def _moved(holding: Holding, move: StepsMoved) -> Holding:
    plan, size = holding.plan, holding.plan.steps_per_use
    (use, rest), (count, more) = divmod(move.first_step, size), divmod(move.steps, size)
    exact = not rest and not more and move.attempt == holding.releases + 1
    if not exact or move.study_id != plan.study_id or move.rdp != holding.price(plan.order, count):
        raise EntryRefused(f"steps of plan {plan.run_id} are not those that were reserved")
    moved = _begun(holding, move, use) if move.state == "COMMITTED" else _given_back(holding, move, use, count)
    if moved is None:
        raise EntryRefused(f"step {move.first_step} of plan {plan.run_id} cannot be {move.state}: {move.reason}")
    return moved


def _begun(holding: Holding, move: StepsMoved, use: int) -> Holding | None:
    window = move.window_id
    known = window is not None and (window in holding.bound or window in holding.excluded)
    if known or (window is None) != (move.reason == "STARTED") or move.steps != holding.plan.steps_per_use:
        return None
    if use in holding.unbound:
        taken = replace(holding, unbound=holding.unbound - {use}) if window is not None else None
    elif holding.closed or use != holding.next_use:
        taken = None
    elif use in holding.returned:
        taken = replace(holding, returned=holding.returned - {use})
    else:
        taken = replace(holding, fresh=use + 1)
    if taken is None or move.proof is not None:
        return None
    if window is None:
        return replace(taken, unbound=taken.unbound | {use})
    return replace(taken, bound={**taken.bound, window: use})


def _given_back(holding: Holding, move: StepsMoved, use: int, count: int) -> Holding | None:
    window, one = move.window_id, frozenset({use})
    match move.state, move.reason:
        case "RESERVED", "RETRY" if use in holding.out and count == 1 and not holding.closed:
            return replace(holding, out=holding.out - one, returned=holding.returned | one)
        case "RELEASED_BACK", "ABORT_CERT" | "ECHO_CERT" if window is not None and move.proof is not None:
            if holding.bound.get(window) != use or count != 1:
                return None
            bound = {key: value for key, value in holding.bound.items() if key != window}
            freed = replace(holding, bound=bound, excluded=holding.excluded | {window})
            return replace(freed, out=freed.out | one, releases=freed.releases + 1)
        case "RELEASED_BACK", "NEVER_STARTED" if use in holding.returned and count == 1:
            return replace(
                holding, returned=holding.returned - one, out=holding.out | one, releases=holding.releases + 1
            )
        case "RELEASED_BACK", "NEVER_STARTED" if (use, use + count) == (holding.fresh, holding.end):
            return replace(holding, end=use, releases=holding.releases + 1)
        case _:
            return None
