"""The jobs of the training process, once it is isolated."""

import hashlib
import resource
import socket
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cohortium_connector.training import private_jobs
from cohortium_connector.training.base import (
    Examples,
    NonFiniteUpdate,
    SiteRefusal,
    open_model,
    reads_rows,
    trainer_for,
    write_update,
    write_words,
)
from cohortium_connector.training.baselines import train_baselines
from cohortium_connector.training.data import DataRefused, Table, one_row, read_table
from cohortium_connector.training.jobs import (
    MAX_LINE_BYTES,
    Answer,
    Baseline,
    BaselinesDone,
    ComputeRefinement,
    ComputeStatistics,
    CountDone,
    CountPatients,
    DataSource,
    Evaluate,
    EvaluateDone,
    Failure,
    Job,
    Lines,
    Ping,
    Pong,
    PrepareDone,
    PrepareTrees,
    Refusal,
    Started,
    StatisticsDone,
    Stopped,
    TakeCohort,
    TrainBaselines,
    TrainDone,
    TrainLocally,
    TrainTrees,
    TreesDone,
)
from cohortium_connector.training.live_wire import BridgeDead, ChildBridge
from cohortium_connector.training.patients import take_cohort
from cohortium_messages.study import GradientRecipe, RandomTreesRecipe, Study
from cohortium_privacy.ledger_plan import blocks_of
from cohortium_privacy.windows import STATISTICS_WORDS
from cohortium_protocol.errors import LocalFault
from cohortium_protocol.metrics import evaluation_vector
from cohortium_protocol.parameters import ModelRefused
from cohortium_protocol.statistics import Preprocessing, Rows, design_matrix, statistics_vector
from cohortium_protocol.trees.evaluation import has_trees
from cohortium_protocol.trees.grid import tree_statistics_vector

TABLES_KEPT = 4
LINE_TIMEOUT_S = 60.0


def serve(jobs: BinaryIO, answers: BinaryIO, *, network: str, threads: int, lines: int | None = None) -> None:
    """Answer each line of `jobs` until there is none. A line that is too long or no job ends the process.

    `lines`: the descriptor of a socket over which the line of a live job is handed in, before the job.
    """
    handed_in = socket.socket(fileno=lines) if lines is not None else None
    desk = Desk(isolated=not network, threads=threads, next_line=lambda: _handed_in(handed_in))
    _send(answers, Started(isolated=not network, network=network or "none").model_dump_json())
    while line := jobs.readline(MAX_LINE_BYTES):
        if not line.endswith(b"\n"):
            raise SystemExit("a job is longer than a line may be")
        _send(answers, Lines.answers.dump_json(desk.answer(Lines.jobs.validate_json(line))).decode())


def _handed_in(lines: socket.socket | None) -> socket.socket:
    """The line of the job that was just read. Raises `BridgeDead` where there is none."""
    if lines is None:
        raise BridgeDead("this process was started without a way to hand in lines")
    lines.settimeout(LINE_TIMEOUT_S)
    try:
        data, descriptors, _, _ = socket.recv_fds(lines, 1, 1)
    except OSError as error:
        raise BridgeDead("no line came with the job") from error
    if not data or len(descriptors) != 1:
        raise BridgeDead("no line came with the job")
    return socket.socket(fileno=descriptors[0])


def _no_line() -> socket.socket:
    raise BridgeDead("this desk has no lines")


def _send(answers: BinaryIO, line: str) -> None:
    answers.write(line.encode() + b"\n")
    answers.flush()


