"""What a plan costs the patients of one hospital, at every order that an account or a federation may have chosen."""

import math
from dataclasses import replace
from functools import lru_cache

from cohortium_messages.ledger import FIRST_ORDER, LAST_ORDER, Mechanism, Part
from cohortium_privacy.accounting import GaussianSteps, rdp_at
from cohortium_privacy.ledger_plan import PlannedPart
from cohortium_privacy.plan import PrivacyPlan


@lru_cache(maxsize=32)
def planned_parts(plan: PrivacyPlan, rounds: int) -> tuple[PlannedPart, ...]:
    """Training, and evaluation where it is paid for. `rounds`: the study's.

    Takes up to a second the first time: keep it off the event loop.
    """
    training = _part("training", tuple(_for_a_patient(event, plan) for event in plan.events), rounds, plan.steps)
    return (training, _part("evaluation", plan.evaluation, 1, 1)) if plan.evaluation else (training,)


def _for_a_patient(event: GaussianSteps, plan: PrivacyPlan) -> GaussianSteps:
    """What a patient is charged. Where the unit is the hospital, its noise is meant for a vector that comes or goes; a
    patient who comes or goes can turn it from one of norm C into its opposite, which is twice as far."""
    return replace(event, noise_multiplier=event.noise_multiplier / 2) if plan.unit == "hospital" else event


def _part(part: Part, events: tuple[GaussianSteps, ...], uses: int, steps: int) -> PlannedPart:
    if steps % uses:
        raise ValueError(f"{steps} steps are no whole number in each of {uses} rounds")
    divergences = [rdp_at(events, float(order)) / uses for order in range(FIRST_ORDER, LAST_ORDER + 1)]
    prices = tuple(price if math.isfinite(price) else None for price in divergences)
    mechanism = tuple(
        Mechanism(
            noise_multiplier=event.noise_multiplier,
            sampling_rate=event.sampling_rate,
            steps=event.steps,
            overlap=event.overlap,
        )
        for event in events
    )
    return PlannedPart(part, mechanism, uses, steps // uses, prices)
