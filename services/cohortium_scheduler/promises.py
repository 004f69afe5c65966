"""What people are told of a run's promise to patients: the statement, and what its sums have cost so far."""

from cohortium_messages.status import PrivacyStatus
from cohortium_messages.study import Study
from cohortium_privacy.study_plans import epsilon_of_sums, statement_of
from cohortium_privacy.windows import formal
from cohortium_scheduler.domain.course import stays_charged
from cohortium_scheduler.domain.windows import Ended, Window


def privacy_status(study: Study, windows: list[Window]) -> PrivacyStatus:
    """May compute for a second, the first time for a study: keep it off the event loop."""
    statement = statement_of(study)
    if formal(study) is None:
        return PrivacyStatus(statement=statement)
    charged = sum(_charged(window) for window in windows)
    return PrivacyStatus(
        statement=statement,
        sums_planned=study.rounds,
        sums_charged=charged,
        epsilon_spent=epsilon_of_sums(study, charged),
    )


def _charged(window: Window) -> bool:
    state = window.state
    if window.purpose != "update" or not isinstance(state, Ended):
        return False
    return state.state == "RELEASED" or stays_charged(state)
