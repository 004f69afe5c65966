"""A model as one flat array of float32, and its tensors as places in it.

Numpy only: who aggregates, publishes or checks a model needs no training library. The flat array in layout order is
what is trained, clipped, summed, stepped and hashed; safetensors is the form in which it is published.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohortium_messages.study import CnnRecipe, GradientRecipe, MlpRecipe, NoiseRecipe
from cohortium_protocol.encoding import H
from cohortium_protocol.errors import RemoteFault

MODEL_LABEL = b"cohortium/model/1"
INIT_LABEL = b"cohortium/initial-parameters/1"
SLICE = 1 << 20
"""Parameters handled at a time where a whole model need not be in memory."""

MAX_HEADER_BYTES = 1 << 20


class ModelRefused(RemoteFault, ValueError):
    """A model file is not what the study's recipe makes: a tensor is missing, extra, misshapen or not finite."""

    code = "MODEL_REFUSED"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor; `offset` counts parameters from the start of the flat array."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of one model, in order and without gaps."""

    trainer: str
    tensors: tuple[Tensor, ...]
    image: tuple[int, int, int] | None = None
    """Channels, height and width that the inputs are folded to, where the first layers are convolutions."""

    @property
    def size(self) -> int:
        """Parameters in all."""
        return sum(tensor.size for tensor in self.tensors)


def layout_of(recipe: GradientRecipe | NoiseRecipe, inputs: int) -> Layout:
    """The tensors that `recipe` trains on `inputs` inputs (`Preprocessing.inputs`, `statistics.input_count`).

    Raises `ValueError` where the recipe's picture has another number of pixels.
    """
    if isinstance(recipe, NoiseRecipe):
        return Layout(recipe.trainer, (Tensor("noise", (recipe.parameters,), 0),))
    hidden = recipe.hidden if isinstance(recipe, MlpRecipe) else ()
    weights: list[tuple[int, ...]] = []
    image = None
    if isinstance(recipe, CnnRecipe):
        image = recipe.image.channels, recipe.image.height, recipe.image.width
        if math.prod(image) != inputs:
            fact = f"recipe.image has {math.prod(image)} pixels and the study {inputs} inputs"
            raise ValueError(f"{fact}; name one numeric feature for each pixel")
        weights = [(fan_out, fan_in, 3, 3) for fan_in, fan_out in itertools.pairwise((image[0], *recipe.channels))]
        inputs = recipe.channels[-1] * math.prod(side >> len(recipe.channels) for side in image[1:])
    weights += [(fan_out, fan_in) for fan_in, fan_out in itertools.pairwise((inputs, *hidden, 1))]
    tensors: list[Tensor] = []
    offset = 0
    for place, weight in enumerate(weights):
        for name, shape in (("weight", weight), ("bias", weight[:1])):
            tensors.append(Tensor(f"layers.{place}.{name}", shape, offset))
            offset += math.prod(shape)
    return Layout(recipe.trainer, tuple(tensors), image)


def initial_slices(layout: Layout, seed: int, size: int = SLICE) -> Iterator[NDArray[np.float32]]:
    """The first model in slices of at most `size` parameters; their concatenation does not depend on `size`.

    Weights and biases are uniform in ±1/√(inputs of the layer), as `torch.nn.Linear` and `Conv2d` draw them (Kaiming
    uniform with a = √5); a convolution's inputs are those of its window. Made from raw generator words, so the same in
    every numpy. The noise benchmark starts from zeros.
    """
    bound = 0.0
    for tensor in layout.tensors:
        if len(tensor.shape) > 1:
            bound = 1.0 / math.sqrt(math.prod(tensor.shape[1:]))
        words = np.random.PCG64(_tensor_seed(seed, tensor.name))
        for start in range(0, tensor.size, size):
            count = min(size, tensor.size - start)
            if layout.trainer == "benchmark.noise":
                yield np.zeros(count, dtype=np.float32)
                continue
            unit = (words.random_raw(count) >> np.uint64(40)).astype(np.float64) / (1 << 24)
            yield ((2.0 * unit - 1.0) * bound).astype(np.float32)


