"""What consent tells people about privacy budgets: the answer of `GET /budgets`."""

from typing import Annotated, Final

from pydantic import Field

from cohortium_messages.ids import RunIdField, SiteIdField, StudyIdField, Wire
from cohortium_messages.ledger import Part

MOST_BUDGETS: Final = 1000
"""Parts of runs that are told of one site."""
Share = Annotated[float, Field(ge=0)]


class BudgetView(Wire):
    """What one run has of one site's patients, by the hospital's signed statements: Rényi divergence at `order`."""

    site_id: SiteIdField
    site_name: str
    study_id: StudyIdField
    run_id: RunIdField
    part: Part
    planned_steps: int
    charged_steps: int
    begun_steps: int
    order: int
    rdp: float
    exhausted_at_round: Annotated[int, Field(ge=0)] | None = None
    """Where the federation has a cap: the round at which it would be used up if this run went on for ever, with all
    that other runs have set aside kept."""


class SiteBudget(Wire):
    """All runs of one site together. ε and shares are there where the federation has a cap, at the cap's order.

    `epsilon`: of all that is charged; `epsilon_used`: of what was begun. Shares of the cap, in Rényi divergence, which
    adds up: used, set aside and not begun, left.
    """

    site_id: SiteIdField
    site_name: str
    epsilon: float | None
    epsilon_used: float | None = None
    epsilon_cap: float | None
    delta: float | None
    used_share: Share | None = None
    reserved_share: Share | None = None
    left_share: Share | None = None
    runs: Annotated[tuple[BudgetView, ...], Field(max_length=MOST_BUDGETS)]
    """Where there are more of them, those that hold most."""
    runs_left_out: Annotated[int, Field(ge=0)] = 0
