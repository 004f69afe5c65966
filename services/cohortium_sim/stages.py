"""Where the time of a round goes, from the audit log: every stage ends with an event that its doer signs.

The times are those of the signers' clocks, so they are exact on one machine only.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

PREFIX = "cohortium.audit."
STAGES = {
    "consent is asked": "window_authorised",
    "on record, tasks reach the sites": "task_taken",
    "model down, work, ready": "cohort_fixed",
    "roster, masks": "upload_sealed",
    "chunks up, echo": "shares_given",
    "shares, sum, step, model": "aggregate_opened",
    "end on record": "window_ended",
}
"""What is done until an event has happened: at the last site, where it is the sites'."""


@dataclass(slots=True)
class _Window:
    purpose: str = ""
    at: dict[str, datetime] = field(default_factory=dict)


def stage_seconds(entries: Iterable[bytes], skip: int = 1) -> dict[str, float]:
    """Median seconds by stage over a run's update windows, without the first `skip`; empty if there are none.

    The first stage begins with the end of the window before.
    """
    windows: dict[str, _Window] = defaultdict(_Window)
    for line in entries:
        event = json.loads(line)["event"]
        data: Mapping[str, Any] = event["data"]
        kind = event["type"].removeprefix(PREFIX).removesuffix(".v1")
        if "window_id" not in data:
            continue
        window = windows[str(data["window_id"])]
        window.purpose = data.get("purpose", window.purpose)
        at = datetime.fromisoformat(event["time"])
        window.at[kind] = max(at, window.at.get(kind, at))
    ends = sorted((w for w in windows.values() if "window_ended" in w.at), key=lambda w: w.at["window_ended"])
    rounds = [
        (before, window)
        for before, window in pairwise(ends)
        if window.purpose == "update" and all(event in window.at for event in STAGES.values())
    ]
    if len(rounds) <= skip:
        return {}
    lasted: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for before, window in rounds[skip:]:
        moments = [before.at["window_ended"], *(window.at[event] for event in STAGES.values())]
        for stage, (start, end) in zip(STAGES, pairwise(moments), strict=True):
            lasted[stage].append(max(0.0, (end - start).total_seconds()))
    return {stage: round(statistics.median(seconds), 4) for stage, seconds in lasted.items()}


def stage_lines(seconds: Mapping[str, float]) -> Sequence[str]:
    """The stages as lines to print, each with its share."""
    total = sum(seconds.values())
    if not total:
        return ()
    return [f"  {took:7.3f} s  {100 * took / total:3.0f} %  {stage}" for stage, took in seconds.items()]
