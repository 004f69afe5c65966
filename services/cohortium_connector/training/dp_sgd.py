"""DP-SGD (Abadi et al. 2016) at one site, and one site's part of a distributed step.

Local privacy (`train_private`): every step takes a Poisson sample of the patients, clips each one's gradient, adds all
of the noise itself, and moves the model. Distributed privacy (`gradient_share`): one step a round; the site's clipped
sum goes into the secure sum with a share of the noise, and the server moves the model.

What leaves are parameters or noised integers, nothing else: no loss, no count of a batch, no norm. Which step size,
which optimiser and how many steps must not depend on the rows either; the plan fixes them before.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cohortium_connector.training.base import Examples, Floats, Trained
from cohortium_connector.training.dp_gradients import (
    MEMORY_BYTES,
    ExactSums,
    GhostSums,
    Loss,
    ModelNotPrivate,
    PatientData,
    dimension_of,
    physical_records,
    prepared,
    widest_layer,
)
from cohortium_connector.training.dp_random import (
    Randomness,
    add_gaussian,
    choose_records,
    discrete_noise,
    noised,
    poisson_sample,
)
from cohortium_messages.study import LocalTraining
from cohortium_privacy.accounting import GaussianSteps
from cohortium_privacy.lattice import LEAST_SITE_SIGMA, Lattice, LatticeRefused, NoiseShare, Words
from cohortium_privacy.sampler import exact_sigma
from cohortium_protocol.encoding import f64, le64
from cohortium_protocol.parameters import Layout

EXACT_PARAMETERS: Final = 1_000_000
"""Up to here gradients are exact sums with exact discrete noise; larger models take ghost clipping and Gaussian noise
in binary64, rounded: in practice as good, but not proven to the last bit."""


@dataclass(frozen=True, slots=True)
class BatchRule:
    """How a plan makes a clipped sum. `clip`: largest L2 norm of a patient's gradient. `sampling_rate`: q.

    `expected_batch`: q times the public number of patients, which sums are divided by; the true number would tell
    whether one patient more is here. Raises `ValueError` for numbers that no plan has.
    """

    clip: float
    sampling_rate: float
    expected_batch: float

    def __post_init__(self) -> None:
        Lattice(self.clip, 1)
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate is {self.sampling_rate}; it lies above 0 and at most at 1")
        if not (math.isfinite(self.expected_batch) and self.expected_batch > 0):
            raise ValueError(f"expected_batch is {self.expected_batch}; it is a positive number")

    def canonical(self) -> bytes:
        return f64(self.clip) + f64(self.sampling_rate) + f64(self.expected_batch)


@dataclass(frozen=True, slots=True)
class PrivateRule:
    """What a plan says of one round of local private training. `noise_multiplier` z: noise over sensitivity.

    Raises `ValueError` for numbers that no plan has.
    """

    batch: BatchRule
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; there is at least one")
        self.event(self.steps)

    def event(self, steps: int) -> GaussianSteps:
        """What `steps` steps are accounted as."""
        return GaussianSteps(self.noise_multiplier, self.batch.sampling_rate, steps)

    def canonical(self) -> bytes:
        return self.batch.canonical() + f64(self.noise_multiplier) + le64(self.steps)


@dataclass(frozen=True, slots=True)
class PrivateTraining:
    """The trained numbers in the module's order, and what they cost: noisy steps as they were made, empty ones too."""

    parameters: Floats
    event: GaussianSteps


class NoisyMean(Protocol):
    """One step's mechanism."""

    def __call__(self, data: PatientData, chosen: npt.NDArray[np.int64], randomness: Randomness, step: int) -> Floats:
        """The noised sum of the chosen records' clipped gradients over the expected batch."""
        ...

    def close(self) -> None:
        """Leave the module as it was, but for its parameters."""
        ...


