"""`benchmark.noise`: the parameters plus noise, in bounded memory, for measuring everything but training."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training.base import Examples, Floats, Trained
from cohortium_messages.study import NoiseRecipe
from cohortium_protocol.parameters import SLICE, layout_of

AMPLITUDE = 1e-3


class NoiseTrainer:
    """Adds uniform noise of ±1e-3. Reads no row."""

    def __init__(self, recipe: NoiseRecipe) -> None:
        self.layout = layout_of(recipe, 1)

    def train(self, base: Floats, examples: Examples, *, epochs: int, seed: int) -> Trained:  # noqa: ARG002 - the port
        """The noise depends on the seed alone; `examples` and `epochs` do not matter."""
        return Trained(self._slices(base, seed), None)

    def scores(self, model: Floats, inputs: Floats) -> NDArray[np.float64]:  # noqa: ARG002 - the port
        """A coin for every row: this model has learnt nothing."""
        return np.full(len(inputs), 0.5)

    def _slices(self, base: Floats, seed: int) -> Iterator[Floats]:
        generator = np.random.Generator(np.random.SFC64(seed))
        for start in range(0, self.layout.size, SLICE):
            piece = base[start : start + SLICE]
            noise = generator.random(piece.size, dtype=np.float32)
            noise -= np.float32(0.5)
            noise *= np.float32(2 * AMPLITUDE)
            noise += piece
            yield noise
