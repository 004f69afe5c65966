"""Withdrawals: what they touch is traced, and what officers decided is carried out.

State is on record at each step, and every step may be done twice: what waits for the end of a window or a run is looked
at by the timer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import uuid4

from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.errors import TryLater
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.registry import Message
from cohortium_messages.runs import SessionClosed, TaskRefused
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.withdrawals import (
    MOST_MODELS,
    MOST_RUNS,
    EffectDone,
    EffectOrdered,
    EffectRefused,
    EffectStarted,
    ModelsRetired,
    RetireModels,
    Retrained,
    RetrainingStarted,
    RoundWithout,
    RunModel,
    RunPrepared,
    WithdrawalFollowed,
    WithdrawalNoticed,
    WithdrawalTraced,
)
from cohortium_privacy.windows import formal
from cohortium_scheduler import store
from cohortium_scheduler.domain.course import NextWindow
from cohortium_scheduler.domain.windows import Ended, RosterFixed, Window
from cohortium_scheduler.domain.withdrawals import Made, Retraining, affected, clean_start, in_sum
from cohortium_scheduler.handlers.desk import Desk, only
from cohortium_scheduler.handlers.recruiting import Recruiting
from cohortium_scheduler.handlers.windows import Windows
from cohortium_scheduler.leavings import FOLLOWED, Leaving, Phase, find_leaving, leavings_in, save_leaving

DIFFERS_BY_ONE: Final = "COHORT_DIFFERS_BY_ONE"
COHORT_REFUSED: Final = (DIFFERS_BY_ONE, "SITES_CHANGED", "COHORT_TOO_SMALL")
"""Why hospitals end a strict session of others than they would sum with."""


@dataclass(frozen=True, slots=True)
class Touched:
    """A run whose models learnt from the site. `made`: all of its versions."""

    run: store.Run
    windows: Sequence[Window]
    made: Sequence[Made]
    models: tuple[ModelRef, ...]


class Leavings:
    """What follows when a site, or patients of a site, leave a study."""

    def __init__(self, desk: Desk, windows: Windows, recruiting: Recruiting) -> None:
        self._desk = desk
        self._windows = windows
        self._recruiting = recruiting

    # Tracing

    async def on_noticed(self, tx: Tx, received: Received[WithdrawalNoticed]) -> None:
        """The grant's end came before this, so the site has left every window that is still open."""
        only(received, "service:consent")
        if await find_leaving(tx, received.message.withdrawal) is None:
            await self._trace(tx, Leaving(received.message, self._desk.clock.now()))

    async def due(self, tx: Tx) -> list[Leaving]:
        """Withdrawals that `tick` may have something to do for. Reads only."""
        return await leavings_in(tx, Phase.WAITING, Phase.RETRAINING)

    async def tick(self, tx: Tx, withdrawal: bytes) -> None:
        """A window or a run that was waited for may have ended; doing it twice is doing it once."""
        leaving = await find_leaving(tx, withdrawal)
        if leaving is None:
            return
        if leaving.phase is Phase.WAITING:
            await self._trace(tx, leaving)
        elif leaving.phase is Phase.RETRAINING:
            await self._after_retraining(tx, leaving)

    async def _trace(self, tx: Tx, leaving: Leaving) -> None:
        runs = (await store.runs_of_version(tx, leaving.notice.study_digest))[-MOST_RUNS:]
        without = []
        for run in runs:
            newest = await store.newest_window(tx, run.run_id)
            if leaving.notice.type != "patient_set" and newest is not None and _sits_in(leaving, newest):
                await self._save(tx, leaving)
                return
            without.append(RoundWithout(run_id=run.run_id, round=_next_round(run, newest)))
        touched, sums = await self._touched(tx, leaving)
        traced = WithdrawalTraced(
            withdrawal=leaving.withdrawal, without=tuple(without), models=_listed(touched), sums=sums
        )
        await self._to_consent(tx, leaving, traced)
        leaving = replace(leaving, phase=Phase.TRACED, tainted=tuple(one.run.run_id for one in touched))
        await self._save(tx, leaving)
        if leaving.order is not None:
            await self._execute(tx, leaving, leaving.order)

    async def _touched(self, tx: Tx, leaving: Leaving) -> tuple[list[Touched], int]:
        """The runs whose models learnt from the site, oldest first; and in how many opened sums its part is."""
        notice, found, sums = leaving.notice, list[Touched](), 0
        bad: dict[RunId, frozenset[ModelRef]] = {}
        for run in await store.runs_of_version(tx, notice.study_digest):
            windows = [one for one in await store.windows_of(tx, run.run_id) if _may_hold(leaving, one)]
            made = await store.models_of(tx, run.run_id)
            retraining = run.retraining
            inherited = retraining is not None and retraining.start in bad.get(retraining.from_run, frozenset())
            models = affected(notice.site_id, windows, made, notice.from_round, inherited=inherited)
            sums += sum(in_sum(notice.site_id, window, notice.from_round) for window in windows)
            bad[run.run_id] = frozenset(models)
            if models:
                found.append(Touched(run, windows, made, models))
        return found, sums

    async def flags(self, tx: Tx, run: store.Run) -> dict[ModelRef, tuple[bytes, ...]]:
        """By model of a run: the withdrawals of those that it learnt from."""
        found: dict[ModelRef, tuple[bytes, ...]] = {}
        for leaving in await leavings_in(tx, *Phase):
            if leaving.notice.study_digest != run.study_digest:
                continue
            touched, _ = await self._touched(tx, leaving)
            for model in next((one.models for one in touched if one.run.run_id == run.run_id), ()):
                found[model] = (*found.get(model, ()), leaving.withdrawal)
        return found

    # Following: what is made after tracing

    async def on_session_closed(self, tx: Tx, received: Received[SessionClosed]) -> None:
        """The window ends, and the run goes on. A model that came of it may belong to a withdrawal that was traced."""
        window = await self._windows.on_session_closed(tx, received)
        run = None if window is None else await store.find_run(tx, window.run_id)
        if window is None or run is None:
            return
        message = received.message
        leavings = [one for one in await leavings_in(tx, *FOLLOWED) if one.notice.study_digest == run.study_digest]
        # An evaluation names a model as well, and a session that added nothing the one before.
        made = [one for one in await store.models_of(tx, run.run_id) if one.window_id == window.window_id]
        for leaving in leavings:
            await self._follow(tx, leaving, run, window, made[0].model if made else None)
        if message.purpose == "training" and message.reason in COHORT_REFUSED:
            for site in message.dropped:
                await self._refused(tx, run, site, message.reason)

    async def _follow(self, tx: Tx, leaving: Leaving, run: store.Run, window: Window, model: ModelRef | None) -> None:
        notice, tainted = leaving.notice, run.run_id in leaving.tainted
        inside = _may_hold(leaving, window) and in_sum(notice.site_id, window, notice.from_round)
        models = () if model is None or not (tainted or inside) else (model,)
        await self._tell_followed(tx, leaving, run, models, int(inside))

    async def _follow_carried(self, tx: Tx, run: store.Run, model: ModelRef) -> None:
        """A run begins with another one's model, which somebody else who left may be in."""
        for leaving in await leavings_in(tx, *FOLLOWED):
            if leaving.notice.study_digest == run.study_digest:
                touched, _ = await self._touched(tx, leaving)
                if any(one.run.run_id == run.run_id for one in touched):
                    await self._tell_followed(tx, leaving, run, (model,), 0)

    async def _tell_followed(
        self, tx: Tx, leaving: Leaving, run: store.Run, models: tuple[ModelRef, ...], sums: int
    ) -> None:
        if not models and not sums:
            return
        retires = leaving.order is not None and leaving.order.effect != "stop_future"
        late = retires and leaving.phase is Phase.DONE
        listed = tuple(RunModel(run_id=run.run_id, model=model) for model in models)
        followed = WithdrawalFollowed(
            withdrawal=leaving.withdrawal, models=listed, sums=sums, retired=listed if late else ()
        )
        await self._to_consent(tx, leaving, followed)
        if models and run.run_id not in leaving.tainted:
            await self._save(tx, replace(leaving, tainted=(*leaving.tainted, run.run_id)))
        if models and retires and leaving.phase in (Phase.RETIRING, Phase.DONE):
            await self._retire_models(tx, leaving, run, models)  # the others are retired, or on their way

    # Retraining that hospitals refuse

    async def on_refused(self, tx: Tx, received: Received[TaskRefused]) -> None:
        """A site takes no part in a window, or confirms no set of it. Officers see it in the case that it delays."""
        await self._windows.on_refused(tx, received)
        message = received.message
        window = await store.find_window(tx, message.window_id)
        run = None if window is None else await store.find_run(tx, window.run_id)
        if run is not None:
            await self._refused(tx, run, message.site_id, message.code)

    async def _refused(self, tx: Tx, run: store.Run, site: SiteId, code: str) -> None:
        leaving = None if run.retraining is None else await find_leaving(tx, run.retraining.withdrawal)
        if leaving is None or leaving.order is None or leaving.retrain_run != run.run_id:
            return
        if leaving.phase is not Phase.RETRAINING or (site, code) in leaving.refused:
            return
        refused = EffectRefused(
            withdrawal=leaving.withdrawal,
            decision=leaving.order.decision,
            run_id=run.run_id,
            site_id=site,
            code=code,
        )
        await self._to_consent(tx, leaving, refused)
        await self._save(tx, replace(leaving, refused=(*leaving.refused, (site, code))))

    # What officers decided

    async def on_ordered(self, tx: Tx, received: Received[EffectOrdered]) -> None:
        """Carry it out, once what it concerns is traced. While another order is being carried out, this one waits."""
        only(received, "service:consent")
        order = received.message
        leaving = await find_leaving(tx, order.withdrawal)
        if leaving is None:
            raise TryLater("unknown_withdrawal")
        if leaving.order == order or leaving.phase is Phase.DONE:
            return
        if leaving.phase in (Phase.RETRAINING, Phase.RETIRING):
            raise TryLater("effect_under_way")
        leaving = replace(leaving, order=order)
        await self._save(tx, leaving)
        if leaving.phase is Phase.TRACED:
            await self._execute(tx, leaving, order)

    async def _execute(self, tx: Tx, leaving: Leaving, order: EffectOrdered) -> None:
        touched, _ = await self._touched(tx, leaving)
        if order.effect == "stop_future" or not touched:
            await self._started(tx, leaving, None)
            await self._done(tx, leaving, touched=())
            return
        reason = "RETRAINED" if order.effect == "retrain" else "MODEL_RETIRED"
        for one in touched:
            if one.run.state not in store.FINAL_STATES:
                await self._end(tx, one.run, reason)
        if order.effect == "retire":
            await self._started(tx, leaving, None)
            await self._retire(tx, leaving, touched)
            return
        run = await self._retrain(tx, leaving, touched[-1])
        await self._started(tx, leaving, _retrained(run))
        await self._save(tx, replace(leaving, phase=Phase.RETRAINING, retrain_run=run.run_id, refused=()))

    async def _end(self, tx: Tx, run: store.Run, reason: str) -> None:
        window = await store.newest_window(tx, run.run_id)
        if window is not None and not isinstance(window.state, RosterFixed | Ended):
            await self._windows.cancel(tx, run, window, reason)
            run = await store.find_run(tx, run.run_id) or run
        await self._windows.end_run(tx, run, "STOPPED", reason)

    async def _retrain(self, tx: Tx, leaving: Leaving, old: Touched) -> store.Run:
        """A new run of the same study version, in which the site is asked for nothing."""
        notice, study, now = leaving.notice, old.run.study, self._desk.clock.now()
        without = None if notice.type == "patient_set" else notice.site_id
        start = clean_start(
            notice.site_id,
            old.windows,
            old.made,
            notice.from_round,
            boosts=study.boosting_rounds > 0,
            private=formal(study) is not None,
        )
        retraining = Retraining(notice.withdrawal, old.run.run_id, without, start.model, start.round, start.basis)
        run = store.Run(
            RunId(str(uuid4())), study, old.run.study_digest, "RECRUITING", "", created_at=now, retraining=retraining
        )
        if start.model is not None:  # what the statistics said holds on
            run = replace(run, parameters=old.run.parameters, training_rows=old.run.training_rows)
        event = RetrainingStarted(
            withdrawal=notice.withdrawal,
            run_id=run.run_id,
            from_run=old.run.run_id,
            without=without,
            start=start.model,
            basis=start.basis,
        )
        await self._desk.record(tx, event, study=run.study_id)
        return await self._recruiting.open_run(tx, run)

    async def on_prepared(self, tx: Tx, received: Received[RunPrepared]) -> None:
        """The aggregator has the model that a run begins with, or keeps it no more: then it begins with nothing."""
        only(received, "service:aggregator")
        message = received.message
        run = await store.find_run(tx, message.run_id)
        newest = await store.newest_window(tx, message.run_id)
        retraining = None if run is None else run.retraining
        if run is None or retraining is None or run.state != "PREPARING" or newest is not None:
            return
        if message.model is None:
            lost = replace(retraining, start=None, round=0, basis="NO_EARLIER_MODEL")
            run = replace(run, retraining=lost, parameters=None, training_rows=None)
            await store.save_run(tx, run, self._desk.clock.now())
            await self._windows.plan_next(tx, run)
            return
        await store.add_model(tx, run.run_id, message.model, b"")
        await self._follow_carried(tx, run, message.model)
        await self._windows.plan(tx, run, NextWindow("update", retraining.round + 1, 1), sequence=1)

    async def _after_retraining(self, tx: Tx, leaving: Leaving) -> None:
        run = None if leaving.retrain_run is None else await store.find_run(tx, leaving.retrain_run)
        if run is None or run.state not in store.FINAL_STATES or leaving.order is None:
            return
        if run.state != "FINISHED":
            # Officers may decide anew; until then nothing more is done. A sum whose set is refused ends for want of
            # echoes, which would tell them nothing.
            refused = any(code == DIFFERS_BY_ONE for _, code in leaving.refused)
            failed = EffectDone(
                withdrawal=leaving.withdrawal,
                decision=leaving.order.decision,
                retrained=_retrained(run),
                fault=DIFFERS_BY_ONE if refused else run.reason or run.state,
            )
            await self._to_consent(tx, leaving, failed)
            await self._save(tx, replace(leaving, phase=Phase.TRACED))
            return
        touched, _ = await self._touched(tx, leaving)
        await self._retire(tx, leaving, touched)

    async def _retire(self, tx: Tx, leaving: Leaving, touched: Sequence[Touched]) -> None:
        """The aggregator hands these models out no more; no site starts from them again."""
        for one in touched:
            await self._retire_models(tx, leaving, one.run, one.models)
        awaited = tuple(one.run.run_id for one in touched)
        await self._save(tx, replace(leaving, phase=Phase.RETIRING, awaited=awaited))

    async def _retire_models(self, tx: Tx, leaving: Leaving, run: store.Run, models: tuple[ModelRef, ...]) -> None:
        retire = RetireModels(withdrawal=leaving.withdrawal, study_id=run.study_id, run_id=run.run_id, models=models)
        await self._desk.to_service(tx, "aggregator", retire, study=run.study_id)
        manifest = await store.newest_manifest(tx, run.study_digest)
        for member in manifest.members if manifest else ():
            await self._desk.to_site(tx, member.site_id, retire, study=run.study_id)

    async def on_retired(self, tx: Tx, received: Received[ModelsRetired]) -> None:
        """The aggregator's word for one run; the last one completes the effect."""
        only(received, "service:aggregator")
        message = received.message
        leaving = await find_leaving(tx, message.withdrawal)
        if leaving is None or leaving.phase is not Phase.RETIRING:
            return
        awaited = tuple(run for run in leaving.awaited if run != message.run_id)
        leaving = replace(leaving, awaited=awaited)
        await self._save(tx, leaving)
        if not awaited:
            touched, _ = await self._touched(tx, leaving)
            await self._done(tx, leaving, touched)

    # Consent is told

    async def _started(self, tx: Tx, leaving: Leaving, retrained: Retrained | None) -> None:
        if leaving.order is not None:
            decision = leaving.order.decision
            started = EffectStarted(withdrawal=leaving.withdrawal, decision=decision, retrained=retrained)
            await self._to_consent(tx, leaving, started)

    async def _done(self, tx: Tx, leaving: Leaving, touched: Sequence[Touched]) -> None:
        if leaving.order is None:
            return
        retrained = None
        run = None if leaving.retrain_run is None else await store.find_run(tx, leaving.retrain_run)
        if run is not None and leaving.order.effect == "retrain":
            models = await store.newest_models(tx, run.run_id, 1)
            retrained = _retrained(run, models[0] if models else None)
        done = EffectDone(
            withdrawal=leaving.withdrawal,
            decision=leaving.order.decision,
            retired=_listed(touched),
            retrained=retrained,
        )
        await self._to_consent(tx, leaving, done)
        await self._save(tx, replace(leaving, phase=Phase.DONE, awaited=()))

    async def _to_consent(self, tx: Tx, leaving: Leaving, message: Message) -> None:
        await self._desk.to_service(tx, "consent", message, study=leaving.notice.study_id)

    async def _save(self, tx: Tx, leaving: Leaving) -> None:
        await save_leaving(tx, leaving, self._desk.clock.now().timestamp())


