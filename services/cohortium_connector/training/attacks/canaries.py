"""How much a promise is worth, measured: a patient made up to be found, runs with and without, and an ε from below.

A canary is a row with an input that no other row has: its clipped gradient points there and nowhere else, so the weight
of that input is the sum of all noise in its way and, in the runs with the canary, of what the canary added. An attacker
who reads that weight off the final model sees all that the steps show of the patient: the worst gradient that there is
(Nasr et al., IEEE S&P 2021, arXiv 2101.04535).

The rule of guessing is chosen on half of the runs and counted on the other half. The bound counts hits and alarms and
nothing else, so it holds whatever is wrong with the training: a bound above the promise proves that the promise is
broken, but for the stated chance of error.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cohortium_connector.training.attacks.bounds import Guesses, Scores
from cohortium_connector.training.attacks.private import Terms, chance_of, distributed_step
from cohortium_connector.training.base import Examples, Floats
from cohortium_connector.training.dp_sgd import PrivateRule, train_layout
from cohortium_messages.study import LocalTraining, LogisticRecipe
from cohortium_protocol.parameters import Layout, layout_of

CANARY_INPUT = 1000.0
MOST_LOGIT = 4.0
"""How far the canary's logit may move on its way: its gradient, before it is clipped, is then 18 or more."""
LEAST_RUNS = 20
SITES = 3


class Run(Protocol):
    """One training, from a model of zeros. The attacker's last look is at the whole model."""

    def __call__(self, layout: Layout, rows: Examples, rule: PrivateRule, seed: int) -> Floats:
        """The trained model, a flat array."""
        ...


@dataclass(frozen=True, slots=True)
class Audit:
    """`bound`: an ε that the mechanism exceeds at δ, but for a chance of `error`. The promise is `terms.epsilon`."""

    terms: Terms
    guesses: Guesses
    bound: float
    error: float


def audit(run: Run, rows: Examples, terms: Terms, *, runs: int, error: float, seed: int) -> Audit:
    """`runs` runs with the canary among the rows and as many without. Raises `ValueError` for fewer than 20."""
    if runs < LEAST_RUNS:
        raise ValueError(f"{runs} runs are too few to bound anything; use at least {LEAST_RUNS}")
    absent, present = without_and_with_canary(rows)
    layout = layout_of(LogisticRecipe(trainer="torch.logistic"), absent.inputs.shape[1])
    place = absent.inputs.shape[1] - 1
    kinds = [
        np.array([run(layout, kind, terms.rule, seed + 2 * number + half)[place] for number in range(runs)], np.float64)
        for half, kind in enumerate((present, absent))
    ]
    guesses = counted(kinds[0], kinds[1], terms.delta, error)
    return Audit(terms, guesses, guesses.epsilon_bound(terms.delta, error), error)


def without_and_with_canary(rows: Examples) -> tuple[Examples, Examples]:
    """The rows with one input more, 0 for all; and the same with the canary, whose only input it is."""
    inputs = np.column_stack([rows.inputs, np.zeros(len(rows.labels), dtype=np.float32)])
    canary = np.zeros((1, inputs.shape[1]), dtype=np.float32)
    canary[0, -1] = CANARY_INPUT
    absent = Examples(inputs, rows.labels)
    return absent, Examples(np.concatenate([inputs, canary]), np.append(rows.labels, np.float32(1.0)))


def counted(present: Scores, absent: Scores, delta: float, error: float) -> Guesses:
    """The rule "above a threshold: in the data", chosen on the even runs and counted on the odd ones."""
    rehearsed = [_guesses(present[::2], absent[::2], float(at)) for at in np.unique(present[::2])]
    best = max(
        range(len(rehearsed)),
        key=lambda place: (rehearsed[place].epsilon_bound(delta, error), rehearsed[place].advantage),
    )
    return _guesses(present[1::2], absent[1::2], float(np.unique(present[::2])[best]))


def _guesses(present: Scores, absent: Scores, threshold: float) -> Guesses:
    hits, alarms = int((present >= threshold).sum()), int((absent >= threshold).sum())
    return Guesses(hits, len(present), alarms, len(absent))


def audit_lr(rule: PrivateRule) -> float:
    """A step size with which the canary's logit stays within `MOST_LOGIT`, noise of four standard deviations included:
    so that it is clipped in every step, as the worst patient is."""
    batch = rule.batch
    way = batch.sampling_rate * rule.steps + 4 * rule.noise_multiplier * math.sqrt(rule.steps)
    return MOST_LOGIT * batch.expected_batch / (CANARY_INPUT * batch.clip * way)


def local_run(layout: Layout, rows: Examples, rule: PrivateRule, seed: int) -> Floats:
    """DP-SGD at one site."""
    start = np.zeros(layout.size, dtype=np.float32)
    local = LocalTraining(optimizer="sgd", lr=audit_lr(rule))
    return np.concatenate(list(train_layout(layout, start, rows, rule, local, chance_of("local canary", seed)).slices))


def distributed_run(layout: Layout, rows: Examples, rule: PrivateRule, seed: int) -> Floats:
    """One secure sum a step over three sites, each with its share of the noise; the canary is at the last."""
    model = np.zeros(layout.size, dtype=np.float32)
    parts = np.array_split(np.arange(len(rows.labels)), SITES)
    sites = [Examples(rows.inputs[part], rows.labels[part]) for part in parts]
    for step in range(rule.steps):
        chances = [chance_of("distributed canary", seed, step, site) for site in range(SITES)]
        model -= np.float32(audit_lr(rule)) * distributed_step(layout, model, sites, rule, chances)
    return model
