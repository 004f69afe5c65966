"""Rows out of gradients: what is exact, what is likely, and what noise leaves of it."""

import numpy as np
import pytest
from attack_stage import LOCAL, study_of, write_tables

pytest.importorskip("torch", reason="the training extra is not installed")

import torch

from cohortium_connector.training.attacks.inversion import (
    Inverter,
    Search,
    blocks_of,
    gradients,
    likeness,
)
from cohortium_connector.training.attacks.private import chance_of, distributed_step, local_step, terms_for
from cohortium_connector.training.attacks.setting import Cohort, cohort_of, taken
from cohortium_connector.training.base import Examples, Floats
from cohortium_connector.training.data import read_table
from cohortium_connector.training.dp_sgd import BatchRule, PrivateRule
from cohortium_connector.training.torch_ import TorchTrainer
from cohortium_messages.study import LocalTraining, LogisticRecipe, MlpRecipe
from cohortium_protocol.parameters import initial_parameters, layout_of

pytestmark = pytest.mark.torch

QUICK = Search(starts=2, steps=250)
NETWORK = MlpRecipe(trainer="torch.mlp", hidden=(32,), local=LocalTraining(optimizer="sgd", lr=1.0))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    study = study_of(privacy=LOCAL)
    sources = write_tables(tmp_path_factory.mktemp("tables"))
    return cohort_of(study, {site.name: read_table(study, site.source) for site in sources})


def plain_gradient(recipe: MlpRecipe | LogisticRecipe, base: Floats, rows: Examples) -> Floats:
    """As the repository's own trainer takes its step."""
    local = LocalTraining(optimizer="sgd", lr=1.0, batch_size=len(rows.labels))
    trainer = TorchTrainer(recipe.model_copy(update={"local": local}), rows.inputs.shape[1], 0.0)
    return base - np.concatenate(list(trainer.train(base, rows, epochs=1, seed=0).slices))


def inverter(cohort: Cohort, recipe: MlpRecipe | LogisticRecipe, search: Search = QUICK) -> Inverter:
    layout = layout_of(recipe, cohort.preprocessing.inputs)
    return Inverter(layout, initial_parameters(layout, 0), blocks_of(cohort.preprocessing), search)


@pytest.mark.parametrize(
    "recipe", [NETWORK, LogisticRecipe(trainer="torch.logistic"), MlpRecipe(trainer="torch.mlp", hidden=(9, 5))]
)
def test_the_written_out_gradient_is_that_of_the_trainer(cohort: Cohort, recipe: MlpRecipe | LogisticRecipe) -> None:
    rows = taken(cohort.pool(1000), np.arange(7))
    layout = layout_of(recipe, rows.inputs.shape[1])
    base = initial_parameters(layout, 3)
    inputs, labels = torch.from_numpy(rows.inputs).double(), torch.from_numpy(rows.labels).double()
    found = gradients(layout, base, inputs[None], labels[None])[0].numpy()
    assert found == pytest.approx(plain_gradient(recipe, base, rows), abs=2e-6)


def test_blocks_cover_the_inputs_in_their_order(cohort: Cohort) -> None:
    blocks = blocks_of(cohort.preprocessing)
    assert [(block.start, block.width, block.number) for block in blocks] == [
        (0, 1, True),
        (1, 2, True),
        (3, 4, False),
        (7, 2, False),
    ]


@pytest.mark.parametrize("recipe", [NETWORK, LogisticRecipe(trainer="torch.logistic")])
def test_a_single_patient_comes_out_of_a_plain_update_exactly(
    cohort: Cohort, recipe: MlpRecipe | LogisticRecipe
) -> None:
    pool, attack = cohort.pool(1000), inverter(cohort, recipe, Search(starts=1, steps=5))
    observed = [plain_gradient(recipe, attack.base, taken(pool, np.array([place]))) for place in range(6)]
    found = attack.rows_behind(observed, 1, 0)
    assert found[:, 0] == pytest.approx(pool.inputs[:6], abs=1e-3)


