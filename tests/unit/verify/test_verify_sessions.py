"""Strict sessions and models of trees in an audit bundle: an honest one is proven, and each lie in one is found."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training_story import BINNING, Session, Story, files_of, text

from cohortium_messages import events as ev
from cohortium_messages.events import AuditEvent
from cohortium_messages.governance import Permit
from cohortium_protocol.trees.bins import Refinement
from cohortium_verify.bundle import open_bundle
from cohortium_verify.log import known_keys, read_entries
from cohortium_verify.report import VerificationReport
from cohortium_verify.rules import windows_of
from cohortium_verify.sessions import check_sessions
from cohortium_verify.verification import verify_bundle
from governance_stage import STUDY, Stage
from study_story import RUN, Line, attestation, bundle_of, survivors_hash, window

Change = Callable[[Stage, list[Line]], list[Line]]


async def judged(tmp_path: Path, story: Story, lines: list[Line] | None = None) -> VerificationReport:
    chosen = story.lines() if lines is None else lines
    folder = await bundle_of(story.stage, chosen, tmp_path / "result", checkpoint_every=50, files=story.files)
    return verify_bundle(folder, [officer.public for officer in story.stage.files.officers])


def found(report: VerificationReport, check: str) -> str:
    return "\n".join(failure.text for one in report.checks if one.name == check for failure in one.failures)


def fact(report: VerificationReport, check: str) -> str:
    return next(one.fact for one in report.checks if one.name == check)


async def test_an_honest_training_is_proven(tmp_path: Path) -> None:
    report = await judged(tmp_path, Story.of(Stage.at(tmp_path)))
    assert report.verified, report.text()
    assert "2 sessions with 120 sums, each over all sites of its cohort" in fact(report, "strict sessions")
    assert "the trees are whole and may be loaded" in fact(report, "model bundle")
    assert "training went on" not in report.text()


async def test_early_stopping_may_leave_fewer_rounds_than_stood(tmp_path: Path) -> None:
    report = await judged(tmp_path, Story.of(Stage.at(tmp_path), rounds=6))
    assert report.verified, report.text()


async def test_trees_of_a_training_that_was_cut_short_are_proven(tmp_path: Path) -> None:
    story = Story.of(Stage.at(tmp_path))
    sites = tuple(story.stage.hospitals)
    first = Session(2, "PAUSED", 5, 1, sites)
    report = await judged(tmp_path, replace(story, sessions=(first,), files=files_of(5)))
    assert report.verified, report.text()


async def test_a_study_without_sessions_says_so(tmp_path: Path) -> None:
    stage = Stage.at(tmp_path)
    story = Story.of(stage)
    lines = [line for line in story.lines() if getattr(line.message, "window_id", b"") not in (window(2), window(3))]
    lines = [line for line in lines if not isinstance(line.message, ev.ModelEvaluated | ev.ModelBundled)]
    report = await judged(tmp_path, story, lines)
    assert fact(report, "strict sessions") == "no strict session is on record"


@pytest.mark.parametrize(("left", "warned"), [(3, True), (4, False)])
async def test_a_changed_cohort_is_told_to_the_reader(tmp_path: Path, left: int, *, warned: bool) -> None:
    story = Story.of(Stage.at(tmp_path))
    sites = tuple(story.stage.hospitals)
    second = replace(story.sessions[1], sites=sites[:left])
    report = await judged(tmp_path, replace(story, sessions=(story.sessions[0], second)))
    assert report.verified, report.text()
    assert ("training went on without" in report.text()) is warned
    assert ("sees that site's part" in report.text()) is warned


# Lies about sessions


def edit(kind: type[AuditEvent], number: int, **values: Any) -> Change:
    def change(stage: Stage, lines: list[Line]) -> list[Line]:
        return [
            replace(line, message=line.message.model_copy(update=values)) if _is(line, kind, number) else line
            for line in lines
        ]

    return change


def drop(kind: type[AuditEvent], number: int) -> Change:
    return lambda stage, lines: [line for line in lines if not _is(line, kind, number)]


def _is(line: Line, kind: type[AuditEvent], number: int) -> bool:
    return isinstance(line.message, kind) and getattr(line.message, "window_id", None) == window(number)


def fewer_sites(stage: Stage, lines: list[Line]) -> list[Line]:
    everybody = tuple(site.site_id for site in stage.hospitals)
    return edit(ev.StrictSessionSummed, 3, sites=everybody[:3])(stage, lines)


def one_site_twice(stage: Stage, lines: list[Line]) -> list[Line]:
    everybody = tuple(site.site_id for site in stage.hospitals)
    return edit(ev.StrictSessionSummed, 3, sites=(*everybody, everybody[0]))(stage, lines)


def told_twice(stage: Stage, lines: list[Line]) -> list[Line]:
    again = next(line for line in lines if _is(line, ev.StrictSessionSummed, 3))
    return [*lines, again]


def a_sum_over_survivors(stage: Stage, lines: list[Line]) -> list[Line]:
    everybody = tuple(site.site_id for site in stage.hospitals)
    opened = ev.AggregateOpened(
        run_id=RUN,
        window_id=window(3),
        survivors_hash=survivors_hash(3),
        survivors=everybody[:3],
        dropped=everybody[3:],
    )
    return [*lines, Line("aggregator", opened)]


def unpermitted(stage: Stage, lines: list[Line]) -> list[Line]:
    permits = tuple(Permit(site_id=site.site_id, permitted=False) for site in stage.hospitals[:1])

    def without(message: AuditEvent) -> AuditEvent:
        assert isinstance(message, ev.WindowAuthorised)
        return message.model_copy(update={"permits": (*permits, *message.permits[1:])})

    return [
        replace(line, message=without(line.message)) if _is(line, ev.WindowAuthorised, 3) else line for line in lines
    ]


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        (fewer_sites, "strict sessions", "not the cohort that was fixed"),
        (one_site_twice, "strict sessions", "not the cohort that was fixed"),
        (edit(ev.StrictSessionSummed, 3, roster_hash=b"\5" * 32), "strict sessions", "another roster"),
        (drop(ev.CohortFixed, 3), "strict sessions", "whose cohort is not on record"),
        (unpermitted, "authorisation", "without a permit"),
        (edit(ev.WindowAuthorised, 3, purpose="update"), "strict sessions", "was not authorised for training"),
        (told_twice, "strict sessions", "is told of twice"),
        (edit(ev.StrictSessionSummed, 3, sums=91), "strict sessions", "91 sums were opened in 90 steps"),
        (edit(ev.StrictSessionSummed, 3, trees=4), "strict sessions", "4 trees stand, and 5 stood before"),
        (edit(ev.StrictSessionSummed, 3, sums=0), "strict sessions", "3 trees were grown without a sum"),
        (edit(ev.StrictSessionSummed, 3, trees=5), "strict sessions", "two different chains"),
        (a_sum_over_survivors, "strict sessions", "in the training window"),
        (drop(ev.StrictSessionSummed, 3), "strict sessions", "no session is on record"),
        (drop(ev.StrictSessionSummed, 3), "model lineage", "never was opened"),
        (edit(ev.WindowEnded, 2, state="FAILED"), "model lineage", "did not end well"),
        (edit(ev.WindowEnded, 1, state="PAUSED"), "model lineage", "did not end well"),
        (edit(ev.StrictSessionSummed, 2, trees=0), "model lineage", "never was opened"),
        (drop(ev.ModelReleased, 2), "model lineage", "version 1 never was"),
        (edit(ev.StrictSessionSummed, 3, trees=7), "model bundle", "has 8 boosting rounds, and 7 stood"),
        (edit(ev.WindowEnded, 3, state="PAUSED"), "model bundle", "has 6 boosting rounds, and 8 stood"),
    ],
)
async def test_a_signed_lie_about_a_session_is_found(tmp_path: Path, change: Change, check: str, words: str) -> None:
    stage = Stage.at(tmp_path)
    story = Story.of(stage, rounds=6 if "has 6" in words else 8)
    report = await judged(tmp_path, story, change(stage, story.lines()))
    assert report.exit_code == 1
    assert words in found(report, check), report.text()


async def test_the_order_of_sessions_is_told_by_their_signed_times(tmp_path: Path) -> None:
    """After an outage two of an emitter's events may be recorded the other way round; nothing is wrong with that."""
    story = Story.of(Stage.at(tmp_path))
    folder = await bundle_of(story.stage, story.lines(), tmp_path / "result", files=story.files)
    bundle = open_bundle(folder)
    keys = known_keys(bundle.trust().services, bundle.manifests())
    entries, _ = read_entries(bundle.entries(), keys, STUDY)
    places = [place for place, one in enumerate(entries) if isinstance(one.message, ev.StrictSessionSummed)]
    entries[places[0]], entries[places[1]] = entries[places[1]], entries[places[0]]
    assert check_sessions(entries, windows_of(entries)).state == "passed"


