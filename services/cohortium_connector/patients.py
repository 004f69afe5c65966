"""Patients' consent before any row is read: who may be used now, is it still the cohort that was approved, and a
commitment to it on record.

Asked at the approval of a study, and anew before each piece of work, so a patient who withdraws is in no later one. The
training process does the reading (`training.patients`); here is what follows from it. Rows go into the work by
`DataSource.permitted_path` alone. Where the table does not name its patients, a study that is no trial has rows counted
and committed to in their place.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

import rfc8785
import structlog

from cohortium_connector.desk import Desk
from cohortium_connector.domain.policy import HeldGrant, usable_grant
from cohortium_connector.settings import PolicySettings
from cohortium_connector.spool import remove
from cohortium_connector.store import patients, studies
from cohortium_connector.store.patients import APPROVAL, ApprovedCohort, Snapshot
from cohortium_connector.store.windows import WindowRecord
from cohortium_connector.trainers import Runner
from cohortium_connector.training.consents import Excluded
from cohortium_connector.training.jobs import CohortTaken, DataSource, TakeCohort
from cohortium_kit.db import Database, Tx
from cohortium_messages.consent import DataUseTerms
from cohortium_messages.events import ConsentSnapshot
from cohortium_messages.governance import CohortUnit, ConsentSourceKind, GrantedCohort, SiteGrant
from cohortium_messages.ids import RunId, StudyId
from cohortium_messages.problems import sentence
from cohortium_messages.study import NoiseRecipe, Study
from cohortium_privacy.windows import formal
from cohortium_protocol.documents import grant_digest
from cohortium_protocol.encoding import sha256

log = structlog.get_logger(__name__)

NO_TABLE = DataSource(path="/dev/null")
"""For trainers that read no row."""
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


@dataclass(frozen=True, slots=True)
class Taken:
    """A cohort that was just taken: what was asked, and what came of it. Stays inside the hospital."""

    job: TakeCohort
    cohort: CohortTaken
    query: bytes

    @property
    def unit(self) -> CohortUnit:
        return "row" if self.job.source.person_column is None else "person"

    @property
    def frozen(self) -> ApprovedCohort:
        return ApprovedCohort(self.query, self.cohort.permitted, self.cohort.root)

    def told(self, study: Study) -> GrantedCohort:
        """What may leave of it."""
        return GrantedCohort(
            query_digest=self.query,
            source=_kind(self.job.source),
            unit=self.unit,
            band=None if formal(study) is not None else band(self.cohort.permitted),
            context=self.job.context,
            root=self.cohort.root,
            as_of=self.job.at,
        )

    def snapshot(self, study: Study, run_id: RunId, round_: int, purpose: str) -> Snapshot:
        """As the hospital's own records keep it."""
        return Snapshot(
            context=self.job.context,
            study_id=StudyId(study.name),
            run_id=run_id,
            round=round_,
            purpose=purpose,
            salt=self.job.salt,
            root=self.cohort.root,
            persons=self.cohort.permitted,
            permitted=self.cohort.permitted_path or "",
            taken_at=self.job.at.timestamp(),
            unit=self.unit,
        )

    def discard(self) -> None:
        """It will not be used: nothing proves who was in it any more."""
        remove(Path(self.cohort.tags_path))


