"""The hospital's privacy ledger: its rows, which never leave, and what is told of them.

A row names an account (a block of patients), what happened on it, and the row before it. Rows are hash-chained and
signed with the site's identity key (`cohortium_privacy.chain`). What leaves is a `LedgerStatement` for each operation:
computed from the study's public plan alone, plus the hash of the newest row, to which the hospital is held later. It
says nothing of blocks, patients or the hospital's own limits.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from cohortium_messages.events import AuditEvent
from cohortium_messages.governance import Reason
from cohortium_messages.ids import Bytes16, Bytes32, Bytes64, RunIdField, SiteId, SiteIdField, StudyIdField, Wire
from cohortium_messages.registry import Message

FIRST_ORDER, LAST_ORDER = 2, 64
"""Rényi orders that a reservation is priced at; an account's own order is one of them."""
PRICES = LAST_ORDER - FIRST_ORDER + 1

Block = Annotated[str, Field(pattern=r"^(all|[0-9]{4}-Q[1-4])$")]
"""Patients whose first record came in one calendar quarter, or all where the table has no such date."""
Quarter = Annotated[str, Field(pattern=r"^[0-9]{4}-Q[1-4]$")]
Part = Literal["training", "evaluation"]
"""Which patients of a block pay: those of the training split, or those of the test split."""
StepState = Literal["RESERVED", "COMMITTED", "RELEASED_BACK"]
MoveReason = Literal["STARTED", "UPLOADED", "RETRY", "NEVER_STARTED", "ABORT_CERT", "ECHO_CERT"]

Positive = Annotated[float, Field(gt=0)]
Price = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Place = Annotated[int, Field(ge=0, le=10_000_000)]


class Mechanism(Wire):
    """Noisy sums over Poisson samples, as the accountant takes them (`cohortium_privacy.accounting.GaussianSteps`)."""

    kind: Literal["gaussian"] = "gaussian"
    noise_multiplier: Positive
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    steps: Count
    overlap: Annotated[int, Field(ge=1, le=10)]


class AccountOpened(Wire):
    """An account begins. `order` is its α* for ever; `limit` is B(ε_max, δ, α*), in Rényi divergence at it."""

    kind: Literal["OPENED"] = "OPENED"
    block: Block
    epsilon_max: Positive
    delta: Annotated[float, Field(gt=0, lt=1)]
    order: Annotated[int, Field(ge=FIRST_ORDER, le=LAST_ORDER)]
    limit: float


class LimitsChanged(Wire):
    """The hospital set another (ε_max, δ). The order stays; `limit` is B at it, below 0 where nothing fits any more."""

    kind: Literal["LIMITED"] = "LIMITED"
    block: Block
    epsilon_max: Positive
    delta: Annotated[float, Field(gt=0, lt=1)]
    limit: float


class LedgerFrozen(Wire):
    """Nothing more is reserved or begun on blocks up to `until`, nor on `all`, for good."""

    kind: Literal["FROZEN"] = "FROZEN"
    until: Quarter
    reason: Reason


class PlanReserved(Wire):
    """A whole plan is set aside on one block, before a row is read: steps 0 to `steps` - 1, each RESERVED.

    `steps_per_use`: steps of one round at this site, always begun together. `prices`: Rényi divergence of one use at
    each order from 2 to 64, None where there is no bound; `rdp` is that of all steps at the account's order, and
    `public_order` the order at which it is told outside.
    """

    kind: Literal["PLAN"] = "PLAN"
    state: Literal["RESERVED"] = "RESERVED"
    block: Block
    study_id: StudyIdField
    study_digest: Bytes32
    run_id: RunIdField
    part: Part
    mode: Literal["local", "distributed", "site"]
    mechanism: Annotated[tuple[Mechanism, ...], Field(min_length=1, max_length=8)]
    first_step: Literal[0] = 0
    steps: Count
    steps_per_use: Count
    attempt: Literal[1] = 1
    order: Annotated[int, Field(ge=FIRST_ORDER, le=LAST_ORDER)]
    rdp: Price
    public_order: Annotated[int, Field(ge=FIRST_ORDER, le=LAST_ORDER)]
    prices: Annotated[tuple[Price | None, ...], Field(min_length=PRICES, max_length=PRICES)]


class StepsMoved(Wire):
    """Steps of a plan are in another state from here on.

    STARTED: training began, nothing has left. UPLOADED: they are in the masked vector of `window_id`. ABORT_CERT,
    ECHO_CERT: `proof` is the digest of the certificate that this window's sum was never opened over this site; RETRY:
    the plan that goes on has them again. NEVER_STARTED: the plan is over. `attempt` counts releases before this row,
    plus one.
    """

    kind: Literal["STEPS"] = "STEPS"
    state: StepState
    reason: MoveReason
    block: Block
    study_id: StudyIdField
    run_id: RunIdField
    part: Part
    first_step: Place
    steps: Count
    attempt: Count
    rdp: Price
    window_id: Bytes16 | None = None
    proof: Bytes32 | None = None


class PlanClosed(Wire):
    """No step of this plan will ever be begun again on this block."""

    kind: Literal["CLOSED"] = "CLOSED"
    block: Block
    study_id: StudyIdField
    run_id: RunIdField
    part: Part
    reason: Reason


LedgerFact = Annotated[
    AccountOpened | LimitsChanged | LedgerFrozen | PlanReserved | StepsMoved | PlanClosed, Field(discriminator="kind")
]


class LedgerEntry(Wire):
    """One row. `prev_hash` names the row before, with its signature; 32 zero bytes for the first."""

    sequence: Annotated[int, Field(ge=1)]
    site_id: SiteIdField
    recorded_at: datetime
    prev_hash: Bytes32
    fact: LedgerFact


class LedgerStatement(Wire):
    """What a hospital tells of one operation, signed with its identity key.

    `rdp`: of these steps at `order`, both from the study's plan. `head`: hash of the newest ledger row; it covers the
    row's signature, so it cannot be guessed from what the row may say.
    """

    site_id: SiteIdField
    study_id: StudyIdField
    study_digest: Bytes32
    run_id: RunIdField
    part: Part
    state: StepState
    reason: Literal["PLANNED", "STARTED", "UPLOADED", "RETRY", "NEVER_STARTED", "ABORT_CERT", "ECHO_CERT"]
    first_step: Place
    steps: Count
    attempt: Count
    order: Annotated[int, Field(ge=FIRST_ORDER, le=LAST_ORDER)]
    rdp: Price
    head: Bytes32
    sig: Bytes64


class LedgerEvent(Message, type_name="cohortium.ledger.event.v1"):
    """Site to consent, for the federation's view of budgets."""

    statement: LedgerStatement


class LedgerRecorded(AuditEvent, type_name="cohortium.audit.ledger_recorded.v1"):
    """Site: the same statement, for the log."""

    statement: LedgerStatement

    @property
    def site_id(self) -> SiteId:
        """Whose ledger: a site speaks of its own alone."""
        return self.statement.site_id
