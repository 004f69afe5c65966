"""Private models for the attacks: the repository's own DP-SGD and distributed steps, planned as a study's would be.

Noise is seeded here, so that a benchmark can be made again; its models are published nowhere.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cohortium_connector.training.attacks.setting import NetworkRecipe
from cohortium_connector.training.attacks.wire_view import opened_integers
from cohortium_connector.training.base import Examples, Floats
from cohortium_connector.training.dp_random import Randomness
from cohortium_connector.training.dp_sgd import BatchRule, PrivateRule, layout_share, train_layout
from cohortium_messages.study import LocalTraining
from cohortium_privacy.accounting import GaussianSteps, epsilon
from cohortium_privacy.lattice import Lattice, NoiseShare, noise_shares, site_sigma
from cohortium_privacy.plan import least_multiplier
from cohortium_protocol.parameters import Layout, initial_parameters, layout_of


@dataclass(frozen=True, slots=True)
class Terms:
    """What is promised and how it is kept. `epsilon` is the promise; `epsilon_pld`, below it, what the steps cost."""

    epsilon: float
    delta: float
    rule: PrivateRule
    epsilon_pld: float


def terms_for(promise: tuple[float, float], batch: BatchRule, steps: int) -> Terms:
    """The least noise with which so many steps keep (ε, δ). Raises `PlanImpossible` or `BudgetImpossible`."""
    wanted, delta = promise
    z = least_multiplier(GaussianSteps(1.0, batch.sampling_rate, steps), wanted, delta)
    rule = PrivateRule(batch, z, steps)
    return Terms(wanted, delta, rule, epsilon((rule.event(steps),), delta))


@dataclass(frozen=True, slots=True)
class PrivateFit:
    """DP-SGD at one site by `rule`, from the first model of `start_seed`."""

    recipe: NetworkRecipe
    inputs: int
    rule: PrivateRule
    start_seed: int

    def __call__(self, rows: Examples, seed: int) -> Floats:
        layout = layout_of(self.recipe, self.inputs)
        start = initial_parameters(layout, self.start_seed)
        trained = train_layout(layout, start, rows, self.rule, self.recipe.local, chance_of("fit", seed))
        return np.concatenate(list(trained.slices))


def chance_of(purpose: str, *numbers: int) -> Randomness:
    """Streams of a benchmark, the same for the same numbers."""
    text = f"cohortium/privacy-benchmark/1 {purpose} {' '.join(map(str, numbers))}"
    return Randomness(hashlib.sha256(text.encode()).digest())


STEP_LR = 1.0
"""Step size with which a single step is taken and read back again."""


def local_step(layout: Layout, base: Floats, rows: Examples, rule: PrivateRule, chance: Randomness) -> Floats:
    """The gradient that one private step of one site shows: clipped, noised, of exactly these rows."""
    batch = BatchRule(rule.batch.clip, 1.0, float(len(rows.labels)))
    once = PrivateRule(batch, rule.noise_multiplier, 1)
    local = LocalTraining(optimizer="sgd", lr=STEP_LR)
    moved = np.concatenate(list(train_layout(layout, base, rows, once, local, chance).slices))
    gradient: Floats = (base - moved) / np.float32(STEP_LR)
    return gradient


def distributed_step(
    layout: Layout, base: Floats, sites: Sequence[Examples], rule: PrivateRule, chances: Sequence[Randomness]
) -> Floats:
    """The mean gradient that opens when each site adds its share of the noise inside a real secure sum, by `rule` but
    for its steps. Nobody is assumed to collude: all shares count, and no more noise is there than was promised."""
    lattice = Lattice(rule.batch.clip, layout.size)
    sigma = site_sigma(rule.noise_multiplier, lattice.sensitivity, noise_shares(len(sites), 0))
    share = NoiseShare.of(sigma, lattice.sensitivity, sites=len(sites))
    vectors = [
        layout_share(layout, base, rows, rule.batch, share, chance, round_=0)
        for rows, chance in zip(sites, chances, strict=True)
    ]
    return lattice.value(opened_integers(vectors), rule.batch.expected_batch).astype(np.float32)
