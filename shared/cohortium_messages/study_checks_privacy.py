"""What makes no sense in a study with differential privacy, taken together: see `cohortium_messages.study_checks`.

Whether (ε, δ) can be kept at all needs an accountant: `cohortium_privacy.study_plans`.
"""

from collections.abc import Iterator

from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy, NoPrivacy, SitePrivacy
from cohortium_messages.study import BinaryLabel, GradientRecipe, LocalTraining, RandomTreesRecipe, Study

Finding = tuple[tuple[str | int, ...], str, str]
_USUAL = LocalTraining()


def privacy_checks(study: Study) -> Iterator[Finding]:
    """Everything that would be read as if it did something, or could not be kept, whatever ε is."""
    if isinstance(study.privacy, NoPrivacy):
        return
    yield from _mode_checks(study)
    yield from _site_checks(study)
    yield from _evaluation_checks(study)
    if not isinstance(study.privacy, LocalPrivacy):
        yield from _sum_checks(study)
    if isinstance(study.recipe, GradientRecipe):
        yield from _step_checks(study, study.recipe.local)


def _mode_checks(study: Study) -> Iterator[Finding]:
    privacy = study.privacy
    if study.recipe.trainer == "benchmark.noise":
        fact = f"is {privacy.mode}, but the trainer benchmark.noise reads no row of anybody"
        yield ("privacy", "mode"), fact, "Leave out privacy."
    if isinstance(study.recipe, RandomTreesRecipe) and isinstance(privacy, DistributedPrivacy) and privacy.clip != 1.0:
        fact = f"is {privacy.clip:g}, but a row's part in a leaf is bounded by the label's type"
        yield ("privacy", "clip"), fact, "Leave it out."


def least_sites(study: Study) -> int:
    """In mode `site` the fewest hospitals in a sum that may open, 0 in others: more than half of those expected who do
    not collude, and all who do, as the secure sum recommends. With fewer there would be nobody to be one among."""
    privacy, federation = study.privacy, study.federation
    if not isinstance(privacy, SitePrivacy):
        return 0
    known = privacy.colluding if privacy.colluding is not None else federation.collusion
    colluding = max(1, (privacy.sites - 1) // 3) if known is None else known
    return min(privacy.sites, (privacy.sites + colluding) // 2 + 1)


def _site_checks(study: Study) -> Iterator[Finding]:
    least = least_sites(study)
    if isinstance(study.privacy, SitePrivacy) and study.federation.min_sites < least:
        fact = f"is {study.federation.min_sites}, but {study.privacy.sites} hospitals are promised to hide among "
        fact += "each other: a sum of so few would show who took part"
        yield ("federation", "min_sites"), fact, f"Use at least {least}, or another mode than site."


def _evaluation_checks(study: Study) -> Iterator[Finding]:
    privacy = study.privacy
    if not isinstance(privacy, LocalPrivacy | DistributedPrivacy):
        return
    if study.federation.evaluate_every != 1:
        fact = f"is {study.federation.evaluate_every}, but with privacy only the last model is evaluated"
        yield ("federation", "evaluate_every"), fact, "Leave it out."
    if privacy.evaluation_epsilon is None:
        return
    place = ("privacy", "evaluation_epsilon")
    if not isinstance(study.dataset.label, BinaryLabel):
        fact = f"is set, but noisy evaluation has no sums for a {study.dataset.label.type} label"
        yield place, fact, "Leave it out: test patients then pay nothing, and no metric is published."
    elif not study.metrics:
        yield place, "is set, but the study asks for no metric", "Leave it out, or name metrics."


def _sum_checks(study: Study) -> Iterator[Finding]:
    compression, mode = study.federation.compression, study.privacy.mode
    if compression.keep < 1:
        fact = f"is {compression.keep:g}, but in mode {mode} every number has its noise"
        yield ("federation", "compression", "keep"), fact, "Leave it out."


def _step_checks(study: Study, local: LocalTraining) -> Iterator[Finding]:
    """Settings of training at a site that another rule has taken the place of."""
    if isinstance(study.privacy, SitePrivacy):
        return
    if local.batch_size != _USUAL.batch_size:
        fact = f"is {local.batch_size}, but batches are Poisson samples of every patient with the same probability"
        yield ("recipe", "local", "batch_size"), fact, "Leave it out, and set privacy.sampling_rate."
    if not isinstance(study.privacy, DistributedPrivacy):
        return
    if local.epochs != _USUAL.epochs:
        fact = f"is {local.epochs}, but in mode distributed a round is one step on one noisy sum"
        yield ("recipe", "local", "epochs"), fact, "Leave it out, and set federation.rounds."
    if local.weight_decay > 0:
        fact = f"is {local.weight_decay:g}, but in mode distributed the server takes the steps"
        yield ("recipe", "local", "weight_decay"), fact, "Leave it out."
    if study.federation.proximal_mu > 0:
        fact = f"is {study.federation.proximal_mu:g}, but in mode distributed no site takes a step on its own"
        yield ("federation", "proximal_mu"), fact, "Leave it out."
