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
from cohortium_connector.training.collectives import Collectives, Machine
from cohortium_connector.training.course import Course
from cohortium_connector.training.jobs import TrainTrees
from cohortium_connector.training.journal import Beginning, Journal
from cohortium_connector.training.live_wire import ChildBridge
from cohortium_connector.training.session import Session, Share
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


def train_trees(job: TrainTrees, binning: Binning, train: Rows, bridge: ChildBridge, *, threads: int) -> Played:
    """Play the session to its end.

    Raises `SessionStopped`, `BridgeDead`, `UnknownCollective`, `SplitRefused`, `JournalUnusable`, `OutOfBounds`,
    whatever LightGBM says, and `KeyboardInterrupt`; then the journal holds all that stood.
    """
    if data_digest(train) != job.data_digest:
        raise SiteRefusal("DATA_CHANGED", local="the table is not the one that the run began with")
    check_trainable(job.study, binning, train)
    with closing(_journal(job, _owner(job, binning))) as journal:
        site = _Site(job.study, binning, train, _base(job.study, binning, journal.beginning), threads)
        return _Training(job, site, bridge, journal).play()


@dataclass(frozen=True, slots=True)
class _Base:
    """The model that a session goes on from, and its rounds; no model and none of them where it starts anew."""

    rounds: int
    booster: Any | None

    def scores(self, part: Part, classes: int) -> Floats:
        if self.booster is not None and len(part.labels):
            return lightgbm_.raw_scores(self.booster, part.columns)
        return np.zeros((len(part.labels), classes) if classes > 1 else len(part.labels))


class _Site:
    """This site's rows, split and binned, and what LightGBM is told of the study."""

    def __init__(self, study: Study, binning: Binning, train: Rows, base: _Base, threads: int) -> None:
        self.study = study
        self.recipe = recipe = _recipe(study)
        self.base = base
        held_out = validation_rows(study, recipe, len(train))
        self.training = _part(binning, train.take(~held_out))
        self.validation = _part(binning, train.take(held_out))
        self.bins = lightgbm_.make_bins(binning)
        self.parameters = lightgbm_.booster_parameters(study, recipe, self.bins, threads=threads)

    def training_set(self) -> Any:
        classes = self.study.trees_per_round
        return lightgbm_.training_set(
            self.bins,
            self.training.columns,
            self.training.labels,
            weights=row_weights(self.study, self.recipe, self.training.labels),
            scores=None if self.base.booster is None else self.base.scores(self.training, classes),
        )

    def course(self, splits: Splits) -> Course:
        return Course(
            self.parameters["objective"],
            classes=self.study.trees_per_round,
            starts_from_average=self.recipe.params.boost_from_average or not self.bins.histogram_bytes,
            starts_from_model=self.base.booster is not None,
            split_bytes=splits.pair_bytes,
        )


class _Training:
    def __init__(self, job: TrainTrees, site: _Site, bridge: ChildBridge, journal: Journal) -> None:
        self._rounds = job.strict.rounds
        self._site = site
        rows = len(site.training.labels)
        share = Share(
            sites=job.sites,
            own_rows=rows,
            total_rows=job.strict.total_rows,
            bound=lambda counts: row_bound(site.study, site.recipe, counts),
            keeps_histograms=site.recipe.params.extra_trees,
        )
        self._session = Session(bridge, journal, share, job.strict.chain)
        self._machine = Machine(job.sites, job.index - 1, rows, site.bins.histogram_bytes)
        scores = site.base.scores(site.validation, site.study.trees_per_round)
        self._stopping = Stopping(site.study, site.recipe, site.validation.labels, scores)

    def play(self) -> Played:
        """Grow, agree, decide, until the training is over everywhere."""
        site, machines = self._site, self._machine.sites
        data = site.training_set()
        splits = Splits(site.bins.columns, site.recipe.params.max_cat_threshold)
        course = site.course(splits)
        with Collectives(lightgbm_.LIBRARY, self._machine, self._session, course, splits) as network:
            booster = _guarded(network, lambda: lightgbm_.make_booster(site.parameters, data, machines=machines))
            self._session.agree_header(header_of(booster.model_to_string(num_iteration=1)))
            rounds = self._grow(network, booster)
            best = self._stopping.best_round(rounds)
            self._session.agree_end(best_round=best, rounds=rounds)
        return Played(rounds, best, self._session.replayed, self._session.steps)

    def _grow(self, network: Collectives, booster: Any) -> int:
        """Rounds that the model has in the end, those of its base included."""
        base = self._site.base
        rounds = base.rounds
        over = base.booster is not None and self._is_over(rounds)
        while rounds < self._rounds and not over:
            network.begin_round()
            exhausted = _guarded(network, booster.update)
            if exhausted and rounds > 0:
                break  # no leaf anywhere can be split any more: LightGBM has taken the empty round back
            place = rounds - base.rounds
            rounds += 1
            self._session.agree_round(rounds, _text_of_round(booster, place))
            self._follow(booster, place)
            over = exhausted or self._is_over(rounds)
        return rounds

    def _follow(self, booster: Any, place: int) -> None:
        columns = self._site.validation.columns
        if Stopping.is_wanted(self._site.recipe.params) and len(columns):
            self._stopping.add(lightgbm_.raw_scores(booster, columns, start=place, rounds=1))

    def _is_over(self, rounds: int) -> bool:
        if not Stopping.is_wanted(self._site.recipe.params):
            return False
        return self._stopping.is_over(rounds, self._session.metric(self._stopping.words()))


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


def _base(study: Study, binning: Binning, beginning: Beginning) -> _Base:
    """Raises `TreeModelRefused` before LightGBM sees a text that is not one of its own."""
    if not beginning.text:
        return _Base(beginning.rounds, None)
    checked_model(study, binning, beginning.text)
    return _Base(beginning.rounds, lightgbm_.open_booster(beginning.text))


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