def initial_parameters(layout: Layout, seed: int) -> NDArray[np.float32]:
    """The first model of a run, the same for the same layout and seed. `initial_slices` does it in bounded memory."""
    return np.concatenate(list(initial_slices(layout, seed)))


def _tensor_seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(INIT_LABEL + b"\0" + seed.to_bytes(8, "little") + name.encode()).digest()
    return int.from_bytes(digest[:16], "little")


def safetensors_header(layout: Layout) -> bytes:
    """What stands before the flat little-endian array in the model's safetensors file.

    Header plus array, in that order, is the whole file, so a model can be published slice by slice.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "cohortium/model/1", "trainer": layout.trainer}}
    for tensor in layout.tensors:
        offsets = [4 * tensor.offset, 4 * (tensor.offset + tensor.size)]
        header[tensor.name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def to_safetensors(layout: Layout, parameters: NDArray[np.float32]) -> bytes:
    """The model's file. Raises `ModelRefused` when the array has another length or holds a value that is not finite."""
    if parameters.shape != (layout.size,):
        raise ModelRefused(f"expected {layout.size} parameters, got shape {parameters.shape}")
    check_finite(parameters)
    return safetensors_header(layout) + parameters.astype("<f4", copy=False).tobytes()


def from_safetensors(layout: Layout, data: bytes) -> NDArray[np.float32]:
    """The flat array of a model file, whatever order its tensors are stored in.

    Raises `ModelRefused` unless it holds exactly the layout's tensors, as finite float32, and nothing else.
    """
    entries, start = _read_header(data)
    if sorted(entries) != sorted(tensor.name for tensor in layout.tensors):
        raise ModelRefused("the tensors of the file are not those of the recipe")
    body = memoryview(data)[start:]
    parameters = np.empty(layout.size, dtype=np.float32)
    covered: list[tuple[int, int]] = []
    for tensor in layout.tensors:
        low, high = _place(tensor, entries[tensor.name])
        if high > len(body):
            raise ModelRefused(f"tensor {tensor.name} lies outside the file")
        covered.append((low, high))
        parameters[tensor.offset : tensor.offset + tensor.size] = np.frombuffer(body[low:high], dtype="<f4")
    covered.sort()
    ends = [0, *(high for _, high in covered)]
    if [low for low, _ in covered] != ends[:-1] or ends[-1] != len(body):
        raise ModelRefused("the file has bytes that belong to no tensor, or to two")
    check_finite(parameters)
    return parameters


def check_finite(parameters: NDArray[np.float32]) -> None:
    """Raises `ModelRefused` when a parameter is infinite or not a number."""
    if not np.isfinite(parameters).all():
        raise ModelRefused("the model holds a value that is not finite")


def _read_header(data: bytes) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise ModelRefused("the file is too short for its header")
    try:
        entries = json.loads(data[8 : 8 + length], object_pairs_hook=_no_duplicates)
    except ValueError as error:
        raise ModelRefused("the header is not JSON with distinct names") from error
    if not isinstance(entries, dict):
        raise ModelRefused("the header is not a JSON object")
    entries.pop("__metadata__", None)
    return entries, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _place(tensor: Tensor, entry: Any) -> tuple[int, int]:
    match entry:
        case {"dtype": "F32", "shape": [*shape], "data_offsets": [int(low), int(high)]} if len(entry) == 3:
            if tuple(shape) == tensor.shape and low >= 0 and high - low == 4 * tensor.size:
                return low, high
    raise ModelRefused(f"tensor {tensor.name} is not float32 of shape {list(tensor.shape)}")


def parameters_sha256(slices: Iterator[NDArray[np.float32]]) -> bytes:
    """SHA-256 of the flat little-endian array, taken slice by slice."""
    digest = hashlib.sha256()
    for piece in slices:
        digest.update(piece.astype("<f4", copy=False).tobytes())
    return digest.digest()


def model_hash(parameters_sha256: bytes, preprocessing_canonical: bytes) -> bytes:
    """What names a model version: binds the parameters and the rules that make their inputs.

    SHA-256 over a label and both parts, each with its length before it, so no two pairs give the same bytes.
    """
    if len(parameters_sha256) != 32:
        raise ValueError("parameters_sha256 has 32 bytes")
    return H(MODEL_LABEL, parameters_sha256, preprocessing_canonical)
