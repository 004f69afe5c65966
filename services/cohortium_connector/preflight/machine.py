"""What this machine has: processors, memory, graphics processors, and how fast the spool's disk is safe."""

import contextlib
import os
import secrets
import shutil
import statistics
import time
from pathlib import Path

from cohortium_connector.preflight.findings import Fact, Finding, ok, warning

MEMORY_LEAST_MB = 2000
DISK_LEAST_MB = 5000
FSYNC_MOST_MS = 100.0
BLOCK = 1 << 20
WRITES = 8
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def processors() -> int:
    """Those that this process may use: a container's limit counts."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_mb(meminfo: Path = Path("/proc/meminfo"), limit: Path = _CGROUP_LIMIT) -> int:
    """The machine's, or the container's where that is less; 0 if neither is told."""
    sizes = []
    with contextlib.suppress(OSError, KeyError, ValueError):
        fields = dict(line.split(":", 1) for line in meminfo.read_text("ascii").splitlines() if ":" in line)
        sizes.append(int(fields["MemTotal"].split()[0]) // 1024)
    with contextlib.suppress(OSError, ValueError):
        sizes.append(int(limit.read_text("ascii")) >> 20)
    return min(sizes, default=0)


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
