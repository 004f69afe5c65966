"""Whatever ends the windows of a run: it comes to its end, and keeps to its cohort."""

from dataclasses import dataclass, field, replace
from typing import Any

from course_story import AVERAGING, BOOSTING, SITES, chain, ended, model
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium_messages.ids import SiteId
from cohortium_scheduler.domain.course import (
    NO_TRAINING,
    Course,
    EndRun,
    NextStep,
    NextWindow,
    Training,
    next_step,
    recorded,
    session_start,
)
from cohortium_scheduler.domain.windows import (
    ANYONE,
    Cohort,
    Refusal,
    Rejoining,
    Remaining,
    Window,
)
from examples import examples


@dataclass
class Story:
    """A run that is played with drawn ends; remembers each session's cohort."""

    draw: st.DataObject
    course: Course
    training: Training = NO_TRAINING
    sessions: list[tuple[Cohort, tuple[SiteId, ...]]] = field(default_factory=list)
    windows: int = 0
    version: int = 0

    def play(self) -> EndRun:
        step: NextStep = next_step(None, self.course, self.training)
        while isinstance(step, NextWindow):
            self.windows += 1
            assert self.windows < 2000, "the run has no end"
            window = self.end_of(step)
            self.training = recorded(self.training, window)
            step = next_step(window, self.course, self.training)
        return step

    def one_of(self, *choices: Any) -> Any:
        return self.draw.draw(st.sampled_from(choices))

    def end_of(self, step: NextWindow) -> Window:
        if step.purpose == "training":
            return self.session(step)
        state = self.one_of("RELEASED", "RELEASED", "RELEASED", "CANCELLED", "ABORTED", "FAILED")
        closed: dict[str, Any] = {}
        if state == "RELEASED" and step.purpose in ("statistics", "refinement"):
            self.version += 1
            closed = {"survivors": SITES, "model": model(self.version), "refine": self.one_of(True, False)}
        reason = "" if state == "RELEASED" else "NOT_ENOUGH_UPLOADS"
        window = ended(step.purpose, state, reason, round_=step.round, attempt=step.attempt, **closed)
        return replace(window, cohort=step.cohort)

    def session(self, step: NextWindow) -> Window:
        values: dict[str, Any] = {"round_": step.round, "attempt": step.attempt, "cohort": step.cohort}
        assert not isinstance(step.cohort, type(ANYONE)), "a strict session is among sites that were counted"
        assert set(step.cohort.sites) <= set(self.training.counted)
        if self.one_of("cancelled", "session") == "cancelled":
            reason = self.one_of("SITES_LOST", "SITE_REFUSED", "MANIFEST_CHANGED", "NOT_ENOUGH_READY")
            code = self.one_of("JOURNAL_UNUSABLE", "DATA_CHANGED")
            ready = tuple(site for site in step.cohort.sites if self.one_of(True, True, False))
            refusals = (Refusal(self.one_of(*step.cohort.sites), code),) if reason == "SITE_REFUSED" else ()
            return ended("training", "CANCELLED", reason, ready=ready, refusals=refusals, **values)
        sites = step.cohort.sites
        if not isinstance(step.cohort, Rejoining):
            sites = sites[: self.draw.draw(st.integers(self.course.least_cohort, len(sites)))]
        self.sessions.append((step.cohort, sites))
        start = session_start(self.training, step.cohort)
        assert start.trees_done == self.training.trees
        state = self.one_of("PAUSED", "PAUSED", "PAUSED", "RELEASED", "FAILED", "FAILED_INTEGRITY")
        trees = min(20, start.trees_done + self.one_of(0, 0, 1, 5))
        closed: dict[str, Any] = {"trees": trees, "chain": chain(trees), "steps": 3}
        if trees > start.trees_done or state == "RELEASED":
            self.version += 1
            closed["model"] = model(self.version)
        closed["dropped"] = tuple(site for site in sites if self.one_of(True, False, False))
        reason = "" if state == "RELEASED" else self.one_of("SITE_SILENT", "SESSION_LOST", "JOURNAL_UNUSABLE")
        return ended("training", state, reason, sites=sites, **values, **closed)


@settings(max_examples=examples(300), deadline=None)
@given(st.data(), st.booleans(), st.booleans(), st.integers(1, 3), st.integers(3, 4))
def test_any_run_of_lightgbm_ends_and_keeps_to_its_cohort(
    data: st.DataObject, changing: bool, evaluates: bool, attempts: int, least: int
) -> None:
    course = replace(
        BOOSTING, allow_cohort_change=changing, evaluates=evaluates, max_attempts=attempts, least_cohort=least
    )
    story = Story(data, course)
    end = story.play()
    if end.state == "FINISHED":
        assert story.training.checkpoint is not None
        assert end.reason == ("" if story.training.complete else "SITES_LOST")
    else:
        assert end.reason
    rosters = [sites for _, sites in story.sessions]
    for (cohort, sites), before in zip(story.sessions[1:], rosters, strict=False):
        assert set(sites) <= set(before), "a site that was out came back"
        if sites != before:
            assert changing, "another cohort, which the study does not allow"
            assert isinstance(cohort, Remaining)
        assert len(sites) >= least
    assert story.training.sessions == len(story.sessions)


@settings(max_examples=examples(100), deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 3))
def test_any_run_of_averages_ends_and_knows_no_session(data: st.DataObject, rounds: int, attempts: int) -> None:
    story = Story(data, replace(AVERAGING, rounds=rounds, max_attempts=attempts))
    end = story.play()
    assert story.sessions == []
    assert end.state == "FINISHED" or end.reason == "NOT_ENOUGH_UPLOADS"
