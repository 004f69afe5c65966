"""From a study's privacy plan to what the ledger charges the patients of this hospital."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cohortium_messages.ids import RunId, StudyId
from cohortium_privacy.agreed import AgreedCap
from cohortium_privacy.ledger_plan import LedgerPlan

if TYPE_CHECKING:
    from cohortium_privacy.plan import PrivacyPlan


def ledger_plan(
    study_id: StudyId,
    study_digest: bytes,
    run_id: RunId,
    plan: "PrivacyPlan",
    rounds: int,
    blocks: Mapping[str, int],
    caps: tuple[AgreedCap, ...] = (),
) -> LedgerPlan:
    """The whole run as the ledger reserves it. `rounds`: the study's; `blocks`: `ledger_plan.blocks_of` its extract;
    `caps`: what the hospital's documents agree.

    Takes up to a second of computing: keep it off the event loop.
    """
    from cohortium_privacy.prices import planned_parts  # needs dp-accounting

    return LedgerPlan(study_id, study_digest, run_id, plan.mode, planned_parts(plan, rounds), blocks, plan.order, caps)
