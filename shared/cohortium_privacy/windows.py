"""What a window of a private study asks of the sites: lengths, rings, noise. Scheduler, connector and aggregator ask
here, so that a site refuses a window exactly where it is not what follows from the study that it approved.

By mode, and by what a window is for:

    statistics   no row is read: one word, 0. Inputs and bins come from the study's public ranges (`statistics`)
    update       local        the update as without privacy, but of weight 1 at every site, and with an empty tail
                 distributed  the lattice sum of clipped negative gradients, or of leaves, and a share of the noise
                 site         the update, clipped to `privacy.clip`, on the lattice, and a share of the noise
    evaluation   with `evaluation_epsilon` alone, once, after the last round: two histograms of 100 bins of scores, by
                 label, times a public factor, and a share of the noise

There are no other windows: refining sums and sessions read rows in ways that nothing is promised about.

`k_min` is the window's `least_cohort`: no sum of fewer sites opens. `collusion` is the manifest's.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy, NoPrivacy, SitePrivacy
from cohortium_messages.secure_sum import NoiseSpec, PrivacyMode, Purpose, VectorSpec
from cohortium_messages.study import (
    BinaryLabel,
    CnnRecipe,
    LogisticRecipe,
    MlpRecipe,
    NoiseRecipe,
    RandomTreesRecipe,
    Study,
)
from cohortium_privacy.lattice import (
    RING_BITS,
    Lattice,
    NoiseShare,
    count_scale,
    noise_shares,
    site_sigma,
)
from cohortium_protocol.codec import integer_spec
from cohortium_protocol.metrics import BINS
from cohortium_protocol.parameters import layout_of
from cohortium_protocol.statistics import input_count
from cohortium_protocol.trees import random_trees

if TYPE_CHECKING:  # the plan needs dp-accounting, which a hospital without private studies may not have
    from cohortium_privacy.plan import Course, Formal, PrivacyPlan

STATISTICS_WORDS: Final = 1
HISTOGRAM_WORDS: Final = 2 * BINS
COUNT_SENSITIVITY: Final = 1.0
"""Of the histograms: a test patient more or less is one more or less in one count."""
INTEGER_RING: Final[Literal[64]] = 64
MOST_SITES: Final = 200


def mode_of(study: Study) -> PrivacyMode:
    """What `WindowParams.privacy_mode` says in every window of the study."""
    return study.privacy.mode


def formal(study: Study) -> "Formal | None":
    """The study's privacy block, None where it promises nothing."""
    return None if isinstance(study.privacy, NoPrivacy) else study.privacy


# ------------------------------------------------------------------------------------------------------------ the plan


def course_of(study: Study, members: int, k_min: int, collusion: int) -> "Course":
    """What the plan depends on besides the privacy block. `members`: sites of the manifest."""
    from cohortium_privacy.plan import Course

    trees = isinstance(study.recipe, RandomTreesRecipe)
    return Course(
        recipe=study.recipe,
        rounds=study.rounds,
        dimension=_dimension(study),
        buffered=study.federation.mode == "buffered",
        least_sites=k_min,
        colluding=collusion,
        sensitivity=random_trees.sensitivity(study) if trees else None,
        most_sites=min(MOST_SITES, max(members, k_min)),
        ring_bits=INTEGER_RING if trees else RING_BITS,
    )


