"""Rows out of a gradient: what somebody who sees one update of a site can tell about its patients.

The attacker knows the model, the rules by which rows become inputs, how many rows made the gradient, and tries rows
until their gradient points where the observed one does: Geiping et al. (NeurIPS 2020, arXiv 2003.14053) after Zhu, Liu
and Han (NeurIPS 2019, arXiv 1906.08935), for tables as in Vero et al. (ICML 2023, arXiv 2210.01785): categories as
mixtures of their levels. A single row comes out of the first layer without trying: its weights' gradient is the row
times the bias' gradient. All observations and starts are searched at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cohortium_connector.training.base import Floats
from cohortium_protocol.parameters import Layout
from cohortium_protocol.statistics import NumberInput, Preprocessing


@dataclass(frozen=True, slots=True)
class Search:
    """How long an attacker tries: random starts for each observation, and steps from each."""

    starts: int = 4
    steps: int = 600
    lr: float = 0.1


@dataclass(frozen=True, slots=True)
class Block:
    """Columns of one input: a number (`width` 1), a number with a flag for missing (2), or a category's levels."""

    start: int
    width: int
    number: bool


def blocks_of(rules: Preprocessing) -> tuple[Block, ...]:
    """The inputs in their order."""
    found, start = [], 0
    for feature in rules.features:
        width = len(feature.input_names())
        found.append(Block(start, width, isinstance(feature, NumberInput)))
        start += width
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Inverter:
    """Finds rows whose gradient is like an observed one, at the model `base`."""

    layout: Layout
    base: Floats
    blocks: tuple[Block, ...]
    search: Search = Search()

    def rows_behind(self, observed: Sequence[Floats], rows: int, seed: int) -> Floats:
        """For each observed gradient the `rows` inputs that explain it best: (observations, rows, inputs)."""
        targets = torch.from_numpy(np.stack(observed)).double()
        targets = targets / targets.norm(dim=1, keepdim=True).clamp_min(1e-300)
        found, misfits = self._searched(targets, rows, seed)
        if rows == 1:
            solved = self._solved(observed)
            found = torch.cat([found, solved[:, None]], dim=1)
            misfits = torch.cat([misfits, self._solved_misfits(solved, targets)], dim=1)
        best = misfits.argmin(dim=1)
        chosen: Floats = found[torch.arange(len(best)), best].float().numpy()
        return chosen

    def _searched(self, targets: Tensor, rows: int, seed: int) -> tuple[Tensor, Tensor]:
        """Candidates (observations, starts, rows, inputs) and how far their gradients point elsewhere: 1 − cosine."""
        chance = torch.Generator().manual_seed(seed)
        count, inputs = len(targets) * self.search.starts, sum(block.width for block in self.blocks)
        hidden = torch.randn(count, rows, inputs, generator=chance, dtype=torch.float64).requires_grad_()
        labels = torch.randn(count, rows, generator=chance, dtype=torch.float64).requires_grad_()
        wanted = targets.repeat_interleave(self.search.starts, dim=0)
        optimizer = torch.optim.Adam([hidden, labels], lr=self.search.lr)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.search.steps)
        for _ in range(self.search.steps):
            optimizer.zero_grad()
            self._misfit(self._inputs(hidden), torch.sigmoid(labels), wanted).sum().backward()
            optimizer.step()
            falling.step()
        with torch.no_grad():
            shown = self._inputs(hidden)
            misfit = self._misfit(shown, torch.sigmoid(labels), wanted)
        shape = (len(targets), self.search.starts)
        return shown.reshape(*shape, rows, inputs), misfit.reshape(shape)

    def _inputs(self, hidden: Tensor) -> Tensor:
        """Free numbers as inputs that a row could have: flags between 0 and 1, levels that add up to 1."""
        return torch.cat(list(self._parts(hidden)), dim=2)

    def _parts(self, hidden: Tensor) -> Iterator[Tensor]:
        for block in self.blocks:
            part = hidden[:, :, block.start : block.start + block.width]
            if not block.number:
                yield torch.softmax(part, dim=2)
                continue
            yield part[:, :, :1]
            if block.width == 2:
                yield torch.sigmoid(part[:, :, 1:])

    def _misfit(self, inputs: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
        gradient = gradients(self.layout, self.base, inputs, labels)
        return 1 - torch.nn.functional.cosine_similarity(gradient, wanted, dim=1, eps=1e-30)

    def _solved(self, observed: Sequence[Floats]) -> Tensor:
        """One row from the first layer: the gradient of the unit whose bias moved most, over its bias'."""
        weight, bias = self.layout.tensors[:2]
        rows = []
        for gradient in observed:
            biases = gradient[bias.offset : bias.offset + bias.size].astype(np.float64)
            unit = int(np.abs(biases).argmax())
            first = weight.offset + unit * weight.shape[1]
            divisor = biases[unit] if biases[unit] != 0 else 1.0
            rows.append(gradient[first : first + weight.shape[1]].astype(np.float64) / divisor)
        return torch.from_numpy(np.stack(rows))[:, None, :]

    def _solved_misfits(self, solved: Tensor, targets: Tensor) -> Tensor:
        """The better of both labels."""
        each = [self._misfit(solved, torch.full(solved.shape[:2], label).double(), targets) for label in (0.0, 1.0)]
        return torch.minimum(*each)[:, None]


def gradients(layout: Layout, base: Floats, inputs: Tensor, labels: Tensor) -> Tensor:
    """Gradients of the mean cross-entropy at `base`, one flat line for each of (candidates, rows, inputs); written out,
    so that they can themselves be differentiated by the inputs for all candidates at once."""
    tensors = [
        torch.from_numpy(np.array(base[tensor.offset : tensor.offset + tensor.size]).reshape(tensor.shape)).double()
        for tensor in layout.tensors
    ]
    pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
    seen, hidden = [inputs], inputs
    for weight, bias in pairs[:-1]:
        hidden = torch.relu(hidden @ weight.T + bias)
        seen.append(hidden)
    weight, bias = pairs[-1]
    backward = (torch.sigmoid(hidden @ weight.T + bias) - labels[:, :, None]) / inputs.shape[1]
    parts: list[Tensor] = []
    for place in range(len(pairs) - 1, -1, -1):
        flat = torch.einsum("cro,cri->coi", backward, seen[place]).flatten(1)
        parts = [flat, backward.sum(dim=1), *parts]
        if place:
            backward = (backward @ pairs[place][0]) * (seen[place] > 0)
    return torch.cat(parts, dim=1)


@dataclass(frozen=True, slots=True)
class Likeness:
    """How close guessed rows come to true ones. `error`: squared distance from each true row to the nearest guess, over
    that of a guess by rows of other patients (0 exact, 1 no better). `identified`: true rows that are, of all
    rows of the table, nearest to some guess."""

    error: float
    identified: int


def likeness(guesses: Floats, true: NDArray[np.int64], table: Floats, others: NDArray[np.int64]) -> Likeness:
    """`guesses` are inputs; `true` names the rows of `table` that were in the gradient, `others` rows that a guesser
    without a gradient would name, as many as there are guesses and none of them in it."""
    nearest = _distances(guesses, table).argmin(axis=1)
    same = _distances(table[nearest], table[true]) == 0
    reached = _distances(guesses, table[true]).min(axis=0).mean()
    guessed = _distances(table[others], table[true]).min(axis=0).mean()
    return Likeness(float(reached / guessed), int(same.any(axis=0).sum()))


def _distances(left: Floats, right: Floats) -> NDArray[np.float64]:
    """Squared distances, one line for each row of `left`."""
    differences = left[:, None, :].astype(np.float64) - right[None, :, :].astype(np.float64)
    return np.asarray(np.square(differences).sum(axis=2))
