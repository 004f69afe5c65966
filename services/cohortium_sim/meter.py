"""What processes use while a run goes on: processor seconds, and bytes through system calls, from Linux' /proc."""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used since its start: seconds on a processor, bytes read and written by system calls."""

    cpu_s: float = 0.0
    moved: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.cpu_s + other.cpu_s, self.moved + other.moved)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.cpu_s - other.cpu_s, self.moved - other.moved)


def usage_of(pid: int) -> Usage:
    """Nothing for a process that is gone, or where there is no /proc."""
    try:
        stat = (PROC / str(pid) / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
        io = (PROC / str(pid) / "io").read_text("ascii")
    except OSError:
        return Usage()
    # Fields 14 and 15 of proc(5), counted after the name in brackets.
    seconds = (int(stat[11]) + int(stat[12])) / TICKS
    numbers = dict(line.split(": ") for line in io.splitlines())
    return Usage(seconds, int(numbers["rchar"]) + int(numbers["wchar"]))


def resident_bytes(pid: int) -> int:
    """What a process has in memory just now; 0 for one that is gone, or where there is no /proc."""
    try:
        pages = (PROC / str(pid) / "statm").read_text("ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def children() -> dict[int, list[int]]:
    """Processes by their parent, of all that can be seen."""
    found: dict[int, list[int]] = {}
    for path in PROC.glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text("ascii", "replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        found.setdefault(parent, []).append(int(path.parent.name))
    return found


def named(name: str) -> list[int]:
    """Processes that are called so, as the kernel sees it."""
    found = []
    for path in PROC.glob("[0-9]*/comm"):
        try:
            if path.read_text("utf-8", "replace").strip() == name:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@dataclass(slots=True)
class Meter:
    """Samples by rounds done. `servers`: names of programs that serve all processes, as `beam.smp`."""

    servers: Mapping[str, str] = field(default_factory=dict)
    samples: list[tuple[int, float, dict[str, Usage]]] = field(default_factory=list)

    def sample(self, rounds_done: int, pids: Mapping[str, int]) -> None:
        """Note where every role stands now. Connectors are one role, and what they have started is `training`."""
        below, found = children(), dict[str, Usage]()
        for name, pid in pids.items():
            role = "connectors" if name.startswith("connector-") else name
            found[role] = found.get(role, Usage()) + usage_of(pid)
            for child in _all_below(pid, below):
                found["training"] = found.get("training", Usage()) + usage_of(child)
        for role, program in self.servers.items():
            found[role] = sum((usage_of(pid) for pid in named(program)), Usage())
        self.samples.append((rounds_done, time.monotonic(), found))

    def per_round(self) -> dict[str, Usage]:
        """By role, between the first sample after the warm-up round and the last one; empty without two such."""
        timed = [sample for sample in self.samples if sample[0] >= 1]
        if not timed or (rounds := timed[-1][0] - timed[0][0]) < 1:
            return {}
        first, last = timed[0][2], timed[-1][2]
        differences = {role: last[role] - first.get(role, Usage()) for role in last}
        return {role: Usage(used.cpu_s / rounds, used.moved // rounds) for role, used in differences.items()}


def _all_below(pid: int, below: Mapping[int, Iterable[int]]) -> list[int]:
    found = []
    for child in below.get(pid, ()):
        found += [child, *_all_below(child, below)]
    return found
