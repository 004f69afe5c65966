"""What an accountant says of a study file: which plans cannot be kept, and what a plan that can promises."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy, NoPrivacy, PrivacyStatement, SitePrivacy
from cohortium_messages.study import Study
from cohortium_privacy.windows import evaluates_privately, usual_plan

if TYPE_CHECKING:
    from cohortium_privacy.accounting import GaussianSteps

ACCOUNTANT: Final = "dp-accounting"
NO_GUARANTEE: Final = (
    "Hospitals see sums only, never each other's numbers. There is no formal guarantee about what the published model "
    "says of a single patient.",
)

Finding = tuple[tuple[str | int, ...], str, str]


def plan_findings(study: Study) -> Iterator[Finding]:
    """Every reason why the study's privacy block cannot be kept: place, fact and remedy, for `parse_study(also=…)`.

    Takes about a second for a private study.
    """
    if isinstance(study.privacy, NoPrivacy):
        return
    if not accountant_installed():
        fact = f"is {study.privacy.mode}, which needs {ACCOUNTANT} to account for it, and it is not installed"
        yield ("privacy", "mode"), fact, "Install it: pip install 'cohortium[privacy]'."
        return
    from cohortium_privacy.plan import PlanImpossible

    try:
        usual_plan(study)
    except PlanImpossible as impossible:
        for problem in impossible.problems:
            yield ("privacy", problem.field), problem.fact, problem.remedy


def accountant_installed() -> bool:
    """Whether plans can be made here: `dp-accounting` is an extra."""
    return find_spec("dp_accounting") is not None


def statement_of(study: Study) -> PrivacyStatement:
    """What a run of the study promises, in numbers and in words. It does not depend on who takes part.

    Takes about a second, the first time. Raises `PlanImpossible`.
    """
    privacy, plan = study.privacy, usual_plan(study)
    if plan is None or isinstance(privacy, NoPrivacy):
        return PrivacyStatement(mode="none", sentences=NO_GUARANTEE)
    evaluated = evaluates_privately(study)
    return PrivacyStatement(
        mode=privacy.mode,
        unit=plan.unit,
        mechanism=plan.mechanism,
        accountant="rdp",
        epsilon=privacy.epsilon,
        epsilon_rdp=plan.epsilon_rdp,
        epsilon_pld=plan.epsilon_pld,
        delta=plan.delta,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=plan.sampling_rate,
        clip=privacy.clip,
        steps=plan.steps,
        overlap=1 if isinstance(privacy, SitePrivacy) else privacy.overlap,
        evaluation_epsilon=plan.evaluation_epsilon if evaluated else None,
        relies_on=_relies_on(study, evaluated),
        sentences=plan.sentences,
    )


def epsilon_of_sums(study: Study, sums: int) -> float:
    """ε that so many of the study's noisy sums cost, by Rényi accounting at the study's δ: of no more than it plans.

    Takes part of a second, the first time. Raises `PlanImpossible`.
    """
    plan = usual_plan(study)
    if plan is None or sums <= 0:
        return 0.0
    used = min(sums, study.rounds)
    return _epsilon(tuple(replace(one, steps=one.steps * used // study.rounds) for one in plan.events), plan.delta)


@lru_cache(maxsize=1024)
def _epsilon(events: "tuple[GaussianSteps, ...]", delta: float) -> float:
    from cohortium_privacy.accounting import epsilon  # needs dp-accounting

    return epsilon(events, delta, "rdp")


def _relies_on(study: Study, evaluated: bool) -> tuple[str, ...]:
    """Whom a patient (or a hospital) has to trust for the promise to hold."""
    match study.privacy:
        case LocalPrivacy() if evaluated:
            return ("the patient's own hospital", "for the evaluation: the secure sum and its collusion bound")
        case LocalPrivacy():
            return ("the patient's own hospital",)
        case DistributedPrivacy():
            return ("the patient's own hospital", "the secure sum", _bound(study.privacy.colluding))
        case SitePrivacy():
            return ("the secure sum", _bound(study.privacy.colluding))
    return ()


def _bound(colluding: int | None) -> str:
    if colluding is None:
        return "no more hospitals than the manifest's collusion bound leave out their noise, or help the operator"
    return f"at most {colluding} hospitals leave out their noise, or help the operator"
