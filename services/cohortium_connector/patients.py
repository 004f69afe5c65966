"""Patients' consent before any row is read: who may be used now, is it still the cohort that was approved, and a
commitment to it on record.

Asked anew before each piece of work, so a patient who withdraws is in no later one. The training process does the
reading (`training.patients`); here is what follows from it. Rows go into the work by `DataSource.permitted_path` alone.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

import rfc8785
import structlog

from cohortium_connector.desk import Desk
from cohortium_connector.domain.policy import HeldGrant
from cohortium_connector.settings import PolicySettings
from cohortium_connector.spool import remove
from cohortium_connector.store import patients, studies
from cohortium_connector.store.patients import ApprovedCohort, Snapshot
from cohortium_connector.store.windows import WindowRecord
from cohortium_connector.trainers import Runner
from cohortium_connector.training.consents import Excluded
from cohortium_connector.training.jobs import CohortTaken, DataSource, TakeCohort
from cohortium_kit.db import Database, Tx
from cohortium_messages.consent import DataUseTerms
from cohortium_messages.events import ConsentSnapshot
from cohortium_messages.study import NoiseRecipe, Study
from cohortium_privacy.windows import formal
from cohortium_protocol.encoding import sha256

log = structlog.get_logger(__name__)

SMALLEST_TOLD = 11
"""Fewer persons than this are not told apart (ResDAC's cell size)."""


class NotThesePatients(Exception):
    """Consent, or the approved cohort, stands against this work: no row was read. The code says why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Demand:
    """What the hospital's data-use terms ask of patients' consent; without terms its own settings alone count."""

    consent: bool
    optout: bool


def demand_of(terms: tuple[DataUseTerms, ...]) -> Demand:
    """The strictest of the hospital's terms."""
    words = {one.patient_consent for one in terms}
    return Demand(consent="required" in words, optout=bool(words & {"required", "opt_out_only"}))


def band(count: int) -> str:
    """How many persons, as it may be told."""
    if count < SMALLEST_TOLD:
        return f"<{SMALLEST_TOLD}"
    least = count // 10 * 10
    return f"{least}-{least + 9}"


def query_digest(study: Study, source: DataSource, *, required: bool) -> bytes:
    """What is asked of the table and of the consent source; not where they lie, which is the hospital's own affair."""
    consent = source.consent
    asked = {
        "dataset": study.dataset.model_dump(mode="json"),
        "site": [source.site_column, source.site_value],
        "person_column": source.person_column,
        "consent": None if consent is None else [consent.kind, consent.policy, consent.purpose],
        "optout": source.optout_path is not None,
        "required": required,
    }
    if source.first_record_column is not None:
        asked["first_record_column"] = source.first_record_column
    return sha256(rfc8785.dumps(asked))


def tolerance(study: Study, policy: PolicySettings) -> float:
    """By what share the approved cohort may change: as the approved study says, or less if the hospital's own settings
    do."""
    agreed, own = study.dataset.cohort_tolerance, policy.cohort_tolerance
    return agreed if own is None else min(agreed, own)


def objection(
    taken: CohortTaken, query: bytes, frozen: ApprovedCohort | None, study: Study, policy: PolicySettings
) -> str | None:
    """Why this cohort may not be used, as a code, or None."""
    if taken.permitted < policy.min_persons:
        return "BELOW_MIN_PERSONS"
    if frozen is None:
        return None
    changed = abs(taken.permitted - frozen.persons) > tolerance(study, policy) * frozen.persons
    return "COHORT_CHANGED" if changed or query != frozen.query_digest else None


class Patients:
    """Asks who may be used, before each piece of work."""

    def __init__(self, desk: Desk, db: Database) -> None:
        self._desk = desk
        self._db = db

    async def source_for(
        self, window: WindowRecord, study: Study, source: DataSource, held: HeldGrant, runner: Runner
    ) -> DataSource:
        """The source with the persons whose rows may be read.

        Raises `NotThesePatients`, and what `runner.run` raises; `TrainingRefused` where a file cannot be read.
        """
        if isinstance(study.recipe, NoiseRecipe) or (
            window.params.purpose == "statistics" and formal(study) is not None
        ):
            return source  # no row is read
        demand = await self._demand(window)
        has_optout = source.consent is not None or source.optout_path is not None
        if (demand.consent and source.consent is None) or (demand.optout and not has_optout):
            log.error("consent_source_missing", study=window.study_id, code="CONSENT_SOURCE_MISSING")
            raise NotThesePatients("CONSENT_SOURCE_MISSING")
        if source.person_column is None:
            return source
        required = demand.consent or (source.consent is not None and source.consent.required)
        folder = self._desk.spool.patients / window.study_id
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        context, salt = secrets.token_bytes(16), secrets.token_bytes(32)
        job = TakeCohort(
            source=source,
            required=required,
            at=self._desk.clock.now(),
            context=context,
            salt=salt,
            folder=str(folder),
        )
        taken = await runner.run(job, timeout_s=self._desk.settings.trainer.timeout_s)
        query = query_digest(study, source, required=required)
        await self._db.run("take_cohort", lambda tx: self._keep(tx, window, study, job, taken, held, query))
        return source.model_copy(update={"permitted_path": taken.permitted_path})

    async def _demand(self, window: WindowRecord) -> Demand:
        async with self._db.reading("consent_demand") as tx:
            facts = await studies.facts(tx, window.params.study_digest)
        records = () if facts is None else facts.consent.records
        mine = self._desk.identity.site_id
        found = [one.document for one in records if isinstance(one.document, DataUseTerms)]
        return demand_of(tuple(terms for terms in found if terms.site_id == mine))

    async def _keep(
        self,
        tx: Tx,
        window: WindowRecord,
        study: Study,
        job: TakeCohort,
        taken: CohortTaken,
        held: HeldGrant,
        query: bytes,
    ) -> None:
        desk = self._desk
        frozen = await patients.approved(tx, held.digest)
        code = objection(taken, query, frozen, study, desk.settings.policy)
        if code is not None:
            known = {} if frozen is None else {"approved": frozen.persons}
            log.warning("cohort_refused", study=window.study_id, code=code, count=taken.permitted, **known)
            remove(Path(taken.tags_path))
            raise NotThesePatients(code)
        if frozen is None:
            frozen = ApprovedCohort(query, taken.permitted, taken.root)
            await patients.freeze(tx, held.digest, frozen)
        await patients.add_snapshot(
            tx,
            Snapshot(
                context=job.context,
                study_id=window.study_id,
                run_id=window.run_id,
                round=window.params.round,
                purpose=window.params.purpose,
                salt=job.salt,
                root=taken.root,
                persons=taken.permitted,
                permitted=taken.permitted_path,
                taken_at=job.at.timestamp(),
            ),
        )
        event = ConsentSnapshot(
            run_id=window.run_id,
            window_id=window.window_id,
            site_id=desk.identity.site_id,
            grant_digest=held.digest,
            source=_kind(job.source),
            query_digest=query,
            context=job.context,
            root=taken.root,
            approved_root=frozen.root,
            **({} if formal(study) is not None else _bands(taken)),
        )
        await desk.record(tx, event, window.study_id)


def _kind(source: DataSource) -> str:
    if source.consent is not None:
        return source.consent.kind
    return "none" if source.optout_path is None else "optout_list"


def _bands(taken: CohortTaken) -> dict[str, str]:
    told = {"persons": band(taken.persons), "permitted": band(taken.permitted)}
    # Every reason each time: one that is named only when it has somebody would tell of the first who withdraws.
    return told | {reason: band(taken.excluded.get(reason, 0)) for reason in Excluded}
