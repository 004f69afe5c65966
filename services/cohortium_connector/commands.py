"""What a person in the hospital does: see offers, approve, withdraw, see the state. Works on the spool alone.

A connector that runs on the same spool sees the change within `poll_s` and sends what was written; otherwise it is
sent when it starts.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cohortium_connector import approving
from cohortium_connector.app import training_runner
from cohortium_connector.at_site import AtSite
from cohortium_connector.domain.policy import usable_grant
from cohortium_connector.leaving import leave_study
from cohortium_connector.local_log import LocalLog
from cohortium_connector.spool import remove
from cohortium_connector.store import log_watch, patients, site, studies, windows
from cohortium_connector.store.patients import Snapshot
from cohortium_connector.store.studies import Offer
from cohortium_connector.trainers import Runner
from cohortium_kit.db import Tx
from cohortium_kit.errors import CohortiumError
from cohortium_messages.consent import Effect, Withdrawal
from cohortium_messages.governance import GrantedCohort, ShortName, SiteGrant
from cohortium_messages.ids import StudyId
from cohortium_protocol.attest import add_signature
from cohortium_protocol.cohorts import TAG_BYTES, CohortProof, person_name, prove
from cohortium_protocol.errors import AttestationRefused
from cohortium_protocol.release import Candidate, Roles, read_release


class NoSuchOffer(CohortiumError):
    """No study of this name or digest was offered to this hospital. `offers` lists them."""


class AmbiguousOffer(CohortiumError):
    """Several versions of the study were offered: name the one that is meant by the beginning of its digest."""


class RowsNotPersons(CohortiumError):
    """The cohorts of this study say nothing about persons. The text says what to do."""


class NotToBeSigned(CohortiumError):
    """What was handed over is no release of a model of this federation, or no officer signed it yet."""


@dataclass(frozen=True, slots=True)
class OfferView:
    """One offered study version. `permission`: `granted`, or the code that says why not."""

    study: str
    purpose: str
    digest: str
    state: str
    permission: str
    members: tuple[str, ...]
    offered_at: datetime
    granted_until: datetime | None


@dataclass(frozen=True, slots=True)
class WindowView:
    window: str
    study: str
    purpose: str
    round: int
    phase: str


@dataclass(frozen=True, slots=True)
class LogAlarmView:
    """What is wrong with a study's log: `code` is one of `problems.SENTENCES`."""

    study: str
    code: str
    since: datetime


@dataclass(frozen=True, slots=True)
class StatusView:
    """What this connector is, and what it has in hand. `waiting_messages`: not yet taken by the broker."""

    site_id: str
    name: str
    federation: str
    registered: bool
    refused: str
    windows: tuple[WindowView, ...]
    finished_windows: int
    waiting_messages: int
    forked_logs: tuple[str, ...] = ()
    """Studies whose log showed this hospital two histories: no task is taken until a person has settled it."""
    damaged_witness: tuple[str, ...] = ()
    """Studies whose witness file cannot be read: no task is taken either."""
    log_alarms: tuple[LogAlarmView, ...] = ()
    """Studies whose log does not grow, or does not hold what this hospital reported."""


async def _used(tx: Tx, study_id: StudyId) -> list[Snapshot]:
    """The cohorts that work was done with, whose roots the audit log has; an approval's own is in its grant alone."""
    return [one for one in await patients.snapshots(tx, study_id) if one.purpose != patients.APPROVAL]


def _proof(folder: Path, snapshot: Snapshot, person: str) -> CohortProof:
    blob = (folder / f"{snapshot.context.hex()}.tags").read_bytes()
    tags = [blob[at : at + TAG_BYTES] for at in range(0, len(blob), TAG_BYTES)]
    return prove(tags, snapshot.salt, snapshot.context, person)


