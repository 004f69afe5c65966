"""The rules of the hospital's privacy ledger, as plain functions: what may be reserved, begun and given back.

An account is a block of patients at one site. Each function looks at the state that the chain of entries gives
(`ledger_state`) and says which facts follow; none of them, and there is nothing to do: it was done before. The caller
signs and writes the facts in one transaction with whatever they are the reason of.

1. Entries of one account add up in Rényi divergence at one order, fixed when the account is opened, and stay within
   B(ε_max, δ, order) (`filter`; Feldman and Zrnic 2020; Haney et al. 2023 for studies that run at the same time). A
   whole plan is reserved before a row is read, so a study that began can be finished whatever others do.
2. Nothing is enforced in privacy-loss distributions; they are for reports.
3. What was begun is used. It is given back only with proof that its sum was never opened over this site, or where it
   was never begun and the plan is over. Local training that left in no upload stays charged.
4. Rounds, trials, studies and models of one account add up. Publishing an accounted model again costs nothing.
5. A patient of κ hospitals is charged at each of them for all of them: plans are priced over all sites (`plan`).
6. A patient who withdraws changes nothing here: what was published, was. A site that leaves a study closes its plans
   of it (`close`): what was begun stays used, and nothing more is begun. Its accounts go on, as they are its own.
7. The limits are the hospital's, not the study's, and δ is below 1/(10·patients) of every block. A study may have a
   limit of its own besides, and what the hospital's signed documents agree for all its runs (`agreed`).
8. What is not accounted for is not published: the ledger has no entry for figures of a single site.
"""

import math
from collections.abc import Iterable, Iterator

from cohortium_messages.governance import Reason
from cohortium_messages.ids import RunId, StudyId
from cohortium_messages.ledger import (
    FIRST_ORDER,
    AccountOpened,
    LedgerFact,
    LedgerFrozen,
    LimitsChanged,
    MoveReason,
    Part,
    PlanClosed,
    PlanReserved,
    StepsMoved,
)
from cohortium_privacy.agreed import PlanCost, agreed_epsilon, is_above
from cohortium_privacy.ledger_plan import (
    PATIENTS_PER_DELTA,
    AgreedShortage,
    Exhausted,
    LedgerPlan,
    Limits,
    PlanChanged,
    PlanOver,
    PlanUnknown,
    Shortage,
    Spender,
)
from cohortium_privacy.ledger_state import ALL, Holding, LedgerState, apply, bearing_on, spent

# `filter` is imported where it is asked: it needs dp-accounting, which a hospital without private studies may not have.

Facts = tuple[LedgerFact, ...]


def reserve(state: LedgerState, plan: LedgerPlan, limits: Limits) -> Facts | Exhausted:
    """Set the whole plan aside on every block, or nothing of it. A plan that is on record already changes nothing.

    Accounts are opened, and changed limits written down, with the reservation that needs them. Raises `PlanChanged` for
    a known plan that now has another mechanism, `PlanOver` for one that was closed.
    """
    from cohortium_privacy.filter import BudgetImpossible

    known = state.of_run(plan.run_id)
    if known:
        _check_same(known, plan)
        return ()
    frozen = tuple(block for block in sorted(plan.blocks) if state.is_frozen(block))
    if frozen:
        return Exhausted("LEDGER_FROZEN", plan.study_id, frozen)
    try:
        return _fit(state, plan, limits)
    except BudgetImpossible:
        return Exhausted("EPSILON_EXHAUSTED", plan.study_id, tuple(sorted(plan.blocks)))


