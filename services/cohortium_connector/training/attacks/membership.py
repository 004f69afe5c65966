"""Was this patient in the training? Two attacks on the same models, and how well they tell members from others.

Many models are fitted, each to a random half of the rows, each row in or out by a coin of its own: so for every model
and row it is known who is right, and an attacker who ignores the model is right half of the time. `loss_scores` is the
threshold on the loss of Yeom et al. (CSF 2018, arXiv 1709.01604). `likelihood_scores` is LiRA, the likelihood ratio of
Carlini et al. (IEEE S&P 2022, arXiv 2112.03570), with all other models as shadows: the attacker knows as many models of
the same kind with and without the patient, which few attackers do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.training.attacks.bounds import Flags, Interval, Roc, Scores, mean_interval, roc_of
from cohortium_connector.training.attacks.setting import Fit, NetworkRecipe, scores_of, taken
from cohortium_connector.training.base import Examples
from cohortium_protocol.metrics import exact_auc

LEAST_MODELS = 4
LEAST_CHANCE = 1e-6
"""Confidences nearer to 0 and 1 than this are taken for this: a float32 logit says no more."""
LEAST_SPREAD = 1e-3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Observed:
    """What the attacker sees, one line per model: the logit of the probability that it gives to each row's true label;
    whether the row was a member; and, of all models together, the AUC on members and on others."""

    confidence: Scores
    member: Flags
    member_auc: float
    other_auc: float


def observe(fit: Fit, recipe: NetworkRecipe, rows: Examples, models: int, seed: int) -> Observed:
    """Fit so many models to random halves. Raises `ValueError` for fewer than four models, or rows of one label."""
    if models < LEAST_MODELS:
        raise ValueError(f"{models} models are too few to learn anything from; use at least {LEAST_MODELS}")
    member = np.random.default_rng([seed, 2]).random((models, len(rows.labels))) < 0.5
    scores = np.stack(
        [scores_of(recipe, fit(taken(rows, member[k]), seed + k), rows.inputs) for k in range(models)],
    )
    labels = np.broadcast_to(rows.labels, member.shape)
    return Observed(
        confidence=true_label_logits(scores, labels),
        member=member,
        member_auc=_mean_auc(scores, rows, member),
        other_auc=_mean_auc(scores, rows, ~member),
    )


def _mean_auc(scores: Scores, rows: Examples, chosen: Flags) -> float:
    return float(np.mean([exact_auc(scores[k, of], rows.labels[of]) for k, of in enumerate(chosen)]))


def true_label_logits(scores: Scores, labels: NDArray[np.float32]) -> Scores:
    """log(p / (1 − p)) of the probability p given to the true label: close to normal over models, where p is not."""
    given = np.clip(np.where(labels > 0.5, scores, 1 - scores), LEAST_CHANCE, 1 - LEAST_CHANCE)
    return np.asarray(np.log(given) - np.log1p(-given))


def loss_scores(observed: Observed) -> Scores:
    """The smaller the loss, the more likely a member: the loss falls with the confidence."""
    return observed.confidence


def likelihood_scores(observed: Observed) -> Scores:
    """log of how much likelier the confidence is with the row in the training than without, both normal, their means
    from the other models and one spread for all rows, as LiRA advises for few models."""
    inside, outside = (means_of_others(observed.confidence, kind) for kind in (observed.member, ~observed.member))
    spread = [_spread(observed.confidence, kind) for kind in (observed.member, ~observed.member)]
    parts = [
        -0.5 * ((observed.confidence - means) / own) ** 2 - math.log(own)
        for means, own in zip((inside, outside), spread, strict=True)
    ]
    return np.asarray(parts[0] - parts[1])


def means_of_others(confidence: Scores, kind: Flags) -> Scores:
    """For each model and row, the mean confidence of the OTHER models of this kind; without any, of their rows."""
    kept = np.where(kind, confidence, 0.0)
    sums, counts = kept.sum(axis=0) - kept, kind.sum(axis=0) - kind
    all_rows = sums.sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
    return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), all_rows[:, None]))


def _spread(confidence: Scores, kind: Flags) -> float:
    """Standard deviation over models of this kind, pooled over all rows."""
    counts = kind.sum(axis=0)
    means = np.where(kind, confidence, 0.0).sum(axis=0) / np.maximum(counts, 1)
    squares = np.where(kind, (confidence - means) ** 2, 0.0).sum()
    freedom = int(np.maximum(counts - 1, 0).sum())
    return max(LEAST_SPREAD, math.sqrt(float(squares) / freedom)) if freedom else 1.0


@dataclass(frozen=True, slots=True)
class Attacked:
    """One attack on all models. `auc` is over the models' own AUCs; `roc` of all their rows together. An attacker who
    guesses has an AUC of 0.5: `auc.low` above it means that this one does not guess."""

    auc: Interval
    roc: Roc


def attacked(observed: Observed, scores: Scores) -> Attacked:
    """What `loss_scores` or `likelihood_scores` achieve."""
    each = np.array([exact_auc(scores[k], member) for k, member in enumerate(observed.member)])
    return Attacked(mean_interval(each), roc_of(scores.reshape(-1), observed.member.reshape(-1)))
