"""The plan of a whole private run, as a federation of exactly a calibration's sites would have it."""

from dataclasses import dataclass

from cohortium_connector.training.base import SiteRefusal
from cohortium_messages.secure_sum import NoiseSpec
from cohortium_messages.study import Study
from cohortium_privacy.plan import PlanImpossible, PrivacyPlan
from cohortium_privacy.windows import noise_for, plan_for


class CannotPlan(SiteRefusal):
    """The privacy block cannot be kept. The local text has every reason and its way out."""

    def __init__(self, text: str) -> None:
        super().__init__("PLAN_IMPOSSIBLE", local=text)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A private study, the plan of its run, and the noise of an update."""

    study: Study
    plan: PrivacyPlan
    noise: NoiseSpec


def planned(study: Study, sites: int) -> PlannedRun:
    """The run of a study with a privacy block over so many sites. Raises `CannotPlan`."""
    federation = study.federation
    collusion = max(1, (sites - 1) // 3) if federation.collusion is None else federation.collusion
    k_min = max(3, federation.min_sites, collusion + 2)
    if sites < k_min:
        raise CannotPlan(f"{sites} sites are fewer than the {k_min} that a sum of this study needs; give more tables")
    try:
        plan = plan_for(study, sites, k_min, collusion)
    except PlanImpossible as error:
        raise CannotPlan(str(error)) from None
    noise = noise_for(study, "update", plan, k_min, collusion)
    if plan is None or noise is None:
        raise CannotPlan("the study promises nothing; give it a privacy block of mode local or distributed")
    return PlannedRun(study, plan, noise)
