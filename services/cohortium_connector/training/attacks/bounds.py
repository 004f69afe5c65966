"""What counts of an attack prove: exact binomial bounds, an ε from below, and what (ε, δ) allows at most."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortium_protocol.metrics import exact_auc

Scores = NDArray[np.float64]
Flags = NDArray[np.bool_]

NORMAL_99 = 2.5758293035489
"""Both tails of a normal together hold 1 % beyond this."""


def least_rate(successes: int, trials: int, error: float) -> float:
    """A rate below the true one, but for a chance of `error` (Clopper and Pearson 1934, one-sided)."""
    return 1.0 - most_rate(trials - successes, trials, error)


def most_rate(successes: int, trials: int, error: float) -> float:
    """A rate above the true one, but for a chance of `error`: where as few successes come with that chance."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials cannot be")
    if not 0 < error < 1:
        raise ValueError(f"error is {error}; it is a probability above 0 and below 1")
    if successes == trials:
        return 1.0
    choices = _log_choices(successes, trials)
    low, high = successes / trials, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _chance_of_at_most(choices, trials, middle) > error:
            low = middle
        else:
            high = middle
    return high


def _log_choices(most: int, trials: int) -> Scores:
    """log C(trials, k) for k up to `most`."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    k = np.arange(most + 1)
    return np.asarray(logs[trials] - logs[k] - logs[trials - k])


def _chance_of_at_most(choices: Scores, trials: int, rate: float) -> float:
    if not 0 < rate < 1:
        return float(rate <= 0)
    k = np.arange(len(choices))
    return float(np.exp(choices + k * math.log(rate) + (trials - k) * math.log1p(-rate)).sum())


@dataclass(frozen=True, slots=True)
class Guesses:
    """How often an attacker said "in the data": of `present` runs with the record `hits`, of `absent` runs without it
    `alarms`."""

    hits: int
    present: int
    alarms: int
    absent: int

    @property
    def advantage(self) -> float:
        """TPR − FPR, as counted."""
        return self.hits / self.present - self.alarms / self.absent

    def epsilon_bound(self, delta: float, error: float) -> float:
        """An ε that the mechanism exceeds at this δ, but for a chance of `error`; at least 0.

        By (ε, δ)-privacy TPR ≤ e^ε·FPR + δ, and the same of the attacker who says the contrary (Jagielski, Ullman and
        Oprea 2020, arXiv 2006.07709). The rule of guessing must have been chosen on other runs.
        """
        tpr, fpr = least_rate(self.hits, self.present, error / 2), most_rate(self.alarms, self.absent, error / 2)
        bounds = [0.0]
        if tpr > delta:
            bounds.append(math.log(tpr - delta) - math.log(fpr))
        if fpr < 1 - delta and tpr < 1:
            bounds.append(math.log(1 - fpr - delta) - math.log(1 - tpr))
        return max(bounds)


def advantage_limit(epsilon: float, delta: float) -> float:
    """The most by which any attacker's true positive rate can exceed its false positive rate (Kairouz, Oh and
    Viswanath 2015, arXiv 1311.0776, theorem 2.1)."""
    return (math.expm1(epsilon) + 2 * delta) / (math.exp(epsilon) + 1)


def hit_rate_limit(epsilon: float, delta: float, false_positives: float) -> float:
    """The largest true positive rate of any attacker with this false positive rate."""
    many = 1 - math.exp(-epsilon) * max(0.0, 1 - delta - false_positives)
    return min(1.0, math.exp(epsilon) * false_positives + delta, many)


def auc_limit(epsilon: float, delta: float) -> float:
    """The largest area under the ROC curve of any attacker: that of the curve of `hit_rate_limit`, whose corners are
    (0, δ), (f, 1 − f) and (1 − δ, 1)."""
    corner = (1 - delta) / (1 + math.exp(epsilon))
    rising = corner * (delta + 1 - corner) / 2
    flat = (1 - delta - corner) * (2 - corner) / 2
    return rising + flat + delta


@dataclass(frozen=True, slots=True)
class Roc:
    """How well scores tell members from others. `advantage`: the largest TPR − FPR over all thresholds. `points`: the
    curve as (FPR, TPR), thinned; `hits_at_1_percent`: the TPR at an FPR of 1 %."""

    auc: float
    advantage: float
    hits_at_1_percent: float
    points: tuple[tuple[float, float], ...]


CURVE_POINTS = 60


def roc_of(scores: Scores, member: Flags) -> Roc:
    """Higher scores mean "member". Raises `ValueError` unless both kinds are there."""
    fpr, tpr = _curve(scores, member)
    places = np.unique(np.linspace(0, len(fpr) - 1, CURVE_POINTS).round().astype(int))
    return Roc(
        auc=exact_auc(scores, member),
        advantage=float((tpr - fpr).max()),
        hits_at_1_percent=float(tpr[fpr <= 0.01].max()),
        points=tuple((float(fpr[place]), float(tpr[place])) for place in places),
    )


def _curve(scores: Scores, member: Flags) -> tuple[Scores, Scores]:
    """False and true positive rates after each distinct score, from the highest down, from (0, 0)."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    hits, alarms = np.cumsum(member[order])[last], np.cumsum(~member[order])[last]
    return np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its interval: of 99 %, where nothing else is said."""

    mean: float
    low: float
    high: float


def mean_interval(values: Scores) -> Interval:
    """Of independent values, by Student's law. One value alone says nothing about its own spread: 0 to 1 then."""
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, 0.0, 1.0)
    half = _student_99(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


NORMAL_95 = 1.959964


def auc_interval(members: Scores, others: Scores) -> Interval:
    """How well scores tell members from others, with the 95 % interval of DeLong et al. (Biometrics 1988): the area,
    and its spread from where each row of one kind lies among those of the other. Within 0 to 1."""
    above = _placed(members, others)  # of each member: the share of others below it
    below = 1 - _placed(others, members)  # of each other: the share of members above it
    area = float(above.mean())
    spread = sum(float(part.var(ddof=1)) / len(part) for part in (above, below) if len(part) > 1)
    lone = min(len(above), len(below)) < 2
    # Of one row alone nothing is known about its spread.
    half = 1.0 if lone else NORMAL_95 * math.sqrt(spread)
    return Interval(area, max(0.0, area - half), min(1.0, area + half))


def _placed(scores: Scores, among: Scores) -> Scores:
    """For each score, which share of `among` lies below it; of equal ones, half."""
    ordered = np.sort(among)
    sides = [np.searchsorted(ordered, scores, side=side) for side in ("left", "right")]
    return np.asarray((sides[0] + sides[1]) / (2 * len(among)))


def _student_99(freedom: int) -> float:
    """Student's quantile for both tails together of 1 %: by the expansion of Cornish and Fisher, or by table up to six
    degrees of freedom, where that is too small."""
    if freedom <= 6:
        return (63.657, 9.925, 5.841, 4.604, 4.032, 3.707)[freedom - 1]
    z = NORMAL_99
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
