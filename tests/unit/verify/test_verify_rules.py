"""Lies that are well signed: the log is whole, and what its emitters say cannot all be true."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cohortium_messages import events as ev
from cohortium_messages.emitters import EMITTERS
from cohortium_messages.events import AuditEvent
from cohortium_messages.registry import released_types
from cohortium_verify.verification import verify_bundle
from governance_stage import DIGEST, Stage
from study_story import RUN, Line, bundle_of, model, study_lines, window

Change = Callable[[Stage, list[Line]], list[Line]]


def test_every_event_has_an_emitter() -> None:
    every = {kind for kind in released_types().values() if issubclass(kind, AuditEvent)}
    assert set(EMITTERS) == every


def edit(kind: type[AuditEvent], number: int | None = None, **values: Any) -> Change:
    """Change the events of one type, or of one window."""

    def change(stage: Stage, lines: list[Line]) -> list[Line]:
        return [
            replace(line, message=line.message.model_copy(update=values)) if _is(line, kind, number) else line
            for line in lines
        ]

    return change


def drop(kind: type[AuditEvent], number: int | None = None) -> Change:
    return lambda stage, lines: [line for line in lines if not _is(line, kind, number)]


def _is(line: Line, kind: type[AuditEvent], number: int | None) -> bool:
    is_window = number is None or getattr(line.message, "window_id", None) == window(number)
    return isinstance(line.message, kind) and is_window


def unpermitted(stage: Stage, lines: list[Line]) -> list[Line]:
    def without(message: ev.WindowAuthorised) -> ev.WindowAuthorised:
        refused = message.permits[3].model_copy(update={"permitted": False, "grant_digest": None})
        return message.model_copy(update={"permits": (*message.permits[:3], refused)})

    return [
        replace(line, message=without(line.message))
        if isinstance(line.message, ev.WindowAuthorised) and line.message.window_id == window(2)
        else line
        for line in lines
    ]


def authorised_afterwards(stage: Stage, lines: list[Line]) -> list[Line]:
    late = [line for line in lines if _is(line, ev.WindowAuthorised, 2)]
    return [line for line in lines if line not in late] + late


def opened_below_k_min(stage: Stage, lines: list[Line]) -> list[Line]:
    everybody = tuple(site.site_id for site in stage.hospitals)
    return edit(ev.AggregateOpened, 2, survivors=everybody[:2], dropped=everybody[2:])(stage, lines)


def a_stranger_in_the_sum(stage: Stage, lines: list[Line]) -> list[Line]:
    everybody = tuple(site.site_id for site in stage.hospitals)
    return edit(ev.CohortFixed, 1, sites=everybody[:3], n=3)(stage, lines)


def two_survivor_sets(stage: Stage, lines: list[Line]) -> list[Line]:
    site = stage.hospitals[0]
    other = ev.SharesGiven(run_id=RUN, window_id=window(2), site_id=site.site_id, survivors_hash=b"\5" * 32)
    return [*lines, Line(site, other)]


def two_uploads(stage: Stage, lines: list[Line]) -> list[Line]:
    site = stage.hospitals[0]
    other = ev.UploadSealed(run_id=RUN, window_id=window(2), site_id=site.site_id, header_hash=b"\5" * 32, bytes=1)
    return [*lines, Line(site, other)]


def other_grant_taken(stage: Stage, lines: list[Line]) -> list[Line]:
    site = stage.hospitals[0]
    other = ev.TaskTaken(run_id=RUN, window_id=window(2), site_id=site.site_id, grant_digest=b"\5" * 32)
    return [*lines, Line(site, other)]


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        (drop(ev.WindowAuthorised, 2), "authorisation", "no authorisation is on record"),
        (authorised_afterwards, "authorisation", "was fixed before it was authorised"),
        (authorised_afterwards, "authorisation", "took a task of window"),
        (unpermitted, "authorisation", "without a permit"),
        (edit(ev.CohortFixed, 2, t=2), "cohorts", "do not follow from any membership"),
        (edit(ev.CohortFixed, 2, k_min=2), "cohorts", "do not follow from any membership"),
        (edit(ev.CohortFixed, 2, c=0), "cohorts", "do not follow from any membership"),
        (drop(ev.CohortFixed, 2), "opened sums", "whose cohort is not on record"),
        (opened_below_k_min, "opened sums", "at least 3 were promised"),
        (a_stranger_in_the_sum, "opened sums", "which is not in the cohort"),
        (edit(ev.AggregateOpened, 2, dropped=()), "opened sums", "listed as dropped"),
        (edit(ev.AggregateOpened, 2, survivors_hash=b"\6" * 32), "shares", "another survivor set"),
        (two_survivor_sets, "shares", "for two survivor sets"),
        (two_uploads, "shares", "two vectors"),
        (other_grant_taken, "sites' own checks", "another grant"),
        (drop(ev.GrantStarted), "grants", "not on record"),
        (edit(ev.GrantStarted, grant_digest=b"\5" * 32), "grants", "not on record"),
        (edit(ev.ModelReleased, 2, parent=model(7)), "model lineage", "does not descend"),
        (edit(ev.ModelReleased, 2, model=model(2)), "model lineage", "version 1 never was"),
        (edit(ev.ModelReleased, 1, parent=model(0)), "model lineage", "names a parent"),
        (drop(ev.AggregateOpened, 2), "model lineage", "never was opened"),
        (edit(ev.WindowEnded, 2, state="FAILED_INTEGRITY"), "model lineage", "did not end well"),
        (edit(ev.ModelBundled, model=model(5)), "model lineage", "not a released version"),
        (edit(ev.ManifestRecorded, manifest_hash=b"\5" * 32), "recorded memberships", "not the recorded one"),
        (drop(ev.ManifestRecorded), "recorded memberships", "never was recorded"),
        (edit(ev.StudySubmitted, governance="required"), "consent documents", "is of a study that asks for signed"),
        (drop(ev.StudySubmitted), "consent documents", "never put on record"),
    ],
)
async def test_a_signed_lie_is_found(tmp_path: Path, change: Change, check: str, words: str) -> None:
    stage = Stage.at(tmp_path)
    folder = await bundle_of(stage, change(stage, study_lines(stage)), tmp_path / "result", checkpoint_every=50)
    report = verify_bundle(folder, [officer.public for officer in stage.files.officers])
    assert report.exit_code == 1
    found = {failure.text for one in report.checks if one.name == check for failure in one.failures}
    assert any(words in text for text in found), report.text()


async def test_missing_words_of_sites_are_noted_and_refute_nothing(tmp_path: Path) -> None:
    """A site's events may be on their way: their absence proves nothing against the sum."""
    stage = Stage.at(tmp_path)
    lines = drop(ev.SharesGiven, 2)(stage, drop(ev.TaskTaken, 2)(stage, study_lines(stage)))
    report = verify_bundle(await bundle_of(stage, lines, tmp_path / "result"))
    assert report.verified, report.text()
    assert "0 of the 3 sites that must have given shares say so" in report.text()
    assert "no record that site" in report.text()


