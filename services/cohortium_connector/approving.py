"""The hospital approves a study version: with its grant goes the cohort that it is for, taken at that moment.

Query digest, band and commitment are in the grant, which the site's key signs; the exact count and the salt stay in the
spool. From then on the site works with no other cohort (`patients`).
"""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import structlog

from cohortium_connector.desk import Desk
from cohortium_connector.handlers import membership
from cohortium_connector.patients import NO_TABLE, NotThesePatients, Patients, Taken, objection
from cohortium_connector.store import studies
from cohortium_connector.store.studies import Offer
from cohortium_connector.store.tables import consent_records
from cohortium_connector.trainers import MakeRunner, Runner
from cohortium_connector.training.runner import (
    IsolationUnavailable,
    TrainerCrashed,
    TrainerTimeout,
    TrainingFailed,
    TrainingRefused,
)
from cohortium_connector.waiting import Bell
from cohortium_kit.clock import pause
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import CohortiumError
from cohortium_messages.governance import GrantedCohort, ShortName, SiteGrant
from cohortium_messages.problems import sentence
from cohortium_messages.study import NoiseRecipe

log = structlog.get_logger(__name__)
AGAIN_S = 60.0
"""How often is looked whether something is to be approved that was not: over its table, or as time has passed."""


class CohortNotTaken(CohortiumError):
    """The cohort that the approval is for cannot be taken, so nothing was granted. The text says what to do."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


async def approve(
    desk: Desk,
    db: Database,
    offer: Offer,
    approvers: tuple[ShortName, ...],
    runner: Runner,
    *,
    by: str,
    by_hand: bool = False,
) -> SiteGrant | None:
    """Grant a study version for the cohort of this moment; None if a grant is in force already. A trial has no cohort
    in its grant. By hand, a grant whose cohort has changed too much to be used is no obstacle: a person has seen the
    new one. Raises `NotApproved` before a row is read, and `CohortNotTaken`."""
    asked, study = Patients(desk, db), offer.study
    async with db.reading("wanted_grant") as tx:
        wanted = await membership.wanted_grant(tx, desk, offer, approvers) is not None
        frozen = await asked.frozen(tx, study) if by_hand and not wanted else None
    if not wanted and frozen is None:
        return None
    trial = study.governance == "trial"
    taken = None if trial and wanted else await _taken(desk, asked, offer, runner)
    code = None if taken is None else objection(taken.cohort, taken.query, frozen, study, desk.settings.policy)

    async def grant(tx: Tx) -> SiteGrant | None:
        cohort = None if taken is None or trial else taken.told(study)
        anew = code == "COHORT_CHANGED"
        given = await membership.approve(tx, desk, offer, approvers, by=by, cohort=cohort, anew=anew)
        if given is not None and taken is not None and cohort is not None:
            await asked.freeze(tx, study, taken, given)
        return given

    given = None
    try:
        given = await db.run(by, grant)
    finally:
        if taken is not None and (given is None or trial):
            taken.discard()
    return given


async def look(desk: Desk, db: Database, offer: Offer, runner: Runner) -> GrantedCohort | None:
    """The cohort as an approval would freeze it now; nothing of it is kept. None where an approval has none. Raises
    `CohortNotTaken`."""
    with tempfile.TemporaryDirectory(prefix="look-", dir=desk.spool.work) as folder:
        taken = await _taken(desk, Patients(desk, db), offer, runner, Path(folder))
    return None if taken is None else taken.told(offer.study)


async def _taken(desk: Desk, asked: Patients, offer: Offer, runner: Runner, folder: Path | None = None) -> Taken | None:
    study = offer.study
    source = desk.settings.dataset(study.name)
    if source is None and not isinstance(study.recipe, NoiseRecipe):
        way_out = f"no table is bound to the study; set datasets.{study.name}.path in the connector's settings"
        raise CohortNotTaken("FILE_UNREADABLE", way_out)
    try:
        taken = await asked.take(study, source or NO_TABLE, runner, folder)
        if taken is not None:
            asked.check(study, taken, None)
    except NotThesePatients as refused:
        raise CohortNotTaken(refused.code, sentence(refused.code)) from None
    except TrainingRefused as refused:
        column = f" Column: {refused.column}." if refused.column else ""
        raise CohortNotTaken(refused.code, sentence(refused.code) + column) from None
    except (TrainingFailed, TrainerCrashed, TrainerTimeout, IsolationUnavailable) as failed:
        raise CohortNotTaken("TRAINING_FAILED", str(failed)) from failed
    return taken


class Approving:
    """Approves studies with documents that the settings list, as soon as the hospital's people have signed."""

    def __init__(self, desk: Desk, db: Database, bell: Bell, make_runner: MakeRunner) -> None:
        self._desk = desk
        self._db = db
        self._bell = bell
        self._make_runner = make_runner
        self._seen: tuple[object, ...] = ()
        self._again_at = 0.0
        self._awaited: dict[bytes, str] = {}
        """By study version: what was last told of what its approval waits for."""

    async def run(self, stop: asyncio.Event) -> None:
        """Look when something was offered or signed, here or elsewhere, or a run began, and again after a while: a
        grant ends and an approval begins without a word from anybody."""
        clock, settings = self._desk.clock, self._desk.settings
        while settings.policy.approvals == "listed" and not stop.is_set():
            async with self._db.reading("approvals_wanted") as tx:
                offers = [offer for offer in await studies.offers(tx) if offer.study.governance != "trial"]
                seen = (len(offers), await studies.all_open_runs(tx), *await consent_records.extent(tx))
            if offers and (seen != self._seen or clock.monotonic() >= self._again_at):
                self._seen, self._again_at = seen, clock.monotonic() + AGAIN_S
                await self.look(offers)
            await pause(clock, settings.poll_s, stop)

    async def look(self, offers: Sequence[Offer]) -> None:
        """Grant what is listed and signed."""
        runner = self._make_runner(self._desk.spool.work / "approver")
        try:
            for offer in offers:
                if membership.approved_by_settings(self._desk, offer):
                    await self._approve(offer, runner)
        finally:
            await runner.aclose()

    async def _approve(self, offer: Offer, runner: Runner) -> None:
        desk = self._desk
        try:
            given = await approve(desk, self._db, offer, desk.settings.policy.approvers, runner, by="approve_listed")
        except membership.NotApproved as missing:
            if self._awaited.get(offer.study_digest) != str(missing):
                self._awaited[offer.study_digest] = str(missing)
                log.info("approval_awaited", study=offer.study_id, reason=str(missing))
        except CohortNotTaken as refused:
            log.error("approval_without_cohort", study=offer.study_id, code=refused.code, reason=str(refused))
        else:
            if given is not None:
                membership.warn_of_wildcard(desk, offer)
                self._bell.ring()
