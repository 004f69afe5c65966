"""One site's part of a training session with LightGBM, from its rows to the last agreement.

The same rows, the same journal and the same answers give the same trees: a session that ended early is gone on with by
growing what stands again from the journal, and asking only from there on.
"""

import hashlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training import lightgbm_
from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.collectives import Collectives
from cohortium_connector.training.course import Course
from cohortium_connector.training.jobs import TrainTrees
from cohortium_connector.training.journal import Beginning, Journal
from cohortium_connector.training.live_wire import ChildBridge
from cohortium_connector.training.session import Session
from cohortium_connector.training.splits import Splits
from cohortium_connector.training.stopping import Stopping
from cohortium_connector.training.weights import row_bound, row_weights, validation_rows
from cohortium_messages.study import LightgbmRecipe, Study
from cohortium_protocol.encoding import sha256
from cohortium_protocol.parameters import ModelRefused
from cohortium_protocol.statistics import Rows
from cohortium_protocol.trees.binning import needs_refinement, tree_columns
from cohortium_protocol.trees.bins import Binning, CategoryBins
from cohortium_protocol.trees.text import ModelText, check_model_text, header_of, tree_blocks

Floats = NDArray[np.float64]
_ONE_LEAF = re.compile(r"^num_leaves=1$", re.MULTILINE)
_LEAF_COUNT = re.compile(r"^leaf_count=\d+$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Played:
    """How a session went that came to its end."""

    rounds: int
    best_round: int
    replayed: int
    steps: int


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a site's rows as LightGBM takes them."""

    columns: Floats
    labels: Floats


def data_digest(rows: Rows) -> bytes:
    """SHA-256 over rows as the study reads them: every column, the labels, and their order."""
    digest = hashlib.sha256(b"cohortium/rows/1" + len(rows).to_bytes(8, "little"))
    for name, column in [*rows.columns.items(), ("", rows.labels)]:
        wide = column.astype("<f8")
        wide[np.isnan(wide)] = np.nan  # one of the many bit patterns
        digest.update(sha256(name.encode()) + sha256(wide.tobytes()))
    return digest.digest()


def check_trainable(study: Study, binning: Binning, train: Rows) -> None:
    """Raises what stands against training on these rows, before a session begins."""
    if needs_refinement(binning):
        raise ModelRefused("the bins wait for their second sum")
    recipe = _recipe(study)
    part = train.take(~validation_rows(study, recipe, len(train)))
    if study.objective == "poisson" and not part.labels.any():
        raise SiteRefusal(
            "LABELS_ALL_ZERO",
            study.dataset.label.name,
            len(part),
            "LightGBM does not train its poisson objective on rows whose counts are all 0; use objective: regression",
        )


def checked_model(study: Study, binning: Binning, data: bytes) -> ModelText:
    """The model text of a `lightgbm` study. Raises `TreeModelRefused` before LightGBM sees anything of it."""
    recipe = _recipe(study)
    objective = study.objective
    assert objective is not None  # noqa: S101 - a study of trees has one
    return check_model_text(
        data,
        features=binning.feature_names(),
        classes=study.trees_per_round,
        max_trees=study.boosting_rounds * study.trees_per_round,
        max_leaves=recipe.params.num_leaves,
        objective=objective,
        categories={bins.name: bins.codes for bins in binning.features if isinstance(bins, CategoryBins)},
    )


def train_trees(
    job: TrainTrees,
    binning: Binning,
    train: Rows,
    bridge: ChildBridge,
    threads: int,
    interrupted: Callable[[], bool],
) -> Played:
    """Play the session to its end.

    Raises `SessionStopped`, `BridgeDead`, `UnknownCollective`, `SplitRefused`, `JournalUnusable`, `OutOfBounds`,
    whatever LightGBM says, and `KeyboardInterrupt`; then the journal holds all that stood.
    """
    if data_digest(train) != job.data_digest:
        raise SiteRefusal("DATA_CHANGED", local="the table is not the one that the run began with")
    check_trainable(job.study, binning, train)
    with closing(_journal(job, _owner(job, binning))) as journal:
        return _Training(job, binning, train, bridge, journal, threads, interrupted).play()


class _Training:
    def __init__(
        self,
        job: TrainTrees,
        binning: Binning,
        train: Rows,
        bridge: ChildBridge,
        journal: Journal,
        threads: int,
        interrupted: Callable[[], bool],
    ) -> None:
        self._job = job
        self._study = study = job.study
        self._recipe = recipe = _recipe(study)
        held_out = validation_rows(study, recipe, len(train))
        self._training = _part(binning, train.take(~held_out))
        self._validation = _part(binning, train.take(held_out))
        self._base_rounds, text = journal.beginning.rounds, journal.beginning.text
        self._base = lightgbm_.open_booster(text) if text and checked_model(study, binning, text) else None
        self._bins = lightgbm_.make_bins(binning)
        self._parameters = lightgbm_.booster_parameters(study, recipe, self._bins, threads=threads)
        self._interrupted = interrupted
        self._counts: list[int] = []
        self._session = Session(
            bridge,
            journal,
            chain=job.strict.chain,
            sites=job.sites,
            own_rows=len(self._training.labels),
            total_rows=job.strict.total_rows,
            keeps_histograms=recipe.params.extra_trees,
        )
        self._session.bound_cells(row_bound(study, recipe))
        self._stopping = Stopping(study, recipe, self._validation.labels, self._base_scores(self._validation))

    def play(self) -> Played:
        """Grow, agree, decide, until the training is over everywhere."""
        data = lightgbm_.training_set(
            self._bins,
            self._training.columns,
            self._training.labels,
            weights=row_weights(self._study, self._recipe, self._training.labels),
            scores=None if self._base is None else self._base_scores(self._training),
        )
        with self._collectives() as network:
            booster = _guarded(
                network, lambda: lightgbm_.make_booster(self._parameters, data, machines=self._job.sites)
            )
            self._session.agree_header(header_of(booster.model_to_string(num_iteration=1)))
            rounds = self._grow(network, booster)
            best = self._stopping.best_round(rounds)
            self._session.agree_end(best_round=best, rounds=rounds)
        return Played(rounds, best, self._session.replayed, self._session.steps)

    def _grow(self, network: Collectives, booster: Any) -> int:
        """Rounds that the model has in the end, those of its base included."""
        rounds = self._base_rounds
        over = self._base is not None and self._is_over(rounds)
        while rounds < self._job.strict.rounds and not over:
            network.begin_round()
            exhausted = _guarded(network, booster.update)
            if exhausted and rounds > 0:
                break  # no leaf anywhere can be split any more: LightGBM has taken the empty round back
            grown = rounds - self._base_rounds
            rounds += 1
            self._session.agree_round(rounds, _text_of_round(booster, grown))
            over = exhausted or self._is_over(rounds, booster)
        return rounds

    def _is_over(self, rounds: int, booster: Any = None) -> bool:
        if not Stopping.is_wanted(self._recipe.params):
            return False
        if booster is not None and len(self._validation.labels):
            place = rounds - self._base_rounds - 1
            self._stopping.add(lightgbm_.raw_scores(booster, self._validation.columns, start=place, rounds=1))
        return self._stopping.is_over(rounds, self._session.metric(self._stopping.words()))

    def _base_scores(self, part: Part) -> Floats:
        if self._base is not None and len(part.labels):
            return lightgbm_.raw_scores(self._base, part.columns)
        classes = self._study.trees_per_round
        return np.zeros((len(part.labels), classes) if classes > 1 else len(part.labels))

    def _collectives(self) -> Collectives:
        params = self._recipe.params
        splits = Splits(self._bins.columns, params.max_cat_threshold)
        course = Course(
            self._parameters["objective"],
            classes=self._study.trees_per_round,
            starts_from_average=params.boost_from_average or not self._bins.histogram_bytes,
            starts_from_model=self._base is not None,
            split_bytes=splits.pair_bytes,
        )
        return Collectives(
            lightgbm_.LIBRARY,
            self._session,
            course,
            splits,
            sites=self._job.sites,
            rank=self._job.index - 1,
            rows=len(self._training.labels),
            histogram_bytes=self._bins.histogram_bytes,
            counted=self._counted,
            interrupted=self._interrupted,
        )

    def _counted(self, total: int) -> None:
        self._counts.append(total)
        self._session.bound_cells(row_bound(self._study, self._recipe, tuple(self._counts)))


def _guarded(network: Collectives, work: Callable[[], Any]) -> Any:
    """What went wrong in a callback is the reason, not what LightGBM made of the zeros that it got instead."""
    try:
        done = work()
    except Exception:
        network.raise_kept()
        raise
    network.raise_kept()
    network.check_complete()
    return done


def _text_of_round(booster: Any, place: int) -> str:
    """The trees of one round, as text. In a tree without a split LightGBM writes how many rows this site has: 0
    here."""
    blocks = tree_blocks(booster.model_to_string(num_iteration=1, start_iteration=place))
    return "".join(_LEAF_COUNT.sub("leaf_count=0", block) if _ONE_LEAF.search(block) else block for block in blocks)


def _recipe(study: Study) -> LightgbmRecipe:
    if not isinstance(study.recipe, LightgbmRecipe):
        raise ModelRefused("the study is not one that LightGBM trains")
    return study.recipe


def _part(binning: Binning, rows: Rows) -> Part:
    return Part(tree_columns(binning, rows), rows.labels.astype(np.float64))


def _owner(job: TrainTrees, binning: Binning) -> bytes:
    """What a journal belongs to: with anything else, the same answers would grow other trees."""
    place = f"{job.sites} {job.index} {job.strict.total_rows} {lightgbm_.VERSION}".encode()
    return sha256(job.study.digest() + sha256(binning.canonical()) + job.data_digest + place)


def _journal(job: TrainTrees, owner: bytes) -> Journal:
    path, strict = Path(job.journal_path), job.strict
    if strict.from_model is not None:
        if job.base_model_path is None:
            raise ModelRefused("the session goes on from a model that is not here")
        return Journal.begin(
            path, owner, Beginning(strict.trees_done, strict.chain, Path(job.base_model_path).read_bytes())
        )
    if strict.trees_done:
        return Journal.resume(path, owner, strict.trees_done, strict.chain)
    return Journal.begin(path, owner, Beginning(0, strict.chain, b""))


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """An interrupt inside a callback from C++ would be lost there: it is kept, seen at the next wait, raised at the
    end."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen: list[float] = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(time.monotonic()))
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        raise KeyboardInterrupt
