"""What the pressure command reads of a broker, and what it calls a failure."""

from dataclasses import replace

import pytest

from cohortium_messages.topology import chunk_queue, platform_topology
from cohortium_sim.meter import resident_bytes
from cohortium_sim.pressure import MIB, Load, holds, main, own_bound, text
from cohortium_sim.pressure_watch import Seen, Waiting, waiting_of

LOAD = Load(sites=4, parameters=10_000_000, hold_s=12.0, bound=8 * MIB, database="")
SEEN = Seen(
    "stopped",
    seconds=20.0,
    broker_before=100 * MIB,
    broker_peak=120 * MIB,
    chunks_peak=8 * MIB,
    queues_peak=24 * MIB,
    refused={"site-001": 3, "site-002": 0},
    in_sum=("site-001", "site-002", "site-003", "site-004"),
)
MEASURES = """\
# TYPE rabbitmq_detailed_queue_messages_ready_bytes gauge
rabbitmq_detailed_queue_messages_ready_bytes{vhost="/",queue="ns.chunks.0"} 31457280
rabbitmq_detailed_queue_messages_ready_bytes{vhost="/",queue="ns.presence"} 0
rabbitmq_detailed_queue_messages_bytes{vhost="/",queue="ns.chunks.0"} 3.3e+07
rabbitmq_detailed_queue_messages_persistent{vhost="/",queue="ns.chunks.0"} 7
rabbitmq_detailed_queue_messages{vhost="/",queue="ns.chunks.0"} 31
"""


def test_what_waits_is_read_by_queue() -> None:
    assert waiting_of(MEASURES, "ns") == {
        "chunks.0": Waiting(messages=31, ready=31457280, held=33_000_000),
        "presence": Waiting(),
    }


@pytest.mark.parametrize(
    "otherwise",
    [{"chunks_peak": 8 * MIB + 1}, {"parked": 1}, {"in_sum": SEEN.in_sum[:3]}],
    ids=["queue-too-long", "frame-given-up", "site-missing"],
)
def test_a_round_holds_unless_something_was_lost_or_too_long(otherwise: dict[str, object]) -> None:
    assert holds(LOAD, SEEN)
    assert not holds(LOAD, replace(SEEN, **otherwise))  # type: ignore[arg-type]


def test_without_a_bound_of_its_own_the_queues_bound_counts() -> None:
    declared = {queue.name: queue.max_length_bytes for queue in platform_topology().queues}
    assert own_bound() == declared[chunk_queue(1)]
    assert holds(replace(LOAD, bound=None), replace(SEEN, chunks_peak=own_bound()))
    assert not holds(replace(LOAD, bound=None), replace(SEEN, chunks_peak=own_bound() + 1))


def test_the_figures_in_words() -> None:
    said = text(LOAD, [SEEN])
    assert "76.3 MiB a round, 8 chunk queues of at most 8.0 MiB each" in said
    assert "stopped for 12 s" in said
    assert "3 frames refused and sent again (most of site-001: 3)" in said
    assert "4 of 4 sites in the sum" in said


@pytest.mark.parametrize("wrong", [["--bound", "1"], ["--sites", "2"], ["--hold", "0"], ["--params", "0"]])
def test_what_cannot_be_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
    assert "at least" in capsys.readouterr().err


def test_memory_of_a_process_that_is_gone_is_none() -> None:
    assert resident_bytes(2**30) == 0
