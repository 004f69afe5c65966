"""Canaries against many promises: the bound never exceeds what was claimed, and a broken promise is always found."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

from cohortium_connector.training.attacks.canaries import Run, audit, distributed_run, local_run
from cohortium_connector.training.attacks.private import Terms, terms_for
from cohortium_connector.training.base import Examples
from cohortium_connector.training.dp_sgd import BatchRule
from cohortium_connector.training.torch_ import use_threads

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]

RUNS = 300


def patients() -> Examples:
    use_threads(1)
    chance = np.random.default_rng(4)
    return Examples(chance.normal(size=(10, 3)).astype(np.float32), (chance.random(10) < 0.5).astype(np.float32))


def terms(promise: float, rate: float, steps: int) -> Terms:
    return terms_for((promise, 1e-5), BatchRule(1.0, rate, 10 * rate), steps)


@pytest.mark.long
@pytest.mark.parametrize("run", [local_run, distributed_run])
@pytest.mark.parametrize(("promise", "rate", "steps"), [(1.0, 0.5, 3), (4.0, 1.0, 1), (8.0, 0.3, 4)])
def test_no_bound_exceeds_the_claim(run: Run, promise: float, rate: float, steps: int) -> None:
    made = terms(promise, rate, steps)
    found = audit(run, patients(), made, runs=RUNS, error=0.001, seed=11)
    assert found.guesses.present == found.guesses.absent == RUNS // 2
    assert found.bound <= made.epsilon_pld < made.epsilon


def test_the_audit_comes_off_the_ground_where_little_is_promised() -> None:
    """At ε = 8 and one whole sum, canaries show a good part of it: the audit is no formality."""
    assert audit(local_run, patients(), terms(8.0, 1.0, 1), runs=RUNS, error=0.05, seed=2).bound > 1.0


@pytest.mark.parametrize("run", [distributed_run, pytest.param(local_run, marks=pytest.mark.long)])
def test_a_sixteenth_of_the_noise_is_found_out(run: Run) -> None:
    made = terms(1.0, 0.5, 3)
    less = replace(made, rule=replace(made.rule, noise_multiplier=made.rule.noise_multiplier / 16))
    assert audit(run, patients(), less, runs=RUNS, error=0.001, seed=11).bound > made.epsilon