class Patients:
    """Asks who may be used: at an approval, and before each piece of work."""

    def __init__(self, desk: Desk, db: Database) -> None:
        self._desk = desk
        self._db = db

    async def source_for(
        self, window: WindowRecord, study: Study, source: DataSource, held: HeldGrant, runner: Runner
    ) -> DataSource:
        """The source with the persons whose rows may be read.

        Raises `NotThesePatients`, and what `runner.run` raises; `TrainingRefused` where a file cannot be read.
        """
        if window.params.purpose == "statistics" and formal(study) is not None:
            return source  # no row is read
        taken = await self.take(study, source, runner)
        if taken is None:
            return source
        await self._db.run("take_cohort", lambda tx: self._keep(tx, window, study, taken, held))
        return source.model_copy(update={"permitted_path": taken.cohort.permitted_path})

    async def take(self, study: Study, source: DataSource, runner: Runner, folder: Path | None = None) -> Taken | None:
        """The cohort of this moment, None where nobody has to be asked: of a study that reads no row, or in a trial
        whose table names no patients. Its lists lie in `folder`, by default where those of the study are kept. Raises
        as `source_for`."""
        if isinstance(study.recipe, NoiseRecipe):
            return None
        demand = await self._demand(study.digest())
        self._check_sources(study, source, demand)
        if source.person_column is None and study.governance == "trial":
            return None
        required = demand.consent or (source.consent is not None and source.consent.required)
        folder = folder or self._desk.spool.patients / study.name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        job = TakeCohort(
            source=source,
            required=required,
            at=self._desk.clock.now(),
            context=secrets.token_bytes(16),
            salt=secrets.token_bytes(32),
            folder=str(folder),
        )
        cohort = await runner.run(job, timeout_s=self._desk.settings.trainer.timeout_s)
        return Taken(job, cohort, query_digest(study, source, required=required))

    def _check_sources(self, study: Study, source: DataSource, demand: Demand) -> None:
        """Raise `NotThesePatients` where patients must be asked, and the settings do not say whom or how."""
        code, has_optout = None, source.consent is not None or source.optout_path is not None
        if source.person_column is None and (demand.consent or demand.optout):
            code = "PERSON_COLUMN_MISSING"
        elif (demand.consent and source.consent is None) or (demand.optout and not has_optout):
            code = "CONSENT_SOURCE_MISSING"
        if code is not None:
            log.error("patients_cannot_be_asked", study=study.name, code=code, reason=sentence(code))
            raise NotThesePatients(code)

    async def _demand(self, study_digest: bytes) -> Demand:
        async with self._db.reading("consent_demand") as tx:
            facts = await studies.facts(tx, study_digest)
        records = () if facts is None else facts.consent.records
        mine = self._desk.identity.site_id
        found = [one.document for one in records if isinstance(one.document, DataUseTerms)]
        return demand_of(tuple(terms for terms in found if terms.site_id == mine))

    def check(self, study: Study, taken: Taken, frozen: ApprovedCohort | None) -> None:
        """Raise `NotThesePatients`, and keep nothing of a cohort that may not be used."""
        code = objection(taken.cohort, taken.query, frozen, study, self._desk.settings.policy)
        if code is not None:
            approved = None if frozen is None else frozen.persons
            log.warning("cohort_refused", study=study.name, code=code, count=taken.cohort.permitted, approved=approved)
            taken.discard()
            raise NotThesePatients(code)

    async def frozen(self, tx: Tx, study: Study) -> ApprovedCohort | None:
        """The cohort of the grant that would be used now, None where it has none (yet)."""
        held = usable_grant(await studies.grants(tx, study.digest()), 0, self._desk.clock.now())
        return None if isinstance(held, str) else await patients.approved(tx, held.digest)

    async def freeze(self, tx: Tx, study: Study, taken: Taken, grant: SiteGrant) -> None:
        """The cohort that the hospital approved with this grant: what is used later is held against it."""
        digest = grant_digest(grant)
        await patients.freeze(tx, digest, taken.frozen)
        await patients.add_snapshot(tx, taken.snapshot(study, RunId(""), 0, APPROVAL))
        log.info("cohort_frozen", study=study.name, type=taken.unit, count=taken.cohort.permitted, state="APPROVED")

    async def _keep(self, tx: Tx, window: WindowRecord, study: Study, taken: Taken, held: HeldGrant) -> None:
        frozen = await patients.approved(tx, held.digest)
        self.check(study, taken, frozen)
        if frozen is None:  # a trial's grant, or one of an older connector
            frozen = taken.frozen
            await patients.freeze(tx, held.digest, frozen)
            log.info("cohort_frozen", study=study.name, type=taken.unit, count=frozen.persons, state="FIRST_USE")
        params = window.params
        await patients.add_snapshot(tx, taken.snapshot(study, window.run_id, params.round, params.purpose))
        event = ConsentSnapshot(
            run_id=window.run_id,
            window_id=window.window_id,
            site_id=self._desk.identity.site_id,
            grant_digest=held.digest,
            source=_kind(taken.job.source),
            unit=taken.unit,
            query_digest=taken.query,
            context=taken.job.context,
            root=taken.cohort.root,
            approved_root=frozen.root,
            **({} if formal(study) is not None else _bands(taken)),
        )
        await self._desk.record(tx, event, window.study_id)


def _kind(source: DataSource) -> ConsentSourceKind:
    if source.consent is not None:
        return source.consent.kind
    return "none" if source.optout_path is None else "optout_list"


def _bands(taken: Taken) -> dict[str, str]:
    cohort = taken.cohort
    told = {"persons": band(cohort.persons), "permitted": band(cohort.permitted)}
    if taken.unit == "row":
        return told  # nobody was asked, so there are no reasons
    # Every reason each time: one that is named only when it has somebody would tell of the first who withdraws.
    return told | {reason: band(cohort.excluded.get(reason, 0)) for reason in Excluded}
