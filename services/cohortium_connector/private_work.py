"""What must be on record before private work reads a row: its plan, its charge, and the seed of its noise."""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from cohortium_connector.charges import Charges
from cohortium_connector.domain.policy import HeldGrant
from cohortium_connector.domain.work import Job
from cohortium_connector.ledger.errors import LedgerBroken
from cohortium_connector.ledger.plans import ledger_plan
from cohortium_connector.store import seeds
from cohortium_connector.store.tables import consent_records
from cohortium_connector.store.windows import WindowRecord
from cohortium_connector.trainers import Runner
from cohortium_connector.training.jobs import CountPatients, DataSource, PrivateWork
from cohortium_kit.db import Database, Tx
from cohortium_messages.governance import Manifest
from cohortium_messages.ids import StudyId
from cohortium_messages.study import Study
from cohortium_privacy.agreed import AgreedCap
from cohortium_privacy.ledger_plan import LedgerPlan
from cohortium_privacy.ledger_state import ALL
from cohortium_privacy.windows import MOST_SITES, plan_for
from cohortium_protocol.consent.caps import PapersMissing, caps_of
from cohortium_protocol.encoding import le64, sha256

log = structlog.get_logger(__name__)
SEED_BYTES = 32
NEWEST: Final = "9999-Q4"
"""A quarter in which nobody has come yet: what has no room there has room nowhere."""


class NotCharged(Exception):
    """The privacy ledger does not let this work begin; the code says why, and may leave the hospital."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Order:
    """One private job: for which window, of which study, on which table, under which grant."""

    window: WindowRecord
    job: Job
    study: Study
    manifest: Manifest
    source: DataSource
    held: HeldGrant


class PrivateDesk:
    """Charges private work before it is done."""

    def __init__(self, charges: Charges, db: Database, timeout_s: float) -> None:
        self._charges = charges
        self._db = db
        self._timeout_s = timeout_s

    async def begin(self, order: Order, runner: Runner) -> PrivateWork | None:
        """What the training process is told of the noise, None where the window asks for none.

        Asked again for the same work, it gives the same seed, and charges nothing more. Raises `NotCharged`, and what
        `runner` raises over the table.
        """
        noise, run_id = order.window.params.noise, order.job.run_id
        if noise is None:
            return None
        if not await self._is_planned(order):
            await self._reserve(order, runner)

        async def charge(tx: Tx) -> tuple[str | None, bytes, tuple[str, ...] | None]:
            by = "begin_private_work"
            code = await self._charges.look(tx, run_id, order.job.purpose)
            if code is None and order.study.privacy.mode == "local" and order.job.purpose == "update":
                code = await self._charges.begin(tx, run_id, order.job.purpose, by=by)
            if code is not None:
                return code, b"", None
            fresh = secrets.token_bytes(SEED_BYTES)
            seed = await seeds.seed_for(tx, run_id, order.job.purpose, _task(order), fresh, by=by)
            return None, seed, await self._charges.blocks(tx, run_id)

        code, seed, blocks = await self._db.run("begin_private_work", charge)
        await self._charges.note(self._db)
        if code is not None:
            raise NotCharged(code)
        return PrivateWork(noise=noise, seed=seed, sites=_most_sites(order), blocks=blocks)

    async def foresee(self, order: Order) -> None:
        """Raise `NotCharged` where the run's whole plan would not fit, before anything is read for it. Where patients
        are charged by quarters, only the count says by which: here, where it would not fit even for newcomers."""
        if order.window.params.noise is None or await self._is_planned(order):
            return
        block = ALL if order.source.first_record_column is None else NEWEST
        plan = await asyncio.to_thread(_plan, order, {block: 0}, await self._caps(order))
        async with self._db.reading("foresee_plan") as tx:
            code = await self._charges.foresee(tx, plan)
        if code is not None:
            raise NotCharged(code)

    async def _is_planned(self, order: Order) -> bool:
        try:
            async with self._db.reading("private_plan") as tx:
                return await self._charges.is_planned(tx, order.job.run_id)
        except LedgerBroken:
            return False  # which the reservation finds, too, and tells

    async def _caps(self, order: Order) -> tuple[AgreedCap, ...]:
        """What the documents under the grant allow the study in all its runs."""
        async with self._db.reading("agreed_caps") as tx:
            file = await consent_records.load(tx)
        try:
            found = caps_of(order.held.grant, file)
        except PapersMissing as missing:
            log.warning("approval_incomplete", study=order.study.name, reason=str(missing))
            raise NotCharged("APPROVAL_NOT_FOUND") from None
        return tuple(AgreedCap(one.cap.epsilon, one.cap.delta, one.document) for one in found)

    async def _reserve(self, order: Order, runner: Runner) -> None:
        """Set the whole plan aside. It must fit before the patients are even counted, who matter for δ, and for the
        blocks that are charged."""
        await self.foresee(order)
        if order.source.person_column is None:
            log.warning("rows_taken_for_patients", study=order.study.name, run=order.job.run_id)
        counted = await runner.run(CountPatients(study=order.study, source=order.source), timeout_s=self._timeout_s)
        plan = await asyncio.to_thread(_plan, order, counted.blocks, await self._caps(order))
        code = await self._db.run("reserve_plan", lambda tx: self._charges.reserve(tx, plan, by="reserve_plan"))
        await self._charges.note(self._db)
        if code is not None:
            raise NotCharged(code)


def _plan(order: Order, blocks: Mapping[str, int], caps: tuple[AgreedCap, ...]) -> LedgerPlan:
    """The run's plan as the ledger has it. A table without anybody is charged as if everybody were in it. The plan is
    remembered, the rest takes part of a second."""
    params, study = order.window.params, order.study
    plan = plan_for(study, len(order.manifest.members), params.least_cohort, order.manifest.collusion)
    if plan is None:
        raise LookupError(f"study {study.name} has noise and no plan")
    name, digest = StudyId(study.name), params.study_digest
    return ledger_plan(name, digest, order.job.run_id, plan, study.rounds, blocks or {ALL: 0}, caps)


def _most_sites(order: Order) -> int:
    """Of any roster: a vector may be used in a later window than the one it is made for."""
    return min(MOST_SITES, len(order.manifest.members))


def _task(order: Order) -> bytes:
    """What one seed is for: work that differs in anything has noise of its own."""
    base, noise = order.job.base, order.window.params.noise
    parts = (
        b"" if base is None else base.version.to_bytes(4, "big") + base.model_hash,
        b"" if noise is None else noise.model_dump_json().encode(),
    )
    digests = b"".join(sha256(part) for part in parts)
    return sha256(order.window.params.study_digest + digests + le64(_most_sites(order)))
