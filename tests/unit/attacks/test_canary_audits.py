"""Canaries: clipped as the worst patient is, a kept promise stands, and a broken one is found."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

from cohortium_connector.training.attacks.canaries import (
    CANARY_INPUT,
    Run,
    audit,
    audit_lr,
    counted,
    distributed_run,
    local_run,
    without_and_with_canary,
)
from cohortium_connector.training.attacks.private import Terms, terms_for
from cohortium_connector.training.base import Examples, Floats
from cohortium_connector.training.dp_sgd import BatchRule, PrivateRule
from cohortium_messages.study import LogisticRecipe
from cohortium_privacy.accounting import epsilon
from cohortium_protocol.parameters import Layout, layout_of

pytestmark = pytest.mark.torch

ROWS, STEPS = 12, 3
BATCH = BatchRule(1.0, 0.5, 6.0)


def patients(inputs: int = 4) -> Examples:
    chance = np.random.default_rng(2)
    return Examples(
        chance.normal(size=(ROWS, inputs)).astype(np.float32), (chance.random(ROWS) < 0.5).astype(np.float32)
    )


def terms(promise: float = 1.0) -> Terms:
    return terms_for((promise, 1e-5), BATCH, STEPS)


@pytest.mark.parametrize("promise", [0.5, 1.0, 8.0])
def test_terms_keep_their_promise_and_no_less_noise_would(promise: float) -> None:
    made = terms(promise)
    assert made.epsilon_pld == pytest.approx(epsilon((made.rule.event(STEPS),), 1e-5))
    assert 0.6 * promise < made.epsilon_pld < promise
    assert made.rule.steps == STEPS


def test_a_canary_is_alone_on_its_input() -> None:
    absent, present = without_and_with_canary(patients())
    assert absent.inputs.shape == (ROWS, 5)
    assert present.inputs.shape == (ROWS + 1, 5)
    assert not absent.inputs[:, -1].any()
    assert present.inputs[-1].tolist() == [0, 0, 0, 0, CANARY_INPUT]
    assert (present.inputs[:-1] == absent.inputs).all()


def test_the_canary_adds_one_whole_clip_in_each_step_that_it_is_in() -> None:
    """With hardly any noise and everybody in every step, its weight has moved by lr · clip · steps / batch."""
    absent, present = without_and_with_canary(patients())
    layout = layout_of(LogisticRecipe(trainer="torch.logistic"), 5)
    rule = PrivateRule(BatchRule(2.0, 1.0, 12.0), 0.1, 8)
    whole = audit_lr(rule) * 2.0 * 8 / 12
    for run in (local_run, distributed_run):
        moved = run(layout, present, rule, 0)[4] - run(layout, absent, rule, 0)[4]
        noise = audit_lr(rule) * 2.0 * 0.1 * np.sqrt(2 * 8) / 12
        assert moved == pytest.approx(whole, abs=4 * noise)
        assert noise < whole / 15


def test_the_rule_is_chosen_on_other_runs_than_those_counted() -> None:
    present, absent = np.arange(40.0) + 100, np.arange(40.0)
    guesses = counted(present, absent, 1e-5, 0.05)
    assert (guesses.present, guesses.absent) == (20, 20)
    assert (guesses.hits, guesses.alarms) == (20, 0)
    swapped = present.copy()
    swapped[1::2] = -1.0  # what is counted looks nothing like what the rule was chosen on
    assert counted(swapped, absent, 1e-5, 0.05).hits == 0


def test_where_nothing_can_be_proved_the_best_guess_is_still_made() -> None:
    chance = np.random.default_rng(0)
    guesses = counted(chance.normal(size=30) + 1, chance.normal(size=30), 1e-5, 0.001)
    assert guesses.epsilon_bound(1e-5, 0.001) == 0
    assert guesses.advantage > 0.15


@pytest.mark.parametrize("run", [local_run, pytest.param(distributed_run, marks=pytest.mark.long)])
def test_a_kept_promise_stands_and_a_broken_one_is_found(run: Run) -> None:
    kept = terms()
    stands = audit(run, patients(), kept, runs=80, error=0.01, seed=1)
    assert stands.bound <= kept.epsilon
    assert stands.bound <= kept.epsilon_pld
    broken = replace(kept, rule=replace(kept.rule, noise_multiplier=kept.rule.noise_multiplier / 20))
    found = audit(run, patients(), broken, runs=80, error=0.01, seed=1)
    assert found.bound > kept.epsilon


def test_a_training_that_forgets_to_clip_is_found() -> None:
    """A fault that the account cannot see: the noise is right, but one patient counts three hundred times."""

    def forgetful(layout: Layout, rows: Examples, rule: PrivateRule, seed: int) -> Floats:
        noise = np.random.default_rng(seed).normal(0, rule.noise_multiplier * rule.batch.clip, layout.size)
        total = rows.inputs.sum(axis=0) - 0.0
        return np.append(total * 0.3, 0.0).astype(np.float32) + noise.astype(np.float32)

    kept = terms()
    assert audit(forgetful, patients(), kept, runs=80, error=0.01, seed=0).bound > kept.epsilon


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 20"):
        audit(local_run, patients(), terms(), runs=19, error=0.01, seed=0)
