"""Windows in OPENED: makes the sum, what follows from it, and puts both on record in one transaction. Windows in
ASSEMBLING wait their turn here too.

Everything is made again from the records after a crash: the files of a new model version are complete under their name
before the transaction that publishes it, and are replaced if that transaction never came.
"""

import asyncio
from functools import partial

import structlog

from cohortium_aggregator.assembler import Assembler
from cohortium_aggregator.context import Context, message_id
from cohortium_aggregator.domain.states import Opening, SharesUnusable, SumRefused, SumReleased
from cohortium_aggregator.domain.strict_states import Assembling
from cohortium_aggregator.files import FRAMES
from cohortium_aggregator.handlers.course import Result, move, sites_at
from cohortium_aggregator.making import Evaluation, Job, Maker, NewVersion, Opened
from cohortium_aggregator.modelling import state_file
from cohortium_aggregator.releasing import release_evaluation, release_sum
from cohortium_aggregator.store import runs, windows
from cohortium_aggregator.store.runs import ModelVersion
from cohortium_aggregator.store.windows import SumWindow
from cohortium_aggregator.summing import SumInputs, rebuild_masks, sum_reader
from cohortium_kit import telemetry
from cohortium_kit.db import Tx
from cohortium_kit.errors import DatabaseError
from cohortium_messages.events import AggregateOpened
from cohortium_messages.ids import RunId
from cohortium_protocol.errors import DealerFault, IntegrityFault, ProtocolError, TooFewShares
from cohortium_protocol.server_step import StepDiverged, state_names

log = structlog.get_logger(__name__)

LOOK_S = 1.0
RETRY_S = 5.0


class Opener:
    """Opens sums while it runs: several runs at once, one window of a run at a time."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._maker = Maker(ctx.data, ctx.settings.workers)
        self._assembler = Assembler(ctx)
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
            wake.clear()
            try:
                await self._start_jobs()
            except DatabaseError as error:
                log.warning("opener_waits", error=type(error).__name__)
            try:
                await asyncio.wait_for(wake.wait(), self._wait_s())
            except TimeoutError:
                continue

    def _wait_s(self) -> float:
        """Until an opening is to be tried again; else until the next look at what nobody woke us for."""
        now = asyncio.get_running_loop().time()
        left = [at - now for at in self._again_at.values() if at > now]
        return min([LOOK_S, *left])

    async def _start_jobs(self) -> None:
        """Begin what can begin."""
        async with self._ctx.db.reading("windows_to_open") as tx:
            waiting = await windows.windows_in(tx, Opening, Assembling)
            sessions = [await windows.find_session(tx, self._ctx.sessions, window_id) for window_id in waiting]
        now = asyncio.get_running_loop().time()
        for session in sessions:
            if session is None or session.run_id in self._running or self._again_at.get(session.window_id, 0) > now:
                continue
            task = asyncio.create_task(self._guarded(session.window_id), name=f"open:{session.window_id.hex()}")
            self._running[session.run_id] = task
            task.add_done_callback(partial(self._over, session.run_id))

    def _over(self, run_id: RunId, _: asyncio.Task[None]) -> None:
        self._running.pop(run_id, None)

    async def _guarded(self, window_id: bytes) -> None:
        """One opening, by one aggregator. What is not the sum's own fault (a full disk, a lost database) is tried again
        later."""
        try:
            with self._ctx.data.claimed(f"open-{window_id.hex()}") as ours:
                if not ours:
                    self._again_at[window_id] = asyncio.get_running_loop().time() + self._ctx.settings.tick_s
                    return
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
            await self._assembler.assemble(window_id)
            return
        with telemetry.span("open sum", window_id=window_id, purpose=job.window.session.params.purpose):
            command, opened = await asyncio.to_thread(self._make, job)
            left = await self._ctx.db.run("window_opened", lambda tx: self._finish(tx, job, command, opened))
        if not isinstance(command, SharesUnusable):
            await asyncio.to_thread(self._ctx.data.wipe_window, window_id, job.window.session.step)
        if left and isinstance(opened, NewVersion):
            version = 0 if opened.parent is None else opened.parent.version + 1
            await asyncio.to_thread(self._ctx.data.drop_files, job.run.run_id, version)
            return
        is_update = job.window.session.params.purpose == "update"
        if is_update and isinstance(opened, NewVersion) and opened.parent is not None:
            await self._drop_old_versions(job, opened.parent)

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
                return SumReleased(), self._maker.make(job, reader)
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

    # The record

    async def _finish(
        self, tx: Tx, job: Job, command: SumReleased | SumRefused | SharesUnusable, opened: Opened | None
    ) -> bool:
        """Returns whether a survivor left while the sum was being made, so that nothing comes of it."""
        window = await windows.find_window(tx, self._ctx.sessions, job.window.session.window_id)
        if window is None or not isinstance(window.state, Opening):
            return False
        result = Result()
        if not isinstance(command, SharesUnusable):
            await self._record_opened(tx, window)
        match opened:
            case _ if window.state.left:
                pass
            case NewVersion():
                result = await release_sum(self._ctx, tx, window.session, opened)
            case Evaluation():
                result = await release_evaluation(self._ctx, tx, window.session, opened)
            case None:
                pass
        left = bool(window.state.left)
        await move(self._ctx, tx, window, command, result)
        return left

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

    async def _drop_old_versions(self, job: Job, parent: ModelVersion) -> None:
        """Versions that no window may start from any more. Of each `keep_every`-th the model itself is kept, so that
        the study can be trained again without somebody; every version keeps its record."""
        run_id, data, keep = job.run.run_id, self._ctx.data, self._ctx.settings.keep_every
        keep_from = parent.version + 1 - job.run.study.federation.max_staleness
        gone = await self._ctx.db.run("old_versions", lambda tx: runs.mark_not_stored(tx, run_id, keep_from, keep))
        states = [state_file(name) for name in state_names(job.run.study.federation.server)]
        for version in gone:
            await asyncio.to_thread(data.drop_files, run_id, version)
        if keep_from > 0:
            await asyncio.to_thread(data.drop_files, run_id, keep_from - 1, [FRAMES])
        if states:
            await asyncio.to_thread(data.drop_files, run_id, parent.version, states)
