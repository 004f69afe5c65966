"""Windows, from the question to consent to the aggregator's last word, and the runs they belong to."""

import asyncio
import secrets
from dataclasses import replace
from datetime import timedelta

import structlog

from cohortium_kit import telemetry
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.errors import Poison
from cohortium_messages.events import (
    CohortFixed,
    FaultSeen,
    RunStateChanged,
    WindowAuthorised,
    WindowEnded,
)
from cohortium_messages.governance import AuthoriseAsked, Authorised, Manifest
from cohortium_messages.ids import SiteId
from cohortium_messages.runs import (
    RunEnded,
    SessionClosed,
    SessionOpened,
    TaskRefused,
)
from cohortium_messages.secure_sum import Ready, WindowClosed
from cohortium_messages.study import Study
from cohortium_messages.witness import Continuation, EventProven, Logged, ProofAsked
from cohortium_protocol.documents import manifest_hash
from cohortium_protocol.errors import RemoteFault
from cohortium_protocol.logproof import authorisation_id, authorised_window
from cohortium_protocol.window import make_roster, params_hash, roster_hash, sign_window, verify_ready
from cohortium_scheduler import store
from cohortium_scheduler.choosing import ask, having_learnt, having_uploaded, with_turns, without_blamed
from cohortium_scheduler.domain.cohorts import (
    TOO_FEW_MEMBERS,
    Bind,
    Cancel,
    Decision,
    Extend,
    Wait,
    asked,
    cannot_open,
    cohort_now,
    too_few_members,
)
from cohortium_scheduler.domain.course import (
    LEAVES_A_MODEL,
    EndRun,
    NextStep,
    NextWindow,
    Training,
    next_step,
    recorded,
)
from cohortium_scheduler.domain.windows import (
    AwaitingLog,
    Bound,
    Ended,
    Extended,
    Finished,
    Open,
    Opened,
    Permitted,
    Planned,
    ReadyReceived,
    Refusal,
    RosterFixed,
    SiteLeft,
    Window,
    advance,
)
from cohortium_scheduler.handlers.capacities import capacities_of
from cohortium_scheduler.handlers.desk import Desk, only, only_site
from cohortium_scheduler.measures import window_ended
from cohortium_scheduler.windows import RunFacts, course_of, least_cohort, plan_of, prices_of, window_params

log = structlog.get_logger(__name__)
ASK_AGAIN_S = 15.0


def _shown_to(site: SiteId, proven: EventProven) -> Logged:
    """The proof, and how its checkpoint continues what this hospital may hold; others' are none of its business."""
    ways = [one for one in proven.continues if site in one.sites]
    continues = tuple(Continuation(from_size=one.from_size, hashes=one.hashes) for one in ways)
    return proven.logged.model_copy(update={"continues": continues})


def members_of(run: store.Run, manifest: Manifest) -> list[SiteId]:
    """The members that a run asks: all, but for the one without which it trains a study again."""
    without = None if run.retraining is None else run.retraining.without
    return [member.site_id for member in manifest.members if member.site_id != without]


def what_follows(
    newest: Window | None, study: Study, training: Training, manifest: Manifest, max_attempts: int
) -> NextStep:
    """`next_step`, but that no window is planned with too few members. A run that is over is over, whoever has left
    since: its budget is spent, and only a finished one gets a bundle."""
    step = next_step(newest, course_of(study, manifest, max_attempts), training)
    if isinstance(step, NextWindow) and too_few_members(study, len(manifest.members)):
        return EndRun("FAILED", TOO_FEW_MEMBERS)
    return step


