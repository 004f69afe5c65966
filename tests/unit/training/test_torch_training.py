"""Local training in PyTorch."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch

from cohortium_connector.training.base import Examples, NonFiniteUpdate, trainer_for, write_update
from cohortium_connector.training.torch_ import use_threads
from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_protocol.parameters import initial_parameters

pytestmark = pytest.mark.torch

TEXT = (Path(__file__).resolve().parents[2] / "studies" / "example.yaml").read_text()
INPUTS = 6


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    use_threads(1)


def study(*pairs: tuple[str, str]) -> Study:
    text = TEXT
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    return parse_study(text)


LOGISTIC = (("trainer: torch.mlp ", "trainer: torch.logistic #"), ("  hidden: [32, 16]\n", ""))
SGD = ("optimizer: adam, lr: 0.01", "optimizer: sgd, lr: 0.1")


def examples(rows: int = 64) -> Examples:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(rows, INPUTS)).astype(np.float32)
    return Examples(inputs, (inputs[:, 0] + inputs[:, 1] > 0).astype(np.float32))


def trained(made: Study, seed: int = 1, epochs: int = 1) -> np.ndarray:
    trainer = trainer_for(made, INPUTS)
    base = initial_parameters(trainer.layout, 0)
    return np.concatenate(list(trainer.train(base, examples(), epochs=epochs, seed=seed).slices))


@pytest.mark.parametrize("pairs", [(), LOGISTIC, (SGD,)])
def test_the_same_seed_gives_the_same_bits_and_another_gives_others(pairs: Sequence[tuple[str, str]]) -> None:
    made = study(*pairs)
    assert (trained(made) == trained(made)).all()
    assert (trained(made) != trained(made, seed=2)).any()


def test_the_layout_is_that_of_a_sequential_network_of_torch() -> None:
    made = study()
    trainer = trainer_for(made, INPUTS)
    model = initial_parameters(trainer.layout, 0)
    layers = [torch.nn.Linear(INPUTS, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(16, 1), torch.nn.Sigmoid())
    torch.nn.utils.vector_to_parameters(torch.from_numpy(model), network.parameters())
    inputs = examples().inputs
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs)).squeeze(1).numpy()
    assert trainer.scores(model, inputs) == pytest.approx(expected, abs=1e-6)


def test_one_step_of_gradient_descent_is_the_gradient() -> None:
    made = study(*LOGISTIC, ("batch_size: 16, optimizer: adam, lr: 0.01", "batch_size: 64, optimizer: sgd, lr: 0.5"))
    trainer = trainer_for(made, INPUTS)
    base = initial_parameters(trainer.layout, 0)
    data = examples()
    residual = (trainer.scores(base, data.inputs) - data.labels) / 64
    gradient = np.append(residual @ data.inputs, residual.sum())
    assert trained(made) == pytest.approx(base - 0.5 * gradient, abs=1e-6)


def test_training_learns() -> None:
    made = study()
    trainer = trainer_for(made, INPUTS)
    scores = trainer.scores(trained(made, epochs=40), examples().inputs)
    assert np.mean((scores > 0.5) == examples().labels) > 0.95


def test_the_proximal_term_holds_the_model_back() -> None:
    base = initial_parameters(trainer_for(study(), INPUTS).layout, 0)
    moves = [
        np.linalg.norm(trained(study(SGD, ("proximal_mu: 0.0", f"proximal_mu: {mu}")), epochs=20) - base)
        for mu in (0.0, 0.1, 1.0)
    ]
    assert moves[0] > moves[1] > moves[2] > 0


def test_the_base_model_is_not_changed() -> None:
    trainer = trainer_for(study(), INPUTS)
    base = initial_parameters(trainer.layout, 0)
    before = base.copy()
    list(trainer.train(base, examples(), epochs=1, seed=1).slices)
    assert (base == before).all()


def test_no_rows_have_no_scores() -> None:
    trainer = trainer_for(study(), INPUTS)
    assert trainer.scores(initial_parameters(trainer.layout, 0), np.zeros((0, INPUTS), dtype=np.float32)).size == 0


def test_an_update_that_is_not_finite_leaves_no_file(tmp_path: Path) -> None:
    made = study(*LOGISTIC, ("optimizer: adam, lr: 0.01", "optimizer: sgd, lr: 10"))
    trainer = trainer_for(made, INPUTS)
    base = initial_parameters(trainer.layout, 0)
    inputs = examples().inputs * np.float32(1e37)
    result = trainer.train(base, Examples(inputs, examples().labels), epochs=3, seed=1)
    with pytest.raises(NonFiniteUpdate):
        write_update(tmp_path / "update.f32", base, result)
    assert list(tmp_path.iterdir()) == []


def test_the_update_file_is_the_difference(tmp_path: Path) -> None:
    made = study()
    trainer = trainer_for(made, INPUTS)
    base = initial_parameters(trainer.layout, 0)
    norm = write_update(tmp_path / "update.f32", base, trainer.train(base, examples(), epochs=1, seed=1))
    update = np.fromfile(tmp_path / "update.f32", dtype="<f4")
    assert (update == trained(made) - base).all()
    assert norm == pytest.approx(np.linalg.norm(update), rel=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["update.f32"]


def test_torch_is_imported_by_nobody_who_does_not_train() -> None:
    code = (
        "import sys; import cohortium_connector.training.runner, cohortium_connector.training.work; "
        "import cohortium_connector.training.baselines, cohortium_protocol.parameters; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
