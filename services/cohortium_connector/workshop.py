"""The work of open windows: statistics, training and evaluation in child processes, driven from the spool.

Nothing is remembered here that a restart would miss: what is to do follows from the records, and work that was not
finished is done again. A slow training delays nothing else: short jobs that meet it get a second process. For a strict
session only the table is looked at here; what follows after its roster is in `sessions`.
"""

import asyncio
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog

from cohortium_connector.desk import Desk
from cohortium_connector.domain.commands import Declined, ReadyMade
from cohortium_connector.domain.policy import HeldGrant
from cohortium_connector.domain.window_states import Idle
from cohortium_connector.domain.work import Job, Product, ProductState, UseProduct, next_work, still_wanted
from cohortium_connector.downloads import Downloads, ModelFiles, ModelNotObtained, ModelUnfit
from cohortium_connector.looking import Act
from cohortium_connector.patients import NO_TABLE, NotThesePatients, Patients
from cohortium_connector.private_work import NotCharged, Order, PrivateDesk
from cohortium_connector.spool import remove
from cohortium_connector.store import cohorts, products, seeds, studies, windows
from cohortium_connector.store.windows import WindowRecord
from cohortium_connector.trainers import MakeRunner, Runner, RunTrainers
from cohortium_connector.training.jobs import (
    ComputeRefinement,
    ComputeStatistics,
    DataSource,
    Evaluate,
    PrepareTrees,
    TrainLocally,
)
from cohortium_connector.training.runner import (
    IsolationUnavailable,
    TrainerCrashed,
    TrainerTimeout,
    TrainingFailed,
    TrainingRefused,
)
from cohortium_connector.waiting import Bell
from cohortium_kit import telemetry
from cohortium_kit.db import Database, Tx
from cohortium_messages.ids import RunId, StudyId
from cohortium_messages.study import Study
from cohortium_messages.withdrawals import WorkWiped
from cohortium_protocol.keys import WindowKeys
from cohortium_protocol.window import make_ready

log = structlog.get_logger(__name__)
CRASHES_BORNE = 2
PERMITS_S = 1.0
"""How often work that is under way is asked about again."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A job with what its process must be told."""

    job: Job
    study: Study
    source: DataSource
    site_index: int
    order: Order
    held: HeldGrant


@dataclass(frozen=True, slots=True)
class Made:
    """What came of a job: the rows that stand behind it, and for a strict session what its training would see."""

    rows: int
    data_digest: bytes | None = None


