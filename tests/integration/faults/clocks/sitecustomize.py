"""Gives a process another wall clock: read by Python at its start where the tests put this folder on its path.

The step, in seconds, is in the file `<settings>.clock_step` beside the settings that the process was started with. It
may change while the process runs, as a clock that is set does. No product code knows of such a file.
"""

import sys
from datetime import datetime, timedelta
from pathlib import Path


def step_of(settings: Path) -> timedelta:
    try:
        return timedelta(seconds=float(settings.with_name(f"{settings.name}.clock_step").read_text()))
    except (FileNotFoundError, ValueError):
        return timedelta()


def give_clock() -> None:
    words = Path("/proc/self/cmdline").read_bytes().decode(errors="replace").split("\0")
    if "--config" not in words or not any(word.startswith("cohortium_") for word in words):
        return
    from cohortium_kit.clock import SystemClock

    settings, right = Path(words[words.index("--config") + 1]), SystemClock.now

    def now(self: SystemClock) -> datetime:
        return right(self) + step_of(settings)

    SystemClock.now = now


if sys.platform == "linux":
    give_clock()