class ExactMean:
    """Exact sums on the lattice and exact discrete Gaussian noise of z·Δ₂."""

    def __init__(self, module: nn.Module, loss: Loss, rule: PrivateRule, memory_bytes: int = MEMORY_BYTES) -> None:
        """Raises `LatticeRefused` where z is so small that the noise is no Gaussian."""
        self._lattice = Lattice(rule.batch.clip, dimension_of(module))
        self._expected = rule.batch.expected_batch
        self.sigma = exact_sigma(rule.noise_multiplier * self._lattice.sensitivity)
        if self.sigma < LEAST_SITE_SIGMA:
            raise LatticeRefused(f"a noise_multiplier of {rule.noise_multiplier:g} is too little; lower epsilon")
        records = physical_records(self._lattice.dimension, self._expected, memory_bytes)
        self._sums = ExactSums(module, loss, self._lattice, records)

    def __call__(self, data: PatientData, chosen: npt.NDArray[np.int64], randomness: Randomness, step: int) -> Floats:
        words = self._lattice.rounded(self._sums.sum(data, chosen))
        words += discrete_noise(randomness.stream("noise", step), self.sigma, len(words))
        return self._lattice.value(words, self._expected).astype(np.float32)

    def close(self) -> None:
        self._sums.close()


class SnappedMean:
    """Ghost clipping, and Gaussian noise of z·C in binary64, rounded to a grid."""

    def __init__(self, module: nn.Module, loss: Loss, rule: PrivateRule, memory_bytes: int = MEMORY_BYTES) -> None:
        self._expected = rule.batch.expected_batch
        self.sigma = rule.noise_multiplier * rule.batch.clip
        records = physical_records(widest_layer(module), self._expected, memory_bytes)
        self._sums = GhostSums(module, loss, rule.batch.clip, records)

    def __call__(self, data: PatientData, chosen: npt.NDArray[np.int64], randomness: Randomness, step: int) -> Floats:
        total = self._sums.sum(data, chosen)
        add_gaussian(total, self.sigma, randomness.stream("noise", step))
        total /= np.float32(self._expected)
        return total

    def close(self) -> None:
        self._sums.close()


def mean_for(module: nn.Module, loss: Loss, rule: PrivateRule, memory_bytes: int = MEMORY_BYTES) -> NoisyMean:
    """The mechanism for a module of this size. Raises `ModelNotPrivate` or `LatticeRefused`."""
    _check(module)
    exact = dimension_of(module) <= EXACT_PARAMETERS
    return (ExactMean if exact else SnappedMean)(module, loss, rule, memory_bytes)


class PoissonRecords:
    """Poisson samples of a site's patients, one record of each, drawn uniformly from the patient's own."""

    def __init__(self, data: PatientData, rate: float) -> None:
        self._rate = rate
        self._patients = data.count
        self._order: npt.NDArray[np.int64] | None = None
        if data.patients is not None:
            self._order = np.argsort(data.patients, kind="stable")
            self._counts = np.bincount(data.patients).astype(np.int64)
            self._starts = np.cumsum(self._counts) - self._counts

    def draw(self, randomness: Randomness, step: int) -> npt.NDArray[np.int64]:
        """Places of the records of one step's sample; there may be none."""
        chosen = poisson_sample(randomness.stream("sample", step), self._patients, self._rate)
        if self._order is None or not len(chosen):
            return chosen
        which = choose_records(randomness.stream("records", step), self._counts[chosen])
        records: npt.NDArray[np.int64] = self._order[self._starts[chosen] + which]
        return records


