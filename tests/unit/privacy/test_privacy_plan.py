"""Plans: noise that fits the promise and no more, and refusals that name the field."""

from dataclasses import replace

import pytest

from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy, NoPrivacy, SitePrivacy
from cohortium_messages.study import LightgbmRecipe, LocalTraining, LogisticRecipe, RandomTreesRecipe
from cohortium_privacy.accounting import epsilon, rdp_at
from cohortium_privacy.filter import alpha_star, budget
from cohortium_privacy.plan import Course, Formal, PlanImpossible, none_or_plan, plan_of

LOGISTIC = LogisticRecipe(trainer="torch.logistic", local=LocalTraining(epochs=2))
COURSE = Course(recipe=LOGISTIC, rounds=20, dimension=31, buffered=False, least_sites=4, colluding=1)
LOCAL = LocalPrivacy(mode="local", epsilon=3, delta=1e-5, sampling_rate=0.05, patients=2000)
SUMMED = DistributedPrivacy(mode="distributed", epsilon=3, delta=1e-5, sampling_rate=0.1, patients=5000)
SITES = SitePrivacy(mode="site", epsilon=8, delta=1e-4, sites=60)


@pytest.mark.parametrize("privacy", [LOCAL, SUMMED, SITES])
def test_the_solved_noise_fits_and_one_percent_less_does_not(privacy: Formal) -> None:
    course = replace(COURSE, least_sites=50, colluding=10) if isinstance(privacy, SitePrivacy) else COURSE
    plan = plan_of(privacy, course)
    order = alpha_star(privacy.epsilon, privacy.delta)
    limit = budget(privacy.epsilon, privacy.delta, order)
    less = tuple(replace(event, noise_multiplier=0.99 * event.noise_multiplier) for event in plan.events)
    assert rdp_at(plan.events, order) <= limit < rdp_at(less, order)
    assert plan.epsilon_pld < privacy.epsilon
    assert plan.epsilon_pld == pytest.approx(epsilon(plan.events, privacy.delta))


def test_local_steps_follow_from_epochs_and_rate() -> None:
    plan = plan_of(LOCAL, COURSE)
    assert plan.steps == 20 * 40
    assert plan.sampling_rate == 0.05
    assert plan.site_sigma is None
    assert "everybody outside the hospital" in " ".join(plan.sentences)


def test_a_sum_has_one_step_a_round_and_shares_of_noise() -> None:
    plan = plan_of(SUMMED, COURSE)
    assert plan.steps == 20
    sensitivity = 101 * 31**0.5
    assert plan.site_sigma == pytest.approx(plan.noise_multiplier * sensitivity / 3**0.5)
    assert "rests on the secure sum" in " ".join(plan.sentences)


def test_patients_at_two_hospitals_need_more_noise() -> None:
    assert plan_of(SUMMED.model_copy(update={"overlap": 2}), COURSE).noise_multiplier > 1.5 * (
        plan_of(SUMMED, COURSE).noise_multiplier
    )
    twice = plan_of(LOCAL.model_copy(update={"overlap": 2}), COURSE)
    assert twice.events[0].steps == 2 * twice.steps
    assert twice.noise_multiplier > plan_of(LOCAL, COURSE).noise_multiplier


def test_a_given_multiplier_is_kept_or_refused_with_the_least_one() -> None:
    least = plan_of(LOCAL, COURSE).noise_multiplier
    more = plan_of(LOCAL.model_copy(update={"noise_multiplier": 2 * least}), COURSE)
    assert more.noise_multiplier == 2 * least
    assert more.epsilon_pld < plan_of(LOCAL, COURSE).epsilon_pld
    with pytest.raises(PlanImpossible, match=r"privacy.noise_multiplier is .* Use at least ") as refused:
        plan_of(LOCAL.model_copy(update={"noise_multiplier": 0.5 * least}), COURSE)
    advised = float(str(refused.value).split("Use at least ")[1].split(",")[0])
    assert plan_of(LOCAL.model_copy(update={"noise_multiplier": advised}), COURSE).noise_multiplier == advised


def test_evaluation_is_charged_to_test_patients_or_left_out() -> None:
    assert "Nothing is evaluated" in " ".join(plan_of(LOCAL, COURSE).sentences)
    paid = plan_of(LOCAL.model_copy(update={"evaluation_epsilon": 1.0}), COURSE)
    assert len(paid.evaluation) == 1
    assert paid.evaluation_epsilon is not None
    assert 0.5 < paid.evaluation_epsilon < 1.0


@pytest.mark.parametrize(
    ("privacy", "course", "field"),
    [
        (LOCAL.model_copy(update={"delta": 1e-3}), COURSE, "delta"),
        (SITES.model_copy(update={"delta": 5e-3, "sites": 200}), COURSE, "delta"),
        (LOCAL.model_copy(update={"sampling_rate": 0.001}), COURSE, "sampling_rate"),
        (SUMMED, replace(COURSE, buffered=True), "mode"),
        (SUMMED.model_copy(update={"colluding": 4}), COURSE, "colluding"),
        (SUMMED, replace(COURSE, recipe=LightgbmRecipe(trainer="lightgbm", rounds=10)), "mode"),
        (LOCAL, replace(COURSE, recipe=RandomTreesRecipe(trainer="lightgbm.random_trees", trees=10)), "mode"),
        (SUMMED, replace(COURSE, recipe=RandomTreesRecipe(trainer="lightgbm.random_trees", trees=10)), "sampling_rate"),
        (LOCAL.model_copy(update={"epsilon": 1e-4}), COURSE, "epsilon"),
    ],
)
def test_meaningless_plans_are_refused_by_field(privacy: Formal, course: Course, field: str) -> None:
    with pytest.raises(PlanImpossible) as refused:
        plan_of(privacy, course)
    assert field in [problem.field for problem in refused.value.problems]
    assert all(problem.remedy.endswith(".") for problem in refused.value.problems)


def test_no_privacy_has_no_plan() -> None:
    assert none_or_plan(NoPrivacy(), COURSE) is None
    assert none_or_plan(LOCAL, COURSE) == plan_of(LOCAL, COURSE)
