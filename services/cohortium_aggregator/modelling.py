"""Model versions as files: the first one, and the step from one to the next. Blocking: call in a thread."""

import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cohortium_aggregator.files import PARAMETERS, opened
from cohortium_messages.study import LightgbmRecipe, NoiseRecipe, RandomTreesRecipe, ServerOptimizer, Study
from cohortium_protocol.codec import FloatVector
from cohortium_protocol.floats import FloatFile
from cohortium_protocol.parameters import SLICE, Layout, initial_slices, layout_of, model_hash
from cohortium_protocol.server_step import initial_state, state_names, step
from cohortium_protocol.statistics import Preprocessing, Totals, input_count, preprocessing_from_sums

STATISTICS_TOTALS = 4


@dataclass(frozen=True, slots=True)
class MadeModel:
    """What is known of a version once its files are written; `trees` as in `ModelVersion`."""

    parameters: int
    file_bytes: int
    parameters_sha256: bytes
    model_hash: bytes
    trees: int | None = None

    @classmethod
    def of_numbers(cls, parameters: int, sha256: bytes, rules: Preprocessing) -> "MadeModel":
        """A model of float32 numbers under these rules."""
        return cls(parameters, 4 * parameters, sha256, model_hash(sha256, rules.canonical()))


def model_layout(study: Study) -> Layout:
    """The tensors of this study's model; known before any sum is. Raises `ValueError` for a model of trees."""
    recipe = study.recipe
    if isinstance(recipe, LightgbmRecipe | RandomTreesRecipe):
        raise ValueError(f"{recipe.trainer} makes no tensors")
    return layout_of(recipe, input_count(study))


def state_file(name: str) -> str:
    return f"state-{name}.f32"


def study_totals(sums: NDArray[np.int64]) -> Totals:
    """The four counts at the end of a statistics sum, whatever stands before them."""
    return Totals(*(int(value) for value in sums[-STATISTICS_TOTALS:]))


def preprocessing_of(study: Study, sums: NDArray[np.int64], sites: int) -> Preprocessing:
    """The rules of the model's inputs. The noise benchmark has none. Raises `SumsRefused`."""
    if isinstance(study.recipe, NoiseRecipe):
        rows = max(1, study_totals(sums).training_rows)
        return Preprocessing(
            study_id=study.name,
            study_digest=study.digest(),
            features=(),
            label=study.dataset.label.name,
            training_rows=rows,
            sites=sites,
        )
    return preprocessing_from_sums(study, sums, sites)


def write_first(study: Study, preprocessing: Preprocessing, folder: Path) -> MadeModel:
    """Version 0 into `folder`: the parameters that the study's seed gives."""
    layout = model_layout(study)
    digest = hashlib.sha256()
    with (folder / PARAMETERS).open("wb") as file:
        for piece in initial_slices(layout, study.federation.seed):
            content = piece.astype("<f4", copy=False).tobytes()
            digest.update(content)
            file.write(content)
    return MadeModel.of_numbers(layout.size, digest.digest(), preprocessing)


def write_next(optimizer: ServerOptimizer, base: Path, mean: FloatVector, folder: Path) -> tuple[int, bytes]:
    """One server step from the version in `base` to one in `folder`, slice by slice; size and digest of the result.

    Raises `StepDiverged`, and leaves `folder` in pieces then. The state starts afresh where `base` has none.
    """
    size = (base / PARAMETERS).stat().st_size // 4
    names = state_names(optimizer)
    digest = hashlib.sha256()
    with ExitStack() as stack:
        has_state = all((base / state_file(name)).exists() for name in names)
        sources = (PARAMETERS, *map(state_file, names)) if has_state else (PARAMETERS,)
        reading = [FloatFile(stack.enter_context(opened(base / source, os.O_RDONLY)), size) for source in sources]
        writing = [stack.enter_context((folder / file).open("wb")) for file in (PARAMETERS, *map(state_file, names))]
        for start in range(0, size, SLICE):
            where = slice(start, min(start + SLICE, size))
            model, *state = (vector[where] for vector in reading)
            known = tuple(state) if has_state else initial_state(optimizer, where.stop - where.start)
            stepped = step(optimizer, model, mean[where], known)
            for file, part in zip(writing, (stepped.model, *stepped.state), strict=True):
                file.write(part.astype("<f4", copy=False).tobytes())
            digest.update(stepped.model.astype("<f4", copy=False).tobytes())
    return size, digest.digest()