def _sits_in(leaving: Leaving, window: Window) -> bool:
    state = window.state
    return isinstance(state, RosterFixed) and any(
        entry.site_id == leaving.notice.site_id for entry in state.roster.entries
    )


def _may_hold(leaving: Leaving, window: Window) -> bool:
    """Whether the window asked its sites before the notice. One that asked later did not ask who had left: a hospital
    in it came back with a new grant, and patients had been left out by theirs."""
    opened_at = window.state.opened_at if isinstance(window.state, Ended) else None
    return opened_at is None or opened_at <= leaving.noticed_at


def _next_round(run: store.Run, newest: Window | None) -> int | None:
    """The round that the run asks for next, in which the site has no part."""
    if run.state in store.FINAL_STATES:
        return None
    if newest is None:
        return 0
    released = isinstance(newest.state, Ended) and newest.state.state == "RELEASED"
    return newest.round + 1 if released and newest.purpose != "evaluation" else newest.round


def _listed(touched: Sequence[Touched]) -> tuple[RunModel, ...]:
    found = [RunModel(run_id=one.run.run_id, model=model) for one in touched for model in one.models]
    return tuple(found[-MOST_MODELS:])


def _retrained(run: store.Run, model: ModelRef | None = None) -> Retrained:
    retraining = run.retraining
    if retraining is None:
        raise LookupError(f"run {run.run_id} takes no other's place")
    return Retrained(
        run_id=run.run_id,
        from_run=retraining.from_run,
        start=retraining.start,
        basis=retraining.basis,
        model=model,
    )
