"""What this machine has for the connector: processors, memory, graphics processors, and how fast the spool's disk is
safe. A container's limits count, for training meets them and not the machine's own: control groups of version 2
(`cpu.max`, `memory.max`) and version 1 (`cpu.cfs_quota_us` over `cpu.cfs_period_us`, `memory.limit_in_bytes`).

https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

import contextlib
import os
import secrets
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from cohortium_connector.preflight.findings import Fact, Finding, ok, warning

MEMORY_LEAST_MB = 2000
DISK_LEAST_MB = 5000
FSYNC_MOST_MS = 100.0
BLOCK = 1 << 20
WRITES = 8
ROOT = Path("/")


def _usable() -> int:
    """Processors that this process may be scheduled on, by its affinity mask."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processors(root: Path = ROOT, usable: Callable[[], int] = _usable) -> int:
    """Those that this process may use: the affinity mask's, or fewer where a container's quota of their time is less.
    Half a processor counts as one, one and a half too."""
    shares = []
    for group in _groups(root, "cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            shares.append(_share(group))
    return max(1, int(min([usable(), *shares])))


def memory_mb(root: Path = ROOT) -> int:
    """The machine's, or the container's where that is less; 0 if neither is told."""
    sizes = []
    with contextlib.suppress(OSError, KeyError, ValueError):
        text = (root / "proc/meminfo").read_text("ascii")
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        sizes.append(int(fields["MemTotal"].split()[0]) // 1024)
    for group in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                sizes.append(int((group / name).read_text("ascii")) >> 20)
    return min(sizes, default=0)


def _share(group: Path) -> float:
    """Processors' worth of time that a group may use. Raises `OSError` or `ValueError` where it says no limit: `max`
    in version 2, a negative quota in version 1."""
    whole = group / "cpu.max"
    if whole.exists():
        quota, period = whole.read_text("ascii").split()
    else:
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period"))
    if int(quota) <= 0:
        raise ValueError("no limit")
    return int(quota) / int(period)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's control groups that may limit it, from its own up to the root: each of them holds. A container
    that is not shown its own path finds its limits at the root."""
    mounted = root / "sys/fs/cgroup"
    lines = []
    with contextlib.suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    for line in lines or ["0::/"]:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            top = mounted
        elif controller in controllers.split(","):
            top = mounted / controller
        else:
            continue
        own = PurePosixPath("/", path)
        for part in (own, *own.parents):
            yield top / part.relative_to("/")


def graphics(devices: Path = Path("/dev")) -> int:
    """NVIDIA devices that this process can see; a driver is not asked."""
    return sum(one.name.removeprefix("nvidia").isdigit() for one in devices.glob("nvidia*"))


def disk(folder: Path) -> tuple[Finding, int, float]:
    """The spool's disk, free megabytes, and the median milliseconds until a megabyte is safe on it."""
    free_mb = shutil.disk_usage(folder).free >> 20
    took = []
    place = folder / f"preflight-{secrets.token_hex(8)}"
    block = secrets.token_bytes(BLOCK)
    try:
        with place.open("wb") as file:
            for _ in range(WRITES):
                began = time.perf_counter()
                file.write(block)
                file.flush()
                os.fsync(file.fileno())
                took.append(1000 * (time.perf_counter() - began))
    finally:
        place.unlink(missing_ok=True)
    safe_ms = statistics.median(took)
    facts: dict[str, Fact] = {"free_mb": free_mb, "fsync_ms": round(safe_ms, 1), "folder": str(folder)}
    if free_mb < DISK_LEAST_MB:
        return warning("disk", "DISK_NEARLY_FULL", **facts), free_mb, safe_ms
    if safe_ms > FSYNC_MOST_MS:
        return warning("disk", "DISK_SLOW", **facts), free_mb, safe_ms
    return ok("disk", **facts), free_mb, safe_ms


def memory(size_mb: int) -> Finding:
    if size_mb < MEMORY_LEAST_MB:
        return warning("memory", "MEMORY_SMALL", memory_mb=size_mb)
    return ok("memory", memory_mb=size_mb)
