"""What people are told about a run, put together from its records."""

from collections.abc import Mapping
from datetime import datetime

from cohortium_kit.presence import Seen
from cohortium_messages.governance import Manifest
from cohortium_messages.ids import SiteId
from cohortium_messages.problems import sentence
from cohortium_messages.runs import EvaluationResult
from cohortium_messages.secure_sum import ModelRef, Roster
from cohortium_messages.status import (
    RoundStatus,
    RunStatus,
    RunSummary,
    SecureSumStatus,
    SiteStatus,
    WindowStatus,
)
from cohortium_scheduler.domain import Ended, Open, Planned, RosterFixed, Window
from cohortium_scheduler.store import Grant, Run

Names = Mapping[SiteId, str]


def summary(run: Run, windows: list[Window]) -> RunSummary:
    """One line of `cohortium runs`."""
    return RunSummary(
        run_id=run.run_id,
        study_id=run.study_id,
        study_digest=run.study_digest,
        state=run.state,
        reason=run.reason,
        sentence=sentence(run.reason) if run.reason else None,
        round=max((window.round for window in windows), default=0),
        rounds=run.study.federation.rounds,
        created_at=run.created_at,
        ended_at=run.ended_at,
    )


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
    rounds = _rounds(windows, names)
    newest = windows[-1] if windows else None
    return RunStatus(
        **summary(run, windows).model_dump(),
        purpose=run.study.purpose,
        mode=run.study.federation.mode,
        model=models[-1] if models else None,
        rounds_done=rounds,
        window=None if newest is None or isinstance(newest.state, Ended) else _window(newest, names),
        sites=tuple(
            _site(site, names[site], windows, {grant.site_id: grant for grant in grants}, seen.get(site), present)
            for site in names
        ),
        secure_sum=_secure_sum(run, windows),
        attempts_failed=sum(isinstance(window.state, Ended) and window.state.state != "RELEASED" for window in windows),
    )


def _rounds(windows: list[Window], names: Names) -> tuple[RoundStatus, ...]:
    evaluations: dict[int, EvaluationResult] = {}
    for window in windows:
        closed = window.state.closed if isinstance(window.state, Ended) else None
        if window.purpose == "evaluation" and closed is not None and closed.evaluation is not None:
            evaluations[window.round] = closed.evaluation
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
                cohort=tuple(names.get(site, site) for site in closed.survivors),
                dropped=tuple(names.get(site, site) for site in closed.dropped),
                refused=tuple(names.get(refusal.site, refusal.site) for refusal in state.refusals),
                seconds=(state.ended_at - state.opened_at).total_seconds(),
                bytes_up=closed.bytes_up,
                bytes_down=closed.bytes_down,
                evaluation=evaluations.get(window.round),
            )
        )
    return tuple(rounds)


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
        case Planned() | Ended():
            pass
    return WindowStatus(
        purpose=window.purpose,
        round=window.round,
        attempt=window.attempt,
        phase=state.phase.value,
        opened_at=opened,
        ready=tuple(names.get(site, site) for site in ready),
        roster=tuple(names.get(site, site) for site in roster),
    )


def _site(
    site: SiteId,
    name: str,
    windows: list[Window],
    grants: Mapping[SiteId, Grant],
    seen: Seen | None,
    present: frozenset[SiteId],
) -> SiteStatus:
    code = _code(site, windows, grants.get(site))
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
    closed = window.state.closed if isinstance(window.state, Ended) else None
    return window.purpose == "update" and closed is not None and site in closed.survivors


def _code(site: SiteId, windows: list[Window], grant: Grant | None) -> str | None:
    """Why the site stands aside, by the newest window that has a word on it."""
    if grant is not None and grant.ended_reason is not None:
        return grant.ended_reason
    if not windows or isinstance(windows[-1].state, Planned):
        return None
    state = windows[-1].state
    for refusal in state.refusals:
        if refusal.site == site:
            return refusal.code
    if isinstance(state, Open):
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
    if roster is None or run.parameters is None:
        return None
    return SecureSumStatus(
        n=roster.n,
        t=roster.t,
        c=roster.c,
        k_min=roster.k_min,
        ring_bits=run.study.federation.compression.ring_bits,
        parameters=run.parameters,
        bytes_per_parameter=sent / run.parameters,
    )
