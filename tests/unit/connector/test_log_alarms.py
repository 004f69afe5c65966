"""When a hospital hears that a study's log is stale, or lacks what it reported."""

import pytest

from cohortium_connector.domain.log_alarms import AlarmCode, Patience, WatchedLog, alarms, must_stir

DAY, QUARTER = 86400.0, 900.0
PATIENCE = Patience(stale_s=DAY, inclusion_s=QUARTER)
NONE: frozenset[AlarmCode] = frozenset()
BEGAN = -10 * DAY


def heard(log: WatchedLog, now: float, raised: frozenset[AlarmCode] = NONE, started_at: float = BEGAN) -> set[str]:
    return set(alarms(log, raised, PATIENCE, now, started_at))


def test_a_log_that_shows_nothing_new_for_a_day_is_stale() -> None:
    log = WatchedLog(relied_on=True, grown_at=0, waits_since=None)
    assert heard(log, DAY - 1) == set()
    assert heard(log, DAY) == {"LOG_STALE"}


def test_a_log_that_nobody_here_relies_on_may_rest() -> None:
    log = WatchedLog(relied_on=False, grown_at=0, waits_since=None)
    assert heard(log, 100 * DAY) == set()
    assert not must_stir(log, PATIENCE, 100 * DAY)


@pytest.mark.parametrize("relied_on", [True, False])
def test_an_event_without_a_proof_is_overdue_after_a_quarter_of_an_hour(relied_on: bool) -> None:
    log = WatchedLog(relied_on=relied_on, grown_at=0, waits_since=1000)
    assert heard(log, 1000 + QUARTER - 1) == set()
    assert heard(log, 1000 + QUARTER) == {"INCLUSION_OVERDUE"}


def test_an_alarm_ends_with_its_cause() -> None:
    both: frozenset[AlarmCode] = frozenset({"LOG_STALE", "INCLUSION_OVERDUE"})
    assert heard(WatchedLog(relied_on=True, grown_at=2 * DAY, waits_since=None), 2 * DAY, both) == set()
    assert heard(WatchedLog(relied_on=True, grown_at=0, waits_since=0), 2 * DAY, both) == both


def test_a_connector_that_was_down_gives_the_log_time_before_it_says_anything_new() -> None:
    log = WatchedLog(relied_on=True, grown_at=0, waits_since=0)
    start = 3 * DAY
    assert heard(log, start + 60, started_at=start) == set()
    assert heard(log, start + QUARTER, started_at=start) == {"LOG_STALE", "INCLUSION_OVERDUE"}
    # What it had said before it went down stands meanwhile.
    assert heard(log, start + 60, frozenset({"LOG_STALE"}), started_at=start) == {"LOG_STALE"}


def test_an_idle_log_is_stirred_at_half_time_and_one_that_is_waited_for_is_not() -> None:
    idle = WatchedLog(relied_on=True, grown_at=0, waits_since=None)
    assert not must_stir(idle, PATIENCE, DAY / 2 - 1)
    assert must_stir(idle, PATIENCE, DAY / 2)
    assert not must_stir(WatchedLog(relied_on=True, grown_at=0, waits_since=DAY / 2), PATIENCE, DAY / 2)
