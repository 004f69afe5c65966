"""What a plan of noisy sums costs: Rényi accounting for budgets, privacy-loss distributions for reports.

Both come from `dp-accounting`. The neighbouring relation is add-or-remove one patient; sampling is Poisson. A ledger is
only ever charged in Rényi divergence at its account's one fixed order (`filter`); the tighter numbers of a privacy-loss
distribution (PLD) are for reports, because an adaptive filter on them is not sound in general.
"""

import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import dp_accounting
import numpy as np
from dp_accounting import dp_event, pld, rdp
from dp_accounting.rdp import rdp_privacy_accountant

Accountant = Literal["rdp", "pld"]

# An order whose series does not converge is left out of the minimum, which is safe; nobody can act on hearing so.
logging.getLogger("absl").addFilter(lambda record: "failed to converge" not in record.getMessage())

WHOLE_ORDERS = tuple(float(order) for order in range(2, 65))
ORDERS: tuple[float, ...] = (*(1 + step / 10 for step in range(4, 100)), *range(11, 65), 128.0, 256.0, 512.0)
"""Orders of the Rényi report. Below 1.4 the series of a subsampled Gaussian does not converge for some rates."""

MAX_STEPS = 10_000_000
PLD_INTERVAL, MIXTURE_INTERVAL = 1e-4, 1e-3
"""Steps in which a privacy loss is rounded up."""


class AccountantRefused(ValueError):
    """No such accountant here. Gaussian DP (`gdp`) is refused for what it is: it reports too little."""


class PlanRefused(ValueError):
    """An event that no accountant can charge: a rate, multiplier or count out of range."""


