"""File locks that a dead process does not hold. All parts are in one process, so the kernel would not see the death."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cohortium_sim.storm.loop import Life, current_life
from cohortium_sim.storm.replacing import replaced


@dataclass(frozen=True, slots=True)
class _Held:
    descriptor: int
    life: Life | None

    def stands(self, inode: int) -> bool:
        """Whether its holder lives and has not closed the file."""
        if self.life is not None and self.life.dead:
            return False
        try:
            return os.fstat(self.descriptor).st_ino == inode
        except OSError:
            return False


@contextmanager
def locks_of_the_living() -> Iterator[None]:
    """`fcntl.flock` with exclusive, non-waiting locks, by part instead of by process."""
    held: dict[int, _Held] = {}

    def flock(file: Any, operation: int) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        inode = os.fstat(descriptor).st_ino
        if operation & fcntl.LOCK_UN:
            held.pop(inode, None)
            return
        before = held.get(inode)
        if before is not None and before.descriptor != descriptor and before.stands(inode):
            raise BlockingIOError("another part holds the lock")
        held[inode] = _Held(descriptor, current_life())

    with replaced(fcntl, flock=flock):
        yield