def commit(state: LedgerState, run_id: RunId, part: Part, window_id: bytes | None) -> Facts | Exhausted:
    """Begin one use of the plan, on every block: once for each window, however often it is asked.

    Without a window, local training is about to take its first step: a use that was begun before and left in no upload
    is taken up again. With one, the upload that is about to be saved holds the use: the one that training began, or the
    next that is reserved. A window that was proven never opened takes none. Raises `PlanUnknown` or `PlanOver`.
    """
    holdings = _holdings(state, run_id, part)
    if all(_has_begun(one, window_id) for one in holdings):
        return ()
    if any(one.closed for one in holdings):
        raise PlanOver(f"plan {run_id} is closed here, so nothing more is begun on it; a new run needs a new plan")
    study_id, blocks = holdings[0].plan.study_id, tuple(sorted(one.plan.block for one in holdings))
    frozen = tuple(block for block in blocks if state.is_frozen(block))
    if frozen:
        return Exhausted("LEDGER_FROZEN", study_id, frozen)
    facts = [fact for one in holdings if (fact := _begin(one, window_id)) is not None]
    return tuple(facts) if len(facts) == len(holdings) else Exhausted("EPSILON_EXHAUSTED", study_id, blocks)


def refund(state: LedgerState, run_id: RunId, window_id: bytes, reason: MoveReason, proof: bytes) -> Facts:
    """Give back what is in the upload of a window whose sum, as the caller verified, never was and never will be opened
    over this site. The plan has it again while it goes on; after its end the account has. Raises `PlanUnknown`."""
    facts: list[LedgerFact] = []
    for holding in _holdings(state, run_id):
        use = holding.bound.get(window_id)
        if use is None:
            continue
        freed = _move(holding, reason, use).model_copy(update={"window_id": window_id, "proof": proof})
        again = _move(holding, "RETRY", use, earlier=1)
        facts += [freed] if holding.closed else [freed, again]
    return tuple(facts)


def close(state: LedgerState, run_id: RunId, reason: Reason) -> Facts:
    """The plan is over: what was never begun is given back, and nothing is ever begun on it again. Raises
    `PlanUnknown`."""
    facts: list[LedgerFact] = []
    for holding in _holdings(state, run_id):
        if holding.closed:
            continue
        unused = [(use, 1) for use in sorted(holding.returned)]
        unused += [(holding.fresh, holding.end - holding.fresh)] if holding.fresh < holding.end else []
        facts += [_move(holding, "NEVER_STARTED", use, count, earlier=i) for i, (use, count) in enumerate(unused)]
        plan = holding.plan
        facts.append(
            PlanClosed(block=plan.block, study_id=plan.study_id, run_id=plan.run_id, part=plan.part, reason=reason)
        )
    return tuple(facts)


def freeze(state: LedgerState, until: str, reason: Reason) -> Facts:
    """Nothing more is reserved or begun on blocks up to the quarter `until`, and on `all`: for a ledger whose newest
    rows are lost, so that what they charged is unknown."""
    return () if until <= state.frozen_until else (LedgerFrozen(until=until, reason=reason),)


def limit(state: LedgerState, limits: Limits) -> Facts:
    """The facts that bring every account to the hospital's present limits. Its order stays."""
    return tuple(_accounts(state, tuple(sorted(state.accounts)), limits))


# ----------------------------------------------------------------------------------------------------------- reserving


def _check_same(known: tuple[Holding, ...], plan: LedgerPlan) -> None:
    recorded = {(one.plan.part, one.plan.mechanism, one.plan.steps, one.plan.study_digest) for one in known}
    offered = {(part.part, part.mechanism, part.uses * part.steps_per_use, plan.study_digest) for part in plan.parts}
    if recorded != offered:
        raise PlanChanged(f"plan {plan.run_id} was reserved with another mechanism; a new plan needs a new run")
    if any(one.closed for one in known):
        raise PlanOver(f"plan {plan.run_id} is closed here; a new run needs a new plan")