class NotPermitted(Exception):
    """The hospital's documents do not cover this work any more: no row was read. The code says why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Workshop:
    """Sees what open windows need, does it, and answers `Ready`."""

    def __init__(
        self,
        desk: Desk,
        db: Database,
        downloads: Downloads,
        bell: Bell,
        make_runner: MakeRunner,
        run_trainers: RunTrainers,
    ) -> None:
        self._desk = desk
        self._db = db
        self._downloads = downloads
        self._bell = bell
        self._run_trainers = run_trainers
        self._main = make_runner(desk.spool.work / "trainer")
        self._spare = make_runner(desk.spool.work / "evaluator")
        self._main_is_busy = False
        self._patients = Patients(desk, db)
        self._private = PrivateDesk(desk.charges, db, desk.settings.trainer.timeout_s)
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._under: dict[Job, tuple[bytes, int]] = {}
        """By job: the study version and the round that it must be permitted for, as long as it runs."""
        self._ask_permits_at = 0.0

    @property
    def jobs(self) -> tuple[Job, ...]:
        """What is being worked on now."""
        return tuple(job for job, task in self._running.items() if not task.done())

    async def aclose(self) -> None:
        """End unfinished jobs, and the processes."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await self._downloads.aclose()
        await self._main.aclose()
        await self._spare.aclose()

    async def see(self, tx: Tx, opened: Sequence[WindowRecord]) -> Act:
        """End what is not wanted, answer what can be answered, begin what is missing."""
        waiting = [window for window in opened if isinstance(window.state, Idle)]
        made = {window.run_id: await products.products_of_run(tx, window.run_id) for window in waiting}
        ended = {job for job in self._running if not await studies.run_goes_on(tx, job.run_id)}
        held_up = {window.study_id for window in waiting if await windows.study_is_bound(tx, window.study_id)}
        expected = self._downloads.expected
        if expected is not None and not await studies.run_goes_on(tx, expected):
            self._downloads.forget_expected()
        return partial(self._act, waiting, made, ended, held_up)

    async def _act(
        self,
        waiting: Sequence[WindowRecord],
        made: Mapping[RunId, tuple[Product, ...]],
        ended: set[Job],
        held_up: set[StudyId],
    ) -> None:
        self._end_unwanted(waiting, ended)
        await self._end_unpermitted()
        for window in waiting:
            if window.study_id in held_up:
                continue
            need = next_work(window.params, made[window.run_id])
            if isinstance(need, UseProduct):
                await self._answer(window.window_id, need.product)
                continue
            if need.stale:
                await self._discard(need.stale)
            if need.job not in self._running:
                task = asyncio.create_task(self._work(window, need.job), name=f"{need.job.purpose}-job")
                self._running[need.job] = task
                self._under[need.job] = (window.params.study_digest, window.params.round)

    def collect(self) -> None:
        """Forget finished jobs."""
        for job, task in list(self._running.items()):
            if task.done():
                del self._running[job]
                if not task.cancelled():
                    task.result()

    def _end_unwanted(self, waiting: Sequence[WindowRecord], ended: set[Job]) -> None:
        for job, task in self._running.items():
            asking = [w.params for w in waiting if (w.run_id, w.params.purpose) == (job.run_id, job.purpose)]
            if job in ended or (asking and not any(still_wanted(job, params) for params in asking)):
                log.info("job_ended_early", run=job.run_id, type=job.purpose)
                task.cancel()

    async def _end_unpermitted(self) -> None:
        """Work ends where a document that it rests on does: suspended, ended, withdrawn, or over. Its process is ended
        with it, and nothing is kept of what it made."""
        now = self._desk.clock.monotonic()
        self._under = {job: under for job, under in self._under.items() if job in self._running}
        if not self._under or now < self._ask_permits_at:
            return
        self._ask_permits_at = now + PERMITS_S
        for job, (digest, round_) in self._under.items():
            async with self._db.reading("workshop_permits") as tx:
                held = await self._desk.permission(tx, digest, round_)
            if isinstance(held, str) and not self._running[job].done():
                log.warning("work_stopped", run=job.run_id, type=job.purpose, code=held)
                await self._decline(job, held, "", wiped=digest)
                self._running[job].cancel()

    async def _answer(self, window_id: bytes, product: Product) -> None:
        """Trip 1: fresh keys, saved, and the signed readiness; the vector now belongs to this window alone (R3)."""
        desk = self._desk

        async def ready(tx: Tx) -> None:
            window = await windows.find_window(tx, window_id)
            current = await products.find_product(tx, product.product_id)
            if window is None or not isinstance(window.state, Idle) or current != product:
                return
            if await windows.study_is_bound(tx, window.study_id):
                return
            keys = WindowKeys.generate()
            message = make_ready(window.params, desk.identity.site_id, product.base_model_hash, keys, desk.identity.key)
            await products.reserve(tx, product.product_id, window_id, by="answer_ready")
            await windows.keep_secrets(tx, window_id, keys=keys.to_bytes())
            await windows.keep_documents(tx, window_id, message)
            await desk.step(tx, window, ReadyMade(product.product_id), by="answer_ready")

        await self._db.run("answer_ready", ready)
        log.info("ready", window=window_id.hex(), run=product.run_id, type=product.purpose)

    async def _discard(self, stale: tuple[Product, ...]) -> None:
        async def discard(tx: Tx) -> None:
            for product in stale:
                await products.delete_product(tx, product.product_id)

        await self._db.run("discard_stale", discard)
        log.info("stale_updates_discarded", count=len(stale))

    # One job

    async def _work(self, window: WindowRecord, job: Job) -> None:
        """Do one job and keep its vector, or tell the windows that wait for it why there will be none."""
        try:
            assignment = await self._assignment(window, job)
            with telemetry.span("work", window_id=window.window_id, purpose=job.purpose):
                await self._produce(assignment)
        except TrainingRefused as refusal:
            log.warning("data_refused", study=window.study_id, code=refusal.code, name=refusal.column)
            await self._decline(job, refusal.code, refusal.column)
        except NotCharged as refusal:
            log.warning("work_not_charged", study=window.study_id, run=window.run_id, code=refusal.code)
            await self._decline(job, refusal.code, "")
        except (NotPermitted, NotThesePatients) as refusal:
            await self._decline(job, refusal.code, "")
        except ModelNotObtained:
            await self._decline(job, "BASE_MODEL_UNKNOWN", "")
        except ModelUnfit:
            await self._decline(job, "MODEL_REFUSED", "")
        except (TrainingFailed, TrainerCrashed, TrainerTimeout, IsolationUnavailable) as error:
            async with self._db.reading("job_failed") as tx:
                wanted = await studies.run_goes_on(tx, job.run_id)
            if not wanted:  # its files were taken from it when the hospital left, or the run ended
                log.info("job_ended_early", run=job.run_id, type=job.purpose)
                return
            log.error("training_failed", study=window.study_id, error=type(error).__name__, reason=str(error))
            await self._decline(job, "TRAINING_FAILED", "")
        finally:
            self._bell.ring()

    async def _assignment(self, window: WindowRecord, job: Job) -> Assignment:
        async with self._db.reading("assignment") as tx:
            offer = await studies.find_offer(tx, window.params.study_digest)
            manifest = await studies.manifest_by_hash(tx, window.params.manifest_hash)
            held = await self._desk.permission(tx, window.params.study_digest, window.params.round)
        if offer is None or manifest is None:
            raise LookupError(f"window {window.window_id.hex()} has no study")
        if isinstance(held, str):
            raise NotPermitted(held)
        places = [member.site_id for member in manifest.members]
        source = self._desk.settings.dataset(window.study_id) or NO_TABLE
        order = Order(window, job, offer.study, manifest, source, held)
        return Assignment(job, offer.study, source, places.index(self._desk.identity.site_id), order, held)

    async def _produce(self, assignment: Assignment) -> None:
        job, spool = assignment.job, self._desk.spool
        base = None if job.base is None else await self._downloads.fetch(job.run_id, job.base)
        product_id = secrets.token_hex(16)
        made = spool.work / f"{product_id}.vector"
        try:
            done = await self._run_job(assignment, base, made)
            place = spool.product(product_id)
            with spool.pinned(place):
                if job.purpose != "training":
                    await asyncio.to_thread(_move_synced, made, place)
                free, noise = ProductState.FREE, assignment.order.window.params.noise
                product = Product(
                    product_id, job.run_id, job.purpose, job.base, done.rows, free, done.data_digest, noise
                )
                await self._db.run("keep_product", lambda tx: self._keep(tx, product))
        finally:
            remove(made)
        log.info("work_finished", run=job.run_id, type=job.purpose)

    async def _keep(self, tx: Tx, product: Product) -> None:
        """Keep the vector, unless the hospital left the study or the run ended while it was made.

        Raises `TrainingRefused` where the rows are not those of the run's first strict session: of two sums over one
        cohort the difference would be what changed here.
        """
        offer = await studies.study_of_run(tx, product.run_id)
        first = await cohorts.cohort_of_run(tx, product.run_id) if product.data_digest is not None else None
        if first is not None and first.data_digest != product.data_digest:
            raise TrainingRefused("DATA_CHANGED", "", 1)
        await seeds.forget_seed(tx, product.run_id, product.purpose)
        if offer is not None and await studies.run_goes_on(tx, product.run_id):
            await products.add_product(tx, product, offer.study_id, by="keep_product")

    async def _run_job(self, assignment: Assignment, base: ModelFiles | None, made: Path) -> Made:
        """What came of it. A process that crashes is tried again."""
        for crashes in range(CRASHES_BORNE + 1):
            try:
                return await self._run_once(assignment, base, made)
            except TrainerCrashed:
                if crashes == CRASHES_BORNE:
                    raise
                log.warning("trainer_crashed", attempt=crashes + 1)
        raise AssertionError("unreachable")

    async def _run_once(self, assignment: Assignment, base: ModelFiles | None, made: Path) -> Made:
        job = assignment.job
        if job.purpose == "training":
            return await self._prepare(assignment, base)
        short = job.purpose != "update" and self._main_is_busy
        if short:
            return await self._run_short(self._spare, await self._asked(assignment, self._spare), base, made)
        self._main_is_busy = True
        try:
            assignment = await self._asked(assignment, self._main)
            if job.purpose != "update":
                return await self._run_short(self._main, assignment, base, made)
            return await self._train(assignment, base, made)
        finally:
            self._main_is_busy = False

    async def _asked(self, assignment: Assignment, runner: Runner) -> Assignment:
        """The assignment with the patients who may be used now; what no budget can pay is found before one is read."""
        await self._private.foresee(assignment.order)
        source = await self._patients.source_for(
            assignment.order.window, assignment.study, assignment.source, assignment.held, runner
        )
        return replace(assignment, source=source, order=replace(assignment.order, source=source))

    async def _prepare(self, assignment: Assignment, base: ModelFiles | None) -> Made:
        """Before a strict session: is the table there, does it fit, and what is in it."""
        if base is None:
            raise LookupError("a strict session needs bins")
        runner = self._run_trainers.of(assignment.job.run_id)
        assignment = await self._asked(assignment, runner)
        prepare = PrepareTrees(
            study=assignment.study, source=assignment.source, preprocessing_path=str(base.preprocessing)
        )
        done = await runner.run(prepare, timeout_s=self._desk.settings.trainer.timeout_s)
        return Made(done.rows, done.data_digest)

    async def _train(self, assignment: Assignment, base: ModelFiles | None, made: Path) -> Made:
        if base is None or assignment.job.base is None:
            raise LookupError("training needs a base model")
        task = TrainLocally(
            study=assignment.study,
            source=assignment.source,
            preprocessing_path=str(base.preprocessing),
            model_path=str(base.parameters),
            update_path=str(made),
            round=assignment.job.base.version,
            site_index=assignment.site_index,
            private=await self._private.begin(assignment.order, self._main),
        )
        return Made((await self._main.run(task, timeout_s=self._desk.settings.trainer.timeout_s)).rows)

    async def _run_short(self, runner: Runner, assignment: Assignment, base: ModelFiles | None, made: Path) -> Made:
        timeout_s = self._desk.settings.trainer.timeout_s
        study, source = assignment.study, assignment.source
        if base is None:
            statistics = ComputeStatistics(study=study, source=source, vector_path=str(made))
            return Made((await runner.run(statistics, timeout_s=timeout_s)).train_rows)
        bins = str(base.preprocessing)
        if assignment.job.purpose == "refinement":
            refine = ComputeRefinement(study=study, source=source, preprocessing_path=bins, vector_path=str(made))
            return Made((await runner.run(refine, timeout_s=timeout_s)).train_rows)
        evaluate = Evaluate(
            study=study,
            source=source,
            preprocessing_path=bins,
            model_path=str(base.parameters),
            vector_path=str(made),
            private=await self._private.begin(assignment.order, runner),
        )
        return Made((await runner.run(evaluate, timeout_s=timeout_s)).rows)

    async def _decline(self, job: Job, code: str, column: str, *, wiped: bytes | None = None) -> None:
        """Tell the scheduler that this site's part will not come, for every window that waits for it; and the log, if
        work was ended that was under way (`wiped`: in this study version)."""

        async def decline(tx: Tx) -> None:
            waiting = [
                window
                for window in await windows.open_windows(tx)
                if isinstance(window.state, Idle) and still_wanted(job, window.params)
            ]
            for window in waiting:
                await self._desk.step(tx, window, Declined(code), by="decline_job")
                await self._desk.refuse(tx, window.params, code, column)
            if wiped is not None and waiting:
                site_id = self._desk.identity.site_id
                event = WorkWiped(site_id=site_id, study_digest=wiped, code=code, windows=len(waiting))
                await self._desk.record(tx, event, waiting[0].study_id)

        await self._db.run("decline_job", decline)


def _move_synced(made: Path, place: Path) -> None:
    with made.open("rb") as file:
        os.fsync(file.fileno())
    made.replace(place)