def train_private(
    module: nn.Module,
    loss: Loss,
    data: PatientData,
    rule: PrivateRule,
    local: LocalTraining,
    randomness: Randomness,
    *,
    proximal_mu: float = 0.0,
    memory_bytes: int = MEMORY_BYTES,
) -> PrivateTraining:
    """Train `module` in place for `rule.steps` noisy steps, from the parameters that it has.

    The optimiser of `local` sees noised gradients only, so what it does with them costs nothing; its epochs and batch
    size do not count here. The same arguments and seed give the same parameters on the same machine.

    Raises `ModelNotPrivate` for a network that `prepared` would change, and `LatticeRefused`.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    anchors = [parameter.detach().clone() for parameter in parameters]
    own = randomness.bound(_digest(parameters), data.digest(), rule.canonical())
    records = PoissonRecords(data, rule.batch.sampling_rate)
    mean = mean_for(module, loss, rule, memory_bytes)
    optimizer = _optimizer(local, parameters)
    done = 0
    try:
        for step in range(rule.steps):
            with _torch_chance(own, step):
                gradient = mean(data, records.draw(own, step), own, step)
            _put_gradient(parameters, gradient)
            if proximal_mu:
                _pull_back(parameters, anchors, proximal_mu)
            optimizer.step()
            done += 1
    finally:
        mean.close()
    return PrivateTraining(_flat(parameters), rule.event(done))


class DistributedSteps:
    """A site's part of distributed steps: of one, or of many over the same rows, at the parameters that the module has
    when it is asked."""

    def __init__(
        self, module: nn.Module, loss: Loss, data: PatientData, batch: BatchRule, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        """The module gets hooks until `close`. Raises `ModelNotPrivate`."""
        _check(module)
        self._lattice = Lattice(batch.clip, dimension_of(module))
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._data, self._batch = data, batch
        self._records = PoissonRecords(data, batch.sampling_rate)
        physical = physical_records(self._lattice.dimension, batch.expected_batch, memory_bytes)
        self._sums = ExactSums(module, loss, self._lattice, physical)

    def share(self, share: NoiseShare, randomness: Randomness, round_: int) -> Words:
        """The clipped gradient sum of a Poisson sample on the lattice of (clip, dimension), plus the site's noise.

        Ready for the integer codec; the server scales the opened sum with `Lattice.value`. Each round has its own
        sample and noise.
        """
        own = randomness.bound(_digest(self._parameters), self._data.digest(), self._batch.canonical())
        with _torch_chance(own, round_):
            fine = self._sums.sum(self._data, self._records.draw(own, round_))
        return noised(self._lattice.rounded(fine), share, own.stream("noise", round_))

    def close(self) -> None:
        """Leave the module as it was."""
        self._sums.close()


def gradient_share(
    module: nn.Module,
    loss: Loss,
    data: PatientData,
    batch: BatchRule,
    share: NoiseShare,
    randomness: Randomness,
    *,
    round_: int,
    memory_bytes: int = MEMORY_BYTES,
) -> Words:
    """A site's part of one distributed step (`DistributedSteps.share`). Raises `ModelNotPrivate`."""
    with closing(DistributedSteps(module, loss, data, batch, memory_bytes)) as steps:
        return steps.share(share, randomness, round_)


def clipped_sum(
    module: nn.Module,
    loss: Loss,
    data: PatientData,
    chosen: npt.NDArray[np.int64],
    lattice: Lattice,
    expected_batch: float,
    *,
    memory_bytes: int = MEMORY_BYTES,
) -> Words:
    """Σ of the chosen records' gradients, each clipped, in fine steps of the lattice; without noise, not for release.

    `chosen`: places of records, each of another patient. One patient more or less moves the sum by at most the clip,
    exactly: in L2, `lattice.clip / lattice.fine_step` fine steps.
    """
    sums = ExactSums(module, loss, lattice, physical_records(lattice.dimension, expected_batch, memory_bytes))
    try:
        return sums.sum(data, chosen)
    finally:
        sums.close()