def _fit(state: LedgerState, plan: LedgerPlan, limits: Limits) -> Facts | Exhausted:
    accounts = tuple(_accounts(state, _touched(state, plan), limits))
    ready = _after(state, accounts)
    crowded = tuple(
        block
        for block, patients in sorted(plan.blocks.items())
        if ready.accounts[block].delta * PATIENTS_PER_DELTA * patients >= 1
    )
    if crowded:
        return Exhausted("DELTA_TOO_LARGE", plan.study_id, crowded)
    agreed = _above_agreed(state, plan)
    if agreed is not None:
        return Exhausted("EPSILON_EXHAUSTED", plan.study_id, tuple(sorted(plan.blocks)), agreed=agreed)
    shortages = tuple(_shortages(ready, plan, limits))
    if shortages:
        short = tuple(sorted({one.account.block for one in shortages}))
        return Exhausted("EPSILON_EXHAUSTED", plan.study_id, short, shortages)
    return (*accounts, *_entries(ready, plan))


def _above_agreed(state: LedgerState, plan: LedgerPlan) -> AgreedShortage | None:
    """The first cap of the hospital's documents that the study would pass with this plan. Counted as it is told
    outside: whatever block it is charged to."""
    held = [one for one in state.holdings.values() if one.plan.study_id == plan.study_id]
    before = [PlanCost(one.plan.run_id, one.plan.public_order, one.charged(one.plan.public_order)) for one in held]
    prices = ((part.prices[plan.public_order - FIRST_ORDER], part.uses) for part in plan.parts)
    wanted = [PlanCost(plan.run_id, plan.public_order, price * uses) for price, uses in prices if price is not None]
    for cap in plan.caps:
        after = agreed_epsilon((*before, *wanted), cap.delta)
        if is_above(after, cap):
            return AgreedShortage(cap, agreed_epsilon(before, cap.delta), after)
    return None


def _touched(state: LedgerState, plan: LedgerPlan) -> tuple[str, ...]:
    """Accounts whose patients pay for the plan: its blocks, and with `all` every other one, either way round."""
    others = set(state.accounts) if ALL in plan.blocks else {ALL} & set(state.accounts)
    return tuple(sorted(others | set(plan.blocks)))


def _accounts(state: LedgerState, blocks: Iterable[str], limits: Limits) -> Iterator[LedgerFact]:
    from cohortium_privacy.filter import alpha_star, budget

    epsilon_max, delta = limits.epsilon_max, limits.delta
    for block in blocks:
        account = state.accounts.get(block)
        order = alpha_star(epsilon_max, delta) if account is None else account.order
        most = budget(epsilon_max, delta, order)
        if account is None:
            yield AccountOpened(block=block, epsilon_max=epsilon_max, delta=delta, order=order, limit=most)
        elif (account.epsilon_max, account.delta) != (epsilon_max, delta):
            yield LimitsChanged(block=block, epsilon_max=epsilon_max, delta=delta, limit=most)


def _after(state: LedgerState, facts: Iterable[LedgerFact]) -> LedgerState:
    for fact in facts:
        state = apply(state, fact)
    return state


def _shortages(state: LedgerState, plan: LedgerPlan, limits: Limits) -> Iterator[Shortage]:
    """Accounts, or a study's share of them, that the plan does not fit in. The sums are those after the reservation.

    A study's share is held at the order that its own ε has: at the account's, a much smaller ε would leave nothing.
    """
    from cohortium_privacy.filter import alpha_star, budget, fits

    accounts = tuple(state.accounts[block] for block in _touched(state, plan))
    priced = all(math.isfinite(_price(plan, state.accounts[block].order)) for block in plan.blocks)
    after = _after(state, _entries(state, plan)) if priced else None
    cap = limits.studies.get(plan.study_id)
    for account in accounts:
        bounds: list[tuple[int, float, StudyId | None]] = [(account.order, account.limit, None)]
        if cap is not None:
            order = alpha_star(cap, account.delta)
            bounds.append((order, budget(cap, account.delta, order), plan.study_id))
        for order, most, study_id in bounds:
            total = math.inf if after is None else spent(after, account.block, order, study_id)
            if not fits((), total, most):
                before = spent(state, account.block, order, study_id)
                having = spenders(state, account.block, order, study_id)
                yield Shortage(account, most, before, _price(plan, order), having, study_id is not None)


