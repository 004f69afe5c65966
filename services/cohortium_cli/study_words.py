"""What `cohortium study check` tells of a study that is right: what is trained, at what cost, with what promise."""

from collections.abc import Iterator
from typing import Any

from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy
from cohortium_messages.study import GradientRecipe, LightgbmRecipe, RandomTreesRecipe, Study
from cohortium_privacy.study_plans import statement_of
from cohortium_privacy.windows import formal, usual_plan


def extent(study: Study) -> str:
    """How much is trained: rounds of averaging, boosting rounds, or sums of random trees."""
    recipe = study.recipe
    if isinstance(recipe, LightgbmRecipe):
        return f"{study.boosting_rounds:,} boosting rounds"
    if isinstance(recipe, RandomTreesRecipe):
        return f"{recipe.trees:,} trees in {study.rounds:,} sums"
    return f"{study.rounds} rounds {study.federation.mode}"


def governance(study: Study) -> str:
    """What a hospital's people must have signed before its connector works on the study."""
    if study.governance == "trial":
        return "governance: trial, so a hospital's own grant is enough; not for real patients' data"
    return "governance: agreement, ethics approval, data-use terms and approval by two people, at every hospital"


def cohort(study: Study) -> str:
    """By how much a hospital's approved cohort may change before the hospital pauses."""
    return (
        f"cohort tolerance {100 * study.dataset.cohort_tolerance:g} %: a hospital whose number of patients changes by "
        "more, up or down, pauses until its people approve anew (dataset.cohort_tolerance; a hospital may be stricter)"
    )


def expected_steps(study: Study) -> int:
    """About how many steps the strict session of a `lightgbm` study takes, if every tree has all its leaves.

    For each tree one at its root, and for each of its splits a sum and an exchange of best splits; for each round one
    more to agree on its trees, and with early stopping one for the metric.
    """
    if not isinstance(study.recipe, LightgbmRecipe):
        return 0
    leaves = study.recipe.params.num_leaves
    if 0 < study.recipe.params.max_depth < 10:
        leaves = min(leaves, 1 << study.recipe.params.max_depth)
    stopping = study.recipe.params.early_stopping_round > 0
    return study.boosting_rounds * (study.trees_per_round * (2 * leaves - 1) + 1 + stopping)


def details(study: Study) -> Iterator[str]:
    """More about a study with trees, one sentence a line; nothing about others."""
    recipe = study.recipe
    if study.objective is None:
        return
    label = study.dataset.label
    metrics = ", ".join(study.metrics) or "none"
    yield f"objective {study.objective}, label {label.name} ({label.type}); metrics {metrics}"
    if isinstance(recipe, LightgbmRecipe):
        yield (
            f"about {expected_steps(study):,} steps, each a sum over all sites or an exchange among them; "
            f"at most {recipe.params.max_bin} bins a number"
        )
        if recipe.params.early_stopping_round:
            yield (
                f"stops early when {recipe.params.metric or 'the validation loss'} has not got better for "
                f"{recipe.params.early_stopping_round} rounds, on {100 * recipe.validation:g} % of the training rows"
            )
        yield lost_site(study)
    if isinstance(recipe, RandomTreesRecipe):
        yield (
            f"splits at depth up to {recipe.depth} are drawn from public ranges, {recipe.grid} thresholds a number; "
            "only leaf values come from sums"
        )


def lost_site(study: Study) -> str:
    """What becomes of a strict session that loses a site."""
    federation = study.federation
    begun = f"a lost site stops training: the others wait {federation.rejoin_s:g} s for it, "
    if federation.allow_cohort_change:
        return begun + (
            "then go on without it, and whoever sees two sums over the same rows, one with the site and one without, "
            "sees that site's part (federation.allow_cohort_change: true)"
        )
    return begun + "then the trees so far are the model (federation.allow_cohort_change: false)"


def tree_facts(study: Study) -> dict[str, Any]:
    """The same for a program: nothing for a study without trees."""
    if study.objective is None:
        return {}
    facts: dict[str, Any] = {"objective": study.objective, "label": study.dataset.label.type}
    facts["metrics"] = list(study.metrics)
    if isinstance(study.recipe, LightgbmRecipe):
        facts |= {
            "boosting_rounds": study.boosting_rounds,
            "expected_steps": expected_steps(study),
            "max_bin": study.recipe.params.max_bin,
            "allow_cohort_change": study.federation.allow_cohort_change,
        }
    if isinstance(study.recipe, RandomTreesRecipe):
        facts |= {"trees": study.recipe.trees, "sums": study.rounds}
    return facts


def promise(study: Study) -> Iterator[str]:
    """The privacy plan, one sentence a line; for a study without, that there is none."""
    said, plan = statement_of(study), usual_plan(study)
    if plan is None:
        yield "no formal privacy guarantee (privacy mode: none): only the secure sum protects a hospital's numbers"
        return
    yield (
        f"privacy mode {plan.mode}, unit {plan.unit}: noise multiplier {plan.noise_multiplier:.4g}, "
        f"{plan.steps:,} noisy steps a site at sampling rate {plan.sampling_rate:g}"
    )
    yield (
        f"ε {plan.epsilon_rdp:.4g} by Rényi accounting (what ledgers are charged), {plan.epsilon_pld:.4g} by "
        f"privacy-loss distributions, at δ {plan.delta:g}"
    )
    yield (
        f"expected noise of one step: {plan.noise_to_signal:.3g} times the largest possible mean"
        + (f"; {plan.site_sigma:,.0f} lattice steps a site, in every number" if plan.site_sigma is not None else "")
    )
    yield from said.sentences
    yield f"relies on: {'; '.join(said.relies_on)}"
    if isinstance(study.recipe, GradientRecipe) and plan.mode != "site":
        yield f"every layer of {study.recipe.trainer} has a gradient for each patient: no layer needs a change"
    yield from _not_used(study)


def _not_used(study: Study) -> Iterator[str]:
    """Settings with a usual value that another rule has taken the place of."""
    match study.privacy:
        case LocalPrivacy():
            yield "recipe.local.batch_size is not used: batches are Poisson samples at privacy.sampling_rate"
        case DistributedPrivacy() if not isinstance(study.recipe, RandomTreesRecipe):
            yield "recipe.local.epochs, batch_size and optimizer are not used: a round is one step, at recipe.local.lr"
    if formal(study) is not None:
        yield "no statistics of rows are summed: inputs and bins come from the study's public ranges"


def promise_facts(study: Study) -> dict[str, Any]:
    """The same for a program: nothing for a study without privacy."""
    plan = usual_plan(study)
    if plan is None:
        return {}
    rough = {"noise_to_signal": plan.noise_to_signal, "site_sigma": plan.site_sigma, "order": plan.order}
    return {"privacy": statement_of(study).model_dump(mode="json") | rough}