def network_of(layout: Layout) -> nn.Sequential:
    """The network of a layout of `torch.logistic`, `torch.mlp` or `torch.cnn`, whose parameters are in the layout's
    order. `prepared` has nothing to change in it."""
    layers: list[nn.Module] = [] if layout.image is None else [nn.Unflatten(1, layout.image)]
    *inner, last = (tensor.shape for tensor in layout.tensors[::2])
    for shape in inner:
        if len(shape) == 4:
            layers += [nn.Conv2d(shape[1], shape[0], 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
        else:
            layers += [nn.Linear(shape[1], shape[0]), nn.ReLU()]
    if layout.image is not None:
        layers.append(nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(last[1], last[0]))


def binary_losses(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of one logit for each record."""
    return nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(1), labels, reduction="none")


def train_layout(
    layout: Layout,
    base: Floats,
    examples: Examples | PatientData,
    rule: PrivateRule,
    local: LocalTraining,
    randomness: Randomness,
    *,
    proximal_mu: float = 0.0,
) -> Trained:
    """`train_private` for a model of a study, from `base`, one patient a row. It tells no loss, which is a release."""
    module = _network_at(layout, base)
    data = _patients(examples)
    done = train_private(module, binary_losses, data, rule, local, randomness, proximal_mu=proximal_mu)
    return Trained(iter((done.parameters,)), None)


def layout_share(
    layout: Layout,
    base: Floats,
    examples: Examples | PatientData,
    batch: BatchRule,
    share: NoiseShare,
    randomness: Randomness,
    *,
    round_: int,
) -> Words:
    """`gradient_share` for a model of a study at `base`, one patient a row."""
    module = _network_at(layout, base)
    data = _patients(examples)
    return gradient_share(module, binary_losses, data, batch, share, randomness, round_=round_)


class LayoutSteps:
    """`layout_share` for many rounds over the same rows: what a step needs is made once."""

    def __init__(self, layout: Layout, data: PatientData, batch: BatchRule) -> None:
        self._module = network_of(layout)
        self._steps = DistributedSteps(self._module, binary_losses, data, batch)

    def share(self, base: Floats, share: NoiseShare, randomness: Randomness, *, round_: int) -> Words:
        """The site's words at `base`, the same that `layout_share` has."""
        _put_numbers(self._module, base)
        return self._steps.share(share, randomness, round_)


def _patients(examples: Examples | PatientData) -> PatientData:
    return examples if isinstance(examples, PatientData) else PatientData(examples.inputs, examples.labels)


def _network_at(layout: Layout, base: Floats) -> nn.Sequential:
    module = network_of(layout)
    _put_numbers(module, base)
    return module


def _put_numbers(module: nn.Module, base: Floats) -> None:
    nn.utils.vector_to_parameters(torch.from_numpy(np.array(base, dtype=np.float32)), module.parameters())


def _check(module: nn.Module) -> None:
    if changes := prepared(module).changes:
        raise ModelNotPrivate(f"the network has layers that mix records ({'; '.join(changes)}); declare it so changed")


@contextmanager
def _torch_chance(randomness: Randomness, step: int) -> Iterator[None]:
    """What the network itself draws (dropout) comes from the step's seed too; torch's own generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(randomness.stream("torch", step).words(1)[0] >> np.uint64(1)))
        yield


def _digest(parameters: list[nn.Parameter]) -> bytes:
    hashed = hashlib.sha256()
    for parameter in parameters:
        hashed.update(np.ascontiguousarray(parameter.detach().numpy()).data)
    return hashed.digest()


def _put_gradient(parameters: list[nn.Parameter], gradient: Floats) -> None:
    start = 0
    for parameter in parameters:
        part = gradient[start : start + parameter.numel()]
        parameter.grad = torch.from_numpy(part).reshape(parameter.shape)
        start += parameter.numel()


def _pull_back(parameters: list[nn.Parameter], anchors: list[torch.Tensor], mu: float) -> None:
    """FedProx's term, of public numbers."""
    with torch.no_grad():
        for parameter, anchor in zip(parameters, anchors, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - anchor, alpha=mu)


def _optimizer(local: LocalTraining, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    kind = torch.optim.Adam if local.optimizer == "adam" else torch.optim.SGD
    return kind(parameters, lr=local.lr, weight_decay=local.weight_decay)


def _flat(parameters: list[nn.Parameter]) -> Floats:
    flat: Floats = torch.cat([parameter.detach().reshape(-1) for parameter in parameters]).numpy()
    return flat
