"""Back-dated grants, replayed permits and dates that had not come: well signed, whole, and impossible."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from cohortium_messages import events as ev
from cohortium_messages.envelope import KEY_ID_HEADER, Envelope
from cohortium_verify.log import Entry
from cohortium_verify.order import check_order
from cohortium_verify.rules import check_grants, windows_of
from cohortium_verify.verification import verify_bundle
from governance_stage import Stage
from study_story import Line, bundle_of, signed, study_lines, window

Change = Callable[[list[Line]], list[Line]]


def told(stage: Stage, lines: list[Line]) -> list[Entry]:
    """The entries of a log of these lines, as the verifier has read them."""
    found = []
    for index, line in enumerate(lines):
        outgoing = signed(stage, line)
        envelope = Envelope.model_validate_json(outgoing.body)
        found.append(Entry(index, outgoing.headers[KEY_ID_HEADER], envelope, line.message))
    return found


def place(lines: list[Line], kind: type[ev.AuditEvent], number: int | None = None) -> int:
    return next(
        at
        for at, line in enumerate(lines)
        if isinstance(line.message, kind) and number in (None, getattr(line.message, "window_id", b"?")[0])
    )


def grant_afterwards(lines: list[Line]) -> list[Line]:
    """Consent forgot a hospital's grant, and writes it down when the round is over, with the date of the day before."""
    late = lines.pop(place(lines, ev.GrantStarted))
    return [*lines, late]


def permits_replayed(lines: list[Line]) -> list[Line]:
    """The permits of a window that is over are shown again for it."""
    return [*lines, lines[place(lines, ev.WindowAuthorised, 1)]]


def permits_of_others(lines: list[Line]) -> list[Line]:
    """A hospital's permit rests on the grant of another one."""
    at = place(lines, ev.WindowAuthorised, 2)
    message = lines[at].message
    assert isinstance(message, ev.WindowAuthorised)
    first, second, *rest = message.permits
    stolen = second.model_copy(update={"grant_digest": first.grant_digest})
    lines[at] = replace(lines[at], message=message.model_copy(update={"permits": (first, stolen, *rest)}))
    return lines


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (grant_afterwards, "when its window 01010101010101010101010101010101 was over: it is back-dated"),
        (permits_replayed, "authorised a second time: a permit was replayed"),
        (permits_of_others, "on a grant that is not on record"),
    ],
)
def test_a_permit_that_rests_on_nothing_is_found(tmp_path: Path, change: Change, words: str) -> None:
    stage = Stage.at(tmp_path)
    entries = told(stage, change(study_lines(stage)))
    windows = windows_of(entries)
    failures = (*check_order(entries, windows, ()).failures, *check_grants(entries, windows).failures)
    assert any(words in failure.text for failure in failures), failures
    assert failures[0].index is not None


def test_nothing_is_dated_after_it_was_cosigned_but_by_what_two_clocks_may_differ(tmp_path: Path) -> None:
    stage = Stage.at(tmp_path)
    entries = told(stage, study_lines(stage))
    now = int(stage.clock.now().timestamp())
    windows = windows_of(entries)
    assert not check_order(entries, windows, [(20, now), (len(entries), now - 599)]).failures
    failures = check_order(entries, windows, [(20, now), (len(entries), now - 660)]).failures
    assert failures[0].index == 0
    assert failures[0].text.startswith("service:enrolment dated it, 11 minutes after the last hospital cosigned it")
    assert "more entries, the furthest by 11 minutes" in failures[1].text
    emitters = [failure.text.partition(" ")[0] for failure in failures]
    assert emitters == list(dict.fromkeys(entry.key_id for entry in entries)), "each once, by name"
    assert not check_order(entries, windows, [(0, now - 660)]).failures, (
        "of entries that it does not hold it says nothing"
    )


async def test_a_service_whose_clock_is_an_hour_ahead_is_named_with_what_to_do(tmp_path: Path) -> None:
    """The last word of the scheduler alone is dated so; whoever reads the report knows whom, how far, and what now."""
    stage = Stage.at(tmp_path)
    entries = told(stage, study_lines(stage))
    last = entries[-1]
    assert last.key_id == "service:scheduler"
    late = last.envelope.model_copy(update={"time": last.envelope.time + timedelta(hours=1)})
    entries[-1] = replace(last, envelope=late)
    now = int(stage.clock.now().timestamp())
    (failure,) = check_order(entries, windows_of(entries), [(len(entries), now)]).failures
    assert failure.index == last.index
    assert failure.text.startswith(
        "service:scheduler dated it, 60 minutes after the last hospital cosigned it: its clock"
    )
    assert "Set that clock right (NTP)" in failure.text


async def test_a_back_dated_grant_refutes_the_bundle(tmp_path: Path) -> None:
    stage = Stage.at(tmp_path)
    folder = await bundle_of(stage, grant_afterwards(study_lines(stage)), tmp_path / "result", checkpoint_every=50)
    report = verify_bundle(folder, [officer.public for officer in stage.files.officers])
    assert report.exit_code == 1
    assert [check.name for check in report.checks if check.failures] == ["order"]
    assert report.first_failing_index == report.tree_size - 1
    assert window(1).hex() in report.text()
