"""What comes of an opened sum: the purpose of its window gives it a meaning. Blocking: call in a thread."""

from dataclasses import dataclass

from cohortium_aggregator.domain.states import Opening
from cohortium_aggregator.files import DataDir, complete_directory
from cohortium_aggregator.modelling import MadeModel, preprocessing_of, study_totals, write_first, write_next
from cohortium_aggregator.store.runs import ModelVersion, Rules, Run
from cohortium_aggregator.store.windows import SumWindow
from cohortium_aggregator.summing import IntegerSums, SumInputs, SumReader, open_integers, opened_mean
from cohortium_aggregator.tree_models import NO_TREES, check_text, write_text
from cohortium_messages.runs import EvaluationResult
from cohortium_messages.study import RandomTreesRecipe
from cohortium_protocol.codec import GridCodec, IntegerCodec, TailSums
from cohortium_protocol.parameters import ModelRefused
from cohortium_protocol.statistics import Preprocessing
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
        if has_trees(study):
            rules = binning_from_sums(study, sums.values, job.survivors)
            return self._bins(job, None, rules, sums.tail)
        preprocessing = preprocessing_of(study, sums.values, job.survivors)
        with complete_directory(self.data.model_dir(job.run.run_id, 0)) as folder:
            model = write_first(study, preprocessing, folder)
        rows = study_totals(sums.values).training_rows
        return NewVersion(None, preprocessing, model, sums.tail.saturated, training_rows=rows)

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
        vector, parent = job.window.session.params.vector, _existing(job.newest)
        rules = parent.preprocessing
        if not isinstance(rules, Preprocessing):
            raise ModelRefused("an update of numbers for a model of trees")
        codec = GridCodec(vector, job.inputs.view.n)
        target = self.data.model_dir(job.run.run_id, parent.version + 1)
        base = self.data.model_dir(job.run.run_id, parent.version)
        with complete_directory(target) as folder:
            workspace = (folder, self.workers)
            with opened_mean(reader, codec, vector.dimension, job.survivors, workspace) as (mean, tail):
                size, digest = write_next(job.run.study.federation.server, base, mean, folder)
        return NewVersion(parent, rules, MadeModel.of_numbers(size, digest, rules), tail.saturated)

    def _random_trees(self, job: Job, reader: SumReader) -> NewVersion:
        """The leaf sums of the round's trees, whose structure the study's seed gives, are their leaves' values."""
        parent, rules = _of_trees(job.newest)
        sums = self._integers(job, reader)
        study, round_ = job.run.study, job.window.session.params.round
        text = next_model(study, round_, self._text(job, parent), sums.values)
        with complete_directory(self.data.model_dir(job.run.run_id, parent.version + 1)) as folder:
            model = write_text(study, rules, text, folder)
        return NewVersion(parent, rules, model, sums.tail.saturated)

    def _text(self, job: Job, version: ModelVersion) -> bytes:
        return (self.data.model_dir(job.run.run_id, version.version) / version.file).read_bytes()

    def _evaluation(self, job: Job, reader: SumReader) -> Evaluation:
        base = _existing(job.base)
        sums = self._integers(job, reader)
        study, rules = job.run.study, base.preprocessing
        model = check_text(study, rules, self._text(job, base)) if isinstance(rules, Binning) else None
        found = evaluation_from_sums(study, sums.values, model, base.ref)
        return Evaluation(found, sums.tail.saturated)


def _existing(version: ModelVersion | None) -> ModelVersion:
    if version is None:
        raise AssertionError("a window without the model that it starts from")
    return version


def _of_trees(version: ModelVersion | None) -> tuple[ModelVersion, Binning]:
    found = _existing(version)
    if not isinstance(found.preprocessing, Binning):
        raise ModelRefused("a sum for trees, over a model that has none")
    return found, found.preprocessing