class Windows:
    """What happens in a run that has begun."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def plan_next(self, tx: Tx, run: store.Run) -> None:
        """Do what follows the run's newest window: plan another, or end the run."""
        newest = await store.newest_window(tx, run.run_id)
        step = what_follows(
            newest, run.study, run.training, await self._manifest(tx, run), self._desk.rules.max_attempts
        )
        if isinstance(step, EndRun):
            await self.end_run(tx, run, step.state, step.reason)
        else:
            await self.plan(tx, run, step, sequence=1 if newest is None else newest.sequence + 1)

    async def _manifest(self, tx: Tx, run: store.Run) -> Manifest:
        manifest = await store.newest_manifest(tx, run.study_digest)
        if manifest is None:
            raise LookupError(f"run {run.run_id} has no manifest")
        return manifest

    async def plan(self, tx: Tx, run: store.Run, step: NextWindow, sequence: int) -> None:
        """Begin this window: consent is asked who may take part."""
        now = self._desk.clock.now()
        if step.purpose in ("update", "training") and run.state == "PREPARING":
            run = replace(run, state="TRAINING")
            await store.save_run(tx, run, now)
            await self._desk.record(tx, RunStateChanged(run_id=run.run_id, state="TRAINING"), study=run.study_id)
        window = Window(
            window_id=secrets.token_bytes(16),
            run_id=run.run_id,
            sequence=sequence,
            purpose=step.purpose,
            round=step.round,
            attempt=step.attempt,
            state=Planned(secrets.token_bytes(16), now),
            cohort=step.cohort,
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
            sites=asked(window.cohort, members_of(run, manifest)),
            prices=await asyncio.to_thread(prices_of, run.study, manifest),
            governance=run.study.governance,
        )
        with telemetry.span("ask consent", window_id=window.window_id, purpose=window.purpose):
            await self._desk.to_service(tx, "consent", question, study=run.study_id)

    async def on_authorised(self, tx: Tx, received: Received[Authorised]) -> None:
        """Consent's answer: put the window on record for the permitted sites, or end it if they are too few."""
        only(received, "service:consent")
        message, now = received.message, self._desk.clock.now()
        run = await store.find_run(tx, message.run_id)
        window = await store.newest_window(tx, message.run_id)
        if run is None or window is None or not isinstance(window.state, Planned):
            return
        if window.state.question_id != message.question_id:
            return
        facts = await self._facts(tx, run)
        least, permits = least_cohort(run.study, facts.manifest), message.permits
        if window.attempt > 1:
            permits = without_blamed(window, await store.windows_of(tx, run.run_id), permits, least)
        obstacle = cannot_open(window.cohort, permits, least)
        if obstacle is not None:
            reason, denied = obstacle
            await self.cancel(tx, run, window, reason, denied)
            return
        members = [permit.site_id for permit in permits if permit.permitted]
        asking = ask(run, window, permits, self._desk.present(members), least, await capacities_of(tx))
        if asking.choices:
            run = with_turns(run, asking.choices)
            await store.save_run(tx, run, now)
        permitted = sum(permit.permitted for permit in asking.permits)
        seeds = (secrets.token_bytes(32), secrets.token_bytes(32))
        params = window_params(facts, window, permitted=permitted, seeds=seeds, pace=asking.pace)
        signed = sign_window(params, self._desk.key)
        authorised = advance(window, Permitted(signed, asking.permits, now, asking.choices, asking.pace))
        await store.save_window(tx, authorised, now)
        event = WindowAuthorised(
            run_id=run.run_id,
            window_id=window.window_id,
            round=window.round,
            purpose=window.purpose,
            params_hash=params_hash(params),
            permits=asking.permits,
        )
        await self._desk.record(tx, event, study=run.study_id, unique=authorisation_id(window.window_id))

    async def on_proven(self, tx: Tx, received: Received[EventProven]) -> None:
        """The log holds a window's authorisation: ask the sites, with the proof."""
        only(received, "service:audit")
        try:
            window = await store.find_window(tx, authorised_window(received.message.event_id))
        except RemoteFault as fault:
            raise Poison(fault.code) from fault
        run = await store.find_run(tx, window.run_id) if window is not None else None
        if window is None or run is None or not isinstance(window.state, AwaitingLog):
            return
        now = self._desk.clock.now()
        opened = advance(window, Opened(now))
        await store.save_window(tx, opened, now)
        if isinstance(opened.state, Open):
            for site in opened.state.permitted:
                logged = _shown_to(site, received.message)
                task = opened.state.open.model_copy(update={"logged": logged})
                await self._desk.to_site(tx, site, task, study=run.study_id)

    async def _ask_log(self, tx: Tx, run: store.Run, window: Window) -> None:
        """The log has not answered: no site is asked before it does."""
        log.warning("log_waited_for", run=run.run_id, study=run.study_id, window=window.window_id.hex())
        question = ProofAsked(study_id=run.study_id, event_id=authorisation_id(window.window_id))
        await self._desk.to_service(tx, "audit", question, study=run.study_id)

    async def _facts(self, tx: Tx, run: store.Run) -> RunFacts:
        manifest = await self._manifest(tx, run)
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
            training=run.training,
            aggregator_seal_pk=self._desk.rules.aggregator_seal_pk,
            plan=await asyncio.to_thread(plan_of, run.study, manifest),
        )

    async def on_ready(self, tx: Tx, received: Received[Ready]) -> None:
        """A site is ready: its signature and its base are checked before it may enter a roster."""
        ready = received.message
        only_site(received, ready.site_id)
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
            await self._desk.record(tx, event, study=run.study_id)
            return
        now = self._desk.clock.now()
        if await store.grant_ended(tx, run.study_digest, ready.site_id):
            return  # it was on its way when the hospital left
        window = advance(window, ReadyReceived(ready, now))
        await store.save_window(tx, window, now)
        if isinstance(window.state, Open):
            await self._decide_cohort(tx, run, window, window.state)

    async def on_refused(self, tx: Tx, received: Received[TaskRefused]) -> None:
        """A site will not take part in this window; the code tells people why."""
        message = received.message
        only_site(received, message.site_id)
        window = await store.find_window(tx, message.window_id)
        if window is None:
            return
        refusal = Refusal(message.site_id, message.code, message.column)
        await store.save_window(tx, advance(window, SiteLeft(refusal)), self._desk.clock.now())

    async def on_session_closed(self, tx: Tx, received: Received[SessionClosed]) -> Window | None:
        """The aggregator ended a session: record what came of it and go on with the run. Returns the window, if it was
        this word that ended it."""
        only(received, "service:aggregator")
        message = received.message
        window = await store.find_window(tx, message.window_id)
        run = await store.find_run(tx, message.run_id)
        if window is None or run is None or not isinstance(window.state, RosterFixed):
            return None
        now = self._desk.clock.now()
        ended = advance(window, Finished(message.state, message.reason, now, message))
        await store.save_window(tx, ended, now)
        window_ended(tx, ended)
        if message.model is not None and message.state in LEAVES_A_MODEL:  # of a run that was stopped meanwhile, too
            await store.add_model(tx, run.run_id, message.model, window.window_id)
        if run.state in store.FINAL_STATES:
            return ended
        run = having_uploaded(replace(run, training=recorded(run.training, ended)), window, message)
        if message.state == "RELEASED" and message.purpose == "statistics":
            run = replace(run, parameters=message.parameters, training_rows=message.training_rows)
        await store.save_run(tx, run, now)
        if message.state == "RELEASED":
            await self.plan_next(tx, run)
        return ended

    def is_due(self, window: Window | None) -> bool:
        """Whether `tick` would change something now: most ticks need no transaction."""
        now = self._desk.clock.now()
        match window:
            case Window(state=Planned(asked_at=asked_at) | AwaitingLog(asked_at=asked_at)):
                return now >= asked_at + timedelta(seconds=ASK_AGAIN_S)
            case Window(state=Open() as state):
                return not isinstance(self._decision(window, state), Wait)
            case Window(state=Ended(ended_at=ended_at)):
                return now >= ended_at + timedelta(seconds=self._desk.rules.retry_pause_s)
            case _:
                return False

    async def tick(self, tx: Tx, run: store.Run) -> None:
        """What the passing of time and the sites' presence mean for one run; doing it twice is doing it once."""
        window = await store.newest_window(tx, run.run_id)
        if window is None:
            return
        now = self._desk.clock.now()
        match window.state:
            case Planned(asked_at=asked_at) if now >= asked_at + timedelta(seconds=ASK_AGAIN_S):
                await store.save_window(tx, replace(window, state=replace(window.state, asked_at=now)), now)
                await self._ask_consent(tx, run, window)
            case AwaitingLog(asked_at=asked_at) if now >= asked_at + timedelta(seconds=ASK_AGAIN_S):
                await store.save_window(tx, replace(window, state=replace(window.state, asked_at=now)), now)
                await self._ask_log(tx, run, window)
            case Open():
                await self._decide_cohort(tx, run, window, window.state)
            case Planned() | AwaitingLog() | RosterFixed():
                return
            case _:
                # Ended, and not followed by another window yet: a failed attempt waits a moment before the next.
                if now >= window.state.ended_at + timedelta(seconds=self._desk.rules.retry_pause_s):
                    await self.plan_next(tx, run)

    def _decision(self, window: Window, state: Open) -> Decision:
        return cohort_now(state, window.cohort, self._desk.present(state.permitted), self._desk.clock.now())

    async def _decide_cohort(self, tx: Tx, run: store.Run, window: Window, state: Open) -> None:
        now = self._desk.clock.now()
        match self._decision(window, state):
            case Wait():
                return
            case Extend():
                await store.save_window(tx, advance(window, Extended(now)), now)
            case Cancel(reason=reason):
                await self.cancel(tx, run, window, reason)
            case Bind(readies=readies):
                await self._bind(tx, run, window, state, readies)

    async def _bind(self, tx: Tx, run: store.Run, window: Window, state: Open, readies: tuple[Ready, ...]) -> None:
        manifest = await self._manifest(tx, run)
        now = self._desk.clock.now()
        roster = make_roster(state.open.params, manifest, readies)
        await store.save_window(tx, advance(window, Bound(roster, now)), now)
        learnt = having_learnt(run, window, now)
        if learnt is not run:
            await store.save_run(tx, learnt, now)
        bound = {entry.site_id for entry in roster.entries}
        permits = tuple(permit for permit in state.permits if permit.site_id in bound)
        session = SessionOpened(open=state.open, roster=roster, manifest=manifest, permits=permits)
        await self._desk.to_service(tx, "aggregator", session, study=run.study_id)
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
        await self._desk.record(tx, event, study=run.study_id)

    async def cancel(
        self, tx: Tx, run: store.Run, window: Window, reason: str, denied: tuple[Refusal, ...] = ()
    ) -> None:
        """End a window that never became a session, and tell the sites that were asked."""
        now = self._desk.clock.now()
        told = window.state.permitted if isinstance(window.state, Open) else ()
        ended = advance(window, Finished("CANCELLED", reason, now, denied=denied))
        await store.save_window(tx, ended, now)
        window_ended(tx, ended)
        run = having_learnt(run, window, now)
        await store.save_run(tx, replace(run, training=recorded(run.training, ended)), now)
        for site in told:
            closed = WindowClosed(window_id=window.window_id, step=0, state="CANCELLED", reason=reason)
            await self._desk.to_site(tx, site, closed, study=run.study_id)
        event = WindowEnded(
            run_id=run.run_id, window_id=window.window_id, purpose=window.purpose, state="CANCELLED", reason=reason
        )
        await self._desk.record(tx, event, study=run.study_id)

    async def end_run(
        self, tx: Tx, run: store.Run, state: str, reason: str, missing: tuple[SiteId, ...] = ()
    ) -> store.Run:
        now = self._desk.clock.now()
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
        await self._desk.to_service(tx, "aggregator", ended, study=run.study_id)
        manifest = await store.newest_manifest(tx, run.study_digest)
        for member in manifest.members if manifest else ():
            await self._desk.to_site(tx, member.site_id, ended, study=run.study_id)
        event = RunStateChanged(run_id=run.run_id, state=ended.state, reason=reason, missing=missing)
        await self._desk.record(tx, event, study=run.study_id)
        return run
