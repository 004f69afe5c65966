"""What people are told about a run, put together from its records."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from cohortium_kit.presence import Seen
from cohortium_messages.governance import Manifest
from cohortium_messages.ids import SiteId
from cohortium_messages.problems import sentence
from cohortium_messages.runs import EvaluationResult
from cohortium_messages.secure_sum import ModelRef, Roster
from cohortium_messages.status import (
    MOST_ROUNDS,
    BoostingStatus,
    RoundPace,
    RoundStatus,
    RunLineage,
    RunStatus,
    RunSummary,
    SecureSumStatus,
    SiteChoice,
    SitePace,
    SiteStatus,
    VersionLineage,
    WindowStatus,
)
from cohortium_messages.study import RandomTreesRecipe
from cohortium_protocol.trees.vectors import integer_length
from cohortium_scheduler.domain.cohorts import RECRUITING_EXPIRED, SITES_LOST
from cohortium_scheduler.domain.course import Training
from cohortium_scheduler.domain.selection import NEW, Standing
from cohortium_scheduler.domain.windows import AwaitingLog, Ended, Open, Planned, RosterFixed, Window
from cohortium_scheduler.domain.withdrawals import Made, in_sum
from cohortium_scheduler.store import FINAL_STATES, Grant, Run

Names = Mapping[SiteId, str]
MOST_CHOICES = 10_000
"""Choices that are told, of the newest rounds: a long run of many sites would else be an answer of megabytes."""


def summary(run: Run, windows: list[Window]) -> RunSummary:
    """One line of `cohortium runs`."""
    return RunSummary(
        run_id=run.run_id,
        study_id=run.study_id,
        study_digest=run.study_digest,
        state=run.state,
        reason=run.reason,
        sentence=sentence(run.reason) if run.reason else None,
        round=max((window.round for window in windows if window.purpose != "evaluation"), default=0),
        rounds=run.study.rounds,
        created_at=run.created_at,
        ended_at=run.ended_at,
        boosting=_boosting(run),
    )


def _boosting(run: Run) -> BoostingStatus | None:
    rounds, training = run.study.boosting_rounds, run.training
    if rounds == 0:
        return None
    return BoostingStatus(
        trees=training.trees,
        rounds=rounds,
        sessions=training.sessions,
        steps=training.steps,
        cohort_changes=training.cohort_changes,
    )


def _under_way(boosting: BoostingStatus | None, newest: Window | None, seen: Mapping[SiteId, Seen]) -> int:
    """Boosting rounds by the word of an open session's sites; the one furthest on tells it, as each of them is agreed
    by all. 0 where there is no session, or no word yet."""
    if boosting is None or newest is None or newest.purpose != "training" or not isinstance(newest.state, RosterFixed):
        return 0
    told = (seen.get(entry.site_id) for entry in newest.state.roster.entries)
    details = (site.detail for site in told if site is not None and site.at >= newest.state.fixed_at)
    shares = (float(detail.get("progress", 0)) for detail in details if detail.get("state") == "training")
    return round(max(shares, default=0.0) * boosting.rounds)


def status(
    run: Run,
    windows: list[Window],
    manifest: Manifest | None,
    grants: list[Grant],
    seen: Mapping[SiteId, Seen],
    models: list[ModelRef],
    present: frozenset[SiteId],
) -> RunStatus:
    """Everything `cohortium run-status` shows. Site names come from the manifest that people signed."""
    names: Names = {member.site_id: member.name for member in manifest.members} if manifest else {}
    granted = {grant.site_id: grant for grant in grants}
    newest = windows[-1] if windows else None
    line = summary(run, windows)
    boosting = line.boosting
    if boosting is not None:
        trees = max(boosting.trees, _under_way(boosting, newest, seen))
        boosting = boosting.model_copy(update={"trees": trees})
    return RunStatus(
        **line.model_dump(exclude={"boosting"}),
        boosting=boosting,
        purpose=run.study.purpose,
        mode=run.study.federation.mode,
        model=models[-1] if models else None,
        rounds_done=(_boosted(run, windows, names) if boosting is not None else _rounds(windows, names))[-MOST_ROUNDS:],
        window=None if newest is None or isinstance(newest.state, Ended) else _window(newest, names),
        sites=tuple(
            _with_standing(
                _site(site, names[site], run, windows, granted, seen.get(site), present),
                run.standings.get(site, NEW),
            )
            for site in names
        ),
        secure_sum=_secure_sum(run, windows),
        attempts_failed=sum(_failed(window) for window in windows),
    )


def narrowed(run: RunStatus, own: frozenset[SiteId]) -> RunStatus:
    """What a hospital's people see of a run that it takes part in: of single sites only their own.

    Who was in a sum, and who was missed, each hospital of a cohort is told anyway, to unmask it. Who refused, who is
    silent and how fast each is, is the others' own affair.
    """
    names = {site.name for site in run.sites if site.site_id in own}

    def choices(found: tuple[SiteChoice, ...]) -> tuple[SiteChoice, ...]:
        return tuple(choice for choice in found if choice.site in names)

    def pace(found: RoundPace | None) -> RoundPace | None:
        own_part = () if found is None else tuple(site for site in found.sites if site.site in names)
        return None if found is None else found.model_copy(update={"sites": own_part})

    rounds = tuple(
        done.model_copy(
            update={
                "refused": tuple(name for name in done.refused if name in names),
                "choices": choices(done.choices),
                "pace": pace(done.pace),
            }
        )
        for done in run.rounds_done
    )
    window = run.window
    if window is not None:
        ready = tuple(name for name in window.ready if name in names)
        window = window.model_copy(
            update={"ready": ready, "choices": choices(window.choices), "pace": pace(window.pace)}
        )
    sites = tuple(site for site in run.sites if site.site_id in own)
    return run.model_copy(update={"sites": sites, "rounds_done": rounds, "window": window})


def _failed(window: Window) -> bool:
    """Whether the window came to nothing. A session that paused with new trees did not."""
    state = window.state
    if not isinstance(state, Ended) or state.state == "RELEASED":
        return False
    return state.state != "PAUSED" or state.closed is None or state.closed.model is None


def _evaluations(windows: list[Window]) -> dict[int, EvaluationResult]:
    """By the version of the model: a private run whose plan was used up early evaluates an earlier round's."""
    found: dict[int, EvaluationResult] = {}
    for window in windows:
        closed = window.state.closed if isinstance(window.state, Ended) else None
        if window.purpose == "evaluation" and closed is not None and closed.evaluation is not None:
            found[closed.evaluation.model.version] = closed.evaluation
    return found


