"""Models as flat arrays and as safetensors files, without a training library."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from cohortium_messages.study import LogisticRecipe, MlpRecipe, NoiseRecipe
from cohortium_protocol.parameters import (
    Layout,
    ModelRefused,
    from_safetensors,
    initial_parameters,
    initial_slices,
    layout_of,
    model_hash,
    parameters_sha256,
    safetensors_header,
    to_safetensors,
)

MLP = layout_of(MlpRecipe(trainer="torch.mlp", hidden=(4, 3)), 5)
NOISE = layout_of(NoiseRecipe(trainer="benchmark.noise", parameters=2500), 1)


def test_tensors_follow_each_other_without_gaps() -> None:
    assert [(tensor.name, tensor.shape, tensor.offset) for tensor in MLP.tensors] == [
        ("layers.0.weight", (4, 5), 0),
        ("layers.0.bias", (4,), 20),
        ("layers.1.weight", (3, 4), 24),
        ("layers.1.bias", (3,), 36),
        ("layers.2.weight", (1, 3), 39),
        ("layers.2.bias", (1,), 42),
    ]
    assert MLP.size == 43
    assert layout_of(LogisticRecipe(trainer="torch.logistic"), 7).size == 8


def test_the_first_model_is_given_by_its_seed() -> None:
    first = initial_parameters(MLP, 1)
    assert first.dtype == np.float32
    assert (first == initial_parameters(MLP, 1)).all()
    assert (first != initial_parameters(MLP, 2)).any()
    assert first[:3].tolist() == [-0.06103932484984398, -0.42241284251213074, -0.07560160756111145]


def test_the_first_model_is_spread_like_a_linear_layer_of_torch() -> None:
    layout = layout_of(MlpRecipe(trainer="torch.mlp", hidden=(400,)), 100)
    weights = initial_parameters(layout, 0)[: 400 * 100]
    assert np.abs(weights).max() <= 0.1
    assert weights.std() == pytest.approx(0.2 / np.sqrt(12), rel=0.02)
    assert weights.mean() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("layout", [MLP, NOISE])
def test_slices_of_any_size_give_the_same_model(layout: Layout) -> None:
    whole = initial_parameters(layout, 3)
    for size in (1, 7, 1000):
        pieces = list(initial_slices(layout, 3, size))
        assert max(piece.size for piece in pieces) <= size
        assert (np.concatenate(pieces) == whole).all()


def test_the_noise_benchmark_starts_from_zeros() -> None:
    assert not initial_parameters(NOISE, 3).any()


def test_a_model_file_is_safetensors_and_comes_back() -> None:
    model = initial_parameters(MLP, 1)
    data = to_safetensors(MLP, model)
    assert data == safetensors_header(MLP) + model.tobytes()
    assert (from_safetensors(MLP, data) == model).all()
    tensors = load(data)
    assert tensors["layers.1.weight"].tolist() == model[24:36].reshape(3, 4).tolist()
    assert (from_safetensors(MLP, save(tensors)) == model).all()


def spoilt() -> dict[str, bytes]:
    data = to_safetensors(MLP, initial_parameters(MLP, 1))
    tensors = load(data)
    extra = tensors | {"extra": np.zeros(1, dtype=np.float32)}
    missing = {name: tensor for name, tensor in tensors.items() if name != "layers.0.bias"}
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header["layers.0.bias"]["data_offsets"] = header["layers.1.bias"]["data_offsets"]
    overlapping = json.dumps(header).encode()
    infinite = tensors | {"layers.0.bias": np.full(4, np.inf, dtype=np.float32)}
    return {
        "extra tensor": save(extra),
        "missing tensor": save(missing),
        "other type": save(tensors | {"layers.0.bias": np.zeros(4, dtype=np.float64)}),
        "other shape": save(tensors | {"layers.0.bias": np.zeros((2, 2), dtype=np.float32)}),
        "infinite": save(infinite),
        "too short": data[:-1],
        "too long": data + b"\0\0\0\0",
        "no header": b"\xff" * 16,
        "empty": b"",
        "header is a list": (2).to_bytes(8, "little") + b"[]",
        "overlapping": len(overlapping).to_bytes(8, "little") + overlapping + data[-43 * 4 :],
    }


@pytest.mark.parametrize("what", list(spoilt()))
def test_a_file_that_is_not_this_model_is_refused(what: str) -> None:
    with pytest.raises(ModelRefused):
        from_safetensors(MLP, spoilt()[what])


def test_a_model_that_is_not_finite_or_not_whole_is_never_written() -> None:
    model = initial_parameters(MLP, 1)
    with pytest.raises(ModelRefused):
        to_safetensors(MLP, model[:-1])
    model[3] = np.nan
    with pytest.raises(ModelRefused):
        to_safetensors(MLP, model)


def test_the_model_hash_binds_both_parts() -> None:
    digest = parameters_sha256(initial_slices(MLP, 1, 5))
    assert digest == parameters_sha256(initial_slices(MLP, 1))
    hashes = {model_hash(digest, b"a"), model_hash(digest, b"b"), model_hash(bytes(32), b"a")}
    assert len(hashes) == 3
    assert all(len(found) == 32 for found in hashes)
    with pytest.raises(ValueError):
        model_hash(b"short", b"")