class LocalSite(AtSite):
    """The hospital's own hand on its connector."""

    async def offers(self) -> tuple[OfferView, ...]:
        """All study versions that were offered, the oldest first."""
        async with self._db.reading("command_offers") as tx:
            return tuple([await self._view(tx, offer) for offer in await studies.offers(tx)])

    async def sign_release(self, attestation: bytes, release: bytes) -> bytes:
        """The release of a model with this hospital's signature added: of a study version that was offered to it.

        Raises `NoSuchOffer`, or `NotToBeSigned` unless the aggregator attested the model and an officer signed the
        release first.
        """
        identity = self._desk.identity
        aggregator = identity.aggregator_pk
        try:
            candidate = Candidate.of(attestation, aggregator)
            signed = read_release(release, candidate, Roles(aggregator, identity.pin.keys, {}))
        except AttestationRefused as refused:
            raise NotToBeSigned(str(refused)) from None
        if not signed.officers:
            raise NotToBeSigned("a governance officer signs a release first")
        async with self._db.reading("command_release") as tx:
            offered = {offer.study_digest.hex() for offer in await studies.offers(tx)}
        if candidate.bound["study_digest"] not in offered:
            raise NoSuchOffer("the model is of a study version that was never offered to this hospital")
        return add_signature(release, identity.key)

    async def _view(self, tx: Tx, offer: Offer) -> OfferView:
        held = usable_grant(await studies.grants(tx, offer.study_digest), 0, self._desk.clock.now())
        manifest = await studies.newest_manifest(tx, offer.study_id)
        return OfferView(
            study=offer.study_id,
            purpose=offer.study.purpose,
            digest=offer.study_digest.hex(),
            state=offer.state,
            permission=held if isinstance(held, str) else "granted",
            members=tuple(member.name for member in manifest.members) if manifest else (),
            offered_at=offer.offered_at,
            granted_until=None if isinstance(held, str) else held.grant.not_after,
        )

    async def approve(self, study: str, approvers: tuple[ShortName, ...]) -> SiteGrant | None:
        """Grant the study version that `study` names (its name, or its digest's beginning); None if granted already.

        A grant whose cohort has changed too much to be used is given anew. Of a study that is no trial the grant says
        for which cohort, and that one is frozen with it. Raises
        `CohortNotTaken`, and `NotApproved`.
        """
        offer = await self._offer(study)
        async with self._runner() as runner:
            by = "command_approve"
            return await approving.approve(self._desk, self._db, offer, approvers, runner, by=by, by_hand=True)

    async def cohort(self, study: str) -> GrantedCohort | None:
        """What an approval would freeze now; None where it would freeze nothing. Raises `CohortNotTaken`."""
        offer = await self._offer(study)
        async with self._runner() as runner:
            return await approving.look(self._desk, self._db, offer, runner)

    async def _offer(self, study: str) -> Offer:
        async with self._db.reading("command_offer") as tx:
            return await self.offer(tx, study)

    @contextlib.asynccontextmanager
    async def _runner(self) -> AsyncIterator[Runner]:
        """A training process of this command's own; it starts with its first job."""
        desk = self._desk
        local_log = LocalLog(desk.spool.root / "training.log", desk.clock)
        with tempfile.TemporaryDirectory(prefix="command-", dir=desk.spool.work) as folder:
            runner = training_runner(desk.settings, local_log)(Path(folder))
            try:
                yield runner
            finally:
                await runner.aclose()

    async def withdraw(self, study: str, effect: Effect = "stop_future") -> int:
        """Leave the study at once: its work stops, what was made for it is deleted, consent is told, and what the
        hospital asks to become of the models.

        One person can do it. Returns how many grants ended. Twice is once.
        """
        ended, files = await self._db.run("command_withdraw", lambda tx: self._withdraw(tx, study, effect))
        await self._desk.charges.note(self._db)
        for path in files:
            remove(path)
        return ended

    async def _withdraw(self, tx: Tx, study: str, effect: Effect) -> tuple[int, list[Path]]:
        offer = await self.offer(tx, study)
        return await leave_study(tx, self._desk, offer, by="command_withdraw", effect=effect)

    async def offer(self, tx: Tx, study: str) -> Offer:
        """The one offer that `study` names: its name, or the beginning of its digest. Raises `NoSuchOffer`."""
        found = [
            offer
            for offer in await studies.offers(tx)
            if offer.study_id == study or (len(study) >= 8 and offer.study_digest.hex().startswith(study))
        ]
        if not found:
            raise NoSuchOffer(f"no offer {study!r}; `offers` lists what was offered to this hospital")
        if len(found) > 1:
            digests = ", ".join(offer.study_digest.hex()[:12] for offer in found)
            raise AmbiguousOffer(f"{study} was offered in several versions ({digests}); name one by its digest")
        return found[0]

    async def prove(self, study: str, person: str) -> tuple[CohortProof, ...]:
        """For this hospital's own auditor: that a person was, or was not, in each cohort of the study that was used,
        the oldest first. A proof holds the cohort's salt: whoever has it can ask about anybody else in that cohort.

        Of cohorts that count rows (`row_cohorts`) nobody could say it. Raises `NoSuchOffer` where no cohort of this
        study was ever used, and `RowsNotPersons` where none is of persons.
        """
        async with self._db.reading("command_prove") as tx:
            taken = await _used(tx, StudyId(study))
        if not taken:
            raise NoSuchOffer(f"no patients were used for {study!r}, or its dataset names no person_column")
        named = [one for one in taken if one.unit == "person"]
        if not named:
            raise RowsNotPersons(
                f"every cohort of {study} counts rows and not persons, for the table named nobody then: whose rows "
                "were used is to be looked up in the table itself; with the dataset's person_column it is persons later"
            )
        folder = self._desk.spool.patients / study
        return tuple([await asyncio.to_thread(_proof, folder, one, person_name(person)) for one in named])

    async def row_cohorts(self, study: str) -> int:
        """How many cohorts of the study that were used count rows: they are in no proof."""
        async with self._db.reading("command_row_cohorts") as tx:
            return sum(one.unit == "row" for one in await _used(tx, StudyId(study)))

    async def exclusion(self, study: str, person: str, effect: Effect) -> Withdrawal:
        """What the hospital says when a patient leaves: from which round on their rows were used; nothing about who.

        A cohort that counts rows is taken as one with this person. Raises `NoSuchOffer` where the person is in no
        cohort of the study that was used.
        """
        async with self._db.reading("command_exclusion") as tx:
            offer = await self.offer(tx, study)
            taken = await _used(tx, offer.study_id)
        folder, name = self._desk.spool.patients / offer.study_id, person_name(person)
        used = [
            one.round
            for one in taken
            if one.unit == "row" or (await asyncio.to_thread(_proof, folder, one, name)).present
        ]
        if not used:
            raise NoSuchOffer(f"this person is in no cohort of {study} that was used: there is nothing to exclude")
        now = self._desk.clock.now()
        return Withdrawal(
            type="patient_set",
            site_id=self._desk.identity.site_id,
            study_id=offer.study_id,
            study_digest=offer.study_digest,
            received_at=now,
            effective_at=now,
            from_round=min(used),
            requested_effect=effect,
        )

    async def trust_logs_anew(self) -> tuple[str, ...]:
        """After people have settled a fork: forget what was cosigned, with the witness key, and what was reported to a
        log about which there is an alarm. Returns the forked studies.

        A connector that runs begins anew with its next signature.
        """
        forked = self._desk.witness.forked()

        async def forget(tx: Tx) -> None:
            for study in {*forked, *(alarm.study for alarm in await log_watch.alarms(tx))}:
                await log_watch.forget_study(tx, study)

        await self._db.run("command_trust_anew", forget)
        self._desk.witness.begin_anew()
        return forked

    async def status(self) -> StatusView:
        """What this connector is and has in hand."""
        async with self._db.reading("command_status") as tx:
            record = await site.find_site(tx)
            opened = await windows.open_windows(tx)
            counts = await windows.counts(tx)
            waiting = await site.unsent_messages(tx)
            alarms = await log_watch.alarms(tx)
        identity = self._desk.identity
        return StatusView(
            site_id=identity.site_id,
            name=identity.name,
            federation=identity.trust.federation,
            registered=record is not None and record.registered,
            refused=record.refused if record is not None else "",
            windows=tuple(
                WindowView(
                    window=window.window_id.hex(),
                    study=window.study_id,
                    purpose=window.params.purpose,
                    round=window.params.round,
                    phase=window.state.phase.value,
                )
                for window in opened
            ),
            finished_windows=sum(counts.values()) - len(opened),
            waiting_messages=waiting,
            forked_logs=self._desk.witness.forked(),
            damaged_witness=self._desk.witness.damaged(),
            log_alarms=tuple(
                LogAlarmView(one.study, one.code, datetime.fromtimestamp(one.since, UTC)) for one in alarms
            ),
        )