class Desk:
    """Does one job after the other, and keeps the tables it has read while their files do not change."""

    def __init__(self, *, isolated: bool, threads: int = 1, next_line: Callable[[], socket.socket] = _no_line) -> None:
        self._isolated = isolated
        self._threads = threads
        self._next_line = next_line
        self._tables: OrderedDict[tuple[object, ...], Table] = OrderedDict()
        self._torch_is_set_up = False

    def answer(self, job: Job) -> Answer:
        """Never raises: a refusal or a failure is an answer too, and its story goes to standard error."""
        try:
            return self._done(job)
        except SiteRefusal as refusal:
            sys.stderr.write(f"{refusal.local or refusal.code}\n")
            return Refusal(code=refusal.code, column=refusal.column, count=refusal.count)
        except ModelRefused as refusal:
            sys.stderr.write(f"the model was refused: {refusal}\n")
            return Refusal(code="MODEL_REFUSED", column="", count=0)
        except NonFiniteUpdate as refusal:
            sys.stderr.write(f"{refusal}; lower the learning rate\n")
            return Refusal(code="UPDATE_NOT_FINITE", column="", count=0)
        except LocalFault as fault:
            sys.stderr.write(f"{fault}\n")
            return Refusal(code=fault.code, column="", count=0)
        except Exception as error:  # noqa: BLE001 - the border of the process: said in the local log, and answered
            sys.stderr.write(_without_values(error))
            return Failure(error=type(error).__name__)
        finally:
            sys.stderr.flush()

    def _done(self, job: Job) -> Answer:
        started = time.monotonic()
        match job:
            case Ping():
                return Pong(isolated=self._isolated, peak_mb=peak_mb())
            case ComputeStatistics():
                return self._statistics(job, started)
            case ComputeRefinement():
                return self._refinement(job, started)
            case CountPatients():
                return self._count(job, started)
            case TakeCohort():
                return take_cohort(job, peak_mb())
            case PrepareTrees():
                return self._prepare(job, started)
            case TrainTrees():
                return self._train_trees(job, started)
            case TrainLocally():
                return self._train(job, started)
            case Evaluate():
                return self._evaluate(job, started)
            case TrainBaselines():
                return self._baselines(job, started)

    def _statistics(self, job: ComputeStatistics, started: float) -> StatisticsDone:
        if private_jobs.is_private(job.study):
            write_words(Path(job.vector_path), np.zeros(STATISTICS_WORDS, dtype=np.int64))
            return StatisticsDone(train_rows=0, test_rows=0, seconds=time.monotonic() - started, peak_mb=peak_mb())
        table = self._table(job.study, job.source) if reads_rows(job.study) else one_row(job.study)
        vector = tree_statistics_vector if has_trees(job.study) else statistics_vector
        write_words(Path(job.vector_path), vector(job.study, table.train, table.test))
        return StatisticsDone(
            train_rows=len(table.train),
            test_rows=len(table.test),
            seconds=time.monotonic() - started,
            peak_mb=peak_mb(),
        )

    def _count(self, job: CountPatients, started: float) -> CountDone:
        table = self._table(job.study, job.source)
        first_records = (*table.training.owners.first, *table.testing.owners.first)
        return CountDone(
            patients=len(first_records),
            blocks=blocks_of(first_records),
            seconds=time.monotonic() - started,
            peak_mb=peak_mb(),
        )

    def _refinement(self, job: ComputeRefinement, started: float) -> StatisticsDone:
        from cohortium_connector.training import tree_jobs

        table = self._table(job.study, job.source)
        write_words(Path(job.vector_path), tree_jobs.refinement(job.study, job.preprocessing_path, table.train))
        return StatisticsDone(
            train_rows=len(table.train),
            test_rows=len(table.test),
            seconds=time.monotonic() - started,
            peak_mb=peak_mb(),
        )

    def _prepare(self, job: PrepareTrees, started: float) -> PrepareDone:
        from cohortium_connector.training import tree_jobs, trees_work

        train = self._table(job.study, job.source).train
        trees_work.check_trainable(job.study, tree_jobs.open_binning(job.study, job.preprocessing_path), train)
        return PrepareDone(
            rows=len(train),
            data_digest=trees_work.data_digest(train),
            seconds=time.monotonic() - started,
            peak_mb=peak_mb(),
        )

    def _train_trees(self, job: TrainTrees, started: float) -> TreesDone | Stopped:
        from cohortium_connector.training import session, tree_jobs, trees_work

        with trees_work.interrupts() as interrupted, self._next_line() as line:
            bridge = ChildBridge(line, timeout_s=job.timeout_s, interrupted=interrupted)
            train = self._table(job.study, job.source).train
            binning = tree_jobs.open_binning(job.study, job.preprocessing_path)
            try:
                played = trees_work.train_trees(job, binning, train, bridge, threads=self._threads)
            except session.SessionStopped as stopped:
                return Stopped(code=stopped.code, rounds=stopped.rounds)
        return TreesDone(
            rounds=played.rounds,
            best_round=played.best_round,
            replayed=played.replayed,
            steps=played.steps,
            seconds=time.monotonic() - started,
            peak_mb=peak_mb(),
        )

    def _train(self, job: TrainLocally, started: float) -> TrainDone:
        if private_jobs.is_private(job.study):
            return self._train_privately(job, started)
        if isinstance(job.study.recipe, RandomTreesRecipe):
            return self._fill_leaves(job, started)
        if reads_rows(job.study):
            preprocessing = _preprocessing(job.study, job.preprocessing_path)
            examples = examples_of(preprocessing, self._table(job.study, job.source).train)
        else:
            examples = Examples(np.zeros((1, 0), dtype=np.float32), np.zeros(1, dtype=np.float32))
        self._set_up_torch(job.study)
        trainer = trainer_for(job.study, examples.inputs.shape[1])
        base = open_model(Path(job.model_path), trainer.layout)
        recipe = job.study.recipe
        epochs = recipe.local.epochs if isinstance(recipe, GradientRecipe) else 1
        seed = task_seed(job.study.federation.seed, job.round, job.site_index)
        trained = trainer.train(base, examples, epochs=epochs, seed=seed)
        return TrainDone(
            norm_l2=write_update(Path(job.update_path), base, trained),
            rows=len(examples.labels),
            parameters=trainer.layout.size,
            loss=trained.loss,
            seconds=time.monotonic() - started,
            peak_mb=peak_mb(),
        )

    def _train_privately(self, job: TrainLocally, started: float) -> TrainDone:
        """Every site weighs the same, and says no loss."""
        train = self._table(job.study, job.source).training
        if isinstance(job.study.recipe, RandomTreesRecipe):
            parameters = private_jobs.leaf_sums(job, train).size
        else:
            self._set_up_torch(job.study)
            seed = task_seed(job.study.federation.seed, job.round, job.site_index)
            preprocessing = _preprocessing(job.study, job.preprocessing_path)
            parameters = private_jobs.update(job, preprocessing, train, seed=seed)
        seconds = time.monotonic() - started
        return TrainDone(rows=1, parameters=parameters, norm_l2=None, loss=None, seconds=seconds, peak_mb=peak_mb())

    def _fill_leaves(self, job: TrainLocally, started: float) -> TrainDone:
        from cohortium_connector.training import tree_jobs

        if job.preprocessing_path is None:
            raise ModelRefused("a model of this recipe needs its bins")
        train = self._table(job.study, job.source).train
        sums = tree_jobs.leaf_sums(job.study, job.preprocessing_path, Path(job.model_path), train, round_=job.round + 1)
        write_words(Path(job.update_path), sums)
        return TrainDone(
            norm_l2=float(np.linalg.norm(sums.astype(np.float64))),
            rows=len(train),
            parameters=sums.size,
            loss=None,
            seconds=time.monotonic() - started,
            peak_mb=peak_mb(),
        )

    def _evaluate(self, job: Evaluate, started: float) -> EvaluateDone:
        if not reads_rows(job.study):
            write_words(Path(job.vector_path), evaluation_vector(np.zeros(0), np.zeros(0)))
            return EvaluateDone(rows=0, seconds=time.monotonic() - started, peak_mb=peak_mb())
        if private_jobs.is_private(job.study):
            return self._evaluate_privately(job, started)
        if has_trees(job.study):
            from cohortium_connector.training import tree_jobs

            test = self._table(job.study, job.source).test
            sums = tree_jobs.evaluation(job.study, job.preprocessing_path, Path(job.model_path), test)
            write_words(Path(job.vector_path), sums)
            return EvaluateDone(rows=len(test), seconds=time.monotonic() - started, peak_mb=peak_mb())
        preprocessing = _preprocessing(job.study, job.preprocessing_path)
        test = self._table(job.study, job.source).test
        self._set_up_torch(job.study)
        trainer = trainer_for(job.study, preprocessing.inputs)
        model = open_model(Path(job.model_path), trainer.layout)
        scores = trainer.scores(model, design_matrix(preprocessing, test))
        if not np.isfinite(scores).all():
            raise ModelRefused("the model gives scores that are not finite")
        write_words(Path(job.vector_path), evaluation_vector(scores, test.labels))
        return EvaluateDone(rows=len(test), seconds=time.monotonic() - started, peak_mb=peak_mb())

    def _evaluate_privately(self, job: Evaluate, started: float) -> EvaluateDone:
        trees = has_trees(job.study)
        preprocessing = None if trees else _preprocessing(job.study, job.preprocessing_path)
        self._set_up_torch(job.study)
        private_jobs.evaluation(job, preprocessing, self._table(job.study, job.source).testing)
        return EvaluateDone(rows=1, seconds=time.monotonic() - started, peak_mb=peak_mb())

    def _baselines(self, job: TrainBaselines, started: float) -> BaselinesDone:
        self._set_up_torch(job.study)
        tables: dict[str, Table] = {}
        refused: list[tuple[str, str]] = []
        for site in job.sites:
            try:
                tables[site.name] = self._table(job.study, site.source)
            except DataRefused as refusal:
                sys.stderr.write(f"{site.name}: {refusal.local}\n")
                refused.append((site.name, refusal.code))
        if not tables:
            raise SiteRefusal("NO_TRAINING_ROWS", local="no site has a table that fits the study")
        bagging: Baseline | None = None
        if has_trees(job.study):
            from cohortium_connector.training.tree_baselines import train_tree_baselines

            found = train_tree_baselines(job.study, tables, threads=self._threads)
            pooled, local, bagging = found.pooled, found.local, found.bagging
            refused += found.refused
        else:
            pooled, local = train_baselines(job.study, tables, job.seed)
        return BaselinesDone(
            pooled=pooled,
            local=local,
            bagging=bagging,
            refused=tuple(refused),
            seconds=time.monotonic() - started,
            peak_mb=peak_mb(),
        )

    def _table(self, study: Study, source: DataSource) -> Table:
        """From memory when file and study are the same as before."""
        try:
            status = Path(source.path).stat()
            key = (source, status.st_mtime_ns, status.st_size, study.digest())
        except OSError:
            return read_table(study, source)  # says what is wrong with the file
        if key not in self._tables:
            self._tables[key] = read_table(study, source)
            while len(self._tables) > TABLES_KEPT:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]

    def _set_up_torch(self, study: Study) -> None:
        if study.recipe.trainer.startswith("torch.") and not self._torch_is_set_up:
            from cohortium_connector.training.torch_ import use_threads

            use_threads(self._threads)
            self._torch_is_set_up = True