def _rounds(windows: list[Window], names: Names) -> tuple[RoundStatus, ...]:
    evaluations = _evaluations(windows)
    rounds = []
    for window in windows:
        state = window.state
        if window.purpose != "update" or not isinstance(state, Ended) or state.state != "RELEASED":
            continue
        closed = state.closed
        if closed is None or closed.model is None or state.opened_at is None:
            continue
        rounds.append(
            RoundStatus(
                number=window.round,
                model_version=closed.model.version,
                cohort=_named(closed.survivors, names),
                dropped=_named(closed.dropped, names),
                refused=_named((refusal.site for refusal in state.refusals), names),
                seconds=(state.ended_at - state.opened_at).total_seconds(),
                bytes_up=closed.bytes_up,
                bytes_down=closed.bytes_down,
                evaluation=evaluations.get(closed.model.version),
                choices=_choices(window, names),
                pace=_pace(window, names),
            )
        )
    explained = max(1, MOST_CHOICES // max(1, len(names)))
    older = [done.model_copy(update={"choices": (), "pace": None}) for done in rounds[:-explained]]
    return (*older, *rounds[-explained:])


def _choices(window: Window, names: Names) -> tuple[SiteChoice, ...]:
    return tuple(
        SiteChoice(
            site=names.get(choice.site, choice.site),
            asked=choice.asked,
            reason=choice.reason,
            passed=choice.passed,
            usual_s=choice.usual_s,
            expected_s=choice.expected_s,
            source=choice.source,
        )
        for choice in window.choices
    )


def _pace(window: Window, names: Names) -> RoundPace | None:
    pace = window.pace
    if pace is None:
        return None
    sites = tuple(
        SitePace(
            site=names.get(one.site, one.site),
            source=one.source,
            answers=one.answers,
            expected_s=one.expected_s,
            ready_s=one.ready_s,
            upload_s=one.upload_s,
        )
        for one in pace.sites
    )
    return RoundPace(ready_s=pace.ready_s, upload_s=pace.upload_s, sites=sites)


def _with_standing(site: SiteStatus, standing: Standing) -> SiteStatus:
    known = {
        "asked": standing.asked,
        "answered": standing.answered,
        "usual_s": standing.usual_s,
        "usual_from_earlier": standing.earlier,
    }
    return site.model_copy(update=known)


def _boosted(run: Run, windows: list[Window], names: Names) -> tuple[RoundStatus, ...]:
    """The one round of a LightGBM run, over all of its sessions, once training is over."""
    training = run.training
    ended = [window.state for window in windows if window.purpose == "training" and isinstance(window.state, Ended)]
    opened = [state.opened_at for state in ended if state.opened_at is not None]
    evaluated = any(window.purpose == "evaluation" for window in windows)
    over = training.complete or evaluated or run.state in FINAL_STATES
    if training.checkpoint is None or not opened or not over:
        return ()
    sessions = [state.closed for state in ended if state.closed is not None]
    dropped = _lost(training, ended)
    refused = {refusal.site for state in ended for refusal in state.refusals}
    done = RoundStatus(
        number=1,
        model_version=training.checkpoint.version,
        cohort=_named(training.roster, names),
        dropped=_named(sorted(dropped), names),
        refused=_named(sorted(refused), names),
        seconds=(ended[-1].ended_at - opened[0]).total_seconds(),
        bytes_up=sum(closed.bytes_up for closed in sessions),
        bytes_down=sum(closed.bytes_down for closed in sessions),
        evaluation=_evaluations(windows).get(training.checkpoint.version),
        trees=training.trees,
    )
    return (done,)


def _lost(training: Training, ended: list[Ended]) -> set[SiteId]:
    """Sites that sums were made with and that were not there in the end: left behind by a change of the cohort, or the
    reason why training ended early."""
    were_in = {entry.site_id for state in ended if state.roster is not None for entry in state.roster.entries}
    lost, last = were_in - set(training.roster), ended[-1]
    if training.complete:
        return lost
    if last.closed is not None:
        return lost | set(last.closed.dropped)
    return lost | (set(training.roster) - set(last.ready) if last.reason == SITES_LOST else set())


def _named(sites: Iterable[SiteId], names: Names) -> tuple[str, ...]:
    return tuple(names.get(site, site) for site in sites)


def _window(window: Window, names: Names) -> WindowStatus:
    state = window.state
    opened: datetime | None = None
    ready: tuple[SiteId, ...] = ()
    roster: tuple[SiteId, ...] = ()
    match state:
        case Open():
            opened, ready = state.opened_at, tuple(entry.site_id for entry in state.readies)
        case RosterFixed():
            opened, roster = state.opened_at, tuple(entry.site_id for entry in state.roster.entries)
            ready = roster
        case Planned() | AwaitingLog() | Ended():
            pass
    return WindowStatus(
        purpose=window.purpose,
        round=window.round,
        attempt=window.attempt,
        phase=state.phase.value,
        opened_at=opened,
        ready=_named(ready, names),
        roster=_named(roster, names),
        deadline=state.deadline if isinstance(state, Open) else None,
        choices=_choices(window, names),
        pace=_pace(window, names),
    )


def _site(
    site: SiteId,
    name: str,
    run: Run,
    windows: list[Window],
    grants: Mapping[SiteId, Grant],
    seen: Seen | None,
    present: frozenset[SiteId],
) -> SiteStatus:
    code = _code(site, run, windows, grants.get(site))
    if site not in grants:
        state = "invited"
    elif grants[site].ended_reason is not None:
        state = "withdrawn"
    elif seen is None or site not in present:
        state = "silent"
    else:
        state = seen.detail.get("state", "idle")
    progress = seen.detail.get("progress") if seen else None
    return SiteStatus(
        site_id=site,
        name=name,
        state=state,
        last_seen=seen.at if seen else None,
        progress=float(progress) if progress else None,
        code=code,
        sentence=sentence(code) if code else None,
        updates_used=sum(_used(site, window) for window in windows),
    )


def _used(site: SiteId, window: Window) -> bool:
    """Whether the model learnt from the site in this window. In a strict session each sum is over the whole roster."""
    state = window.state
    if not isinstance(state, Ended) or state.closed is None:
        return False
    if window.purpose == "training":
        was_in = state.roster is not None and any(entry.site_id == site for entry in state.roster.entries)
        return was_in and state.closed.steps > 0
    return window.purpose == "update" and site in state.closed.survivors


def _code(site: SiteId, run: Run, windows: list[Window], grant: Grant | None) -> str | None:
    """Why the site stands aside, by the newest window that has a word on it."""
    if grant is None and run.reason == RECRUITING_EXPIRED:
        return "GRANT_NOT_FOUND"
    if grant is not None and grant.ended_reason is not None:
        return grant.ended_reason
    if not windows or isinstance(windows[-1].state, Planned):
        return None
    state = windows[-1].state
    for refusal in () if isinstance(state, AwaitingLog) else state.refusals:
        if refusal.site == site:
            return refusal.code
    if isinstance(state, AwaitingLog | Open):
        return next((permit.deny_code for permit in state.permits if permit.site_id == site), None)
    return None


def _secure_sum(run: Run, windows: list[Window]) -> SecureSumStatus | None:
    roster: Roster | None = None
    sent = 0.0
    for window in windows:
        state = window.state
        if window.purpose == "update" and isinstance(state, RosterFixed | Ended) and state.roster is not None:
            roster = state.roster
            if isinstance(state, Ended) and state.closed is not None and state.closed.survivors:
                sent = state.closed.bytes_up / len(state.closed.survivors)
    ring_bits, numbers = _vector(run)
    if roster is None or not numbers:
        return None
    return SecureSumStatus(
        n=roster.n,
        t=roster.t,
        c=roster.c,
        k_min=roster.k_min,
        ring_bits=ring_bits,
        parameters=numbers,
        bytes_per_parameter=sent / numbers,
    )


def _vector(run: Run) -> tuple[int, int | None]:
    """Ring and length of an update: of a network its parameters, of random trees the sums of their leaves."""
    if isinstance(run.study.recipe, RandomTreesRecipe):
        return 64, integer_length(run.study, "update")
    return run.study.federation.compression.ring_bits, run.parameters


def lineage(
    run: Run,
    windows: Sequence[Window],
    made: Sequence[Made],
    limit: int,
    manifest: Manifest | None,
    flags: Mapping[ModelRef, tuple[bytes, ...]],
) -> RunLineage:
    """Where versions of a run come from: so many of these, and where to go on."""
    names = {member.site_id: member.name for member in manifest.members} if manifest else {}
    by_id = {window.window_id: window for window in windows}
    versions = []
    for one in made[:limit]:
        window = by_id.get(one.window_id or b"")
        sites = [] if window is None else [site for site in names if in_sum(site, window)]
        versions.append(
            VersionLineage(
                model=one.model,
                round=None if window is None else window.round,
                sites=tuple(names[site] for site in sites),
                flagged=flags.get(one.model, ()),
            )
        )
    retraining = run.retraining
    return RunLineage(
        run_id=run.run_id,
        study_id=run.study_id,
        retrains=None if retraining is None else retraining.from_run,
        start=None if retraining is None else retraining.start,
        versions=tuple(versions),
        next=made[limit - 1].model.version if len(made) > limit else None,
    )
