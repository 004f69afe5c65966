"""What windows charge to the hospital's privacy ledger: when a plan is set aside, begun, given back and closed.

A plan is set aside before the first row is read for it. Local training is charged before its first step; every mode is
charged in the transaction that saves a masked upload, before a byte of it leaves. What was charged comes back with a
certificate of the secure sum alone. A ledger that fails its check charges nothing, so nothing private is done then.
"""

import structlog

from cohortium_connector.ledger.errors import LedgerBroken, ProofRefused
from cohortium_connector.ledger.proofs import Aborted, Excluded, RunOver
from cohortium_connector.ledger.service import Ledger
from cohortium_connector.ledger.view import explain
from cohortium_kit.db import Database, Tx
from cohortium_messages.governance import Reason
from cohortium_messages.ids import RunId
from cohortium_messages.ledger import Part
from cohortium_messages.secure_sum import Purpose, WindowParams
from cohortium_privacy import ledger as rules
from cohortium_privacy.ledger_plan import Exhausted, LedgerPlan, Limits, PlanChanged, PlanOver, PlanUnknown
from cohortium_privacy.ledger_state import ALL

log = structlog.get_logger(__name__)
BROKEN = "LEDGER_BROKEN"
OVER = "PLAN_OVER"
EXHAUSTED = "EPSILON_EXHAUSTED"


def part_of(purpose: Purpose) -> Part:
    """Who pays for a window: training patients, or test patients."""
    return "evaluation" if purpose == "evaluation" else "training"


class Charges:
    """The ledger, as windows use it. Every answer is None for "done", or the code that says why not."""

    def __init__(self, ledger: Ledger, limits: Limits) -> None:
        self.ledger = ledger
        self._limits = limits
        self._moved = False

    async def open(self, db: Database) -> None:
        """At the start. A ledger that fails its check is said loudly, and stops private work alone."""
        try:
            await self.ledger.open(db)
        except LedgerBroken as broken:
            _say(broken)

    async def note(self, db: Database) -> None:
        """Write down beside the database where the ledger stands, if it moved. After each commit."""
        if not self._moved:
            return
        self._moved = False
        try:
            await self.ledger.note_head(db)
        except LedgerBroken as broken:
            _say(broken)

    async def is_planned(self, tx: Tx, run_id: RunId) -> bool:
        """Whether the run's plan is on record. Raises `LedgerBroken`."""
        return bool((await self.ledger.state(tx)).of_run(run_id))

    async def blocks(self, tx: Tx, run_id: RunId) -> tuple[str, ...] | None:
        """The blocks that the run's plan is charged to: nobody of another one may be used for it. None where all
        patients are charged together. Raises `LedgerBroken`."""
        found = {one.plan.block for one in (await self.ledger.state(tx)).of_run(run_id)}
        return None if ALL in found else tuple(sorted(found))

    async def foresee(self, tx: Tx, plan: LedgerPlan) -> str | None:
        """Whether the plan would fit, with nothing set aside: for a look before anybody is counted."""
        try:
            outcome = rules.reserve(await self.ledger.state(tx), plan, self._limits)
        except LedgerBroken as broken:
            return _say(broken)
        except (PlanOver, PlanChanged):
            return OVER
        return _told(outcome) if isinstance(outcome, Exhausted) else None

    async def reserve(self, tx: Tx, plan: LedgerPlan, *, by: str) -> str | None:
        """Set the whole plan aside."""
        self._moved = True
        try:
            outcome = await self.ledger.reserve(tx, plan, by=by)
        except LedgerBroken as broken:
            return _say(broken)
        except (PlanOver, PlanChanged):
            return OVER
        return _told(outcome) if isinstance(outcome, Exhausted) else None

    async def look(self, tx: Tx, run_id: RunId, purpose: Purpose) -> str | None:
        """Whether one more such window may be begun."""
        try:
            left = await self.ledger.uses_left(tx, run_id, part_of(purpose))
        except LedgerBroken as broken:
            return _say(broken)
        return None if left else EXHAUSTED

    async def begin(
        self, tx: Tx, run_id: RunId, purpose: Purpose, window_id: bytes | None = None, *, by: str
    ) -> str | None:
        """Charge one use: without a window, because local training is about to take its first step; with one, because
        its upload is about to be saved."""
        self._moved = True
        try:
            outcome = await self.ledger.commit(tx, run_id, part_of(purpose), window_id, by=by)
        except LedgerBroken as broken:
            return _say(broken)
        except (PlanOver, PlanUnknown):
            return OVER
        return _told(outcome) if isinstance(outcome, Exhausted) else None

    async def upload(self, tx: Tx, params: WindowParams, *, by: str) -> str | None:
        """`begin` for a window whose upload is about to be saved. A window without noise charges nobody."""
        if params.noise is None:
            return None
        return await self.begin(tx, params.run_id, params.purpose, params.window_id, by=by)

    async def refund(self, tx: Tx, params: WindowParams, proof: Aborted | Excluded, *, by: str) -> None:
        """Give back what is in the upload of a window that can never be opened over this site."""
        if params.noise is None:
            return
        self._moved = True
        try:
            await self.ledger.refund(tx, params.run_id, proof, by=by)
        except LedgerBroken as broken:
            _say(broken)
        except PlanUnknown:
            return  # the window was left before anything was set aside for its run
        except ProofRefused as refused:
            log.warning("privacy_budget_kept", run=params.run_id, window=params.window_id.hex(), reason=str(refused))

    async def close(self, tx: Tx, run_id: RunId, reason: Reason, *, by: str) -> None:
        """The run is over here: what it never began comes back. Nothing to do for a run that set nothing aside."""
        self._moved = True
        try:
            await self.ledger.refund(tx, run_id, RunOver(reason), by=by)
        except LedgerBroken as broken:
            _say(broken)
        except PlanUnknown:
            return


def _say(broken: LedgerBroken) -> str:
    log.error("privacy_ledger_broken", code=BROKEN, reason=str(broken))
    return BROKEN


def _told(refused: Exhausted) -> str:
    """The code, which may leave; who spent what stays in the hospital's log."""
    for line in explain(refused).splitlines():
        log.warning("privacy_budget_short", study=refused.study_id, code=refused.code, reason=line)
    return refused.code
