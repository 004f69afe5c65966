"""What follows what in a run, by trainer; and what a run's strict sessions have come to.

| Trainer | Course |
|---|---|
| averaging, random trees | statistics -> (update -> evaluation where due), `rounds` times |
| boosting (LightGBM) | statistics -> refinement where bins need it -> training, in one session or more -> evaluation |

Training that pauses goes on with the same sites from the last finished tree. What happens when they do not come back is
in `_after_loss`. A private run has planned so many noisy sums and no more: `_after_charge`.
"""

from dataclasses import dataclass, replace
from typing import Literal

from cohortium_messages.ids import Bytes32, SiteId
from cohortium_messages.runs import SessionClosed
from cohortium_messages.secure_sum import ModelRef, Purpose
from cohortium_scheduler.domain.cohorts import SITES_LOST
from cohortium_scheduler.domain.windows import ANYONE, Among, Cohort, Ended, Rejoining, Remaining, Window

JOURNAL_UNUSABLE = "JOURNAL_UNUSABLE"
"""A site cannot grow the earlier trees again from its journal; it can still go on from the model that they make."""
NO_CHAIN = bytes(32)
"""The hash chain where no result led anywhere yet."""
LEAVES_A_MODEL = ("RELEASED", "PAUSED")
"""Ends of a window that a model version may come of: a session that pauses leaves the trees so far."""
STAYS_BROKEN = ("ABORTED", "FAILED", "FAILED_INTEGRITY")
"""Ends that are nobody's absence: trying again may help, publishing what stands would hide them."""
STAYS_CHARGED = ("FAILED", "FAILED_INTEGRITY")
"""Ends of a session after which no certificate says that its sum was never opened: what hospitals charged for their
uploads stays charged. `ABORTED` has one, and before a roster nothing is uploaded."""
PLAN_SPENT = "PLAN_SPENT"
EVALUATION_SPENT = "EVALUATION_SPENT"


@dataclass(frozen=True, slots=True)
class Training:
    """What a run's strict sessions rest on and have come to; empty for runs that have none.

    `counted`: sites in the statistics sum. `base`: the model version with the bins and no tree. `roster`: the cohort of
    the sessions, fixed by the first one. `trees` rounds stand, after the results that `chain` commits to, and
    `checkpoint` is the released version that holds them. `replays`: the cohort's sites still have journals to grow them
    from again; once one has not, sessions begin with the checkpoint, at all sites alike. `grown`: rounds that the
    newest session added.

    `spent`: update sums that failed and stay charged, of which each has cost a private run one of its planned sums.
    """

    counted: tuple[SiteId, ...] = ()
    base: ModelRef | None = None
    roster: tuple[SiteId, ...] = ()
    trees: int = 0
    chain: Bytes32 = NO_CHAIN
    checkpoint: ModelRef | None = None
    replays: bool = True
    grown: int = 0
    complete: bool = False
    sessions: int = 0
    steps: int = 0
    cohort_changes: int = 0
    spent: int = 0


NO_TRAINING = Training()


@dataclass(frozen=True, slots=True)
class Start:
    """Where a strict session begins. `model`: the version that sites continue, None where they replay their journals
    or begin with nothing."""

    base: ModelRef
    trees_done: int
    chain: bytes
    model: ModelRef | None


def session_start(training: Training, cohort: Cohort) -> Start:
    """How a session with this cohort begins. A changed cohort has no common journals: it starts from the checkpoint.

    Raises `ValueError` before the statistics were released.
    """
    if training.base is None:
        raise ValueError("a strict session needs the bins that come of the statistics")
    if training.trees == 0 or training.checkpoint is None:
        return Start(training.base, 0, NO_CHAIN, None)
    if isinstance(cohort, Remaining) or not training.replays:
        return Start(training.checkpoint, training.trees, training.chain, training.checkpoint)
    return Start(training.base, training.trees, training.chain, None)


def recorded(training: Training, window: Window) -> Training:
    """What stands after this window ended. Windows of other purposes, and sums that failed, change nothing."""
    state = window.state
    if not isinstance(state, Ended):
        raise ValueError(f"window {window.window_id.hex()} has not ended")
    closed = state.closed
    if window.purpose == "training":
        return _after_session(training, window, state)
    if window.purpose == "update" and stays_charged(state):
        return replace(training, spent=training.spent + 1)
    if state.state != "RELEASED" or closed is None:
        return training
    match window.purpose:
        case "statistics":
            return replace(training, counted=closed.survivors, base=closed.model)
        case "refinement":
            return replace(training, base=closed.model or training.base)
        case _:
            return training


def _after_session(training: Training, window: Window, state: Ended) -> Training:
    codes = {state.reason, *(refusal.code for refusal in state.refusals)}
    journals_lost = JOURNAL_UNUSABLE in codes
    closed = state.closed
    if state.state == "CANCELLED" or closed is None or state.roster is None:
        return replace(training, replays=training.replays and not journals_lost, grown=0)
    roster = tuple(entry.site_id for entry in state.roster.entries)
    new_journals = isinstance(window.cohort, Remaining)
    after = replace(
        training,
        roster=roster,
        replays=(training.replays or new_journals) and not journals_lost,
        grown=0,
        sessions=training.sessions + 1,
        steps=training.steps + closed.steps,
        cohort_changes=training.cohort_changes + (bool(training.roster) and roster != training.roster),
    )
    return _with_trees(after, state, closed)


def _with_trees(training: Training, state: Ended, closed: SessionClosed) -> Training:
    """Trees count once they are released in a model version, for that is what a session without journals starts from.

    Early stopping may cut the finished model below an earlier checkpoint, so only a complete one may have fewer.
    """
    complete = state.state == "RELEASED"
    trees = closed.trees or 0
    has_model = closed.model is not None and state.state in LEAVES_A_MODEL
    if not (has_model and (complete or trees > training.trees)):
        return replace(training, complete=complete)
    return replace(
        training,
        trees=trees,
        chain=closed.chain or NO_CHAIN,
        checkpoint=closed.model,
        grown=max(0, trees - training.trees),
        complete=complete,
    )


# What comes next


@dataclass(frozen=True, slots=True)
class NextWindow:
    purpose: Purpose
    round: int
    attempt: int
    cohort: Cohort = ANYONE


@dataclass(frozen=True, slots=True)
class EndRun:
    state: Literal["FINISHED", "FAILED"]
    reason: str


NextStep = NextWindow | EndRun


@dataclass(frozen=True, slots=True)
class Course:
    """What of study, manifest and settings decides the course of a run. `boosts`: the trainer is LightGBM itself.
    `charges`: the study is private, so that hospitals set aside `rounds` sums, and one for the evaluation, and no more.
    """

    rounds: int
    evaluate_every: int
    evaluates: bool
    max_attempts: int
    boosts: bool = False
    allow_cohort_change: bool = False
    least_cohort: int = 3
    charges: bool = False


def next_step(ended: Window | None, course: Course, training: Training) -> NextStep:
    """What follows a run's newest window; None for a run that has none. `training` has `recorded` that window.

    A window that was not released is tried again until `max_attempts`. The evaluation of a round is due every
    `evaluate_every` rounds and after the last one.
    """
    if ended is None:
        return NextWindow("statistics", 0, 1)
    state = ended.state
    if not isinstance(state, Ended):
        raise ValueError(f"window {ended.window_id.hex()} has not ended")
    released = state.state == "RELEASED"
    match ended.purpose:
        case "training" if not released:
            return _after_pause(ended, state, course, training)
        case "update" | "evaluation" if course.charges:
            return _after_charge(ended, state, course, training)
        case _ if not released:
            return _again(ended, state, course)
        case "statistics" if course.boosts and state.closed is not None and state.closed.refine:
            return NextWindow("refinement", 0, 1)
        case "statistics" | "refinement" if course.boosts:
            return NextWindow("training", 1, 1, Among(training.counted))
        case "statistics" | "refinement":
            return NextWindow("update", 1, 1)
        case "update" | "training":
            return _after_model(ended.round, course, "")
        case "evaluation":
            cut = course.boosts and not training.complete
            return _after_round(ended.round, course, SITES_LOST if cut else "")


def _again(ended: Window, state: Ended, course: Course) -> NextStep:
    if ended.attempt >= course.max_attempts:
        return EndRun("FAILED", state.reason or "TOO_MANY_ATTEMPTS")
    return NextWindow(ended.purpose, ended.round, ended.attempt + 1, ended.cohort)


def _after_model(round_: int, course: Course, reason: str) -> NextStep:
    due = round_ >= course.rounds or round_ % course.evaluate_every == 0
    if course.evaluates and due:
        return NextWindow("evaluation", round_, 1)
    return _after_round(round_, course, reason)


def _after_round(round_: int, course: Course, reason: str) -> NextStep:
    return EndRun("FINISHED", reason) if round_ >= course.rounds else NextWindow("update", round_ + 1, 1)


def stays_charged(state: Ended) -> bool:
    """Whether hospitals were charged for a sum that was not released, and nothing gives it back."""
    return state.state in STAYS_CHARGED and state.roster is not None


def _after_charge(ended: Window, state: Ended, course: Course, training: Training) -> NextStep:
    """A private run goes on while its plan has sums left. What is released is charged; what failed is charged too,
    unless a certificate gave it back, and then it may be planned again.

    Used up before the last round, the plan ends with the model that it has. The evaluation has one sum of its own, and
    is said to be of the last planned round, whatever became of the others.
    """
    released = state.state == "RELEASED"
    if ended.purpose == "evaluation":
        if not released:
            return EndRun("FINISHED", EVALUATION_SPENT) if stays_charged(state) else _again(ended, state, course)
        return EndRun("FINISHED", PLAN_SPENT if training.spent else "")
    done = ended.round if released else ended.round - 1
    if done + training.spent < course.rounds:
        return NextWindow("update", ended.round + 1, 1) if released else _again(ended, state, course)
    if done == 0:
        return EndRun("FAILED", PLAN_SPENT)
    if course.evaluates:
        return NextWindow("evaluation", course.rounds, 1)
    return EndRun("FINISHED", PLAN_SPENT if training.spent else "")


def _after_pause(ended: Window, state: Ended, course: Course, training: Training) -> NextStep:
    """Training goes on with the cohort that it has, as long as that may help.

    A session that added trees is progress: attempts are counted anew. A window that never became a session is tried
    again as it was.
    """
    if _waited_in_vain(state):
        return _after_loss(ended, state, course, training)
    if training.grown == 0 and ended.attempt >= course.max_attempts:
        if state.state in STAYS_BROKEN:
            return EndRun("FAILED", state.reason or "TOO_MANY_ATTEMPTS")
        return _after_loss(ended, state, course, training)
    attempt = 1 if training.grown else ended.attempt + 1
    cohort = ended.cohort if state.state == "CANCELLED" else Rejoining(training.roster)
    return NextWindow("training", ended.round, attempt, cohort)


def _after_loss(ended: Window, state: Ended, course: Course, training: Training) -> NextStep:
    """The cohort will not come together again: the others go on where the study allows it, or training is over.

    Over with trees: they are evaluated and published, and the run says why it ended early. Over without: it failed.
    """
    left = _left(ended, state, training)
    if course.allow_cohort_change and course.least_cohort <= len(left) < len(training.roster):
        return NextWindow("training", ended.round, 1, Remaining(left))
    if training.trees == 0:
        return EndRun("FAILED", state.reason or SITES_LOST)
    return _after_model(ended.round, course, SITES_LOST)


def _waited_in_vain(state: Ended) -> bool:
    return state.state == "CANCELLED" and state.reason == SITES_LOST


def _left(ended: Window, state: Ended, training: Training) -> tuple[SiteId, ...]:
    """Which of the roster's sites could go on without the others."""
    if isinstance(ended.cohort, Remaining) and state.state == "CANCELLED":
        return ()  # these were already those that could
    if _waited_in_vain(state):
        return tuple(site for site in training.roster if site in state.ready)
    out = {refusal.site for refusal in state.refusals}
    if state.closed is not None:
        out |= set(state.closed.dropped)
    return tuple(site for site in training.roster if site not in out)
