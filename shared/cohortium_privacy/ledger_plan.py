"""What a ledger is asked and what it answers: plans to reserve, the hospital's limits, and why there is no room."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from cohortium_messages.ids import RunId, StudyId
from cohortium_messages.ledger import FIRST_ORDER, PRICES, Mechanism, Part
from cohortium_privacy.agreed import AgreedCap
from cohortium_privacy.ledger_state import ALL, Account

MOST_BLOCKS = 400
"""A hundred years of quarters."""
PATIENTS_PER_DELTA = 10
"""Rule 7: δ times this many times the patients of a block stays below 1."""
_QUARTER = re.compile(r"[0-9]{4}-Q[1-4]")

Refusal = Literal["EPSILON_EXHAUSTED", "DELTA_TOO_LARGE", "LEDGER_FROZEN"]


class PlanUnknown(LookupError):
    """Nothing was reserved for this plan: reserve it before its first row is read."""


class PlanOver(LookupError):
    """The plan was closed, so nothing may be begun on it: its run has ended here."""


class PlanChanged(ValueError):
    """The plan was reserved with another mechanism: a plan is fixed before the first row is read."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the hospital allows: (ε_max, δ) of every account, and at most so much ε of it for a study, by its name.

    Raises `ValueError` for numbers that allow nothing, or everything.
    """

    epsilon_max: float
    delta: float
    studies: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        allowed = (self.epsilon_max, *self.studies.values())
        if not all(0 < epsilon < math.inf for epsilon in allowed) or not 0 < self.delta < 1:
            raise ValueError(f"limits {allowed} at delta {self.delta}: epsilon is above 0, delta between 0 and 1")


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """What training or evaluation costs a patient: `uses` rounds of `steps_per_use` steps, and the price of one use in
    Rényi divergence at each order from 2 to 64, None where there is no bound."""

    part: Part
    mechanism: tuple[Mechanism, ...]
    uses: int
    steps_per_use: int
    prices: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if self.uses < 1 or self.steps_per_use < 1 or len(self.prices) != PRICES:
            raise ValueError(f"a plan's {self.part} needs at least one step, and {PRICES} prices")


@dataclass(frozen=True, slots=True)
class LedgerPlan:
    """A whole run, to be reserved. `blocks`: patients of each block in the study's extract; the numbers stay here.
    `public_order`: the order at which steps are told outside, which follows from the study alone. `caps`: what the
    hospital's signed documents allow the study in all its runs, each of which holds.

    Raises `ValueError` for parts or blocks that are none.
    """

    study_id: StudyId
    study_digest: bytes
    run_id: RunId
    mode: Literal["local", "distributed", "site"]
    parts: tuple[PlannedPart, ...]
    blocks: Mapping[str, int]
    public_order: int
    caps: tuple[AgreedCap, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts or len({part.part for part in self.parts}) != len(self.parts):
            raise ValueError(f"plan {self.run_id} needs training, or evaluation, or one of each")
        names = set(self.blocks)
        dated = all(_QUARTER.fullmatch(name) for name in names)
        if not 1 <= len(names) <= MOST_BLOCKS or not (dated or names == {ALL}):
            raise ValueError(f"plan {self.run_id} is for quarters such as 2024-Q3, or for {ALL}, not for both")
        if any(patients < 0 for patients in self.blocks.values()):
            raise ValueError(f"plan {self.run_id} counts fewer patients than none")
        if any(part.prices[self.public_order - FIRST_ORDER] is None for part in self.parts):
            raise ValueError(f"plan {self.run_id} has no price at its own order {self.public_order}")


@dataclass(frozen=True, slots=True)
class Spender:
    """What one run has of a block, in Rényi divergence at the order that was asked for."""

    study_id: StudyId
    run_id: RunId
    reserved: float
    committed: float


@dataclass(frozen=True, slots=True)
class Shortage:
    """One account that has no room, in Rényi divergence at its order; or the study's own share of it (`of_study`), at
    the order of that share. `left` is below 0 after the hospital lowered a limit."""

    account: Account
    limit: float
    spent: float
    wanted: float
    spenders: tuple[Spender, ...]
    of_study: bool = False

    @property
    def left(self) -> float:
        return self.limit - self.spent


@dataclass(frozen=True, slots=True)
class AgreedShortage:
    """A cap that the hospital's documents set, with the ε at its δ that the study's runs have, and would have."""

    cap: AgreedCap
    spent: float
    wanted: float


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Why not. `code` may leave the hospital; everything else is for its own people.

    `blocks`: those that are frozen, or have too many patients for their δ, or are short. EPSILON_EXHAUSTED without
    `shortages`: every step of the plan is used up, or (ε_max, δ) leave no budget at any order; or, with `agreed`, the
    hospital's documents allow the study no more.
    """

    code: Refusal
    study_id: StudyId
    blocks: tuple[str, ...]
    shortages: tuple[Shortage, ...] = ()
    agreed: AgreedShortage | None = None


def quarter_of(day: date) -> str:
    """The calendar quarter of a day, as a block's name."""
    return f"{day.year:04d}-Q{(day.month + 2) // 3}"


def blocks_of(first_records: Iterable[date | None]) -> dict[str, int]:
    """Patients of each block, from the day of each patient's first record in the extract.

    A patient without such a day may belong to any quarter, so one is enough to put everybody in `all`.
    """
    found: dict[str, int] = {}
    for day in first_records:
        name = ALL if day is None else quarter_of(day)
        found[name] = found.get(name, 0) + 1
    return {ALL: sum(found.values())} if ALL in found else found
