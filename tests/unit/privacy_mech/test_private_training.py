"""Local private training, and a site's part of a distributed step: noise, steps, chance, learning."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("opacus", reason="the training extra is not installed")
pytest.importorskip("numba", reason="the training extra is not installed")

import torch
from private_networks import INPUTS, class_losses, cnn, everyone, mlp, pictures, table
from private_stage import randomness
from scipy import stats
from torch import nn

from cohortium_connector.training import dp_sgd
from cohortium_connector.training.base import Examples
from cohortium_connector.training.dp_gradients import Loss, ModelNotPrivate, PatientData
from cohortium_connector.training.dp_random import Randomness
from cohortium_connector.training.dp_sgd import (
    BatchRule,
    ExactMean,
    PoissonRecords,
    PrivateRule,
    PrivateTraining,
    SnappedMean,
    binary_losses,
    clipped_sum,
    gradient_share,
    layout_share,
    network_of,
    train_layout,
    train_private,
)
from cohortium_connector.training.torch_ import TorchTrainer, use_threads
from cohortium_messages.privacy import LocalPrivacy
from cohortium_messages.study import LocalTraining, LogisticRecipe, MlpRecipe
from cohortium_privacy.accounting import epsilon
from cohortium_privacy.lattice import Lattice, LatticeRefused, NoiseShare
from cohortium_privacy.plan import Course, local_steps, plan_of
from cohortium_protocol.parameters import initial_parameters, layout_of

pytestmark = pytest.mark.torch

BATCH = BatchRule(clip=1.0, sampling_rate=0.2, expected_batch=8.0)
RULE = PrivateRule(BATCH, noise_multiplier=1.5, steps=3)
SGD = LocalTraining(optimizer="sgd", lr=1.0)
NOBODY = np.empty(0, dtype=np.int64)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    use_threads(1)


def trained(
    module: nn.Module,
    data: PatientData,
    rule: PrivateRule = RULE,
    local: LocalTraining = SGD,
    chance: str = "",
    **more: float,
) -> PrivateTraining:
    loss: Loss = class_losses if data.inputs.ndim == 4 else binary_losses
    return train_private(module, loss, data, rule, local, randomness(chance), **more)


class TestNoise:
    @pytest.mark.parametrize("mechanism", [ExactMean, SnappedMean])
    def test_a_step_on_nobody_is_noise_of_exactly_the_planned_variance(self, mechanism: type) -> None:
        rule = replace(RULE, batch=replace(BATCH, clip=0.3))
        mean = mechanism(cnn(), class_losses, rule)
        steps = [mean(pictures(3), NOBODY, randomness("variance"), step) for step in range(40)]
        mean.close()
        planned = 1.5 * 0.3 * (1.01 if mechanism is ExactMean else 1.0) / 8.0
        drawn = np.concatenate(steps).astype(np.float64) / planned
        assert 1e-4 < stats.chi2.cdf(np.square(drawn).sum(), len(drawn)) < 1 - 1e-4
        assert stats.kstest(drawn, "norm").pvalue > 1e-4
        assert len({step.tobytes() for step in steps}) == 40

    @pytest.mark.parametrize("mechanism", [ExactMean, SnappedMean])
    def test_a_step_is_the_clipped_sum_and_the_noise_over_the_expected_batch(self, mechanism: type) -> None:
        data = table(12)
        mean = mechanism(mlp(), binary_losses, RULE)
        with_rows = mean(data, everyone(data), randomness("same"), 0)
        noise = mean(data, NOBODY, randomness("same"), 0)
        mean.close()
        lattice = Lattice(1.0, 65)
        fine = clipped_sum(mlp(), binary_losses, data, everyone(data), lattice, 8.0)
        assert 8.0 * (with_rows - noise) == pytest.approx(fine * lattice.fine_step, abs=0.6 * lattice.step + 1e-4)

    def test_exact_noise_lies_on_the_lattice(self) -> None:
        mean = ExactMean(mlp(), binary_losses, RULE)
        step = mean(table(5), everyone(table(5)), randomness(), 0).astype(np.float64) * 8.0 / Lattice(1.0, 65).step
        assert step == pytest.approx(np.rint(step), abs=1e-3)
        assert mean.sigma >= 1.5 * Lattice(1.0, 65).sensitivity > mean.sigma - 1 / 64

    def test_too_little_noise_for_the_lattice_is_refused(self) -> None:
        with pytest.raises(LatticeRefused, match=r"noise_multiplier of 0\.01 is too little"):
            trained(mlp(), table(5), replace(RULE, noise_multiplier=0.01))

    def test_large_models_take_the_other_mechanism(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert isinstance(dp_sgd.mean_for(mlp(), binary_losses, RULE), ExactMean)
        monkeypatch.setattr(dp_sgd, "EXACT_PARAMETERS", 64)
        assert isinstance(dp_sgd.mean_for(mlp(), binary_losses, RULE), SnappedMean)


class TestSteps:
    def test_the_accountant_sees_the_steps_of_the_plan_and_each_was_noisy(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = LogisticRecipe(trainer="torch.logistic", local=LocalTraining(epochs=2, optimizer="sgd", lr=0.1))
        privacy = LocalPrivacy(mode="local", epsilon=4, delta=1e-4, sampling_rate=0.1, patients=100)
        layout = layout_of(recipe, INPUTS)
        plan = plan_of(privacy, Course(recipe, 3, layout.size, buffered=False, least_sites=3, colluding=1))
        steps = local_steps(privacy, recipe)
        rule = PrivateRule(BatchRule(1.0, plan.sampling_rate, 10.0), plan.noise_multiplier, steps)
        made: list[int] = []
        real = dp_sgd.discrete_noise
        monkeypatch.setattr(dp_sgd, "discrete_noise", lambda *args: made.append(args[2]) or real(*args))
        events = []
        for round_ in range(3):
            module = network_of(layout)
            events.append(train_private(module, binary_losses, table(60), rule, SGD, randomness(f"{round_}")).event)
        assert made == [layout.size] * plan.steps == [layout.size] * 60
        assert sum(event.steps for event in events) == plan.steps
        assert epsilon(events, 1e-4, "rdp") == pytest.approx(plan.epsilon_rdp)
        assert epsilon(events, 1e-4, "rdp") < 4

    def test_steps_without_anybody_move_the_model_and_are_counted(self) -> None:
        data = table(4)
        rare = replace(RULE, batch=replace(BATCH, sampling_rate=1e-9), steps=5)
        before = torch.nn.utils.parameters_to_vector(mlp().parameters()).detach().numpy()
        for rows in (data, PatientData(data.inputs[:0], data.labels[:0])):
            done = trained(mlp(), rows, rare)
            assert done.event.steps == 5
            moved = (done.parameters - before).astype(np.float64) * 8 / (1.5 * 1.01)
            assert 1e-4 < stats.chi2.cdf(np.square(moved).sum() / 5, len(moved)) < 1 - 1e-4

    def test_numbers_that_no_plan_has_are_refused(self) -> None:
        for change in ({"clip": 0.0}, {"sampling_rate": 1.5}, {"expected_batch": 0.0}):
            with pytest.raises(ValueError, match=next(iter(change))):
                replace(BATCH, **change)
        for change in ({"noise_multiplier": 0.0}, {"steps": 0}):
            with pytest.raises(ValueError, match=next(iter(change))):
                replace(RULE, **change)


class TestChance:
    @pytest.mark.parametrize("pictured", [False, True])
    def test_the_same_seed_rows_and_model_give_the_same_bits(self, pictured: bool) -> None:
        make, data = (cnn, pictures(20)) if pictured else (mlp, table(20))
        first, again = (trained(make(), data).parameters for _ in range(2))
        assert (first == again).all()
        assert (trained(make(), data, chance="other").parameters != first).all()

    def test_torchs_own_generator_has_no_part_and_is_left_alone(self) -> None:
        module = nn.Sequential(nn.Linear(INPUTS, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        start = {name: value.clone() for name, value in module.state_dict().items()}
        results = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            module.load_state_dict(start)
            results.append(trained(module, table(20)).parameters)
            assert (torch.get_rng_state() == state).all()
        assert (results[0] == results[1]).all()

    def test_noise_is_not_taken_twice_over_other_rows_or_another_model(self) -> None:
        lattice, share = Lattice(1.0, 65), NoiseShare.of(50_000.0, Lattice(1.0, 65).sensitivity, sites=5)
        data = table(30)
        fewer = PatientData(data.inputs[:-1], data.labels[:-1])
        moved = mlp()
        with torch.no_grad():
            next(moved.parameters())[0, 0] += 1e-3

        def made(module: nn.Module, rows: PatientData, round_: int = 1, batch: BatchRule = BATCH) -> np.ndarray:
            return gradient_share(module, binary_losses, rows, batch, share, randomness("run"), round_=round_)

        first = made(mlp(), data)
        assert (made(mlp(), data) == first).all()
        others = [
            made(mlp(), fewer),
            made(moved, data),
            made(mlp(), data, 2),
            made(mlp(), data, 1, replace(BATCH, clip=2.0)),
        ]
        for other in others:
            # Of the same noise only clipped gradients would be left, 806 steps each; fresh noise leaves 50,000 · √2.
            assert np.std(other - first) > 40_000
        assert lattice.dimension == len(first)

    def test_one_record_of_each_sampled_patient(self) -> None:
        patients = np.array([2, 0, 0, 1, 0, 2, 3])
        data = replace(table(7), patients=patients)
        records = PoissonRecords(data, 0.5)
        drawn = [records.draw(randomness("records"), step) for step in range(2000)]
        assert all(len(np.unique(patients[part])) == len(part) for part in drawn)
        hits = np.bincount(np.concatenate(drawn), minlength=7)
        shares = 0.5 / np.bincount(patients)[patients]
        assert all(
            stats.binomtest(int(hit), 2000, share).pvalue > 1e-4 for hit, share in zip(hits, shares, strict=True)
        )


class TestLearning:
    def test_a_table_is_learnt_in_private(self) -> None:
        data = table(3000)
        rule = PrivateRule(BatchRule(1.0, 0.05, 150.0), noise_multiplier=1.0, steps=100)
        module = mlp()
        done = trained(module, data, rule, LocalTraining(optimizer="sgd", lr=2.0))
        assert epsilon((done.event,), 1e-5) < 4
        assert accuracy(module, table(1000, seed=1)) > 0.93

    def test_pictures_are_learnt_in_private(self) -> None:
        rule = PrivateRule(BatchRule(1.0, 0.1, 60.0), noise_multiplier=1.0, steps=40)
        module = cnn()
        trained(module, pictures(600), rule, LocalTraining(optimizer="adam", lr=0.01))
        assert accuracy(module, pictures(200, seed=1)) > 0.8

    def test_the_mechanism_for_large_models_learns_as_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dp_sgd, "EXACT_PARAMETERS", 0)
        rule = PrivateRule(BatchRule(1.0, 0.1, 60.0), noise_multiplier=1.0, steps=40)
        module = cnn()
        trained(module, pictures(600), rule, LocalTraining(optimizer="adam", lr=0.01))
        assert accuracy(module, pictures(200, seed=1)) > 0.8

    def test_the_proximal_term_holds_the_model_back(self) -> None:
        start = torch.nn.utils.parameters_to_vector(mlp().parameters()).detach().numpy()
        rule = replace(RULE, steps=20)
        local = LocalTraining(optimizer="sgd", lr=0.1)
        moves = [
            np.linalg.norm(trained(mlp(), table(40), rule, local, proximal_mu=mu).parameters - start)
            for mu in (0, 1, 9)
        ]
        assert moves[0] > moves[1] > moves[2] > 0


class TestStudies:
    RECIPE = MlpRecipe(trainer="torch.mlp", hidden=(8,), local=LocalTraining(optimizer="sgd", lr=1.0))

    def test_the_network_is_the_trainers(self) -> None:
        layout = layout_of(self.RECIPE, INPUTS)
        base = initial_parameters(layout, 3)
        module = dp_sgd._network_at(layout, base)
        inputs = table(50).inputs
        with torch.no_grad():
            scores = torch.sigmoid(module(torch.from_numpy(inputs)).squeeze(1).double()).numpy()
        assert scores == pytest.approx(TorchTrainer(self.RECIPE, INPUTS, 0.0).scores(base, inputs), abs=1e-6)
        assert len(network_of(layout_of(LogisticRecipe(trainer="torch.logistic"), INPUTS))) == 1

    def test_training_tells_parameters_and_no_loss(self) -> None:
        layout, data = layout_of(self.RECIPE, INPUTS), table(40)
        base = initial_parameters(layout, 3)
        kept = base.copy()
        done = train_layout(layout, base, Examples(data.inputs, data.labels), RULE, self.RECIPE.local, randomness())
        assert done.loss is None
        (parameters,) = done.slices
        assert parameters.shape == (layout.size,)
        assert parameters.dtype == np.float32
        assert (base == kept).all()

    def test_a_share_is_the_clipped_sum_of_the_sample_and_a_sites_noise(self) -> None:
        layout, data = layout_of(self.RECIPE, INPUTS), table(40)
        base, lattice = initial_parameters(layout, 3), Lattice(1.0, layout.size)
        everybody = replace(BATCH, sampling_rate=1.0)
        share = NoiseShare.of(200.0, lattice.sensitivity, sites=5)
        examples = Examples(data.inputs, data.labels)
        words = [layout_share(layout, base, examples, everybody, share, randomness(), round_=r) for r in range(60)]
        fine = clipped_sum(dp_sgd._network_at(layout, base), binary_losses, data, everyone(data), lattice, 8.0)
        noise = np.stack(words) - lattice.rounded(fine)
        assert words[0].dtype == np.int64
        assert 1e-4 < stats.chi2.cdf(np.square(noise / 200.0).sum(), noise.size) < 1 - 1e-4
        assert np.abs(noise.mean(axis=0)).max() < 5 * 200 / 60**0.5

    def test_a_network_that_would_have_to_be_changed_is_refused(self) -> None:
        with pytest.raises(ModelNotPrivate, match="BatchNorm2d became GroupNorm"):
            trained(cnn(nn.BatchNorm2d(4)), pictures(4))


def accuracy(module: nn.Module, data: PatientData) -> float:
    with torch.no_grad():
        outputs = module.eval()(torch.from_numpy(data.inputs)).numpy()
    found = outputs.argmax(axis=1) if outputs.shape[1] > 1 else outputs[:, 0] > 0
    return float(np.mean(found == data.labels))


def test_fresh_seeds_train_differently() -> None:
    data = table(10)
    results = [train_private(mlp(), binary_losses, data, RULE, SGD, Randomness.fresh()).parameters for _ in range(2)]
    assert (results[0] != results[1]).all()


def test_nobody_else_imports_opacus_or_numba() -> None:
    code = (
        "import sys; import cohortium_connector.training.runner, cohortium_connector.training.work; "
        "import cohortium_connector.training.dp_random, cohortium_privacy.plan, cohortium_privacy.sampler; "
        "assert not {'torch', 'opacus', 'numba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