def usual_course(study: Study) -> "Course":
    """The course before there is a manifest: the study's own least cohort and collusion bound (1.3), and as many sites
    as there may be. ε, steps and multiplier do not depend on these."""
    federation = study.federation
    usual = max(1, (federation.min_sites - 1) // 3)
    collusion = usual if federation.collusion is None else federation.collusion
    return course_of(study, MOST_SITES, max(3, federation.min_sites, collusion + 2), collusion)


def plan_for(study: Study, members: int, k_min: int, collusion: int) -> "PrivacyPlan | None":
    """The plan of a run; None for `mode: none`. Raises `PlanImpossible` (`plan`).

    The first call for a study takes about a second: keep it off the event loop. Later ones are remembered.
    """
    if formal(study) is None:
        return None
    return _planned(study.model_dump_json(), members, k_min, collusion)


def usual_plan(study: Study) -> "PrivacyPlan | None":
    """`plan_for` the `usual_course`. Raises `PlanImpossible`."""
    if formal(study) is None:
        return None  # before the accountant is imported: a second, and 90 MB
    course = usual_course(study)
    return plan_for(study, course.most_sites, course.least_sites, course.colluding)


@lru_cache(maxsize=64)
def _planned(study_json: str, members: int, k_min: int, collusion: int) -> "PrivacyPlan | None":
    from cohortium_privacy.plan import none_or_plan

    study = Study.model_validate_json(study_json)
    return none_or_plan(study.privacy, course_of(study, members, k_min, collusion))


# --------------------------------------------------------------------------------------------------------- the vectors


def evaluates_privately(study: Study) -> bool:
    """Whether a private study's last model is evaluated at all."""
    privacy = study.privacy
    paid = isinstance(privacy, LocalPrivacy | DistributedPrivacy) and privacy.evaluation_epsilon is not None
    return paid and isinstance(study.dataset.label, BinaryLabel) and bool(study.metrics)


def private_vector_length(study: Study, purpose: Purpose) -> int | None:
    """Integers of a window's vector, without its tail; None where it is as without privacy: in `mode: none`, and for
    updates in `mode: local`. Raises `ValueError` for a window that a private study does not have."""
    privacy = formal(study)
    if privacy is None:
        return None
    match purpose:
        case "statistics":
            return STATISTICS_WORDS
        case "update":
            return None if isinstance(privacy, LocalPrivacy) else _dimension(study)
        case "evaluation" if evaluates_privately(study):
            return HISTOGRAM_WORDS
    raise ValueError(f"a study in mode {privacy.mode} has no {purpose} window")


def ring_of(study: Study, purpose: Purpose) -> Literal[32, 64]:
    """Bits of the ring of a private integer vector: 32 for sums of gradients and updates, 64 for counts and leaves."""
    of_numbers = purpose == "update" and not isinstance(study.recipe, RandomTreesRecipe)
    return RING_BITS if of_numbers else INTEGER_RING


def private_spec(study: Study, purpose: Purpose, seeds: tuple[bytes, bytes]) -> VectorSpec | None:
    """The vector of a private window; None exactly where `private_vector_length` is. `seeds` mean nothing here, as
    nothing is rotated and nothing left out. Raises `ValueError` for a window that a private study does not have.

    In `mode: local` the update's specification is the usual one with a `weight_cap` of 1.
    """
    dimension = private_vector_length(study, purpose)
    if dimension is None:
        return None
    return integer_spec(dimension, ring_of(study, purpose), seeds)


def sensitivity_for(study: Study, purpose: Purpose) -> float:
    """By how many lattice steps, in L2, one patient (in `mode: site`, one site) moves a window's sum: what
    `NoiseShare.of` needs. In evaluations: of a count, before its factor."""
    if purpose == "evaluation":
        return COUNT_SENSITIVITY
    if isinstance(study.recipe, RandomTreesRecipe):
        return random_trees.sensitivity(study)
    return _lattice(study).sensitivity


def noise_for(
    study: Study, purpose: Purpose, plan: "PrivacyPlan | None", k_min: int, collusion: int
) -> NoiseSpec | None:
    """What every site does to its vector before it is masked; None where nothing of the window depends on any row.

    `plan`: `plan_for` the same study. Raises `ValueError` for a window that a private study does not have.
    """
    privacy = formal(study)
    if privacy is None or plan is None or purpose == "statistics":
        return None
    private_vector_length(study, purpose)  # refuses windows that there are not
    if purpose == "evaluation":
        return _count_noise(plan, _shares(privacy, k_min, collusion))
    if isinstance(study.recipe, RandomTreesRecipe):
        clip, step = random_trees.CLIP[study.dataset.label.type], math.ldexp(1.0, -random_trees.NOISY_BITS)
    else:
        clip, step = privacy.clip, _lattice(study).step
    shared = not isinstance(privacy, LocalPrivacy)
    sigma = site_sigma(plan.noise_multiplier, sensitivity_for(study, purpose), _shares(privacy, k_min, collusion))
    return NoiseSpec(
        multiplier=plan.noise_multiplier,
        sampling_rate=plan.sampling_rate,
        clip=clip,
        step=step,
        site_sigma=sigma if shared else 0.0,
    )


def _count_noise(plan: "PrivacyPlan", shares: int) -> NoiseSpec:
    multiplier = plan.evaluation[0].noise_multiplier
    scale = count_scale(multiplier, shares)
    return NoiseSpec(
        multiplier=multiplier,
        sampling_rate=1.0,
        clip=COUNT_SENSITIVITY,
        step=1 / scale,
        site_sigma=site_sigma(multiplier, COUNT_SENSITIVITY * scale, shares),
    )


def count_factor(noise: NoiseSpec) -> int:
    """By what a site multiplies each count of an evaluation, before it adds noise: a power of two."""
    return round(1 / noise.step)


def share_for(study: Study, purpose: Purpose, noise: NoiseSpec, sites: int) -> NoiseShare:
    """What one of `sites` sites (of the roster) adds to its integers, and what it holds them to. Raises
    `LatticeRefused`."""
    sensitivity = sensitivity_for(study, purpose) * (count_factor(noise) if purpose == "evaluation" else 1)
    return NoiseShare.of(noise.site_sigma, sensitivity, sites=sites, ring_bits=ring_of(study, purpose))


def total_sigma(study: Study, purpose: Purpose, noise: NoiseSpec, sites: int) -> float:
    """Standard deviation, in lattice steps, of the noise in one number of an opened sum of `sites` sites."""
    return share_for(study, purpose, noise, sites).total_sigma(sites) if noise.site_sigma else 0.0


def update_scale(study: Study, noise: NoiseSpec, survivors: int) -> float:
    """What one lattice step of an opened sum of updates is worth in the mean update that the server's optimiser takes.

    Distributed: a gradient step of the recipe's rate, lr · γ / (q · patients), where sites send sums of negative
    gradients. Site: γ / survivors, the mean of the clipped updates. Raises `ValueError` for other sums.
    """
    match study.privacy, study.recipe:
        case DistributedPrivacy() as privacy, LogisticRecipe() | MlpRecipe() | CnnRecipe() as recipe:
            return recipe.local.lr * noise.step / (privacy.sampling_rate * privacy.patients)
        case SitePrivacy(), LogisticRecipe() | MlpRecipe() | CnnRecipe():
            return noise.step / survivors
    raise ValueError(f"updates of {study.recipe.trainer} in mode {study.privacy.mode} are not sums on a lattice")


def _dimension(study: Study) -> int:
    match study.recipe:
        case RandomTreesRecipe():
            return random_trees.vector_length(study)
        case LogisticRecipe() | MlpRecipe() | CnnRecipe() | NoiseRecipe() as recipe:
            return layout_of(recipe, input_count(study)).size
    return 1  # LightGBM's own sums, which no plan is for


def _lattice(study: Study) -> Lattice:
    privacy = formal(study)
    if privacy is None:
        raise ValueError("a study without privacy has no lattice")
    return Lattice(privacy.clip, _dimension(study))


def _shares(privacy: "Formal", k_min: int, collusion: int) -> int:
    """Sites whose noise counts: in `mode: local`, which has noise in evaluations alone, as the manifest assumes."""
    own = None if isinstance(privacy, LocalPrivacy) else privacy.colluding
    return noise_shares(k_min, collusion if own is None else own)


def public_training_rows(study: Study) -> int:
    """What stands for the number of training rows where nobody counts them: the study's public number of patients (the
    smallest site's times the least sites, in `mode: local`), or of sites."""
    match study.privacy:
        case LocalPrivacy(patients=patients):
            return patients * max(3, study.federation.min_sites)
        case DistributedPrivacy(patients=patients):
            return patients
        case SitePrivacy(sites=sites):
            return sites
    raise ValueError("a study without privacy counts its rows")