def examples_of(preprocessing: Preprocessing, rows: Rows) -> Examples:
    """Inputs and labels as a trainer takes them."""
    return Examples(design_matrix(preprocessing, rows), rows.labels.astype(np.float32))


def task_seed(study_seed: int, round_: int, site_index: int) -> int:
    """The seed of one site's training in one round: another for every round and site, the same after a crash."""
    parts = b"".join(part.to_bytes(8, "little") for part in (study_seed, round_, site_index))
    return int.from_bytes(hashlib.sha256(b"cohortium/training-seed/1" + parts).digest()[:4], "little")


def peak_mb() -> float:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _preprocessing(study: Study, path: str | None) -> Preprocessing:
    if path is None:
        raise ModelRefused("a model of this recipe needs its preprocessing")
    try:
        preprocessing = Preprocessing.from_canonical(Path(path).read_bytes())
    except ValueError as error:
        raise ModelRefused("the preprocessing cannot be read") from error
    if preprocessing.study_digest != study.digest():
        raise ModelRefused("the preprocessing was made for another study version")
    return preprocessing


def _without_values(error: Exception) -> str:
    """Where it happened and what kind it was. Texts of errors may quote a row, so they are left out."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
    return "\n".join([f"the job failed: {type(error).__name__}", *lines, ""])
