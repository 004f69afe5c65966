"""Clipped sums of per-patient gradients, through Opacus: exact for models that it can hold, ghost clipping for others.

Opacus computes a gradient for each record. Everything after that is ours: which records, the clip, the sum, the noise.
Records go through the network in physical batches of one fixed shape, the last one filled up with zeros, since the
libraries below choose their loops by the shape: so a sum of any size needs bounded memory, and what is in the records
beside a patient's does not change its gradient. Its place in the batch can, in the last bits; `lattice.SHRINK` has room
for that.
"""

import contextlib
import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.validators import ModuleValidator
from torch import nn

from cohortium_connector.training.base import Floats
from cohortium_privacy.lattice import MOST_AT_ONCE, MOST_PATIENTS, SHRINK, Lattice, Words

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From outputs and labels of n records to n losses."""

MEMORY_BYTES: Final = 256 << 20
"""What the gradients of one physical batch may take, about."""
BYTES_A_NUMBER: Final = 24
"""Of a per-record gradient: twice in Opacus in binary32, and a scaled copy in binary64 with its square."""
MOST_RECORDS: Final = 256


class ModelNotPrivate(ValueError):
    """The network mixes records, or keeps statistics of them: no patient's own gradient exists."""


@dataclass(frozen=True, slots=True)
class PatientData:
    """A site's training records, n in the first dimension of both arrays.

    `patients`: for each record the number of its patient, 0 … P − 1; None where each record is a patient of its own.
    Raises `ValueError` for arrays that do not fit each other.
    """

    inputs: npt.NDArray[np.float32]
    labels: npt.NDArray[Any]
    patients: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels) or len(self.inputs) > MOST_PATIENTS:
            raise ValueError(
                f"{len(self.inputs)} records and {len(self.labels)} labels; at most {MOST_PATIENTS} of both"
            )
        if self.patients is not None:
            if self.patients.shape != (len(self.inputs),):
                raise ValueError(
                    f"{self.patients.shape} patients for {len(self.inputs)} records; there is one for each"
                )
            if len(self.patients) and (self.patients.min() < 0 or not np.bincount(self.patients).all()):
                raise ValueError("patients are not numbered from 0 without gaps; number them so")

    @property
    def count(self) -> int:
        """Patients."""
        if self.patients is None:
            return len(self.inputs)
        return int(self.patients.max()) + 1 if len(self.patients) else 0

    def digest(self) -> bytes:
        """SHA-256 of all records: names what a step was made over."""
        hashed = hashlib.sha256()
        for array in (self.inputs, self.labels, self.patients):
            hashed.update(f"{None if array is None else (array.dtype.str, array.shape)};".encode())
            if array is not None:
                hashed.update(np.ascontiguousarray(array).data)
        return hashed.digest()


@dataclass(frozen=True, slots=True)
class LastingData(PatientData):
    """Records that nobody changes as long as this object is used, for many steps over them: they are hashed once."""

    known: list[bytes] = field(default_factory=list, init=False, repr=False, compare=False)

    def digest(self) -> bytes:
        """SHA-256 of the records as they were when it was first asked for."""
        if not self.known:
            self.known.append(PatientData.digest(self))
        return self.known[0]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A network that has a gradient for each record, and what was changed for it, in plain words."""

    module: nn.Module
    changes: tuple[str, ...]


def prepared(module: nn.Module) -> Prepared:
    """The network itself where nothing is wrong with it, otherwise a copy with other layers as Opacus has them, such as
    GroupNorm for BatchNorm. All sites must train the same one, so the study has to declare it so changed.

    Raises `ModelNotPrivate` where a layer cannot be exchanged, or there is nothing to train.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ModelNotPrivate("the network has no parameter to train; let some require a gradient")
    if not ModuleValidator.validate(module.train(), strict=False):
        return Prepared(module, ())
    fixed, changes = _exchanged(module)
    if errors := ModuleValidator.validate(fixed, strict=False):
        kinds = ", ".join(sorted({type(error).__name__ for error in errors}))
        raise ModelNotPrivate(f"the network has layers without a gradient for each record ({kinds}); exchange them")
    return Prepared(fixed, changes)


