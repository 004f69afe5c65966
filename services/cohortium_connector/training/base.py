"""The trainer port: what a way of training must do. `torch_` and `noise` are its adapters."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cohortium_messages.study import LightgbmRecipe, RandomTreesRecipe, Study
from cohortium_protocol.parameters import SLICE, Layout, ModelRefused, from_safetensors

Floats = NDArray[np.float32]


class NonFiniteUpdate(ArithmeticError):
    """Training left the numbers: the update holds a NaN or an infinity, and nothing of it is kept."""


class SiteRefusal(Exception):
    """This site cannot do the job. `code`, `column` and `count` may be reported; `local` is for the site's own log."""

    def __init__(self, code: str, column: str = "", count: int = 0, local: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.column = column
        self.count = count
        self.local = local


@dataclass(frozen=True, slots=True)
class Examples:
    """Model inputs and labels of one part of a site's rows."""

    inputs: Floats
    labels: Floats


@dataclass(frozen=True, slots=True)
class Trained:
    """A local model in slices of float32, in layout order, and the mean training loss of the last epoch."""

    slices: Iterator[Floats]
    loss: float | None


class Trainer(Protocol):
    """Trains and scores models of one layout. Holds no state between calls.

    The same arguments give the same result on the same machine, so that a task done again after a crash does not make
    a second, different update.
    """

    layout: Layout

    def train(self, base: Floats, examples: Examples, *, epochs: int, seed: int) -> Trained:
        """Train from `base`, which is not changed. `examples` has at least one row, unless `reads_rows` is false."""
        ...

    def scores(self, model: Floats, inputs: Floats) -> NDArray[np.float64]:
        """The probability of label 1 for each row."""
        ...


def trainer_for(study: Study, inputs: int) -> Trainer:
    """The adapter for the study's recipe. A training library is imported only when it is chosen. Trees have none: see
    `tree_jobs` and `trees_work`."""
    if study.recipe.trainer == "benchmark.noise":
        from cohortium_connector.training.noise import NoiseTrainer

        return NoiseTrainer(study.recipe)
    if isinstance(study.recipe, LightgbmRecipe | RandomTreesRecipe):
        raise ModelRefused(f"{study.recipe.trainer} does not train in rounds of averaging")
    from cohortium_connector.training.torch_ import TorchTrainer

    return TorchTrainer(study.recipe, inputs, study.federation.proximal_mu)


def reads_rows(study: Study) -> bool:
    """False for the benchmark's trainer, which needs neither a table nor preprocessing."""
    return study.recipe.trainer != "benchmark.noise"


def open_model(path: Path, layout: Layout) -> Floats:
    """A model file: flat little-endian float32, or `.safetensors`. Flat files are mapped, not read. Finite, or refused.

    Raises `ModelRefused` when the file is not a model of this layout.
    """
    if path.suffix == ".safetensors":
        return from_safetensors(layout, path.read_bytes())
    if path.stat().st_size != 4 * layout.size:
        raise ModelRefused(f"the model file has {path.stat().st_size} bytes, not {4 * layout.size}")
    model: Floats = np.memmap(path, dtype="<f4", mode="r")
    for start in range(0, layout.size, SLICE):
        if not np.isfinite(model[start : start + SLICE]).all():
            raise ModelRefused("the model holds a value that is not finite")
    return model


def write_update(path: Path, base: Floats, trained: Trained) -> float:
    """Write local − base as flat float32, and return its L2 norm. The name appears only when the file is complete.

    Raises `NonFiniteUpdate`, and then leaves no file.
    """
    part = path.with_name(path.name + ".part")
    squares, start = 0.0, 0
    try:
        with part.open("wb") as file:
            for piece in trained.slices:
                update = (piece - base[start : start + piece.size]).astype("<f4", copy=False)
                if not np.isfinite(update).all():
                    raise NonFiniteUpdate("the update holds a value that is not finite")
                squares += float(np.square(update, dtype=np.float64).sum())
                file.write(update.data)
                start += piece.size
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return float(np.sqrt(squares))


def write_words(path: Path, words: NDArray[np.int64]) -> None:
    """Write a vector as little-endian int64. The name appears only when the file is complete."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(words.astype("<i8", copy=False).tobytes())
    part.replace(path)
