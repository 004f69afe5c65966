"""One function per message: load, decide, save with the messages that follow, all in the caller's transaction."""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import uuid4

import structlog

from cohortium_kit.clock import Clock
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import Poison
from cohortium_messages.events import (
    AuditEvent,
    CohortFixed,
    FaultSeen,
    RunStateChanged,
    StudySubmitted,
    WindowAuthorised,
    WindowEnded,
)
from cohortium_messages.governance import (
    AuthoriseAsked,
    Authorised,
    GrantEnded,
    GrantRecorded,
    Manifest,
    ManifestPublished,
    SiteRegistered,
    SiteRevoked,
)
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.registry import Message
from cohortium_messages.runs import (
    RunEnded,
    RunStarted,
    SessionClosed,
    SessionOpened,
    StudyOffered,
    TaskRefused,
)
from cohortium_messages.secure_sum import Ready, WindowClosed
from cohortium_messages.study import Study
from cohortium_messages.topology import EVENTS, SERVICES, TASKS, control_queue
from cohortium_protocol.documents import GovernancePin, manifest_hash, verify_manifest
from cohortium_protocol.errors import RemoteFault
from cohortium_protocol.signing import IdentityKey, Keyring
from cohortium_protocol.window import make_roster, params_hash, roster_hash, sign_window, verify_ready
from cohortium_scheduler import store
from cohortium_scheduler.domain import (
    Bind,
    Bound,
    Cancel,
    EndRun,
    Extend,
    Extended,
    Finished,
    NextWindow,
    Open,
    Opened,
    Planned,
    ReadyReceived,
    Refusal,
    RosterFixed,
    SiteLeft,
    Wait,
    Window,
    advance,
    cohort_now,
    may_start,
    next_step,
)
from cohortium_scheduler.windows import RunFacts, evaluates, least_cohort, window_params