@pytest.mark.parametrize(("seconds", "verified"), [(30, True), (90, False)])
async def test_a_site_may_not_be_in_a_window_after_its_withdrawal(
    tmp_path: Path, seconds: int, *, verified: bool
) -> None:
    stage = Stage.at(tmp_path)
    lines = study_lines(stage)
    begin = next(place for place, line in enumerate(lines) if _is(line, ev.WindowAuthorised, 2))
    stopped = ev.GrantStopped(site_id=stage.hospitals[0].site_id, study_digest=DIGEST, reason="GRANT_WITHDRAWN")
    lines.insert(begin, Line("consent", stopped))
    lines[begin + 1] = replace(lines[begin + 1], wait_s=seconds)
    report = verify_bundle(await bundle_of(stage, lines, tmp_path / "result"))
    assert report.verified is verified
    expected = "within a minute of its grant's end" if verified else "after its grant ended"
    assert expected in report.text()


@pytest.mark.parametrize("again", [True, False])
async def test_a_grant_that_stopped_and_began_again_covers_what_came_after_only(tmp_path: Path, again: bool) -> None:
    """A document was suspended, and approved anew; a run in between is found although the grant counts again."""
    stage = Stage.at(tmp_path)
    lines = study_lines(stage)
    begin = next(place for place, line in enumerate(lines) if _is(line, ev.WindowAuthorised, 2))
    site = stage.hospitals[0].site_id
    started = next(line for line in lines if isinstance(line.message, ev.GrantStarted) and line.message.site_id == site)
    stopped = Line("consent", ev.GrantStopped(site_id=site, study_digest=DIGEST, reason="TERMS_SUSPENDED"))
    lines[begin] = replace(lines[begin], wait_s=120)
    lines.insert(begin + (0 if again else 1), started)
    lines.insert(begin, stopped)
    report = verify_bundle(await bundle_of(stage, lines, tmp_path / "result"))
    assert report.verified is again, report.text()
    assert again or "after its grant ended" in report.text()