def _price(plan: LedgerPlan, order: int) -> float:
    """What a patient pays for the whole plan: for training or for evaluation, whichever costs more."""
    prices = ((part.prices[order - FIRST_ORDER], part.uses) for part in plan.parts)
    return max(math.inf if one is None else one * uses for one, uses in prices)


def _entries(state: LedgerState, plan: LedgerPlan) -> Iterator[PlanReserved]:
    for block in sorted(plan.blocks):
        order = state.accounts[block].order
        for part in plan.parts:
            one = part.prices[order - FIRST_ORDER]
            yield PlanReserved(
                block=block,
                study_id=plan.study_id,
                study_digest=plan.study_digest,
                run_id=plan.run_id,
                part=part.part,
                mode=plan.mode,
                mechanism=part.mechanism,
                steps=part.uses * part.steps_per_use,
                steps_per_use=part.steps_per_use,
                order=order,
                rdp=math.inf if one is None else one * part.uses,
                public_order=plan.public_order,
                prices=part.prices,
            )


def spenders(state: LedgerState, block: str, order: int, study_id: StudyId | None = None) -> tuple[Spender, ...]:
    """Who has what of a block, the largest first. Training and evaluation of a run are told as one: the dearer."""
    found: dict[RunId, Spender] = {}
    for holding in bearing_on(state, block):
        plan = holding.plan
        reserved = holding.price(order, holding.reserved)
        one = Spender(plan.study_id, plan.run_id, reserved, holding.charged(order) - reserved)
        known = found.get(plan.run_id)
        if known is None or one.reserved + one.committed > known.reserved + known.committed:
            found[plan.run_id] = one
    told = (one for one in found.values() if study_id in (None, one.study_id) and one.reserved + one.committed > 0)
    return tuple(sorted(told, key=lambda one: one.reserved + one.committed, reverse=True))


# ------------------------------------------------------------------------------------------------------------- moving


def _holdings(state: LedgerState, run_id: RunId, part: Part | None = None) -> tuple[Holding, ...]:
    holdings = state.of_run(run_id, part)
    if not holdings:
        raise PlanUnknown(f"plan {run_id} has nothing reserved for {part or 'anything'}: reserve it first")
    return holdings


def _has_begun(holding: Holding, window_id: bytes | None) -> bool:
    if window_id is None:
        return bool(holding.unbound) and not holding.closed
    return window_id in holding.bound or window_id in holding.excluded


def _begin(holding: Holding, window_id: bytes | None) -> StepsMoved | None:
    """The next use, None where the plan has no more."""
    begun_before = window_id is not None and holding.unbound
    use = min(holding.unbound) if begun_before else holding.next_use
    if use is None:
        return None
    return _move(holding, "STARTED" if window_id is None else "UPLOADED", use).model_copy(
        update={"window_id": window_id}
    )


def _move(holding: Holding, reason: MoveReason, use: int, count: int = 1, *, earlier: int = 0) -> StepsMoved:
    """`earlier`: releases of this holding in the same operation, before this row."""
    plan, size = holding.plan, holding.plan.steps_per_use
    state = _STATES[reason]
    return StepsMoved(
        state=state,
        reason=reason,
        block=plan.block,
        study_id=plan.study_id,
        run_id=plan.run_id,
        part=plan.part,
        first_step=use * size,
        steps=count * size,
        attempt=holding.releases + 1 + earlier,
        rdp=holding.price(plan.order, count),
    )


_STATES = {
    "STARTED": "COMMITTED",
    "UPLOADED": "COMMITTED",
    "RETRY": "RESERVED",
    "NEVER_STARTED": "RELEASED_BACK",
    "ABORT_CERT": "RELEASED_BACK",
    "ECHO_CERT": "RELEASED_BACK",
}