def _exchanged(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy with Opacus' replacements, and what they are. (`ModuleValidator.fix` would copy by pickling.)"""
    fixed = copy.deepcopy(module)
    changes = []
    for name, layer in module.named_modules():
        exchange = ModuleValidator.FIXERS.get(type(layer))
        if exchange is None:
            continue
        new = exchange(layer)
        changes.append(f"{name or 'network'}: {type(layer).__name__} became {type(new).__name__}")
        if not name:
            return new, tuple(changes)
        above, _, own = name.rpartition(".")
        setattr(fixed.get_submodule(above), own, new)
    return fixed, tuple(changes)


def dimension_of(module: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def widest_layer(module: nn.Module) -> int:
    """Most numbers of a layer's gradient that ghost clipping still makes for each record; 1 where it makes none."""
    norms = GradSampleModuleFastGradientClipping.NORM_SAMPLERS
    layers = [layer for layer in module.modules() if type(layer) not in norms]
    return max(
        (parameter.numel() for layer in layers for parameter in layer.parameters(recurse=False)),
        default=1,
    )


def physical_records(dimension: int, expected_batch: float, memory_bytes: int = MEMORY_BYTES) -> int:
    """Records that go through the network at once: a power of two that memory allows, and not many more than a batch is
    expected to have. From public numbers alone, so that it does not change with a patient."""
    room = memory_bytes // (BYTES_A_NUMBER * dimension)
    most = min(MOST_RECORDS, max(1, room), 1 << max(0, math.ceil(math.log2(max(1.0, expected_batch)))))
    return 1 << (most.bit_length() - 1)


class ExactSums:
    """Sums of clipped gradients in fine steps of the lattice, exact once the gradients are there."""

    def __init__(self, module: nn.Module, loss: Loss, lattice: Lattice, records: int) -> None:
        """`records`: the physical batch (`physical_records`). The module gets hooks until `close`."""
        if not 1 <= records <= MOST_AT_ONCE:
            raise ValueError(f"a physical batch of {records} records; between 1 and {MOST_AT_ONCE}")
        if dimension_of(module) != lattice.dimension:
            raise ValueError(f"a lattice of {lattice.dimension} numbers for a network of {dimension_of(module)}")
        self._lattice = lattice
        self._loss = loss
        self._records = records
        self._wrapped = GradSampleModule(module.train(), loss_reduction="sum")
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def sum(self, data: PatientData, chosen: npt.NDArray[np.int64]) -> Words:
        """Over the records `chosen`, each of another patient; zeros where there is none."""
        total = np.zeros(self._lattice.dimension, dtype=np.int64)
        for part in _parts(chosen, self._records):
            inputs, labels = _padded(data, part, self._records)
            with _hook_warnings_off():
                self._loss(self._wrapped(inputs), labels).sum().backward()
            gradients = [_per_record(parameter)[: len(part)] for parameter in self._parameters]
            squares = np.zeros(len(part))
            for gradient in gradients:
                wide = gradient.astype(np.float64)
                squares += np.einsum("ij,ij->i", wide, wide)
            factors = self._lattice.factors(squares)
            total += np.concatenate([self._lattice.fine_sum(gradient, factors) for gradient in gradients])
            _forget(self._parameters)
        return total

    def close(self) -> None:
        """Take the hooks off the module."""
        self._wrapped.remove_hooks()
        _forget(self._parameters)


class GhostSums:
    """Sums of clipped gradients in binary32, without any patient's gradient in memory (ghost clipping, Li et al. 2021,
    arXiv 2110.05679): norms from a first pass back, the weighted sum from a second. For large models."""

    def __init__(self, module: nn.Module, loss: Loss, clip: float, records: int) -> None:
        """`records`: the physical batch (`physical_records`). The module gets hooks until `close`."""
        self._clip = clip * SHRINK
        self._loss = loss
        self._records = records
        self._wrapped = GradSampleModuleFastGradientClipping(
            module.train(), loss_reduction="sum", max_grad_norm=self._clip, use_ghost_clipping=True
        )
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def sum(self, data: PatientData, chosen: npt.NDArray[np.int64]) -> Floats:
        """Over the records `chosen`, each of another patient; zeros where there is none."""
        _forget(self._parameters)
        total = [torch.zeros_like(parameter) for parameter in self._parameters]
        for part in _parts(chosen, self._records):
            inputs, labels = _padded(data, part, self._records)
            counted = torch.arange(self._records) < len(part)
            losses, norms = self._losses_and_norms(inputs, labels)
            if not torch.isfinite(norms).all():  # those records count as nothing, and must not spoil the others' sum
                counted &= torch.isfinite(norms)
                inputs[~counted] = 0
                losses, norms = self._losses_and_norms(inputs, labels)
            factors = torch.where(counted, (self._clip / norms).clamp(max=1.0), torch.zeros_like(norms))
            self._wrapped.disable_hooks()
            with _hook_warnings_off():
                (losses * factors).sum().backward()
            self._wrapped.enable_hooks()
            for own, parameter in zip(total, self._parameters, strict=True):
                if parameter.grad is not None:
                    own += parameter.grad
            _forget(self._parameters)
        summed: Floats = torch.cat([own.reshape(-1) for own in total]).numpy()
        return summed

    def _losses_and_norms(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each record its loss, whose graph is kept, and the norm of its gradient."""
        with _hook_warnings_off():
            losses = self._loss(self._wrapped(inputs), labels)
            losses.sum().backward(retain_graph=True)
        norms = self._wrapped.get_norm_sample().detach()
        for parameter in self._parameters:
            parameter.grad = None
        return losses, norms

    def close(self) -> None:
        """Take the hooks off the module."""
        self._wrapped.remove_hooks()
        _forget(self._parameters)


def _parts(chosen: npt.NDArray[np.int64], records: int) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(chosen), records):
        yield chosen[start : start + records]


def _padded(data: PatientData, part: npt.NDArray[np.int64], records: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of these records, and zeros up to `records` of them."""
    inputs = np.zeros((records, *data.inputs.shape[1:]), dtype=np.float32)
    labels = np.zeros((records, *data.labels.shape[1:]), dtype=data.labels.dtype)
    inputs[: len(part)], labels[: len(part)] = data.inputs[part], data.labels[part]
    return torch.from_numpy(inputs), torch.from_numpy(labels)


def _per_record(parameter: torch.Tensor) -> Floats:
    gradient: Floats = parameter.grad_sample.reshape(len(parameter.grad_sample), -1).numpy()
    return gradient


def _forget(parameters: list[torch.Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None
        parameter.grad_sample = None


@contextlib.contextmanager
def _hook_warnings_off() -> Iterator[None]:
    """Opacus hooks the first layer too, whose inputs need no gradient; torch warns that the hook gets outputs only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield
