"""The scheduler's course and the hospitals' ledgers, together: a private run never asks for a sum that was not planned,
and ends with all the releases that it planned, or earlier with the reason, whatever becomes of its windows."""

from dataclasses import dataclass, field, replace
from typing import Any

from course_story import AVERAGING, SITES, ended, model
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_stage import Book, part_of, plan_of, window

from cohortium_messages.ids import SiteId
from cohortium_messages.ledger import Part
from cohortium_messages.secure_sum import Purpose
from cohortium_privacy.ledger_plan import Exhausted
from cohortium_scheduler.domain.course import NO_TRAINING, Course, EndRun, NextWindow, next_step, recorded
from cohortium_scheduler.domain.windows import Window
from examples import examples

RUN = 1
ENDS = ("RELEASED", "RELEASED", "CANCELLED", "ABORTED", "FAILED", "FAILED_INTEGRITY")


@dataclass
class Hospital:
    """One site's ledger. `local`: training charges before its first step, not only with the upload."""

    local: bool
    book: Book = field(default_factory=Book)

    def set_aside(self, rounds: int) -> None:
        parts = (part_of(0.1, rounds), part_of(0.2, 1, part="evaluation"))
        assert not isinstance(self.book.reserve(plan_of(RUN, *parts)), Exhausted)

    def begin(self, part: Part) -> None:
        if self.local and part == "training":
            self._charge(part, None)

    def upload(self, part: Part, number: int) -> None:
        self._charge(part, window(number))

    def _charge(self, part: Part, window_id: bytes | None) -> None:
        outcome = self.book.commit(RUN, window_id, part)
        assert not isinstance(outcome, Exhausted), "the scheduler asks for a sum that was not planned"

    def committed(self, part: Part) -> int:
        return sum(one.committed for one in self.book.state.of_run(plan_of(RUN, part_of(0.1, 1)).run_id, part))


@dataclass
class Run:
    """A private run whose windows end as drawn."""

    draw: st.DataObject
    course: Course
    hospitals: dict[SiteId, Hospital]
    released: int = 0
    evaluated: int = 0
    sums: int = 0
    asked: list[tuple[Purpose, int]] = field(default_factory=list)

    def play(self) -> EndRun:
        training, step = NO_TRAINING, next_step(None, self.course, NO_TRAINING)
        while isinstance(step, NextWindow):
            assert len(self.asked) < 200, "the run has no end"
            self.asked.append((step.purpose, step.round))
            over = self._window(step, len(self.asked))
            training = recorded(training, over)
            step = next_step(over, self.course, training)
        return step

    def _some(self, sites: tuple[SiteId, ...], least: int = 0) -> tuple[SiteId, ...]:
        return tuple(self.draw.draw(st.lists(st.sampled_from(sites), min_size=least, max_size=len(sites), unique=True)))

    def _window(self, step: NextWindow, number: int) -> Window:
        values: dict[str, Any] = {"round_": step.round, "attempt": step.attempt}
        if step.purpose == "statistics":  # reads no row, charges nobody
            return ended("statistics", sites=SITES, survivors=SITES, model=model(0), **values)
        part: Part = "evaluation" if step.purpose == "evaluation" else "training"
        state = self.draw.draw(st.sampled_from(ENDS))
        for site in self._some(SITES):
            self.hospitals[site].begin(part)
        if state == "CANCELLED":
            return ended(step.purpose, state, "NOT_ENOUGH_READY", **values)
        roster = self._some(SITES, least=3)
        uploaded = self._some(roster)
        for site in uploaded:
            self.hospitals[site].upload(part, number)
        proven = uploaded if state == "ABORTED" else self._some(uploaded) if uploaded else ()
        for site in proven:
            self.hospitals[site].book.refund(RUN, window(number))
        self.sums += part == "training" and state != "ABORTED"
        if state == "RELEASED":
            self.released += part == "training"
            self.evaluated += part == "evaluation"
        reason = "" if state == "RELEASED" else "NOT_ENOUGH_SHARES"
        return ended(step.purpose, state, reason, sites=roster, model=model(self.released), **values)


@settings(max_examples=examples(300), deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.booleans())
def test_a_private_run_releases_what_it_planned_or_ends_early_and_says_why(
    data: st.DataObject, rounds: int, attempts: int, evaluates: bool, local: bool
) -> None:
    course = replace(
        AVERAGING, rounds=rounds, evaluate_every=rounds, evaluates=evaluates, max_attempts=attempts, charges=True
    )
    hospitals = {site: Hospital(local) for site in SITES}
    for hospital in hospitals.values():
        hospital.set_aside(rounds)
    run = Run(data, course, hospitals)
    end = run.play()
    assert run.sums <= rounds, "more noisy sums than were planned"
    assert run.released <= run.sums
    assert all(hospital.committed("training") <= rounds for hospital in hospitals.values())
    assert all(hospital.committed("evaluation") <= 1 for hospital in hospitals.values())
    assert {number for purpose, number in run.asked if purpose == "evaluation"} <= {rounds}
    rounds_asked = [number for purpose, number in run.asked if purpose == "update"]
    assert rounds_asked == sorted(rounds_asked), "a round came back after it was released"
    match end.state, end.reason:
        case "FINISHED", "":
            assert run.released == rounds
            assert run.evaluated == evaluates
        case "FINISHED", "PLAN_SPENT":
            assert 0 < run.released < run.sums == rounds
        case "FINISHED", "EVALUATION_SPENT":
            assert run.released > 0
            assert run.evaluated == 0
        case "FAILED", "PLAN_SPENT":
            assert run.released == 0
            assert run.sums == rounds
        case "FAILED", reason:
            assert reason in ("NOT_ENOUGH_READY", "NOT_ENOUGH_SHARES")
            assert [step for step in run.asked if step == run.asked[-1]] == [run.asked[-1]] * attempts
        case _:
            raise AssertionError(end)
