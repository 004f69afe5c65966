"""Ended windows and sessions, for the tests of what follows them."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.runs import SessionClosed, WindowEnd
from cohortium_messages.secure_sum import ModelRef, Purpose, Ready, Roster
from cohortium_scheduler.domain.course import (
    Course,
)
from cohortium_scheduler.domain.windows import (
    ANYONE,
    Cohort,
    Ended,
    Refusal,
    Window,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN = RunId(str(UUID(int=9)))
SITES = tuple(SiteId(str(UUID(int=number))) for number in range(1, 6))
AVERAGING = Course(rounds=3, evaluate_every=1, evaluates=True, max_attempts=2)
BOOSTING = Course(rounds=1, evaluate_every=1, evaluates=True, max_attempts=2, boosts=True)
CHANGING = replace(BOOSTING, allow_cohort_change=True)


def model(version: int) -> ModelRef:
    return ModelRef(version=version, model_hash=bytes([version % 256]) * 32)


def chain(trees: int) -> bytes:
    return trees.to_bytes(32, "little")


def roster(sites: tuple[SiteId, ...]) -> Roster:
    entries = tuple(
        Ready(
            window_id=bytes(16),
            site_id=site,
            params_hash=bytes(32),
            base_model_hash=bytes(32),
            mask_pk=bytes(32),
            seal_pk=bytes(32),
            sig=bytes(64),
        )
        for site in sites
    )
    return Roster(window_id=bytes(16), params_hash=bytes(32), n=len(sites), t=3, c=1, k_min=3, entries=entries)


def ended(
    purpose: Purpose = "update",
    state: WindowEnd = "RELEASED",
    reason: str = "",
    *,
    round_: int = 1,
    attempt: int = 1,
    cohort: Cohort = ANYONE,
    sites: tuple[SiteId, ...] = (),
    ready: tuple[SiteId, ...] = (),
    refusals: tuple[Refusal, ...] = (),
    **closed: Any,
) -> Window:
    """An ended window; with `sites` it was a session over them, and `closed` says what came of it."""
    message = SessionClosed.model_validate(
        {"run_id": RUN, "window_id": bytes(16), "purpose": purpose, "state": state, "reason": reason} | closed
    )
    over = Ended(
        state,
        reason,
        NOW,
        NOW,
        refusals,
        roster(sites) if sites else None,
        message if closed or sites else None,
        ready,
    )
    return Window(bytes(16), RUN, 1, purpose, round_, attempt, over, cohort)
