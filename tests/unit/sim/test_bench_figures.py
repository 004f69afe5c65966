"""Where the time of a round goes, and what processes use: the figures of `make bench`."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from cohortium_sim.floor import floor_seconds, mask_seconds
from cohortium_sim.meter import Meter, Usage, children, usage_of
from cohortium_sim.stages import PREFIX, STAGES, stage_lines, stage_seconds

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def entry(kind: str, window: str, at_s: float, **data: str) -> bytes:
    moment = (START + timedelta(seconds=at_s)).isoformat()
    event = {"type": f"{PREFIX}{kind}.v1", "time": moment, "data": {"window_id": window, **data}}
    return json.dumps({"event": event}).encode()


def window(name: str, start_s: float, step_s: float, purpose: str = "update") -> list[bytes]:
    """A window whose every stage takes `step_s`, with two sites, the slower one counting."""
    lines = []
    for number, kind in enumerate(STAGES.values(), start=1):
        end = start_s + number * step_s
        known = {"purpose": purpose} if kind in ("window_authorised", "window_ended") else {}
        if kind in ("task_taken", "upload_sealed", "shares_given"):
            lines.append(entry(kind, name, end - step_s / 2))
        lines.append(entry(kind, name, end, **known))
    return lines


def test_stages_of_update_windows_without_the_warm_up() -> None:
    stages = len(STAGES)
    lines = window("00", 0, 1.0, "statistics")
    lines += window("01", stages, 9.0)  # the warm-up
    lines += window("02", stages * 10, 0.1)
    lines += window("03", stages * 10.1, 0.3)
    seconds = stage_seconds(lines)
    assert list(seconds) == list(STAGES)
    assert list(seconds.values()) == pytest.approx([0.2] * stages)  # the median of two
    assert len(stage_lines(seconds)) == stages
    assert "14 %" in stage_lines(seconds)[0]


def test_unfinished_windows_and_other_purposes_do_not_count() -> None:
    whole = window("01", 0, 1.0)
    assert stage_seconds(whole) == {}
    assert stage_seconds([*whole, *window("02", 10, 1.0, "evaluation"), *window("03", 20, 1.0)[:-1]]) == {}
    assert stage_lines({}) == ()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_usage_of_processes_and_of_what_they_start() -> None:
    busy = (
        "import hashlib, time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: hashlib.sha256(b'x')"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r} + '\\ninput()'])"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        meter = Meter()
        pids = {"aggregator": os.getpid(), "connector-a": child.pid}
        meter.sample(1, {"connector-a": child.pid})
        assert child.pid in children()[os.getpid()]
        for _ in range(3000):
            meter.sample(3, {"connector-a": child.pid})
            used = meter.per_round().get("training", Usage()).cpu_s
            if used >= 0.14:
                break
            meter.samples.pop()
            child.poll()
            subprocess.run(["sleep", "0.02"], check=True)
        assert used >= 0.14  # 0.3 s over two rounds, in ticks of 10 ms
        assert usage_of(pids["aggregator"]).moved > 0
    finally:
        child.communicate(b"\n", timeout=20)


def test_usage_of_nobody_is_nothing() -> None:
    assert usage_of(2**22 + 1) == Usage()
    meter = Meter()
    assert meter.per_round() == {}
    meter.sample(0, {})
    meter.sample(1, {})
    assert meter.per_round() == {}


def test_masks_take_longer_for_more_parameters_and_sites() -> None:
    few, many = mask_seconds(4, 1_000_000, 1), mask_seconds(16, 100_000_000, 1)
    assert 0 < few < many


@pytest.mark.real
async def test_floor_moves_the_bytes_through_a_real_broker(amqp_url: str) -> None:
    floor = await floor_seconds(4, 100_000, amqp_url)
    assert set(floor) == {"masks", "bytes through the broker"}
    assert floor["bytes through the broker"] > 0
