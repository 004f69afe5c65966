"""Several aggregators on one directory: seats, locks, and who takes which queue of chunks."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium_aggregator.files import DataDir
from cohortium_aggregator.sharing import share_of
from cohortium_messages.topology import CHUNK_PARTITIONS, chunk_partition


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    found = DataDir(tmp_path)
    found.prepare()
    return found


def test_each_takes_the_lowest_free_seat_and_sees_the_others(data: DataDir) -> None:
    first, second, third = data.join(), data.join(), data.join()
    assert [one.number for one in (first, second, third)] == [0, 1, 2]
    assert first.company() == second.company() == (0, 1, 2)
    second.leave()
    assert first.company() == (0, 2)
    again = data.join()
    assert (again.number, again.place) == (1, second.place)
    assert len({first.place, second.place, third.place}) == 3


def test_a_seat_is_free_when_its_process_is_killed(data: DataDir) -> None:
    script = f"from cohortium_aggregator.files import *; DataDir(Path({str(data.root)!r})).join(); print(1); input()"
    command = [sys.executable, "-uc", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        ours = data.join()
        assert (ours.number, ours.company()) == (1, (0, 1))
        other.kill()
        other.wait()
        assert ours.company() == (1,)


def test_what_a_crash_left_is_deleted_by_who_is_alone(data: DataDir) -> None:
    left = data.root / "models" / "run" / ".1.abcd.tmp"
    left.mkdir(parents=True)
    first = data.join()
    assert not left.exists()
    left.mkdir()
    data.join()
    assert left.exists(), "the other one may be writing it"
    first.leave()


def test_one_at_a_time_does_what_a_name_names(data: DataDir) -> None:
    with data.claimed("open-1") as ours:
        assert ours
        with data.claimed("open-1") as others:
            assert not others
    with data.claimed("open-1") as again:
        assert again


@given(company=st.sets(st.integers(0, 63), min_size=1), partitions=st.integers(1, 16))
def test_every_partition_has_one_owner_and_none_has_two_more_than_another(company: set[int], partitions: int) -> None:
    seats = sorted(company)
    shares = [share_of(seat, seats, partitions) for seat in seats]
    assert sorted(one for share in shares for one in share) == list(range(partitions))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(window_id=st.binary(min_size=16, max_size=16), first=st.integers(0, 5000), aggregators=st.integers(1, 8))
def test_eight_chunks_in_a_row_have_work_for_eight_aggregators(window_id: bytes, first: int, aggregators: int) -> None:
    queues = {chunk_partition(window_id, chunk) for chunk in range(first, first + CHUNK_PARTITIONS)}
    company = range(aggregators)
    assert all(share_of(seat, company, CHUNK_PARTITIONS) & queues for seat in company)


def test_vectors_of_one_chunk_do_not_all_go_to_one_queue() -> None:
    assert {chunk_partition(bytes([first]) * 16, 0) for first in range(256)} == set(range(CHUNK_PARTITIONS))
