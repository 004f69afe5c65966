"""Windows in OPENED: makes the sum, what follows from it, and puts both on record in one transaction.

Everything is made again from the records after a crash: the files of a new model version are complete under their name
before the transaction that publishes it, and are replaced if that transaction never came.
"""

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from typing import assert_never

import structlog

from cohortium_aggregator.context import Context, message_id
from cohortium_aggregator.domain.states import Opening, SharesUnusable, SumRefused, SumReleased
from cohortium_aggregator.files import complete_directory
from cohortium_aggregator.handlers.course import Result, move, sites_at
from cohortium_aggregator.modelling import (
    MadeModel,
    preprocessing_of,
    state_file,
    study_totals,
    write_first,
    write_next,
)
from cohortium_aggregator.store import runs, windows
from cohortium_aggregator.store.runs import Evaluated, ModelVersion, Run
from cohortium_aggregator.store.windows import SumWindow
from cohortium_aggregator.summing import (
    SumInputs,
    SumReader,
    open_integers,
    opened_mean,
    rebuild_masks,
    sum_reader,
)
from cohortium_kit.db import Tx
from cohortium_kit.errors import DatabaseError
from cohortium_messages.events import AggregateOpened, ModelEvaluated, ModelReleased
from cohortium_messages.ids import RunId
from cohortium_messages.runs import EvaluationResult
from cohortium_messages.secure_sum import ModelRef
from cohortium_protocol.chunks import ModelKey
from cohortium_protocol.codec import GridCodec, IntegerCodec, TailSums
from cohortium_protocol.errors import DealerFault, IntegrityFault, ProtocolError, TooFewShares
from cohortium_protocol.metrics import metrics_from_sums
from cohortium_protocol.parameters import model_hash
from cohortium_protocol.server_step import StepDiverged, state_names
from cohortium_protocol.statistics import Preprocessing

log = structlog.get_logger(__name__)

LOOKS = 5
LOOK_S = 0.01
RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """All that an opening needs, read at once."""

    window: SumWindow
    state: Opening
    run: Run
    newest: ModelVersion | None
    base: ModelVersion | None
    inputs: SumInputs


@dataclass(frozen=True, slots=True)
class Statistics:
    """A statistics sum, and version 0 of the model that came of it."""

    preprocessing: Preprocessing
    model: MadeModel
    training_rows: int
    tail: TailSums


