"""The hospital's privacy ledger, as the rest of the connector calls it.

Every operation takes the transaction of whatever it belongs to, so that a step is charged if and only if it happens: a
process that dies anywhere leaves both or neither. Asking again changes nothing. The stored chain is checked from its
first row when the ledger is opened, and from where it was checked last with every operation.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from cohortium_connector.ledger import store
from cohortium_connector.ledger.anchor import Anchor
from cohortium_connector.ledger.errors import LedgerBroken
from cohortium_connector.ledger.proofs import Proof, RunOver, checked
from cohortium_connector.ledger.store import StoredRow
from cohortium_kit.db import Database, Tx
from cohortium_messages.governance import Reason
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.ledger import (
    LedgerEvent,
    LedgerFact,
    LedgerRecorded,
    LedgerStatement,
    Part,
    PlanReserved,
    StepsMoved,
)
from cohortium_messages.registry import Message
from cohortium_privacy import ledger as rules
from cohortium_privacy.chain import UNSIGNED, extend, proof_digest, replay, sign_statement
from cohortium_privacy.ledger_plan import Exhausted, LedgerPlan, Limits
from cohortium_privacy.ledger_state import EntryRefused, Head, LedgerState
from cohortium_protocol.signing import IdentityKey

log = structlog.get_logger(__name__)
PAGE = 1000
Post = Callable[[Tx, str, Message, StudyId], Awaitable[None]]
"""Sends a message to a service after the commit: `Desk.post`."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """The plan is on record. `blocks` are those it was reserved for: train and test on patients of these alone, also
    where the extract has come to hold others since."""

    run_id: RunId
    blocks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """The use is on record as begun. `uses_left`: how many more the plan has."""

    run_id: RunId
    part: Part
    uses_left: int


class Ledger:
    """One site's ledger. Holds nothing but the state that it has checked, which can be read and checked again."""

    def __init__(self, site_id: SiteId, key: IdentityKey, limits: Limits, anchor: Anchor, post: Post) -> None:
        self._site_id = site_id
        self._key = key
        self._limits = limits
        self._anchor = anchor
        self._post = post
        # The state of committed rows, and the state after what this process wrote last, which may be rolled back.
        self._read = LedgerState()
        self._written = LedgerState()
        self._anchored = Head()
        self._expected: Head | None = None

    # Opening

    async def open(self, db: Database) -> None:
        """Check every row, bring the accounts to the present limits, write down where the ledger stands.

        Before anything else of this class, and before the service takes part in anything. Raises `LedgerBroken`.
        """
        await self.check(db)
        await db.run("ledger_limits", self._apply_limits)
        await self.note_head(db)

    async def check(self, db: Database) -> LedgerState:
        """Read the whole chain again: signatures, links, contents, and that it is no older copy. Raises `LedgerBroken`;
        the ledger then refuses every operation too, since each of them reads it."""
        self._read, self._written, self._expected = LedgerState(), LedgerState(), None
        async with db.reading("ledger_check") as tx:
            return await self._state(tx)

    async def note_head(self, db: Database) -> None:
        """Write down where the ledger stands, beside the database. After each commit that may have moved it."""
        async with db.reading("ledger_head") as tx:
            head = (await self._state(tx)).head
        if head != self._anchored:
            await asyncio.to_thread(self._anchor.write, head)
            self._anchored = head

    async def write_off(self, db: Database, until: str) -> None:
        """Go on with a ledger whose newest rows are lost, at the price of all that they may have charged: everything up
        to the quarter `until` is frozen. Raises `LedgerBroken` for rows that were changed."""
        self._read, self._written, self._expected = LedgerState(), LedgerState(), Head()
        await db.run("ledger_write_off", lambda tx: self.freeze(tx, until, "ROWS_LOST", by="ledger_write_off"))
        await self.note_head(db)

    async def _apply_limits(self, tx: Tx) -> None:
        state = await self._state(tx)
        if state.accounts:
            await self._write(tx, state, rules.limit(state, self._limits), by="ledger_limits")

    # Operations

    async def reserve(self, tx: Tx, plan: LedgerPlan, *, by: str = "ledger_reserve") -> Reserved | Exhausted:
        """Set a whole plan aside, on every block of it or on none: before the first row is read for the run.

        Raises `PlanChanged` or `PlanOver` (`cohortium_privacy.ledger_plan`), `LedgerBroken`.
        """
        state = await self._state(tx)
        facts = rules.reserve(state, plan, self._limits)
        if isinstance(facts, Exhausted):
            log.warning("privacy_budget_refused", study=plan.study_id, run=plan.run_id, code=facts.code)
            return facts
        after = await self._write(tx, state, facts, by=by)
        return Reserved(plan.run_id, tuple(sorted({one.plan.block for one in after.of_run(plan.run_id)})))

    async def commit(
        self, tx: Tx, run_id: RunId, part: Part, window_id: bytes | None = None, *, by: str = "ledger_commit"
    ) -> Committed | Exhausted:
        """Charge one round of the plan as used. Without a window: local training is about to take its first step. With
        one: in the transaction that records the finished upload, for every mode.

        `Exhausted` means: do not train, do not save the upload. Raises `PlanUnknown`, `PlanOver`, `LedgerBroken`.
        """
        state = await self._state(tx)
        facts = rules.commit(state, run_id, part, window_id)
        if isinstance(facts, Exhausted):
            log.warning("privacy_budget_refused", study=facts.study_id, run=run_id, code=facts.code)
            return facts
        after = await self._write(tx, state, facts, by=by)
        left = min(one.reserved for one in after.of_run(run_id, part))
        return Committed(run_id, part, left)

    async def refund(self, tx: Tx, run_id: RunId, proof: Proof, *, by: str = "ledger_refund") -> int:
        """Give back what the proof frees; returns how many entries that took, 0 where it was done before.

        Raises `ProofRefused` for a certificate that is not valid or says something else, `PlanUnknown`, `LedgerBroken`.
        """
        if isinstance(proof, RunOver):
            state = await self._state(tx)
            facts = rules.close(state, run_id, proof.reason)
        else:
            reason = await asyncio.to_thread(checked, proof, self._site_id, self._key.public)
            state = await self._state(tx)
            digest = proof_digest(proof.cert)
            facts = rules.refund(state, run_id, proof.view.window_id, reason, digest)
        await self._write(tx, state, facts, by=by)
        return len(facts)

    async def uses_left(self, tx: Tx, run_id: RunId, part: Part) -> int:
        """Rounds that may still be begun: 0 for a plan that is used up, closed, frozen or unknown. Look before
        training; `commit` decides."""
        state = await self._state(tx)
        holdings = state.of_run(run_id, part)
        if not holdings or any(one.closed or state.is_frozen(one.plan.block) for one in holdings):
            return 0
        return min(one.reserved + len(one.unbound) for one in holdings)

    async def freeze(self, tx: Tx, until: str, reason: Reason, *, by: str = "ledger_freeze") -> None:
        """Nothing more is reserved or begun on blocks up to the quarter `until`, and on `all`.

        For a ledger whose newest rows are lost: what they charged is unknown.
        """
        state = await self._state(tx)
        await self._write(tx, state, rules.freeze(state, until, reason), by=by)

    async def state(self, tx: Tx) -> LedgerState:
        """What the ledger says, checked. `view.look` makes it readable. Raises `LedgerBroken`."""
        return await self._state(tx)

    # Rows

    async def _state(self, tx: Tx) -> LedgerState:
        """The state in this transaction: the newest that is known and still stands there, and every row behind it."""
        for known in (self._written, self._read):
            rows = await store.rows_from(tx, known.head.sequence, PAGE) if known.head.sequence else ()
            if rows and Head(rows[0].sequence, rows[0].entry_hash) == known.head:
                return await self._behind(tx, known, rows[1:], Head())
        if self._expected is None:
            self._expected = await asyncio.to_thread(self._anchor.read)
        return await self._behind(tx, LedgerState(), await store.rows_from(tx, 1, PAGE), self._expected)

    async def _behind(self, tx: Tx, state: LedgerState, rows: tuple[StoredRow, ...], expected: Head) -> LedgerState:
        while rows:
            state = await asyncio.to_thread(self._replay, state, rows, expected)
            rows = await store.rows_from(tx, state.head.sequence + 1, PAGE)
        if state.head.sequence < expected.sequence:
            raise LedgerBroken(
                f"the privacy ledger ends at entry {state.head.sequence} and had {expected.sequence}: spool.db is an "
                "older copy, so what was charged since is not in it. Bring back the newest copy; if there is none, "
                "`cohortium budget-write-off` freezes what may have been charged"
            )
        self._read = self._written = state
        return state

    def _replay(self, state: LedgerState, rows: tuple[StoredRow, ...], expected: Head) -> LedgerState:
        remedy = "bring back spool.db as the connector wrote it; until then nothing private is done"
        for row in rows:
            place = state.head.sequence + 1
            try:
                sealed, state = replay(state, row.text, row.sig, self._site_id, self._key.public)
            except EntryRefused as error:
                raise LedgerBroken(f"the privacy ledger was changed: {error}; {remedy}") from None
            same = row.sequence == place and row.entry_hash == sealed.entry_hash and store.repeats(row, sealed.entry)
            if not same:
                raise LedgerBroken(f"the privacy ledger was changed: columns of entry {place} differ from it; {remedy}")
            if place == expected.sequence and state.head != expected:
                raise LedgerBroken(
                    f"the privacy ledger was changed: entry {place} is not the one that stood there; {remedy}"
                )
        return state

    async def _write(self, tx: Tx, state: LedgerState, facts: tuple[LedgerFact, ...], *, by: str) -> LedgerState:
        """Add these facts and tell what may be told of them, all in this transaction."""
        if not facts:
            return state
        now = datetime.fromtimestamp(tx.now, UTC)
        after, rows = extend(state, facts, self._site_id, self._key, now)
        await store.append(tx, rows, by=by)
        for statement in statements(after, facts, self._site_id, self._key):
            await self._post(tx, "consent", LedgerEvent(statement=statement), statement.study_id)
            await self._post(tx, "audit", LedgerRecorded(statement=statement), statement.study_id)
        self._written = after
        return after


def statements(
    after: LedgerState, facts: tuple[LedgerFact, ...], site_id: SiteId, key: IdentityKey
) -> tuple[LedgerStatement, ...]:
    """What leaves of an operation: steps and their public price, once, not once for each block."""
    moves = [fact for fact in facts if isinstance(fact, PlanReserved | StepsMoved)]
    first = min((fact.block for fact in moves), default="")
    return tuple(sign_statement(_statement(after, fact, site_id), key) for fact in moves if fact.block == first)


def _statement(after: LedgerState, fact: PlanReserved | StepsMoved, site_id: SiteId) -> LedgerStatement:
    holding = after.holdings[fact.block, fact.run_id, fact.part]
    plan = holding.plan
    return LedgerStatement(
        site_id=site_id,
        study_id=plan.study_id,
        study_digest=plan.study_digest,
        run_id=plan.run_id,
        part=plan.part,
        state=fact.state,
        reason="PLANNED" if isinstance(fact, PlanReserved) else fact.reason,
        first_step=fact.first_step,
        steps=fact.steps,
        attempt=fact.attempt,
        order=plan.public_order,
        rdp=holding.price(plan.public_order, fact.steps // plan.steps_per_use),
        head=after.head.entry_hash,
        sig=UNSIGNED,
    )
