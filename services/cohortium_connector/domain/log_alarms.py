"""When a hospital hears an alarm about a study's log: it does not grow, or lacks what the hospital reported.

Silence proves nothing by itself: a log in which nothing happens does not grow. So a hospital that has seen a log
stand still for half of the time puts a line of its own into it. From then on the log is late, not idle.
"""

from dataclasses import dataclass
from typing import Literal

AlarmCode = Literal["LOG_STALE", "INCLUSION_OVERDUE"]


@dataclass(frozen=True, slots=True)
class Patience:
    """`stale_s`: without a newer checkpoint; `inclusion_s`: without the proof that an event is in the log."""

    stale_s: float
    inclusion_s: float

    @property
    def ask_s(self) -> float:
        """An event is asked after when it has been on its way for so long, and again after as long."""
        return min(60.0, self.inclusion_s / 5)


@dataclass(frozen=True, slots=True)
class WatchedLog:
    """What is known of one study's log, in unix seconds. `relied_on`: a grant of this hospital is in force, or a run of
    the study goes on. `grown_at`: the hospital held a newer checkpoint, or began to watch. `waits_since`: the oldest of
    its events that is not proven to be in the log was with the broker, None without one."""

    relied_on: bool
    grown_at: float
    waits_since: float | None


def standing(log: WatchedLog, patience: Patience, now: float) -> frozenset[AlarmCode]:
    """What is wrong with this log now."""
    found: set[AlarmCode] = set()
    if log.relied_on and now >= log.grown_at + patience.stale_s:
        found.add("LOG_STALE")
    if log.waits_since is not None and now >= log.waits_since + patience.inclusion_s:
        found.add("INCLUSION_OVERDUE")
    return frozenset(found)


def alarms(
    log: WatchedLog, raised: frozenset[AlarmCode], patience: Patience, now: float, started_at: float
) -> frozenset[AlarmCode]:
    """What the hospital hears now. After a start the log has `inclusion_s` to show what it has become meanwhile; an
    alarm that was raised before lasts until its cause ends."""
    wrong = standing(log, patience, now)
    return wrong if now >= started_at + patience.inclusion_s else wrong & raised


def must_stir(log: WatchedLog, patience: Patience, now: float) -> bool:
    """Whether the log has stood still for so long that this hospital says something in it: only then can it be told
    from one that is withheld. While an event is awaited the log must grow anyway."""
    return log.relied_on and log.waits_since is None and now >= log.grown_at + patience.stale_s / 2