@dataclass(frozen=True, slots=True)
class Update:
    """An update sum, and the version that came of it."""

    parent: ModelVersion
    model: MadeModel
    tail: TailSums


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation sum."""

    result: EvaluationResult
    tail: TailSums


Opened = Statistics | Update | Evaluation


class Opener:
    """Opens sums while it runs: several runs at once, one window of a run at a time."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._running: dict[RunId, asyncio.Task[None]] = {}
        self._again_at: dict[bytes, float] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Look for windows to open until `stop` is set; an opening in hand is finished."""
        try:
            await self._look(stop)
            await asyncio.gather(*self._running.values(), return_exceptions=True)
        finally:
            left = list(self._running.values())
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _look(self, stop: asyncio.Event) -> None:
        wake = self._ctx.wakes.opening
        while not stop.is_set():
            woken = wake.is_set()
            wake.clear()
            try:
                found = await self._start_jobs()
                for _ in range(LOOKS if woken and not found else 0):
                    await asyncio.sleep(LOOK_S)  # who woke us may not have committed yet
                    if await self._start_jobs():
                        break
            except DatabaseError as error:
                log.warning("opener_waits", error=type(error).__name__)
            try:
                await asyncio.wait_for(wake.wait(), self._ctx.settings.tick_s)
            except TimeoutError:
                continue

    async def _start_jobs(self) -> int:
        """Begin what can begin; returns how many windows wait or are in work."""
        async with self._ctx.db.reading("windows_to_open") as tx:
            waiting = await windows.windows_in(tx, Opening)
            sessions = [await windows.find_session(tx, self._ctx.sessions, window_id) for window_id in waiting]
        now = asyncio.get_running_loop().time()
        for session in sessions:
            if session is None or session.run_id in self._running or self._again_at.get(session.window_id, 0) > now:
                continue
            task = asyncio.create_task(self._guarded(session.window_id), name=f"open:{session.window_id.hex()}")
            self._running[session.run_id] = task
            task.add_done_callback(partial(self._over, session.run_id))
        return len(waiting)

    def _over(self, run_id: RunId, _: asyncio.Task[None]) -> None:
        self._running.pop(run_id, None)

    async def _guarded(self, window_id: bytes) -> None:
        """One opening. What is not the sum's own fault (a full disk, a lost database) is tried again later."""
        try:
            await self.open(window_id)
            self._again_at.pop(window_id, None)
        except Exception as error:
            log.exception("opening_failed", window=window_id.hex(), error=type(error).__name__)
            self._again_at[window_id] = asyncio.get_running_loop().time() + RETRY_S
        self._ctx.wakes.opening.set()

    async def open(self, window_id: bytes) -> None:
        """Open one window and put the outcome on record. Called again it finds nothing to do."""
        job = await self._load(window_id)
        if job is None:
            return
        command, opened = await asyncio.to_thread(self._make, job)
        await self._ctx.db.run("window_opened", lambda tx: self._finish(tx, job, command, opened))
        if not isinstance(command, SharesUnusable):
            await asyncio.to_thread(self._ctx.data.wipe_window, window_id, job.window.session.step)
        if isinstance(opened, Update):
            await self._drop_old_versions(job, opened)

    async def _load(self, window_id: bytes) -> Job | None:
        async with self._ctx.db.reading("window_to_open") as tx:
            window = await windows.find_window(tx, self._ctx.sessions, window_id)
            if window is None or not isinstance(window.state, Opening):
                return None
            session, survivors = window.session, window.state.survivors
            run = await runs.find_run(tx, session.run_id)
            if run is None:
                raise AssertionError("a window without its run")
            bases = session.params.bases
            base = await runs.find_version(tx, run.run_id, bases[0].version) if bases else None
            inputs = SumInputs(
                view=session.view,
                plan=session.plan,
                survivors=survivors,
                headers=await windows.headers_of(tx, session, survivors.members),
                answers=await windows.answers_of(tx, session),
                uploads=self._ctx.data.upload_paths(session.window_id, session.step, survivors.members),
            )
            newest = await runs.newest_version(tx, run.run_id)
            return Job(window, window.state, run, newest, base, inputs)

    # The work, in a thread

    def _make(self, job: Job) -> tuple[SumReleased | SumRefused | SharesUnusable, Opened | None]:
        """The outcome as a command for the domain, and what was made."""
        try:
            masks = rebuild_masks(job.inputs, self._ctx.seal_key)
        except (DealerFault, TooFewShares) as fault:
            dealer = fault.dealer if isinstance(fault, DealerFault) else None
            return SharesUnusable(frozenset(job.inputs.answers), dealer), None
        try:
            with sum_reader(job.inputs, masks) as reader:
                return SumReleased(), self._result(job, reader)
        except IntegrityFault:
            return SumRefused("FAILED_INTEGRITY", "CANARY_MISMATCH"), None
        except StepDiverged:
            return SumRefused("FAILED", "SUM_NOT_FINITE"), None
        except ProtocolError as fault:
            return SumRefused("FAILED", fault.code), None
        except (FileNotFoundError, EOFError) as error:
            # Every chunk was flushed before it was acknowledged: someone took the files away.
            log.error("uploads_lost", window=job.window.session.window_id.hex(), error=type(error).__name__)
            return SumRefused("FAILED", "UPLOADS_LOST"), None

    def _result(self, job: Job, reader: SumReader) -> Opened:
        match job.window.session.params.purpose:
            case "statistics":
                return self._statistics(job, reader)
            case "update":
                return self._update(job, reader)
            case "evaluation":
                return self._evaluation(job, reader)
            case other:
                assert_never(other)

    def _statistics(self, job: Job, reader: SumReader) -> Statistics:
        params, study = job.window.session.params, job.run.study
        codec = IntegerCodec(params.vector, job.inputs.view.n)
        survivors = len(job.inputs.survivors.members)
        sums = open_integers(reader, codec, params.vector.dimension, survivors)
        preprocessing = preprocessing_of(study, sums.values, survivors)
        target = self._ctx.data.model_dir(job.run.run_id, 0)
        with complete_directory(target) as folder:
            model = write_first(study, preprocessing, folder)
        return Statistics(preprocessing, model, study_totals(sums.values).training_rows, sums.tail)

    def _update(self, job: Job, reader: SumReader) -> Update:
        """The mean of the updates moves the newest model, whichever of the last ones each site started from."""
        params, parent = job.window.session.params, job.newest
        if parent is None:
            raise AssertionError("an update without a model")
        codec = GridCodec(params.vector, job.inputs.view.n)
        survivors = len(job.inputs.survivors.members)
        target = self._ctx.data.model_dir(job.run.run_id, parent.version + 1)
        base = self._ctx.data.model_dir(job.run.run_id, parent.version)
        with complete_directory(target) as folder:
            workspace = (folder, self._ctx.settings.workers)
            with opened_mean(reader, codec, params.vector.dimension, survivors, workspace) as (mean, tail):
                size, digest = write_next(job.run.study.federation.server, base, mean, folder)
        made = MadeModel(size, digest, model_hash(digest, parent.preprocessing.canonical()))
        return Update(parent, made, tail)

    def _evaluation(self, job: Job, reader: SumReader) -> Evaluation:
        params, base = job.window.session.params, job.base
        if base is None:
            raise AssertionError("an evaluation without a model")
        codec = IntegerCodec(params.vector, job.inputs.view.n)
        sums = open_integers(reader, codec, params.vector.dimension, len(job.inputs.survivors.members))
        found = metrics_from_sums(sums.values, job.run.study.metrics)
        result = EvaluationResult(
            model=base.ref,
            rows=found.rows,
            positives=found.positives,
            auc=found.auc,
            auc_error_bound=found.auc_error_bound,
            accuracy=found.accuracy,
            brier=found.brier,
            calibration=None if found.calibration is None else found.calibration.model_dump(),
        )
        return Evaluation(result, sums.tail)

    # The record

    async def _finish(
        self, tx: Tx, job: Job, command: SumReleased | SumRefused | SharesUnusable, opened: Opened | None
    ) -> None:
        window = await windows.find_window(tx, self._ctx.sessions, job.window.session.window_id)
        if window is None or not isinstance(window.state, Opening):
            return
        result = Result()
        if not isinstance(command, SharesUnusable):
            await self._record_opened(tx, window)
        match opened:
            case Statistics():
                result = await self._publish_version(tx, job, opened.model, opened.preprocessing, opened.tail)
                result = replace(result, training_rows=opened.training_rows)
            case Update():
                preprocessing = opened.parent.preprocessing
                result = await self._publish_version(tx, job, opened.model, preprocessing, opened.tail)
            case Evaluation():
                result = await self._publish_evaluation(tx, job, opened)
            case None:
                pass
        await move(self._ctx, tx, window, command, result)

    async def _record_opened(self, tx: Tx, window: SumWindow) -> None:
        session, state = window.session, window.state
        if not isinstance(state, Opening):
            raise AssertionError("only an opening window is opened")
        inside = state.survivors.members
        event = AggregateOpened(
            run_id=session.run_id,
            window_id=session.window_id,
            survivors_hash=state.survivors.digest,
            survivors=sites_at(session, inside),
            dropped=sites_at(session, [index for index in session.view.indices if index not in inside]),
        )
        unique = message_id(session.window_id, session.step, event.type_name)
        await self._ctx.post.record(tx, event, study=session.study_id, unique=unique)

    async def _publish_version(
        self, tx: Tx, job: Job, made: MadeModel, preprocessing: Preprocessing, tail: TailSums
    ) -> Result:
        session = job.window.session
        parent = job.newest if session.params.purpose == "update" else None
        version = ModelVersion(
            run_id=job.run.run_id,
            version=0 if parent is None else parent.version + 1,
            model_hash=made.model_hash,
            window_id=session.window_id,
            parameters_sha256=made.parameters_sha256,
            parameters=made.parameters,
            preprocessing=preprocessing,
            key=ModelKey.generate(),
            stored=True,
            made_at=tx.now,
        )
        await runs.insert_version(tx, version)
        event = ModelReleased(
            run_id=job.run.run_id,
            model=version.ref,
            parent=None if parent is None else parent.ref,
            window_id=session.window_id,
        )
        unique = message_id(session.window_id, event.type_name)
        await self._ctx.post.record(tx, event, study=session.study_id, unique=unique)
        return Result(model=version.ref, parameters=made.parameters, saturated_sites=tail.saturated)

    async def _publish_evaluation(self, tx: Tx, job: Job, opened: Evaluation) -> Result:
        session = job.window.session
        await runs.save_evaluation(
            tx, job.run.run_id, session.window_id, Evaluated(session.params.round, opened.result)
        )
        event = ModelEvaluated(run_id=job.run.run_id, window_id=session.window_id, result=opened.result)
        unique = message_id(session.window_id, event.type_name)
        await self._ctx.post.record(tx, event, study=session.study_id, unique=unique)
        ref: ModelRef = opened.result.model
        return Result(model=ref, evaluation=opened.result, saturated_sites=opened.tail.saturated)

    async def _drop_old_versions(self, job: Job, opened: Update) -> None:
        """Versions that no window may start from any more lose their files; every version keeps its record."""
        run_id, data = job.run.run_id, self._ctx.data
        keep_from = opened.parent.version + 1 - job.run.study.federation.max_staleness
        gone = await self._ctx.db.run("old_versions", lambda tx: runs.mark_not_stored(tx, run_id, keep_from))
        states = [state_file(name) for name in state_names(job.run.study.federation.server)]
        for version in gone:
            await asyncio.to_thread(data.drop_files, run_id, version)
        if states:
            await asyncio.to_thread(data.drop_files, run_id, opened.parent.version, states)
