"""The hospital's own log of its training processes: row numbers may be in it, so it stays in this one file.

The service's log never has these lines: its field filter would drop them, and it may be shipped elsewhere.
"""

import os
from pathlib import Path

from cohortium_connector.spool import PRIVATE
from cohortium_kit.clock import Clock

LIMIT_BYTES = 4 << 20
"""The file is set aside as `.1` when it is larger; the one before that is dropped."""


class LocalLog:
    """Appends lines to a file that only its owner can read."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock

    def say(self, line: str) -> None:
        """Append one line, with the time before it."""
        if self._path.exists() and self._path.stat().st_size > LIMIT_BYTES:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
        with os.fdopen(handle, "a", encoding="utf-8") as file:
            file.write(f"{self._clock.now().isoformat()} {line}\n")
