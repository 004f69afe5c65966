"""The ledger for people: what each account has left, and which study has what. It never leaves the hospital."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cohortium_messages.ledger import Mechanism, PlanReserved
from cohortium_privacy.ledger import spenders
from cohortium_privacy.ledger_plan import AgreedShortage, Exhausted, Shortage, Spender
from cohortium_privacy.ledger_state import Account, Holding, LedgerState, bearing_on, spent

if TYPE_CHECKING:
    from cohortium_privacy.accounting import GaussianSteps

SLACK = 1e-12
"""Of the last round that fits: it must not fail by a last bit."""


@dataclass(frozen=True, slots=True)
class RunView:
    """What one run has of an account: shares of its budget, and rounds of training, as planned and as begun.

    `exhausted_at_round`: the round at which the account would be used up if this run went on for ever, with all that
    other runs have set aside kept; None where no bound is known.
    """

    study: str
    run: str
    committed_share: float
    reserved_share: float
    rounds_planned: int
    rounds_begun: int
    exhausted_at_round: int | None


@dataclass(frozen=True, slots=True)
class AccountView:
    """One account. Shares are of its budget B, in Rényi divergence at its order; they add up, which ε does not.

    `epsilon_used`: ε at `delta` of what was begun; `epsilon_set_aside`: with what is reserved too. `epsilon_report`:
    the same as `epsilon_used` by privacy-loss distributions, tighter, and for reports alone; None where it was not
    asked.
    """

    block: str
    epsilon_max: float
    delta: float
    order: int
    frozen: bool
    committed_share: float
    reserved_share: float
    left_share: float
    epsilon_used: float
    epsilon_set_aside: float
    epsilon_report: float | None
    runs: tuple[RunView, ...]


@dataclass(frozen=True, slots=True)
class LedgerView:
    """Every account, by block. `entries`: rows in the chain, all of them checked."""

    entries: int
    head: str
    accounts: tuple[AccountView, ...]


def look(state: LedgerState, *, report: bool = False) -> LedgerView:
    """The ledger as people read it. With `report`, seconds of computing for each account."""
    accounts = (state.accounts[block] for block in sorted(state.accounts))
    views = tuple(_view(state, account, report) for account in accounts)
    return LedgerView(state.head.sequence, state.head.entry_hash.hex(), views)


def _view(state: LedgerState, account: Account, report: bool) -> AccountView:
    from cohortium_privacy.filter import epsilon_of

    having = spenders(state, account.block, account.order)
    total = spent(state, account.block, account.order)
    committed = min(total, math.fsum(one.committed for one in having))
    return AccountView(
        block=account.block,
        epsilon_max=account.epsilon_max,
        delta=account.delta,
        order=account.order,
        frozen=state.is_frozen(account.block),
        committed_share=_share(committed, account.limit),
        reserved_share=_share(total - committed, account.limit),
        left_share=_share(max(0.0, account.limit - total), account.limit),
        epsilon_used=epsilon_of(committed, account.delta, account.order),
        epsilon_set_aside=epsilon_of(total, account.delta, account.order),
        epsilon_report=_report(state, account) if report else None,
        runs=tuple(_run_view(state, account, one, max(0.0, account.limit - total)) for one in having),
    )


def _run_view(state: LedgerState, account: Account, one: Spender, left: float) -> RunView:
    shares = _share(one.committed, account.limit), _share(one.reserved, account.limit)
    bearing = (holding for holding in bearing_on(state, account.block) if holding.plan.part == "training")
    training = next((holding for holding in bearing if holding.plan.run_id == one.run_id), None)
    if training is None:
        return RunView(one.study_id, one.run_id, *shares, 0, 0, None)
    planned = training.plan.steps // training.plan.steps_per_use
    each, held = training.price(account.order, 1), training.reserved + training.committed
    more = math.floor(left / each * (1 + SLACK)) if 0 < each < math.inf else None
    at = None if more is None else held + more
    return RunView(one.study_id, one.run_id, *shares, planned, training.committed, at)


def _share(part: float, whole: float) -> float:
    """What is charged to an account whose limits leave nothing is all of it."""
    if part <= 0:
        return 0.0
    return part / whole if whole > 0 else 1.0


def _report(state: LedgerState, account: Account) -> float:
    """ε of everything that was begun, by privacy-loss distributions: of a run's two parts the dearer one."""
    from cohortium_privacy.accounting import epsilon

    dearest: dict[str, Holding] = {}
    for holding in bearing_on(state, account.block):
        known = dearest.get(holding.plan.run_id)
        if known is None or _begun(holding, account) > _begun(known, account):
            dearest[holding.plan.run_id] = holding
    events = [event for one in dearest.values() for event in _events(one.plan, one.committed)]
    return epsilon(events, account.delta, "pld")


def _begun(holding: Holding, account: Account) -> float:
    return holding.price(account.order, holding.committed)


def _events(plan: PlanReserved, uses: int) -> "list[GaussianSteps]":
    """The plan's mechanism, with the steps of so many uses."""
    from cohortium_privacy.accounting import GaussianSteps

    def part(one: Mechanism) -> GaussianSteps:
        steps = math.ceil(one.steps * uses * plan.steps_per_use / plan.steps)
        return GaussianSteps(one.noise_multiplier, one.sampling_rate, steps, one.overlap)

    return [part(one) for one in plan.mechanism]


def explain(refused: Exhausted) -> str:
    """Why a study was refused, for the hospital's own people: what is left where, and which study spent what."""
    study, blocks = refused.study_id, ", ".join(refused.blocks)
    match refused.code:
        case "LEDGER_FROZEN":
            return f"study {study}: the privacy ledger is frozen for {blocks}; nothing more is charged there"
        case "DELTA_TOO_LARGE":
            return (
                f"study {study}: privacy.delta is not below 1/(10 x patients) for {blocks}; set a smaller one in the "
                "connector's settings"
            )
        case "EPSILON_EXHAUSTED" if refused.agreed is not None:
            return _agreed(study, refused.agreed)
        case "EPSILON_EXHAUSTED" if refused.shortages:
            return "\n".join(_shortage(refused.study_id, one) for one in refused.shortages)
        case _:
            return (
                f"study {study}: nothing is left for it on {blocks}; the rounds that it reserved are used up, or "
                "privacy.epsilon_max and delta leave no budget at all"
            )


def _agreed(study: str, short: AgreedShortage) -> str:
    cap = short.cap
    return (
        f"study {study}: {cap.document} allows epsilon {cap.epsilon:g} at delta {cap.delta:g} for all its runs; they "
        f"have {short.spent:.3g}, and with this one it would be {short.wanted:.3g}. To allow more, two people of this "
        "hospital sign a new document with another privacy_cap"
    )


def _shortage(study: str, short: Shortage) -> str:
    account, limit = short.account, short.limit
    whose = f"what privacy.studies allows {study} of account" if short.of_study else "account"
    had = ", ".join(
        f"{one.study_id} {_percent(one.committed, limit)} used and {_percent(one.reserved, limit)} reserved"
        for one in short.spenders
    )
    return (
        f"study {study}: {whose} {account.block} (epsilon {account.epsilon_max:g} at delta {account.delta:g}) has "
        f"{_percent(short.left, limit)} of its budget left, and the study needs {_percent(short.wanted, limit)}; "
        f"spent so far: {had or 'nothing'}"
    )


def _percent(part: float, whole: float) -> str:
    return "more than there is" if part > 0 >= whole or math.isinf(part) else f"{_share(part, whole):.1%}"
