"""From what a study asks to what it costs: noise multiplier, steps, ε, and the sentence that goes with it.

A plan is fixed before the first row is read: the ledger reserves the whole of it, and nothing that is learnt on the way
may change it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy, NoPrivacy, SitePrivacy
from cohortium_messages.study import GradientRecipe, RandomTreesRecipe, Recipe
from cohortium_privacy.accounting import GaussianSteps, epsilon, rdp_at
from cohortium_privacy.filter import BudgetImpossible, alpha_star, budget
from cohortium_privacy.lattice import (
    LEAST_SITE_SIGMA,
    RING_BITS,
    noise_shares,
    ring_room,
    sensitivity_of,
    site_sigma,
)

Formal = LocalPrivacy | DistributedPrivacy | SitePrivacy
"""The modes that promise something."""

LEAST_BATCH = 8
MOST_MULTIPLIER = 1e4


@dataclass(frozen=True, slots=True)
class Course:
    """What a plan depends on besides the privacy block. `dimension`: numbers in one sum.

    `sensitivity`: by how many integer steps, in L2, a patient moves a sum that is not on the gradients' lattice (for
    leaves: `random_trees.sensitivity`). `most_sites`: the largest roster, for which the ring must have room.
    """

    recipe: Recipe
    rounds: int
    dimension: int
    buffered: bool
    least_sites: int
    colluding: int
    sensitivity: float | None = None
    most_sites: int = 200
    ring_bits: int = RING_BITS


@dataclass(frozen=True, slots=True)
class PlanProblem:
    """Why a plan cannot be, or would mean nothing: the field under `privacy`, the fact, the way out."""

    field: str
    fact: str
    remedy: str


class PlanImpossible(ValueError):
    """The study's privacy block cannot be kept; `problems` has every reason."""

    def __init__(self, problems: tuple[PlanProblem, ...]) -> None:
        super().__init__("; ".join(f"privacy.{one.field} {one.fact}. {one.remedy}" for one in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class PrivacyPlan:
    """A whole run's promise. `events` are charged to a training patient over all sites, `evaluation` to a test patient;
    `steps` are those of one site, and what its ledger is charged.

    `order` and `divergence`: what a ledger account of exactly this (ε, δ) would be charged. `site_sigma`: standard
    deviation of one site's noise share in lattice units (modes with noise in the sum). `noise_to_signal`: noise of one
    released mean over the largest mean that could be, in L2; below 1 a step can carry something.
    """

    mode: Literal["local", "distributed", "site"]
    unit: Literal["patient", "hospital"]
    mechanism: str
    noise_multiplier: float
    events: tuple[GaussianSteps, ...]
    evaluation: tuple[GaussianSteps, ...]
    steps: int
    sampling_rate: float
    delta: float
    epsilon_rdp: float
    epsilon_pld: float
    evaluation_epsilon: float | None
    order: int
    divergence: float
    site_sigma: float | None
    noise_to_signal: float
    sentences: tuple[str, ...]


def plan_of(privacy: Formal, course: Course) -> PrivacyPlan:
    """The plan; where `noise_multiplier` is not given, the least that fits. Raises `PlanImpossible`."""
    problems = tuple(_problems(privacy, course))
    if problems:
        raise PlanImpossible(problems)
    steps, rate = steps_of(privacy, course), sampling_rate_of(privacy)
    pattern = _pattern(privacy, rate, steps)
    order = alpha_star(privacy.epsilon, privacy.delta)
    given = privacy.noise_multiplier
    z = given if given is not None else least_multiplier(pattern, privacy.epsilon, privacy.delta)
    events = (replace(pattern, noise_multiplier=z),)
    spent = rdp_at(events, order)
    if given is not None and spent > budget(privacy.epsilon, privacy.delta, order):
        least = least_multiplier(pattern, privacy.epsilon, privacy.delta)
        fact = f"is {given:g}, with which {steps} steps cost more than epsilon {privacy.epsilon:g}"
        remedy = f"Use at least {math.ceil(least * 1000) / 1000:g}, raise epsilon, or plan fewer rounds."
        raise PlanImpossible((PlanProblem("noise_multiplier", fact, remedy),))
    evaluation = _evaluation(privacy)
    plan = PrivacyPlan(
        mode=privacy.mode,
        unit="hospital" if isinstance(privacy, SitePrivacy) else "patient",
        mechanism=_MECHANISMS[privacy.mode],
        noise_multiplier=z,
        events=events,
        evaluation=evaluation,
        steps=steps,
        sampling_rate=rate,
        delta=privacy.delta,
        epsilon_rdp=epsilon(events, privacy.delta, "rdp"),
        epsilon_pld=epsilon(events, privacy.delta, "pld"),
        evaluation_epsilon=epsilon(evaluation, privacy.delta, "pld") if evaluation else None,
        order=order,
        divergence=spent,
        site_sigma=_site_sigma(privacy, course, z),
        noise_to_signal=_noise_to_signal(privacy, course, z),
        sentences=(),
    )
    if plan.site_sigma is not None:
        _check_site_sigma(plan.site_sigma, course)
    return replace(plan, sentences=tuple(_sentences(plan, privacy)))


def _check_site_sigma(sigma: float, course: Course) -> None:
    """Raises `PlanImpossible` for noise that is too little, or too much for the ring."""
    if sigma < LEAST_SITE_SIGMA:
        fact = f"gives a site a noise of {sigma:.1f} lattice steps, too little to count as a Gaussian"
        raise PlanImpossible((PlanProblem("noise_multiplier", fact, "Lower epsilon, or raise colluding."),))
    if ring_room(sigma, course.most_sites, course.ring_bits) < _sensitivity(course):
        fact = f"gives {course.most_sites} sites a noise of {sigma:.3g} lattice steps each, for which a ring of "
        fact += f"{course.ring_bits} bits has no room"
        raise PlanImpossible((PlanProblem("noise_multiplier", fact, "Raise epsilon, or train fewer parameters."),))


def _pattern(privacy: Formal, rate: float, steps: int) -> GaussianSteps:
    """All that a patient is charged, but for the multiplier: one sum over all sites, a mixture where a patient may be
    at several of them (3.6 rule 5); with local noise, every site's steps on their own."""
    match privacy:
        case LocalPrivacy(overlap=overlap):
            return GaussianSteps(1.0, rate, steps * overlap)
        case DistributedPrivacy(overlap=overlap):
            return GaussianSteps(1.0, rate, steps, overlap)
        case _:
            return GaussianSteps(1.0, rate, steps)


def steps_of(privacy: Formal, course: Course) -> int:
    """Noisy sums in the whole run. Local: round(epochs / q) for each round; otherwise one a round."""
    if isinstance(privacy, LocalPrivacy):
        return course.rounds * local_steps(privacy, course.recipe)
    return course.rounds


def local_steps(privacy: LocalPrivacy, recipe: Recipe) -> int:
    """DP-SGD steps of one round at one site."""
    epochs = recipe.local.epochs if isinstance(recipe, GradientRecipe) else 1
    return max(1, round(epochs / privacy.sampling_rate))


def sampling_rate_of(privacy: Formal) -> float:
    return 1.0 if isinstance(privacy, SitePrivacy) else privacy.sampling_rate


def least_multiplier(pattern: GaussianSteps, target: float, delta: float) -> float:
    """The least noise multiplier, to one part in ten thousand, with which all steps of `pattern` fit (target, δ).

    Held to the ledger's rule (Rényi divergence at the account's fixed order), which is the stricter one: the PLD ε of
    the same plan is lower. Raises `PlanImpossible` if 10,000 is not enough.
    """
    order = alpha_star(target, delta)
    limit = budget(target, delta, order)

    def enough(z: float) -> bool:
        return rdp_at((replace(pattern, noise_multiplier=z),), order) <= limit

    return _bisect(enough)


def _bisect(enough: Callable[[float], bool]) -> float:
    high = 1.0
    while not enough(high):
        high *= 2
        if high > MOST_MULTIPLIER:
            fact = "cannot be kept with any noise multiplier up to 10,000"
            raise PlanImpossible((PlanProblem("epsilon", fact, "Raise epsilon, or plan fewer rounds."),))
    low = 0.0
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        if middle > 0.05 and enough(middle):
            high = middle
        else:
            low = middle
    return high


def _evaluation(privacy: Formal) -> tuple[GaussianSteps, ...]:
    if isinstance(privacy, SitePrivacy) or privacy.evaluation_epsilon is None:
        return ()
    pattern = GaussianSteps(1.0, 1.0, 1, privacy.overlap)
    z = least_multiplier(pattern, privacy.evaluation_epsilon, privacy.delta)
    return (replace(pattern, noise_multiplier=z),)


_MECHANISMS = {
    "local": "DP-SGD at each site: clipped per-patient gradients, Poisson sampling, Gaussian noise in every step",
    "distributed": "clipped per-patient sums, discrete Gaussian noise shares of all sites inside the secure sum",
    "site": "clipped site updates, discrete Gaussian noise shares of all sites inside the secure sum",
}


# ---------------------------------------------------------------------------------------------- what cannot be kept


def _problems(privacy: Formal, course: Course) -> Iterator[PlanProblem]:
    recipe = course.recipe
    if isinstance(privacy, SitePrivacy):
        if privacy.delta >= 1 / privacy.sites:
            fact = f"is {privacy.delta:g}, not below 1/sites ({1 / privacy.sites:g}): it allows to name a hospital"
            yield PlanProblem("delta", fact, f"Use at most {0.1 / privacy.sites:.1g}.")
        if isinstance(recipe, RandomTreesRecipe):
            yield PlanProblem("mode", "is site: random trees are noised by patient", "Use mode: distributed.")
    else:
        yield from _patient_problems(privacy)
    if recipe.trainer == "lightgbm":
        fact = f"is {privacy.mode}: histograms of every split cannot be noised without losing the model"
        yield PlanProblem("mode", fact, "Use trainer: lightgbm.random_trees with mode: distributed.")
    if recipe.trainer == "lightgbm.random_trees" and isinstance(privacy, LocalPrivacy):
        yield PlanProblem("mode", "is local: leaf sums are noised inside the secure sum", "Use mode: distributed.")
    if isinstance(privacy, DistributedPrivacy):
        yield from _distributed_problems(privacy, course)
    if course.buffered and not isinstance(privacy, LocalPrivacy):
        fact = f"is {privacy.mode}, and federation.mode is buffered: a step needs one model and one cohort"
        yield PlanProblem("mode", fact, "Use federation.mode: synchronous.")
    try:
        alpha_star(privacy.epsilon, privacy.delta)
    except BudgetImpossible as error:
        yield PlanProblem("epsilon", str(error), "Raise epsilon, or delta.")


def _patient_problems(privacy: LocalPrivacy | DistributedPrivacy) -> Iterator[PlanProblem]:
    if privacy.delta >= 1 / privacy.patients:
        fact = f"is {privacy.delta:g}, not below 1/patients ({1 / privacy.patients:.1g}): it would allow to publish one"
        yield PlanProblem("delta", fact, f"Use at most {0.1 / privacy.patients:.1g}.")
    batch = privacy.sampling_rate * privacy.patients
    if batch < LEAST_BATCH:
        fact = f"gives batches of {batch:.1f} patients on average, in which noise is all there is"
        remedy = f"Use at least {min(1.0, LEAST_BATCH / privacy.patients):.2g}."
        yield PlanProblem("sampling_rate", fact, remedy)


def _distributed_problems(privacy: DistributedPrivacy, course: Course) -> Iterator[PlanProblem]:
    if isinstance(course.recipe, RandomTreesRecipe) and privacy.sampling_rate != 1:
        fact = f"is {privacy.sampling_rate:g}: every patient is in every leaf sum"
        yield PlanProblem("sampling_rate", fact, "Use 1 for random trees.")
    colluding = course.colluding if privacy.colluding is None else privacy.colluding
    if colluding >= course.least_sites:
        fact = f"is {colluding}: with {course.least_sites} sites nobody's noise would be left"
        yield PlanProblem("colluding", fact, f"Use at most {course.least_sites - 1}.")


# ----------------------------------------------------------------------------------------------- noise and its words


def _shares(privacy: DistributedPrivacy | SitePrivacy, course: Course) -> int:
    colluding = course.colluding if privacy.colluding is None else privacy.colluding
    return noise_shares(course.least_sites, colluding)


def _site_sigma(privacy: Formal, course: Course, z: float) -> float | None:
    if isinstance(privacy, LocalPrivacy):
        return None
    return site_sigma(z, _sensitivity(course), _shares(privacy, course))


def _sensitivity(course: Course) -> float:
    return sensitivity_of(course.dimension) if course.sensitivity is None else course.sensitivity


def _noise_to_signal(privacy: Formal, course: Course, z: float) -> float:
    """L2 norm of the noise of one released mean over the clip: √d·z·C over the batch, over C."""
    spread = z * math.sqrt(course.dimension)
    if isinstance(privacy, SitePrivacy):
        return spread / privacy.sites
    batch = privacy.sampling_rate * privacy.patients
    if isinstance(privacy, LocalPrivacy):
        return spread / batch / math.sqrt(course.least_sites)
    return spread / batch


def _sentences(plan: PrivacyPlan, privacy: Formal) -> Iterator[str]:
    who = "a hospital" if plan.unit == "hospital" else "a patient"
    factor = math.exp(min(plan.epsilon_pld, 50))
    yield (
        f"Whatever someone concludes from everything that is released, it is at most {factor:.3g} times as likely with "
        f"{who} in the data as without, except with probability {plan.delta:g} (ε = {plan.epsilon_pld:.3g})."
    )
    if plan.mode == "local":
        yield "It holds against everybody outside the hospital: the operator, the other hospitals, users of the model."
    else:
        yield (
            "It holds against users of the model, and against the operator together with as many hospitals as the "
            "study assumes to collude; it rests on the secure sum."
        )
    if not isinstance(privacy, SitePrivacy) and privacy.overlap > 1:
        yield f"It counts on no patient being at more than {privacy.overlap} of the hospitals."
    if plan.evaluation_epsilon is not None:
        yield f"Test patients pay for the evaluation on their own: ε = {plan.evaluation_epsilon:.3g}."
    elif plan.unit == "patient":
        yield "Nothing is evaluated on test patients, since that would cost them; see evaluation_epsilon."
    if plan.noise_to_signal > 1:
        yield (
            f"The noise of one step is {plan.noise_to_signal:.2g} times the largest possible mean gradient: expect "
            "learning from many steps only, or none."
        )


def none_or_plan(privacy: NoPrivacy | Formal, course: Course) -> PrivacyPlan | None:
    """None for `mode: none`."""
    return None if isinstance(privacy, NoPrivacy) else plan_of(privacy, course)