@dataclass(frozen=True, slots=True)
class GaussianSteps:
    """`steps` noisy sums over Poisson samples.

    `noise_multiplier` z: standard deviation of the noise over the L2 sensitivity of one record. `sampling_rate` q: with
    which probability a patient is in a sum. `overlap` κ: the most records (sites) that one patient can have in a sum,
    each sampled on its own; above 1 the sum is charged as a mixture of Gaussians (Choquette-Choo et al. 2024).
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int
    overlap: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise PlanRefused(f"noise_multiplier is {self.noise_multiplier}; it is a positive number")
        if not 0 < self.sampling_rate <= 1:
            raise PlanRefused(f"sampling_rate is {self.sampling_rate}; it lies above 0 and at most at 1")
        if not 0 <= self.steps <= MAX_STEPS:
            raise PlanRefused(f"steps is {self.steps}; it lies between 0 and {MAX_STEPS}")
        if not 1 <= self.overlap <= 10:
            raise PlanRefused(f"overlap is {self.overlap}; it lies between 1 and 10")


Events = Sequence[GaussianSteps]


def check_accountant(name: str) -> Accountant:
    """The accountant of that name. Raises `AccountantRefused`, with the reason for `gdp` and `prv`."""
    if name == "gdp":
        raise AccountantRefused(
            "accountant gdp is refused: its central-limit approximation reports less than what is lost "
            "(1.62 where 1.83 is true); use rdp or pld"
        )
    if name == "prv":
        raise AccountantRefused("accountant prv is another program's; use pld, which composes the same losses")
    if name not in ("rdp", "pld"):
        raise AccountantRefused(f"accountant {name} is not known; use rdp or pld")
    return cast("Accountant", name)


def epsilon(events: Events, delta: float, accountant: str = "pld") -> float:
    """ε of all events together at `delta`. Raises `AccountantRefused` or `PlanRefused`."""
    chosen = check_accountant(accountant)
    if not 0 < delta < 1:
        raise PlanRefused(f"delta is {delta}; it lies between 0 and 1")
    key = tuple(event for event in events if event.steps)
    if not key:
        return 0.0
    return _rdp_epsilon(key, delta) if chosen == "rdp" else _pld_epsilon(key, delta)


def rdp_at(events: Events, order: float) -> float:
    """Rényi divergence at one order, summed over the events: what a ledger is charged."""
    return math.fsum(step_rdp(event, order) * event.steps for event in events if event.steps)


@lru_cache(maxsize=4096)
def step_rdp(event: GaussianSteps, order: float) -> float:
    """Rényi divergence of one step at one order. Infinite where the accountant finds no bound."""
    if event.overlap > 1:
        return _mixture_rdp(event, order)
    accountant = rdp.RdpAccountant(orders=[order])
    _compose(accountant, GaussianSteps(event.noise_multiplier, event.sampling_rate, 1, event.overlap))
    return max(0.0, float(accountant._rdp[0]))  # the library offers no way to read one order


def _mixture_rdp(event: GaussianSteps, order: float) -> float:
    """The larger of both directions between N(0, z²) and Σ p_k N(k, z²), by the trapezoidal rule.

    The integrands are entire and fall off like a Gaussian: the rule converges faster than any power of its step, and
    sixteen points for each standard deviation leave nothing of a double.
    """
    z, possible = event.noise_multiplier, np.asarray(_binomial(event))
    shifts = np.flatnonzero(possible)  # with every record in every sum, only one shift can be
    chances = np.log(possible[shifts])
    reach = 14 * z
    points = np.linspace(-reach - order * event.overlap, reach + order * event.overlap, _grid_size(z, event, order))
    base = -(points**2) / (2 * z * z) - math.log(z * math.sqrt(2 * math.pi))
    tilts = (np.outer(points, shifts) - shifts**2 / 2) / (z * z)
    ratio = np.logaddexp.reduce(chances + tilts, axis=1)
    step = math.log(points[1] - points[0])
    moments = (np.logaddexp.reduce(base + order * ratio), np.logaddexp.reduce(base + (1 - order) * ratio))
    return max(0.0, max(float(moment) + step for moment in moments) / (order - 1))


def _grid_size(z: float, event: GaussianSteps, order: float) -> int:
    return min(2_000_000, int(16 * (14 * z + order * event.overlap) / z) + 1001)


def _rdp_epsilon(events: tuple[GaussianSteps, ...], delta: float) -> float:
    if any(event.overlap > 1 for event in events):
        divergences = [rdp_at(events, order) for order in WHOLE_ORDERS]
        return float(rdp_privacy_accountant.compute_epsilon(WHOLE_ORDERS, divergences, delta)[0])
    accountant = rdp.RdpAccountant(orders=list(ORDERS))
    for event in events:
        _compose(accountant, event)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=1024)
def _pld_epsilon(events: tuple[GaussianSteps, ...], delta: float) -> float:
    # Coarser steps for mixtures, which are slow; the bound stays pessimistic and moves by less than 0.001.
    interval = MIXTURE_INTERVAL if any(event.overlap > 1 for event in events) else PLD_INTERVAL
    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    for event in events:
        _compose(accountant, event)
    return float(accountant.get_epsilon(delta))


def _compose(accountant: dp_accounting.PrivacyAccountant, event: GaussianSteps) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # orders without a bound are dropped, which is safe, and said in a warning
        accountant.compose(dp_accounting.SelfComposedDpEvent(_dp_event(event), event.steps))


def _dp_event(event: GaussianSteps) -> dp_accounting.DpEvent:
    if event.overlap > 1:
        shifts = list(range(event.overlap + 1))
        return dp_event.MixtureOfGaussiansDpEvent(event.noise_multiplier, shifts, _binomial(event))
    gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    if event.sampling_rate == 1:
        return gaussian
    return dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gaussian)


def _binomial(event: GaussianSteps) -> list[float]:
    """How many of a patient's κ records are in one sample."""
    n, q = event.overlap, event.sampling_rate
    return [math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1)]


def worst_sites(costs: Iterable[float], overlap: int) -> float:
    """Rényi cost to a patient of at most κ sites, from every site's own: the κ largest added up (local noise, 3.6
    rule 5); 0 for no site."""
    return math.fsum(sorted(costs, reverse=True)[:overlap])
