"""Studies, members and grants: all that must be there before a run begins."""

from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.errors import Poison
from cohortium_kit.site_keys import SiteKey
from cohortium_messages.events import (
    RunStateChanged,
    StudySubmitted,
)
from cohortium_messages.governance import (
    GrantEnded,
    GrantRecorded,
    Manifest,
    ManifestPublished,
    SiteRegistered,
    SiteRevoked,
)
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.runs import (
    RunStart,
    RunStarted,
    StudyOffered,
)
from cohortium_messages.study import Study
from cohortium_protocol.documents import verify_manifest
from cohortium_protocol.errors import RemoteFault
from cohortium_scheduler import store
from cohortium_scheduler.choosing import with_earlier_times
from cohortium_scheduler.domain.cohorts import RECRUITING_EXPIRED, TOO_FEW_MEMBERS, may_start, too_few_members
from cohortium_scheduler.domain.windows import AwaitingLog, Open, Planned, Refusal, SiteLeft, advance
from cohortium_scheduler.handlers.desk import Desk, only
from cohortium_scheduler.handlers.windows import Windows, members_of


class Recruiting:
    """What happens until a run begins, and what ends it from outside."""

    def __init__(self, desk: Desk, windows: Windows) -> None:
        self._desk = desk
        self._windows = windows

    async def due(self, tx: Tx) -> list[RunId]:
        """Unfinished runs that `tick` has something to do for now. Reads only."""
        return [
            run_id
            for run_id, state in await store.unfinished_runs(tx)
            if state == "RECRUITING" or self._windows.is_due(await store.newest_window(tx, run_id))
        ]

    async def tick(self, tx: Tx, run_id: RunId) -> None:
        """What the passing of time means for one run; doing it twice is doing it once."""
        run = await store.find_run(tx, run_id)
        if run is None or run.state in store.FINAL_STATES:
            return
        if run.state == "RECRUITING":
            await self.recruit(tx, run)
        else:
            await self._windows.tick(tx, run)

    async def submit(self, tx: Tx, study: Study) -> store.Run:
        """Record a study version and open a run for it in state RECRUITING.

        An unfinished run of the same version is returned as it is: submitting twice is once.
        """
        digest = study.digest()
        running = await store.runs_with_digest(tx, digest)
        if running:
            return running[0]
        now = self._desk.clock.now()
        run = store.Run(RunId(str(uuid4())), study, digest, "RECRUITING", "", created_at=now)
        return await self.open_run(tx, run)

    async def open_run(self, tx: Tx, run: store.Run) -> store.Run:
        """A new run asks its members. Returns it with the times that it has from the study's run before."""
        now = self._desk.clock.now()
        run = with_earlier_times(run, await store.newest_run(tx, run.study_id), now)
        await store.save_run(tx, run, now)
        event = StudySubmitted(
            study_id=run.study_id,
            study_digest=run.study_digest,
            run_id=run.run_id,
            governance=run.study.governance,
        )
        await self._desk.record(tx, event, study=run.study_id)
        await self._offer(tx, run, await store.newest_manifest(tx, run.study_digest))
        return run

    async def stop(self, tx: Tx, run: store.Run) -> store.Run:
        """End a run at an operator's word. A run that has ended stays as it is."""
        if run.state in store.FINAL_STATES:
            return run
        window = await store.newest_window(tx, run.run_id)
        if window is not None and isinstance(window.state, Planned | AwaitingLog | Open):
            await self._windows.cancel(tx, run, window, "STOPPED_BY_OPERATOR")
        return await self._windows.end_run(tx, run, "STOPPED", "STOPPED_BY_OPERATOR")

    async def on_manifest(self, tx: Tx, received: Received[ManifestPublished]) -> None:
        """A governance-signed manifest: offer the study to its members; a window open under an older one is
        reopened."""
        only(received, "service:enrolment")
        manifest = received.message.manifest
        try:
            verify_manifest(manifest, self._desk.rules.governance)
        except RemoteFault as fault:
            raise Poison(fault.code) from fault
        await store.add_manifest(tx, manifest)
        for run in await store.runs_with_digest(tx, manifest.study_digest):
            await self._offer(tx, run, manifest)
            window = await store.newest_window(tx, run.run_id)
            if window is not None and isinstance(window.state, Planned | AwaitingLog | Open):
                await self._windows.cancel(tx, run, window, "MANIFEST_CHANGED")

    async def _offer(self, tx: Tx, run: store.Run, manifest: Manifest | None) -> None:
        if manifest is None:
            return
        for member in manifest.members:
            await self._offer_to(tx, member.site_id, run, manifest)

    async def _offer_to(self, tx: Tx, site: SiteId, run: store.Run, manifest: Manifest) -> None:
        offer = StudyOffered(study=run.study, study_digest=run.study_digest, run_id=run.run_id, manifest=manifest)
        await self._desk.to_site(tx, site, offer, study=run.study_id)

    async def on_grant_recorded(self, tx: Tx, received: Received[GrantRecorded]) -> None:
        """A hospital gave its grant: recruiting may be over."""
        only(received, "service:consent")
        message, now = received.message, self._desk.clock.now()
        grant = store.Grant(message.site_id, message.grant_digest, message.not_after, None)
        await store.save_grant(tx, message.study_digest, grant, now)
        for run in await store.runs_with_digest(tx, message.study_digest):
            if run.state == "RECRUITING":
                await self.recruit(tx, run)

    async def on_grant_ended(self, tx: Tx, received: Received[GrantEnded]) -> None:
        """A grant is over: the site leaves an open window; a fixed roster is the aggregator's to shrink."""
        only(received, "service:consent")
        message, now = received.message, self._desk.clock.now()
        known = {grant.site_id: grant for grant in await store.grants(tx, message.study_digest)}
        if message.site_id in known:
            ended = replace(known[message.site_id], ended_reason=message.reason)
            await store.save_grant(tx, message.study_digest, ended, now)
        await self._leave_open_windows(tx, message.study_digest, message.site_id, message.reason)

    async def _leave_open_windows(self, tx: Tx, study_digest: bytes, site: SiteId, reason: str) -> None:
        for run in await store.runs_with_digest(tx, study_digest):
            window = await store.newest_window(tx, run.run_id)
            if window is not None:
                await store.save_window(tx, advance(window, SiteLeft(Refusal(site, reason))), self._desk.clock.now())

    async def recruit(self, tx: Tx, run: store.Run) -> None:
        """Start the run if its members have granted; otherwise remember since when there are enough, and end it once
        they were waited for long enough."""
        manifest = await store.newest_manifest(tx, run.study_digest)
        now = self._desk.clock.now()
        members = set(members_of(run, manifest)) if manifest else set()
        live = {
            grant.site_id
            for grant in await store.grants(tx, run.study_digest)
            if grant.site_id in members and grant.ended_reason is None and grant.not_after > now
        }
        needed = run.study.federation.min_sites
        few = manifest is not None and too_few_members(run.study, len(manifest.members))
        since = (run.enough_grants_since or now) if len(live) >= needed and not few else None
        if since != run.enough_grants_since:
            run = replace(run, enough_grants_since=since)
            await store.save_run(tx, run, now)
        patience = timedelta(seconds=run.study.federation.recruiting_deadline_s)
        if since is None and now >= run.created_at + patience:
            reason = TOO_FEW_MEMBERS if few else RECRUITING_EXPIRED
            await self._windows.end_run(tx, run, "FAILED", reason, tuple(sorted(members - live)))
            return
        # Who has not granted by the time a study is trained again is not waited for.
        grace_s = self._desk.rules.recruiting_grace_s if run.retraining is None else 0.0
        if manifest is not None and not few and may_start(len(members), len(live), needed, since, now, grace_s):
            run = replace(run, state="PREPARING")
            await store.save_run(tx, run, now)
            begins = _start(run)
            started = RunStarted(
                run_id=run.run_id, study=run.study, study_digest=run.study_digest, manifest=manifest, start=begins
            )
            await self._desk.to_service(tx, "aggregator", started, study=run.study_id)
            await self._desk.record(tx, RunStateChanged(run_id=run.run_id, state="PREPARING"), study=run.study_id)
            if begins is None:  # else the aggregator says first that it has the model
                await self._windows.plan_next(tx, run)

    async def on_site_registered(self, tx: Tx, received: Received[SiteRegistered]) -> None:
        """A hospital's key. One that registers again may have lost its spool: it is offered what is open again, or it
        could neither take part nor withdraw."""
        only(received, "service:enrolment")
        message = received.message
        key = SiteKey(message.site_id, message.name, message.identity_pk, revoked=False)
        if not await store.site_keys.add(tx, key):
            return
        self._desk.keyring.add(f"site:{message.site_id}", message.identity_pk)
        for run_id, _ in await store.unfinished_runs(tx):
            run = await store.find_run(tx, run_id)
            manifest = await store.newest_manifest(tx, run.study_digest) if run is not None else None
            if run is None or manifest is None:
                continue
            if message.site_id in {member.site_id for member in manifest.members}:
                await self._offer_to(tx, message.site_id, run, manifest)

    async def on_site_revoked(self, tx: Tx, received: Received[SiteRevoked]) -> None:
        """Nothing from this site counts any more, in any study."""
        only(received, "service:enrolment")
        site = received.message.site_id
        await store.site_keys.revoke(tx, site)
        self._desk.keyring.remove(f"site:{site}")
        for digest in await store.end_grants_of(tx, site, "SITE_REVOKED", self._desk.clock.now()):
            await self._leave_open_windows(tx, digest, site, "SITE_REVOKED")


def _start(run: store.Run) -> RunStart | None:
    retraining = run.retraining
    if retraining is None or retraining.start is None:
        return None
    return RunStart(run_id=retraining.from_run, model=retraining.start)
