"""From a study's privacy plan to what the ledger charges the patients of this hospital."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from cohortium_messages.ids import RunId, StudyId
from cohortium_messages.ledger import FIRST_ORDER, LAST_ORDER, Mechanism, Part
from cohortium_privacy.ledger_plan import LedgerPlan, PlannedPart

if TYPE_CHECKING:
    from cohortium_privacy.accounting import GaussianSteps
    from cohortium_privacy.plan import PrivacyPlan


def ledger_plan(
    study_id: StudyId,
    study_digest: bytes,
    run_id: RunId,
    plan: "PrivacyPlan",
    rounds: int,
    blocks: Mapping[str, int],
) -> LedgerPlan:
    """The whole run as the ledger reserves it. `rounds`: the study's; `blocks`: `ledger_plan.blocks_of` its extract.

    Takes up to a second of computing: keep it off the event loop.
    """
    training = _part("training", tuple(_for_a_patient(event, plan) for event in plan.events), rounds, plan.steps)
    parts = (training, _part("evaluation", plan.evaluation, 1, 1)) if plan.evaluation else (training,)
    return LedgerPlan(study_id, study_digest, run_id, plan.mode, parts, blocks, plan.order)


def _for_a_patient(event: "GaussianSteps", plan: "PrivacyPlan") -> "GaussianSteps":
    """What a patient is charged. Where the unit is the hospital, its noise is meant for a vector that comes or goes; a
    patient who comes or goes can turn it from one of norm C into its opposite, which is twice as far."""
    return replace(event, noise_multiplier=event.noise_multiplier / 2) if plan.unit == "hospital" else event


def _part(part: Part, events: "tuple[GaussianSteps, ...]", uses: int, steps: int) -> PlannedPart:
    from cohortium_privacy.accounting import rdp_at

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
