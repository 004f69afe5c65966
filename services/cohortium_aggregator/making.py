"""What comes of an opened sum: the purpose of its window gives it a meaning. Blocking: call in a thread."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cohortium_aggregator.domain.states import Opening
from cohortium_aggregator.files import DataDir, complete_directory
from cohortium_aggregator.modelling import MadeModel, preprocessing_of, study_totals, write_first, write_next
from cohortium_aggregator.store.runs import ModelVersion, Rules, Run
from cohortium_aggregator.store.windows import SumWindow
from cohortium_aggregator.summing import IntegerSums, SumInputs, SumReader, open_integers, opened_mean
from cohortium_aggregator.tree_models import NO_TREES, check_text, write_text
from cohortium_messages.privacy import LocalPrivacy
from cohortium_messages.runs import EvaluationResult
from cohortium_messages.secure_sum import NoiseSpec
from cohortium_messages.study import RandomTreesRecipe
from cohortium_privacy.evaluation import noisy_evaluation
from cohortium_privacy.public_inputs import check_statistics, public_rules
from cohortium_privacy.windows import formal, total_sigma, update_scale
from cohortium_protocol.codec import FloatVector, GridCodec, IntegerCodec, TailSums
from cohortium_protocol.parameters import ModelRefused
from cohortium_protocol.statistics import Preprocessing, SumsRefused
from cohortium_protocol.trees.binning import Binning, binning_from_sums, needs_refinement, refined
from cohortium_protocol.trees.evaluation import evaluation_from_sums, has_trees
from cohortium_protocol.trees.random_trees import next_model


@dataclass(frozen=True, slots=True)
class Job:
    """All that an opening needs, read at once."""

    window: SumWindow
    state: Opening
    run: Run
    newest: ModelVersion | None
    base: ModelVersion | None
    inputs: SumInputs

    @property
    def survivors(self) -> int:
        return len(self.inputs.survivors.members)


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A sum from which a model version came. `training_rows`: of a statistics sum. `refine`: some features need the
    refining sum before bins can be cut."""

    parent: ModelVersion | None
    rules: Rules
    model: MadeModel
    saturated: int
    training_rows: int | None = None
    refine: bool = False


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation sum."""

    result: EvaluationResult
    saturated: int


Opened = NewVersion | Evaluation


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes files under `data`, with so many `workers`. Raises `ProtocolError` for a sum that cannot be."""

    data: DataDir
    workers: int

    def make(self, job: Job, reader: SumReader) -> Opened:
        match job.window.session.params.purpose:
            case "statistics":
                return self._statistics(job, reader)
            case "refinement":
                return self._refinement(job, reader)
            case "update" if isinstance(job.run.study.recipe, RandomTreesRecipe):
                return self._random_trees(job, reader)
            case "update":
                return self._update(job, reader)
            case "evaluation":
                return self._evaluation(job, reader)
            case other:
                raise AssertionError(f"a {other} window opens no sum of its own")

    def _integers(self, job: Job, reader: SumReader) -> IntegerSums:
        vector = job.window.session.params.vector
        codec = IntegerCodec(vector, job.inputs.view.n)
        return open_integers(reader, codec, vector.dimension, job.survivors)

    def _statistics(self, job: Job, reader: SumReader) -> NewVersion:
        study = job.run.study
        sums = self._integers(job, reader)
        if formal(study) is not None:
            check_statistics(sums.values)
            rules = public_rules(study, job.survivors)
        elif has_trees(study):
            rules = binning_from_sums(study, sums.values, job.survivors)
        else:
            rules = preprocessing_of(study, sums.values, job.survivors)
        if isinstance(rules, Binning):
            return self._bins(job, None, rules, sums.tail)
        with complete_directory(self.data.model_dir(job.run.run_id, 0)) as folder:
            model = write_first(study, rules, folder)
        return NewVersion(None, rules, model, sums.tail.saturated, training_rows=_counted(job, rules, sums))

    def _refinement(self, job: Job, reader: SumReader) -> NewVersion:
        parent, rules = _of_trees(job.newest)
        sums = self._integers(job, reader)
        return self._bins(job, parent, refined(rules, sums.values), sums.tail)

    def _bins(self, job: Job, parent: ModelVersion | None, rules: Binning, tail: TailSums) -> NewVersion:
        """A version of bins alone: its model file is empty, for there is no tree yet."""
        number = 0 if parent is None else parent.version + 1
        with complete_directory(self.data.model_dir(job.run.run_id, number)) as folder:
            model = write_text(job.run.study, rules, NO_TREES, folder)
        refine = needs_refinement(rules)
        return NewVersion(parent, rules, model, tail.saturated, rules.training_rows, refine)

    def _update(self, job: Job, reader: SumReader) -> NewVersion:
        """The mean of the updates moves the newest model, whichever of the last ones each site started from."""
        parent = _existing(job.newest)
        rules = parent.preprocessing
        if not isinstance(rules, Preprocessing):
            raise ModelRefused("an update of numbers for a model of trees")
        target = self.data.model_dir(job.run.run_id, parent.version + 1)
        base = self.data.model_dir(job.run.run_id, parent.version)
        with complete_directory(target) as folder, self._mean(job, reader, folder) as (mean, tail):
            size, digest = write_next(job.run.study.federation.server, base, mean, folder)
        return NewVersion(parent, rules, MadeModel.of_numbers(size, digest, rules), tail.saturated)

    @contextmanager
    def _mean(self, job: Job, reader: SumReader, folder: Path) -> Iterator[tuple[FloatVector, TailSums]]:
        """The mean update and what the tail says. Of a noisy sum on a lattice: what it stands for."""
        params, study = job.window.session.params, job.run.study
        if params.vector.encoding == "integer":
            sums = self._integers(job, reader)
            scale = update_scale(study, _noise(job), job.survivors)
            yield (sums.values * scale).astype(np.float32), sums.tail
            return
        codec = GridCodec(params.vector, job.inputs.view.n)
        workspace = (folder, self.workers)
        with opened_mean(reader, codec, params.vector.dimension, job.survivors, workspace) as (mean, tail):
            if isinstance(study.privacy, LocalPrivacy) and (tail.weight != job.survivors or tail.saturated):
                raise SumsRefused("a site's weight or flag says something of its rows, which a private study forbids")
            yield mean, tail

    def _random_trees(self, job: Job, reader: SumReader) -> NewVersion:
        """The leaf sums of the round's trees, whose structure the study's seed gives, are their leaves' values."""
        parent, rules = _of_trees(job.newest)
        sums = self._integers(job, reader)
        study, round_ = job.run.study, job.window.session.params.round
        noise = job.window.session.params.noise
        spread = 0.0 if noise is None else total_sigma(study, "update", noise, job.survivors)
        text = next_model(study, round_, self._text(job, parent), sums.values, spread)
        with complete_directory(self.data.model_dir(job.run.run_id, parent.version + 1)) as folder:
            model = write_text(study, rules, text, folder)
        return NewVersion(parent, rules, model, sums.tail.saturated)

    def _text(self, job: Job, version: ModelVersion) -> bytes:
        return self.data.model_file(job.run.run_id, version.version, version.trees).read_bytes()

    def _evaluation(self, job: Job, reader: SumReader) -> Evaluation:
        base = _existing(job.base)
        sums = self._integers(job, reader)
        study, rules = job.run.study, base.preprocessing
        if formal(study) is not None:
            noisy = noisy_evaluation(study, sums.values, _noise(job), job.survivors, base.ref)
            return Evaluation(noisy, sums.tail.saturated)
        model = check_text(study, rules, self._text(job, base)) if isinstance(rules, Binning) else None
        found = evaluation_from_sums(study, sums.values, model, base.ref)
        return Evaluation(found, sums.tail.saturated)


def _noise(job: Job) -> NoiseSpec:
    noise = job.window.session.params.noise
    if noise is None:
        raise SumsRefused("a private study's sum has no noise")
    return noise


def _counted(job: Job, rules: Preprocessing, sums: IntegerSums) -> int:
    """Training rows: counted, or the study's public number."""
    return rules.training_rows if formal(job.run.study) is not None else study_totals(sums.values).training_rows


def _existing(version: ModelVersion | None) -> ModelVersion:
    if version is None:
        raise AssertionError("a window without the model that it starts from")
    return version


def _of_trees(version: ModelVersion | None) -> tuple[ModelVersion, Binning]:
    found = _existing(version)
    if not isinstance(found.preprocessing, Binning):
        raise ModelRefused("a sum for trees, over a model that has none")
    return found, found.preprocessing