log = structlog.get_logger()
ASK_AGAIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that handlers obey."""

    governance: GovernancePin
    aggregator_seal_pk: bytes
    recruiting_grace_s: float
    max_attempts: int
    retry_pause_s: float


class Handlers:
    """The scheduler's decisions, carried out. Holds no state of its own but the keyring of sites."""

    def __init__(
        self,
        *,
        sender: Sender,
        key: IdentityKey,
        keyring: Keyring,
        clock: Clock,
        rules: Rules,
        present: Callable[[Iterable[SiteId]], frozenset[SiteId]],
    ) -> None:
        self._sender = sender
        self._key = key
        self._keyring = keyring
        self._clock = clock
        self._rules = rules
        self._present = present

    # Sending

    async def _to_service(self, tx: Tx, service: str, message: Message, *, study: StudyId) -> None:
        await tx.send(self._sender.outgoing(SERVICES.name, service, message, study=study), ordering_key=service)

    async def _to_site(self, tx: Tx, site: SiteId, message: Message, *, study: StudyId) -> None:
        key = control_queue(site)
        await tx.send(self._sender.outgoing(TASKS.name, key, message, study=study), ordering_key=key)

    async def _record(self, tx: Tx, event: AuditEvent, *, study: StudyId | None) -> None:
        key = f"{study or '-'}.{event.type_name}"
        await tx.send(self._sender.outgoing(EVENTS.name, key, event, study=study), ordering_key="events")

    # Studies, members, grants

    async def submit(self, tx: Tx, study: Study) -> store.Run:
        """Record a study version and open a run for it in state RECRUITING.

        An unfinished run of the same version is returned as it is: submitting twice is once.
        """
        digest = study.digest()
        running = await store.runs_with_digest(tx, digest)
        if running:
            return running[0]
        now = self._clock.now()
        run = store.Run(RunId(str(uuid4())), study, digest, "RECRUITING", "", created_at=now)
        await store.save_run(tx, run, now)
        event = StudySubmitted(study_id=run.study_id, study_digest=digest, run_id=run.run_id)
        await self._record(tx, event, study=run.study_id)
        await self._offer(tx, run, await store.newest_manifest(tx, digest))
        return run

    async def stop(self, tx: Tx, run: store.Run) -> store.Run:
        """End a run at an operator's word. A run that has ended stays as it is."""
        if run.state in store.FINAL_STATES:
            return run
        window = await store.newest_window(tx, run.run_id)
        if window is not None and isinstance(window.state, Planned | Open):
            await self._cancel_window(tx, run, window, "STOPPED_BY_OPERATOR")
        return await self._end_run(tx, run, "STOPPED", "STOPPED_BY_OPERATOR")

    async def on_manifest(self, tx: Tx, received: Received[ManifestPublished]) -> None:
        """A governance-signed manifest: offer the study to its members; a window open under an older one is reopened."""
        _only(received, "service:enrolment")
        manifest = received.message.manifest
        try:
            verify_manifest(manifest, self._rules.governance)
        except RemoteFault as fault:
            raise Poison(fault.code) from fault
        await store.add_manifest(tx, manifest)
        for run in await store.runs_with_digest(tx, manifest.study_digest):
            await self._offer(tx, run, manifest)
            window = await store.newest_window(tx, run.run_id)
            if window is not None and isinstance(window.state, Planned | Open):
                await self._cancel_window(tx, run, window, "MANIFEST_CHANGED")

    async def _offer(self, tx: Tx, run: store.Run, manifest: Manifest | None) -> None:
        if manifest is None:
            return
        offer = StudyOffered(study=run.study, study_digest=run.study_digest, run_id=run.run_id, manifest=manifest)
        for member in manifest.members:
            await self._to_site(tx, member.site_id, offer, study=run.study_id)

    async def on_grant_recorded(self, tx: Tx, received: Received[GrantRecorded]) -> None:
        """A hospital gave its grant: recruiting may be over."""
        _only(received, "service:consent")
        message, now = received.message, self._clock.now()
        grant = store.Grant(message.site_id, message.grant_digest, message.not_after, None)
        await store.save_grant(tx, message.study_digest, grant, now)
        for run in await store.runs_with_digest(tx, message.study_digest):
            if run.state == "RECRUITING":
                await self.recruit(tx, run)

    async def on_grant_ended(self, tx: Tx, received: Received[GrantEnded]) -> None:
        """A grant is over: the site leaves an open window; a fixed roster is the aggregator's to shrink."""
        _only(received, "service:consent")
        message, now = received.message, self._clock.now()
        known = {grant.site_id: grant for grant in await store.grants(tx, message.study_digest)}
        if message.site_id in known:
            ended = replace(known[message.site_id], ended_reason=message.reason)
            await store.save_grant(tx, message.study_digest, ended, now)
        await self._leave_open_windows(tx, message.study_digest, message.site_id, message.reason)

    async def _leave_open_windows(self, tx: Tx, study_digest: bytes, site: SiteId, reason: str) -> None:
        for run in await store.runs_with_digest(tx, study_digest):
            window = await store.newest_window(tx, run.run_id)
            if window is not None:
                await store.save_window(tx, advance(window, SiteLeft(Refusal(site, reason))), self._clock.now())

    async def recruit(self, tx: Tx, run: store.Run) -> None:
        """Start the run if its members have granted; otherwise remember since when there are enough."""
        manifest = await store.newest_manifest(tx, run.study_digest)
        if manifest is None:
            return
        now = self._clock.now()
        members = {member.site_id for member in manifest.members}
        live = [
            grant
            for grant in await store.grants(tx, run.study_digest)
            if grant.site_id in members and grant.ended_reason is None and grant.not_after > now
        ]
        needed = run.study.federation.min_sites
        since = (run.enough_grants_since or now) if len(live) >= needed else None
        if since != run.enough_grants_since:
            run = replace(run, enough_grants_since=since)
            await store.save_run(tx, run, now)
        if may_start(len(members), len(live), needed, since, now, self._rules.recruiting_grace_s):
            run = replace(run, state="PREPARING")
            await store.save_run(tx, run, now)
            started = RunStarted(run_id=run.run_id, study=run.study, study_digest=run.study_digest, manifest=manifest)
            await self._to_service(tx, "aggregator", started, study=run.study_id)
            await self._record(tx, RunStateChanged(run_id=run.run_id, state="PREPARING"), study=run.study_id)
            await self.plan_next(tx, run)

    async def on_site_registered(self, tx: Tx, received: Received[SiteRegistered]) -> None:
        _only(received, "service:enrolment")
        message = received.message
        await store.save_site_key(tx, message.site_id, message.name, message.identity_pk)
        self._keyring.add(f"site:{message.site_id}", message.identity_pk)

    async def on_site_revoked(self, tx: Tx, received: Received[SiteRevoked]) -> None:
        """Nothing from this site counts any more, in any study."""
        _only(received, "service:enrolment")
        site = received.message.site_id
        await store.revoke_site_key(tx, site)
        self._keyring.remove(f"site:{site}")
        for digest in await store.end_grants_of(tx, site, "SITE_REVOKED", self._clock.now()):
            await self._leave_open_windows(tx, digest, site, "SITE_REVOKED")

    # Windows

    async def plan_next(self, tx: Tx, run: store.Run) -> None:
        """Do what follows the run's newest window: plan another, or end the run."""
        newest = await store.newest_window(tx, run.run_id)
        federation = run.study.federation
        step = next_step(
            newest,
            rounds=federation.rounds,
            evaluate_every=federation.evaluate_every,
            evaluates=evaluates(run.study),
            max_attempts=self._rules.max_attempts,
        )
        if isinstance(step, EndRun):
            await self._end_run(tx, run, step.state, step.reason)
        else:
            await self._plan(tx, run, step, sequence=1 if newest is None else newest.sequence + 1)

    async def _plan(self, tx: Tx, run: store.Run, step: NextWindow, sequence: int) -> None:
        now = self._clock.now()
        if step.purpose == "update" and run.state == "PREPARING":
            run = replace(run, state="TRAINING")
            await store.save_run(tx, run, now)
            await self._record(tx, RunStateChanged(run_id=run.run_id, state="TRAINING"), study=run.study_id)
        window = Window(
            window_id=secrets.token_bytes(16),
            run_id=run.run_id,
            sequence=sequence,
            purpose=step.purpose,
            round=step.round,
            attempt=step.attempt,
            state=Planned(secrets.token_bytes(16), now),
        )
        await store.save_window(tx, window, now)
        await self._ask_consent(tx, run, window)

    async def _ask_consent(self, tx: Tx, run: store.Run, window: Window) -> None:
        manifest = await store.newest_manifest(tx, run.study_digest)
        if manifest is None or not isinstance(window.state, Planned):
            return
        question = AuthoriseAsked(
            question_id=window.state.question_id,
            run_id=run.run_id,
            study_id=run.study_id,
            study_digest=run.study_digest,
            round=window.round,
            sites=tuple(member.site_id for member in manifest.members),
        )
        await self._to_service(tx, "consent", question, study=run.study_id)

    async def on_authorised(self, tx: Tx, received: Received[Authorised]) -> None:
        """Consent's answer: open the window for the permitted sites, or end it if they are too few."""
        _only(received, "service:consent")
        message, now = received.message, self._clock.now()
        run = await store.find_run(tx, message.run_id)
        window = await store.newest_window(tx, message.run_id)
        if run is None or window is None or not isinstance(window.state, Planned):
            return
        if window.state.question_id != message.question_id:
            return
        facts = await self._facts(tx, run)
        permitted = sum(permit.permitted for permit in message.permits)
        if permitted < least_cohort(facts):
            await self._cancel_window(tx, run, window, "NOT_ENOUGH_READY")
            return
        seeds = (secrets.token_bytes(32), secrets.token_bytes(32))
        params = window_params(
            facts, window.purpose, window.round, permitted=permitted, window_id=window.window_id, seeds=seeds
        )
        opened = advance(window, Opened(sign_window(params, self._key), message.permits, now))
        await store.save_window(tx, opened, now)
        event = WindowAuthorised(
            run_id=run.run_id,
            window_id=window.window_id,
            round=window.round,
            purpose=window.purpose,
            params_hash=params_hash(params),
            permits=message.permits,
        )
        await self._record(tx, event, study=run.study_id)
        if isinstance(opened.state, Open):
            for site in opened.state.permitted:
                await self._to_site(tx, site, opened.state.open, study=run.study_id)

    async def _facts(self, tx: Tx, run: store.Run) -> RunFacts:
        manifest = await store.newest_manifest(tx, run.study_digest)
        if manifest is None:
            raise LookupError(f"run {run.run_id} has no manifest")
        models = await store.newest_models(tx, run.run_id, run.study.federation.max_staleness + 1)
        return RunFacts(
            run_id=run.run_id,
            study=run.study,
            study_digest=run.study_digest,
            manifest=manifest,
            manifest_hash=manifest_hash(manifest),
            models=tuple(models),
            parameters=run.parameters,
            training_rows=run.training_rows,
            aggregator_seal_pk=self._rules.aggregator_seal_pk,
        )

    async def on_ready(self, tx: Tx, received: Received[Ready]) -> None:
        """A site is ready: its signature and its base are checked before it may enter a roster."""
        ready = received.message
        _only_site(received, ready.site_id)
        window = await store.find_window(tx, ready.window_id)
        if window is None or not isinstance(window.state, Open):
            return
        run = await store.find_run(tx, window.run_id)
        manifest = await store.newest_manifest(tx, run.study_digest) if run else None
        if run is None or manifest is None:
            return
        try:
            verify_ready(ready, window.state.open.params, manifest)
        except RemoteFault as fault:
            event = FaultSeen(key_id=received.key_id, code=fault.code, window_id=ready.window_id)
            await self._record(tx, event, study=run.study_id)
            return
        now = self._clock.now()
        window = advance(window, ReadyReceived(ready, now))
        await store.save_window(tx, window, now)
        if isinstance(window.state, Open):
            await self._decide_cohort(tx, run, window, window.state)

    async def on_refused(self, tx: Tx, received: Received[TaskRefused]) -> None:
        """A site will not take part in this window; the code tells people why."""
        message = received.message
        _only_site(received, message.site_id)
        window = await store.find_window(tx, message.window_id)
        if window is None:
            return
        refusal = Refusal(message.site_id, message.code, message.column)
        await store.save_window(tx, advance(window, SiteLeft(refusal)), self._clock.now())

    async def on_session_closed(self, tx: Tx, received: Received[SessionClosed]) -> None:
        """The aggregator ended a session: record what came of it and go on with the run."""
        _only(received, "service:aggregator")
        message = received.message
        window = await store.find_window(tx, message.window_id)
        run = await store.find_run(tx, message.run_id)
        if window is None or run is None or not isinstance(window.state, RosterFixed):
            return
        now = self._clock.now()
        finished = Finished(message.state, message.reason, now, message)
        await store.save_window(tx, advance(window, finished), now)
        if run.state in store.FINAL_STATES:
            return
        if message.state == "RELEASED":
            if message.model is not None:
                await store.add_model(tx, run.run_id, message.model, window.window_id)
            if message.purpose == "statistics":
                run = replace(run, parameters=message.parameters, training_rows=message.training_rows)
                await store.save_run(tx, run, now)
            await self.plan_next(tx, run)

    # Time

    async def tick(self, tx: Tx, run_id: RunId) -> None:
        """What the passing of time and the sites' presence mean for one run; doing it twice is doing it once."""
        run = await store.find_run(tx, run_id)
        if run is None or run.state in store.FINAL_STATES:
            return
        if run.state == "RECRUITING":
            await self.recruit(tx, run)
            return
        window = await store.newest_window(tx, run_id)
        if window is None:
            return
        now = self._clock.now()
        match window.state:
            case Planned(asked_at=asked_at) if now >= asked_at + timedelta(seconds=ASK_AGAIN_S):
                await store.save_window(tx, replace(window, state=replace(window.state, asked_at=now)), now)
                await self._ask_consent(tx, run, window)
            case Open():
                await self._decide_cohort(tx, run, window, window.state)
            case Planned() | RosterFixed():
                return
            case _:
                # Ended, and not followed by another window yet: a failed attempt waits a moment before the next.
                if now >= window.state.ended_at + timedelta(seconds=self._rules.retry_pause_s):
                    await self.plan_next(tx, run)

    async def _decide_cohort(self, tx: Tx, run: store.Run, window: Window, state: Open) -> None:
        now = self._clock.now()
        match cohort_now(state, self._present(state.permitted), now):
            case Wait():
                return
            case Extend():
                await store.save_window(tx, advance(window, Extended(now)), now)
            case Cancel(reason=reason):
                await self._cancel_window(tx, run, window, reason)
            case Bind(readies=readies):
                await self._bind(tx, run, window, state, readies)

    async def _bind(self, tx: Tx, run: store.Run, window: Window, state: Open, readies: tuple[Ready, ...]) -> None:
        manifest = await store.newest_manifest(tx, run.study_digest)
        if manifest is None:
            return
        now = self._clock.now()
        roster = make_roster(state.open.params, manifest, readies)
        await store.save_window(tx, advance(window, Bound(roster, now)), now)
        session = SessionOpened(open=state.open, roster=roster, manifest=manifest)
        await self._to_service(tx, "aggregator", session, study=run.study_id)
        event = CohortFixed(
            run_id=run.run_id,
            window_id=window.window_id,
            roster_hash=roster_hash(roster),
            sites=tuple(entry.site_id for entry in roster.entries),
            n=roster.n,
            t=roster.t,
            c=roster.c,
            k_min=roster.k_min,
        )
        await self._record(tx, event, study=run.study_id)

    async def _cancel_window(self, tx: Tx, run: store.Run, window: Window, reason: str) -> None:
        """End a window that never became a session, and tell the sites that were asked."""
        now = self._clock.now()
        asked = window.state.permitted if isinstance(window.state, Open) else ()
        await store.save_window(tx, advance(window, Finished("CANCELLED", reason, now)), now)
        for site in asked:
            closed = WindowClosed(window_id=window.window_id, step=0, state="CANCELLED", reason=reason)
            await self._to_site(tx, site, closed, study=run.study_id)
        event = WindowEnded(
            run_id=run.run_id, window_id=window.window_id, purpose=window.purpose, state="CANCELLED", reason=reason
        )
        await self._record(tx, event, study=run.study_id)

    async def _end_run(self, tx: Tx, run: store.Run, state: str, reason: str) -> store.Run:
        now = self._clock.now()
        models = await store.newest_models(tx, run.run_id, 1)
        ended = RunEnded.model_validate(
            {
                "run_id": run.run_id,
                "study_id": run.study_id,
                "state": state,
                "reason": reason,
                "model": models[0] if models else None,
            }
        )
        run = replace(run, state=ended.state, reason=reason, ended_at=now)
        await store.save_run(tx, run, now)
        await self._to_service(tx, "aggregator", ended, study=run.study_id)
        manifest = await store.newest_manifest(tx, run.study_digest)
        for member in manifest.members if manifest else ():
            await self._to_site(tx, member.site_id, ended, study=run.study_id)
        await self._record(tx, RunStateChanged(run_id=run.run_id, state=ended.state, reason=reason), study=run.study_id)
        return run


def _only(received: Received[Message], key_id: str) -> None:
    if received.key_id != key_id:
        raise Poison("wrong_sender", f"{received.envelope.type} signed by {received.key_id}")


def _only_site(received: Received[Message], site: SiteId) -> None:
    _only(received, f"site:{site}")
    if received.routing_key.split(".")[:2] != ["site", site]:
        raise Poison("wrong_routing_key", received.envelope.type)
