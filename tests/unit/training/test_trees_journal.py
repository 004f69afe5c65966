"""The journal of a run: what is written, what is read back, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.journal import METRIC, Beginning, Journal, JournalUnusable

OWNER = bytes(range(32))
CHAINS = [bytes([place]) * 32 for place in range(10)]
FRESH = Beginning(0, bytes(32), b"")


def says(words: str) -> Callable[[SiteRefusal], bool]:
    """The reason is for the site's own log: the error's text has the code alone."""
    return lambda refusal: words in refusal.local


def written(path: Path, rounds: int, beginning: Beginning = FRESH) -> None:
    """Two answers and a metric around each round."""
    journal = Journal.begin(path, OWNER, beginning)
    for round_ in range(beginning.rounds + 1, beginning.rounds + rounds + 1):
        journal.note(5, f"root {round_}".encode())
        journal.note(7, f"split {round_}".encode())
        journal.note_round(round_, CHAINS[round_], f"trees {round_}".encode())
        journal.note(METRIC, f"metric {round_}".encode())
    journal.close()


def replayed(journal: Journal, first: int, last: int) -> None:
    for round_ in range(first, last + 1):
        assert journal.replaying
        assert journal.take(5) == f"root {round_}".encode()
        assert journal.take(7) == f"split {round_}".encode()
        journal.take_round(round_, f"trees {round_}".encode())
        if round_ < last:
            assert journal.take(METRIC) == f"metric {round_}".encode()
    assert not journal.replaying


def test_what_stands_is_read_back_and_the_rest_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, 3)
    journal = Journal.resume(path, OWNER, 2, CHAINS[2])
    assert (journal.rounds, journal.beginning) == (2, FRESH)
    replayed(journal, 1, 2)
    journal.note(5, b"another root")
    journal.note(7, b"another split")
    journal.note_round(3, CHAINS[9], b"other trees")
    journal.close()
    assert b"metric 2" not in path.read_bytes()
    again = Journal.resume(path, OWNER, 3, CHAINS[9])
    assert [again.take(tag) for tag in (5, 7)] == [b"root 1", b"split 1"]
    again.close()
    with pytest.raises(JournalUnusable, check=says("another chain")):
        Journal.resume(path, OWNER, 3, CHAINS[3])


def test_a_torn_end_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, 2)
    whole = path.read_bytes()
    for torn in (b"\x05", b"\x05\xff\xff\xff\xff", b"\x05\x09\x00\x00\x00half"):
        path.write_bytes(whole + torn)
        journal = Journal.resume(path, OWNER, 2, CHAINS[2])
        replayed(journal, 1, 2)
        journal.close()


def test_a_round_that_is_not_there_cannot_be_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with pytest.raises(JournalUnusable, check=says("there is none")):
        Journal.resume(path, OWNER, 1, CHAINS[1])
    written(path, 2)
    with pytest.raises(JournalUnusable, check=says("ends before round 3")):
        Journal.resume(path, OWNER, 3, CHAINS[3])
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(JournalUnusable, check=says("ends before round 2")):
        Journal.resume(path, OWNER, 2, CHAINS[2])
    with pytest.raises(JournalUnusable, check=says("belongs to other rows")):
        Journal.resume(path, bytes(32), 1, CHAINS[1])


def test_a_journal_goes_on_from_a_model(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    base = Beginning(4, CHAINS[4], b"tree\nversion=v4\n")
    written(path, 2, base)
    journal = Journal.resume(path, OWNER, 6, CHAINS[6])
    assert journal.beginning == base
    replayed(journal, 5, 6)
    journal.close()
    early = Journal.resume(path, OWNER, 4, CHAINS[4])
    assert (early.rounds, early.replaying) == (4, False)
    early.close()


def test_a_new_beginning_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, 2)
    Journal.begin(path, OWNER, FRESH).close()
    with pytest.raises(JournalUnusable):
        Journal.resume(path, OWNER, 1, CHAINS[1])


def test_trees_that_come_out_otherwise_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, 1)
    for round_, trees in ((1, b"trees 2"), (2, b"trees 1")):
        journal = Journal.resume(path, OWNER, 1, CHAINS[1])
        journal.take(5)
        journal.take(7)
        with pytest.raises(JournalUnusable, check=says("other trees")):
            journal.take_round(round_, trees)
        journal.close()


def test_an_answer_at_another_place_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, 1)
    journal = Journal.resume(path, OWNER, 1, CHAINS[1])
    with pytest.raises(JournalUnusable, check=says("tag 5 stands where one with tag 7")):
        journal.take(7)
    journal.close()
