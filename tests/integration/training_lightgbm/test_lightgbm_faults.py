"""What can go wrong around LightGBM's callbacks: each time the process lives, says what it was, and asks no more."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from lightgbm_cases import binary_sites, count_sites, number_sites, study_of
from lightgbm_world import Session, World

from cohortium_connector.training.live_wire import RELAY, SUM, relay_parts, relay_reply
from cohortium_connector.training.runner import TrainingFailed, TrainingRefused

pytest.importorskip("lightgbm", reason="the training extra is not installed")

SCRIPT = Path(__file__).with_name("faulty_site.py")
LAST = 13
"""Questions until the one at which the other side goes wrong, that one included."""

FAULTS = {
    "closed": ("BridgeDead the connector has closed the line", LAST),
    "silent": ("BridgeDead no answer in 1 s", LAST),
    "half an answer": ("BridgeDead the connector has closed the line", LAST),
    "wrong kind": ("LiveFault kind 3 does not belong here", LAST),
    "too long": ("LiveFault a payload of 33554433 bytes is longer than 33554432", LAST),
    "too few words": ("LiveFault 8 bytes answer", LAST),
    "stopped": ("SessionStopped SITE_SILENT after 0 rounds", LAST),
    "interrupted waiting": ("KeyboardInterrupt", LAST),
    "interrupted in C++": ("KeyboardInterrupt", LAST),
    "memory": ("MemoryError", 6),
    "layout": ("UnknownCollective LightGBM's network: the rows of a tree's root are not where LightGBM 4.7", 5),
    "unknown size": ("UnknownCollective LightGBM's network: an allgather of 24 bytes at ROOT in round 1", 5),
    "left out": ("UnknownCollective LightGBM's network: a reduce-scatter of", 6),
    "out of bounds": ("OutOfBounds OUT_OF_BOUNDS: a histogram cell is larger than", 6),
    "none": ("rounds=4", None),
}


Ending = tuple[int, str, int, int]


@pytest.fixture(scope="module")
def endings() -> dict[str, Ending]:
    """Of each fault: exit code, what was said, questions asked, splits that held more than a split."""
    faults = [*FAULTS, "unwiped"]
    done = subprocess.run([sys.executable, str(SCRIPT), *faults], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return dict(zip(faults, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_the_training_and_not_the_process(endings: dict[str, Ending], fault: str) -> None:
    outcome, questions = FAULTS[fault]
    code, said, asked, waste = endings[fault]
    assert code == 0
    assert said.startswith(outcome)
    assert questions is None or asked == questions
    assert waste == 0


def test_lightgbm_leaves_a_piece_of_the_sites_own_histogram_behind_a_split(endings: dict[str, Ending]) -> None:
    """Why splits are wiped: without that, what no other site may see would be relayed to all of them."""
    code, outcome, _, waste = endings["unwiped"]
    assert (code, outcome) == (0, "rounds=4")
    assert waste > 10


SPLIT_BYTES = 94 + 4 * 32
FORGED = {
    "feature": ("<i", 0, 1_000_000),
    "negative feature": ("<i", 0, -7),
    "threshold": ("<I", 20, 60_000),
    "categories": ("<i", 90, 1_000_000_000),
    "categories of a number": ("<i", 90, 3),
    "gain": ("<d", 12, float("nan")),
    "infinite output": ("<d", 24, float("inf")),
    "count": ("<i", 4, -5),
    "direction": ("<b", 89, 17),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_split_is_refused_before_lightgbm_sees_it(world: World, what: str) -> None:
    form, offset, value = FORGED[what]
    prepared = world.prepare(study_of({"type": "binary"}, rounds=3), binary_sites((150, 200, 250, 300)))

    def forge(session: Session, site: int, answer: bytes) -> bytes:
        if session.kinds[-1] != RELAY:
            return answer
        pairs = [bytearray(part) for part in relay_parts(answer, 4)]
        struct.pack_into("<i", pairs[2], 0, 0)
        struct.pack_into("<d", pairs[2], 12, 1e9)  # the best gain of all
        struct.pack_into(form, pairs[2], offset, value)
        return relay_reply(tuple(bytes(pair) for pair in pairs))

    session = world.train(prepared, lie=forge)
    assert [getattr(result, "code", result) for result in session.results] == ["SPLIT_REFUSED"] * 4
    assert session.kinds.count(RELAY) == 1
    assert all(runner.pid for runner in world.runners)


def test_impossible_counts_are_refused(world: World) -> None:
    prepared = world.prepare(study_of({"type": "binary"}, rounds=3), binary_sites((150, 200, 250, 300)))
    session = world.train(prepared, lie=lambda session, site, answer: struct.pack("<q", 901))
    assert {getattr(result, "code", "") for result in session.results} == {"UNKNOWN_COLLECTIVE"}
    assert session.kinds == [SUM]


def test_a_number_that_leaves_its_bound_ends_the_session_and_is_not_sent(world: World) -> None:
    """An aggregator that lies about the first score makes every gradient enormous."""
    study = study_of({"type": "number", "range": [0.0, 4.0]}, rounds=3)
    prepared = world.prepare(study, number_sites((150, 200, 250, 300)))

    def lie(session: Session, site: int, answer: bytes) -> bytes:
        words = len(answer) // 8
        return struct.pack(f"<{words}q", *(words - 1) * [0], 1 << 3) if words == 66 else answer

    session = world.train(prepared, lie=lie)
    assert {getattr(result, "code", "") for result in session.results} <= {"OUT_OF_BOUNDS", "NOT_FINITE"}
    assert len(session.kinds) <= 3


def test_a_site_that_is_told_another_sum_does_not_go_on(world: World) -> None:
    """Masks would not open after it; and the site itself sees that its results are not those of the session's chain."""
    prepared = world.prepare(study_of({"type": "binary"}, rounds=3), binary_sites((150, 200, 250, 300)))

    def lie(session: Session, site: int, answer: bytes) -> bytes:
        wrong = site == 1 and len(session.kinds) == 7
        assert not wrong or session.kinds[-1] == SUM
        return bytes(len(answer)) if wrong else answer

    session = world.train(prepared, lie=lie)
    assert session.end is None
    assert [str(result).split(";")[0] for result in session.results].count("LiveFault") == 1
    assert isinstance(session.results[1], TrainingFailed)
    assert all(runner.pid for runner in world.runners)


def test_a_connector_that_goes_away_is_noticed_everywhere(world: World) -> None:
    prepared = world.prepare(study_of({"type": "binary"}, rounds=3), binary_sites((150, 200, 250, 300)))
    for steps in (0, 3, 4, 5, 6, 20):
        session = world.train(prepared, hang_up=lambda session, last=steps: len(session.kinds) > last)
        assert all(isinstance(result, TrainingFailed) for result in session.results), steps
        assert {str(result).split(";")[0] for result in session.results} == {"BridgeDead"}
    assert world.train(prepared).end == {"best_round": 3, "rounds": 3}


def test_counts_that_are_all_zero_are_refused_before_a_session(world: World) -> None:
    """LightGBM refuses such labels, and where a site notices only inside, the session of all would end."""
    sites = count_sites(200, 3)
    sites[1]["y"][:] = 0
    with pytest.raises(TrainingRefused, match="LABELS_ALL_ZERO in column y"):
        world.prepare(study_of({"type": "count", "most": 15}, rounds=3), sites)
