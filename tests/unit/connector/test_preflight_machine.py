"""What the trial takes the machine for: a container's limits, in both versions of control groups, and the mask."""

import os
from pathlib import Path

import pytest

from cohortium_connector.preflight import machine

MEMINFO = "MemTotal:       16384000 kB\nMemFree: 1 kB\n"
UNLIMITED_V1 = 9_223_372_036_854_771_712
"""What `memory.limit_in_bytes` says without a limit: the largest multiple of a page."""


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def eight() -> int:
    return 8


V2 = {"proc/self/cgroup": "0::/\n"}
NESTED = {"proc/self/cgroup": "0::/kubepods.slice/pod.slice/box.scope\n"}
BOX = "sys/fs/cgroup/kubepods.slice/pod.slice"
V1 = {"proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n2:cpuset:/\n1:name=systemd:/x\n"}
OWN_V1 = "sys/fs/cgroup/cpu/docker/abc"


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 8),
        ({**V2, "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({**V2, "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ({"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ({**V2, "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1),
        ({**V2, "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({**V2, "sys/fs/cgroup/cpu.max": "3200000 100000\n"}, 8),
        ({**NESTED, f"{BOX}/box.scope/cpu.max": "max 100000\n", f"{BOX}/cpu.max": "200000 100000\n"}, 2),
        ({**NESTED, f"{BOX}/box.scope/cpu.max": "400000 100000\n", f"{BOX}/cpu.max": "max 100000\n"}, 4),
        ({**V1, f"{OWN_V1}/cpu.cfs_quota_us": "250000\n", f"{OWN_V1}/cpu.cfs_period_us": "50000\n"}, 5),
        ({**V1, f"{OWN_V1}/cpu.cfs_quota_us": "-1\n", f"{OWN_V1}/cpu.cfs_period_us": "100000\n"}, 8),
        ({**V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 2),
        ({**V2, "sys/fs/cgroup/cpu.max": "nonsense\n"}, 8),
        ({**V2, "sys/fs/cgroup/cpu.max": "100000 0\n"}, 8),
        ({**V2, "proc/self/cgroup": "what\n\n0::/../../x\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    ],
)
def test_processors_are_those_that_quota_and_mask_leave(tmp_path: Path, files: dict[str, str], count: int) -> None:
    assert machine.processors(tree(tmp_path, files), eight) == count


def test_the_mask_counts_where_no_quota_is_less(tmp_path: Path) -> None:
    files = {**V2, "sys/fs/cgroup/cpu.max": "300000 100000\n"}
    assert machine.processors(tree(tmp_path, files), lambda: 2) == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity mask")
def test_this_process_is_asked_for_its_own_mask(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert machine.processors(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)
    assert machine.processors(tmp_path) == len(before)


@pytest.mark.parametrize(
    ("files", "size_mb"),
    [
        ({}, 16000),
        ({**V2, "sys/fs/cgroup/memory.max": "max\n"}, 16000),
        ({**V2, "sys/fs/cgroup/memory.max": str(1 << 30)}, 1024),
        ({**V2, "sys/fs/cgroup/memory.max": str(1 << 60)}, 16000),
        ({**NESTED, f"{BOX}/box.scope/memory.max": str(3 << 30), f"{BOX}/memory.max": str(2 << 30)}, 2048),
        ({**V1, "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": str(1 << 30)}, 1024),
        ({**V1, "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": str(UNLIMITED_V1)}, 16000),
    ],
)
def test_memory_is_the_containers_where_that_is_less(tmp_path: Path, files: dict[str, str], size_mb: int) -> None:
    assert machine.memory_mb(tree(tmp_path, files)) == size_mb


def test_memory_that_nobody_tells_is_none(tmp_path: Path) -> None:
    assert machine.memory_mb(tmp_path) == 0
    assert machine.memory(1024).code == "MEMORY_SMALL"