# Lies in the files


def files(**changes: bytes) -> dict[str, bytes]:
    return files_of(8) | {name.replace("_", "."): data for name, data in changes.items()}


BROKEN_TREES = text(8).replace(b"right_child=-2", b"right_child=-9", 1)
STRANGE = BINNING.model_copy(update={"study_digest": b"\5" * 32})
UNREFINED = BINNING.model_copy(update={"refine": (Refinement(feature=0, bins=9, rows=(9, 9, 9), cells=((0, 4),)),)})
SPACED = files_of(8)["preprocessing.json"].replace(b",", b", ")


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (files(model_txt=BROKEN_TREES), "model.txt must not be loaded"),
        (files(model_txt=b"\x80"), "model.txt must not be loaded"),
        (files(model_txt=text(8).replace(b"objective=binary sigmoid:1", b"objective=poisson")), "must not be loaded"),
        (files(model_txt=text(8).replace(b"feature_names=age sex", b"feature_names=sex age")), "must not be loaded"),
        (files(preprocessing_json=STRANGE.canonical()), "another study version"),
        (files(preprocessing_json=UNREFINED.canonical()), "still to be refined"),
        (files(preprocessing_json=SPACED), "canonical form"),
        (files(preprocessing_json=b"["), "canonical form"),
        (files(preprocessing_json=b'{"version":"cohortium/preprocessing/1"}'), "canonical form"),
    ],
)
async def test_a_model_that_was_signed_and_is_none_is_found(
    tmp_path: Path, chosen: dict[str, bytes], words: str
) -> None:
    """The aggregator itself lies: it released, signed and recorded these files."""
    story = replace(Story.of(Stage.at(tmp_path)), files=chosen)
    report = await judged(tmp_path, story)
    assert report.exit_code == 1
    assert words in found(report, "model bundle"), report.text()
    assert {check.name for check in report.checks if check.state == "failed"} == {"model bundle"}


async def test_signed_files_that_are_not_the_released_version_are_found(tmp_path: Path) -> None:
    story = Story.of(Stage.at(tmp_path))
    other = files(model_txt=text(7))
    report = await judged(tmp_path, replace(story, files=other), _bundled_as(story, other, story.lines()))
    assert "are not what was released as version 2" in found(report, "model bundle"), report.text()


async def test_trees_without_their_bins_mean_nothing(tmp_path: Path) -> None:
    story = Story.of(Stage.at(tmp_path))
    bare = {"model.txt": text(8)}
    report = await judged(tmp_path, replace(story, files=bare), _bundled_as(story, bare, story.lines()))
    assert "signed without preprocessing.json" in found(report, "model bundle")


def _bundled_as(story: Story, chosen: dict[str, bytes], lines: list[Line]) -> list[Line]:
    """The same lines, with the attestation of other files on record."""
    digest = hashlib.sha256(attestation(story.stage, chosen)).digest()
    return [
        replace(line, message=line.message.model_copy(update={"attestation_sha256": digest}))
        if isinstance(line.message, ev.ModelBundled)
        else line
        for line in lines
    ]