def test_patients_of_a_small_batch_are_found_and_noise_hides_them(cohort: Cohort) -> None:
    pool, attack = cohort.pool(1000), inverter(cohort, NETWORK, Search(starts=3, steps=300))
    batches = [np.arange(3) + 3 * place for place in range(10)]
    rule = terms_for((1.0, 1e-5), BatchRule(1.0, 0.1, 10.0), 50).rule
    views = {
        "plain": [plain_gradient(NETWORK, attack.base, taken(pool, rows)) for rows in batches],
        "noisy": [
            local_step(attack.layout, attack.base, taken(pool, rows), rule, chance_of("test", place))
            for place, rows in enumerate(batches)
        ],
    }
    counts, errors = {}, {}
    for name, observed in views.items():
        guesses = attack.rows_behind(observed, 3, 0)
        found = [
            likeness(own, rows, pool.inputs, np.arange(200, 203)) for own, rows in zip(guesses, batches, strict=True)
        ]
        counts[name], errors[name] = sum(one.identified for one in found), np.mean([one.error for one in found])
    assert counts["plain"] >= 10, "of 30: some are one another's like in all that the gradient shows"
    assert errors["plain"] < 0.4
    assert counts["noisy"] <= 3
    assert errors["noisy"] > 0.6


def test_guesses_are_rows_that_could_be(cohort: Cohort) -> None:
    attack = inverter(cohort, NETWORK, Search(starts=1, steps=3))
    noise = np.random.default_rng(0).normal(size=attack.layout.size).astype(np.float32)
    found = attack.rows_behind([noise], 4, 0)[0]
    assert found.shape == (4, cohort.preprocessing.inputs)
    assert ((found[:, 2] >= 0) & (found[:, 2] <= 1)).all()
    for block in attack.blocks:
        if not block.number:
            levels = found[:, block.start : block.start + block.width]
            assert (levels >= 0).all()
            assert levels.sum(axis=1) == pytest.approx(np.ones(4), abs=1e-5)


def test_likeness_counts_rows_not_guesses() -> None:
    table = np.array([[0.0], [1.0], [5.0], [9.0]], dtype=np.float32)
    exact = likeness(np.array([[0.1], [5.2]], np.float32), np.array([0, 2]), table, np.array([1, 3]))
    assert exact.identified == 2
    assert exact.error == pytest.approx((0.01 + 0.04) / 2 / ((1 + 16) / 2), rel=1e-5)
    twice = likeness(np.array([[0.1], [0.0]], np.float32), np.array([0, 2]), table, np.array([1, 3]))
    assert twice.identified == 1
    assert likeness(np.array([[9.0], [1.0]], np.float32), np.array([0, 2]), table, np.array([1, 3])).identified == 0


def test_a_private_step_is_the_clipped_gradient_and_noise_of_the_rule(cohort: Cohort) -> None:
    """Noise of z·C on each number of the sum, over the batch: with a hundredth of it, the step is the clipped mean."""
    rows, layout = taken(cohort.pool(1000), np.arange(4)), inverter(cohort, NETWORK).layout
    base = initial_parameters(layout, 0)
    each = [plain_gradient(NETWORK, base, taken(rows, np.array([place]))) for place in range(4)]
    clipped = np.mean([gradient / max(1.0, float(np.linalg.norm(gradient)) / 0.5) for gradient in each], axis=0)
    quiet = PrivateRule(BatchRule(0.5, 1.0, 4.0), 0.11, 1)
    seen = local_step(layout, base, rows, quiet, chance_of("quiet"))
    assert np.std(seen - clipped) == pytest.approx(0.11 * 0.5 / 4 * 1.01, rel=0.1)
    sites = [taken(rows, np.array([place])) for place in range(4)]
    chances = [chance_of("shares", place) for place in range(4)]
    opened = distributed_step(layout, base, sites, quiet, chances)
    assert np.std(opened - clipped) == pytest.approx(0.11 * 0.5 / 4 * 1.01, rel=0.1)
    assert abs(np.mean(opened - clipped)) < 0.002
