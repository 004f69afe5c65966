"""Emitters number what they tell: a log that holds one event back is refuted, though everything in it is signed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cohortium_messages import events as ev
from cohortium_verify.chains import check_chains
from cohortium_verify.log import Entry, known_keys, read_entries
from cohortium_verify.verification import verify_bundle
from governance_stage import STUDY, Hospital, Stage
from study_story import bundle_of, study_lines


@pytest.mark.parametrize("kind", [ev.TaskTaken, ev.UploadSealed, ev.RunStateChanged])
async def test_an_event_that_the_log_never_took_is_missed(kind: type[ev.AuditEvent], tmp_path: Path) -> None:
    stage = Stage.at(tmp_path)
    lines = study_lines(stage)
    held_back = next(place for place, line in enumerate(lines) if isinstance(line.message, kind))
    folder = await bundle_of(stage, lines, tmp_path / "result", withheld={held_back})
    report = verify_bundle(folder)
    (chains,) = [check for check in report.checks if check.name == "chains"]
    assert chains.state == "failed"
    who = lines[held_back].who
    assert (who.site_id if isinstance(who, Hospital) else who) in chains.fact
    assert "is not in this log" in chains.fact
    after = next(place for place in range(held_back + 1, len(lines)) if lines[place].who == who)
    assert chains.failures[0].index == after - 1  # one line less before it
    assert report.exit_code == 1


async def test_all_that_hospitals_said_of_a_window_cannot_be_left_out(tmp_path: Path) -> None:
    """Without numbers, a bundle that has neither their tasks nor their uploads would hold together."""
    stage = Stage.at(tmp_path)
    lines = study_lines(stage)
    quiet = {place for place, line in enumerate(lines) if isinstance(line.message, ev.TaskTaken | ev.UploadSealed)}
    report = verify_bundle(await bundle_of(stage, lines, tmp_path / "result", withheld=quiet))
    assert "chains" in {check.name for check in report.checks if check.state == "failed"}


class TestEntries:
    """Single faults, on the entries of an honest bundle."""

    @pytest.fixture
    def told(self, honest: tuple[Stage, Path]) -> list[Entry]:
        stage, audit = honest
        raw = (audit / "entries.jsonl").read_bytes().splitlines()
        entries, failures = read_entries(raw, known_keys(stage.files.trust.services, [stage.manifest()]), STUDY)
        assert not failures
        return entries

    def test_honest_entries_hold(self, told: list[Entry]) -> None:
        check = check_chains(told)
        assert check.state == "passed"
        assert f"{len(told)} events of 8 emitters" in check.fact

    def test_their_order_in_the_log_does_not_matter(self, told: list[Entry]) -> None:
        """Instances of a service overtake one another on their way to the log."""
        assert check_chains(list(reversed(told))).state == "passed"

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            (lambda entry: {"series": None, "number": None, "previous": None}, "without a number"),
            (lambda entry: {"number": entry.envelope.number - 1}, "told two events as its number 1"),
            (lambda entry: {"previous": bytes(32)}, "after another event"),
            (lambda entry: {"number": 99}, "numbered it 99"),
        ],
        ids=["unnumbered", "twice", "another-before", "far-ahead"],
    )
    def test_a_false_place_is_found(
        self, damage: Callable[[Entry], dict[str, object]], says: str, told: list[Entry]
    ) -> None:
        place, entry = next((at, one) for at, one in enumerate(told) if one.envelope.number == 2)
        changed = replace(entry, envelope=entry.envelope.model_copy(update=damage(entry)))
        check = check_chains([*told[:place], changed, *told[place + 1 :]])
        assert check.state == "failed"
        assert any(says in str(failure) and failure.index == entry.index for failure in check.failures), check.failures

    def test_an_event_changed_after_the_next_was_told_is_found(self, told: Sequence[Entry]) -> None:
        place, entry = next((at, one) for at, one in enumerate(told) if one.key_id == "service:scheduler")
        check = check_chains([*told[:place], replace(entry, digest=b"x" * 32), *told[place + 1 :]])
        assert check.state == "failed"
        assert entry.key_id in check.fact

    def test_who_has_lost_its_records_begins_another_series_and_the_reader_is_told(self, told: list[Entry]) -> None:
        ours = [entry for entry in told if entry.key_id == "service:scheduler"]
        others = [entry for entry in told if entry.key_id != "service:scheduler"]
        before, digest = ours[:3], bytes(32)
        after = []
        for number, entry in enumerate(ours[3:], 1):
            place = {"series": b"anotherr", "number": number, "previous": digest}
            after.append(replace(entry, envelope=entry.envelope.model_copy(update=place)))
            digest = entry.digest
        check = check_chains([*others, *before, *after])
        assert check.state == "passed"
        (note,) = check.notes
        assert "service:scheduler began to number 2 times" in note
