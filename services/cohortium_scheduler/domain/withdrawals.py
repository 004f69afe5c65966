"""Which models learnt from a site, and where a training without it may begin. Pure.

A secure sum cannot be taken apart, so a model learnt from a site as soon as a sum with the site's part is anywhere in
its lineage, and a run's lineage is a line: every version after the first such sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cohortium_messages.ids import Bytes32, RunId, SiteId
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.withdrawals import StartBasis
from cohortium_scheduler.domain.course import LEAVES_A_MODEL
from cohortium_scheduler.domain.windows import Ended, Window


@dataclass(frozen=True, slots=True)
class Retraining:
    """Of a run that takes another's place: for which withdrawal, without which site (None: patients left, whom their
    hospital leaves out by itself), and from which model of `from_run`, made in `round`."""

    withdrawal: Bytes32
    from_run: RunId
    without: SiteId | None
    start: ModelRef | None
    round: int
    basis: StartBasis


@dataclass(frozen=True, slots=True)
class Start:
    """Where a training without somebody begins: `model` of round `round`, or (None) with nothing, and why."""

    model: ModelRef | None
    round: int
    basis: StartBasis


@dataclass(frozen=True, slots=True)
class Made:
    """A model version and the window it came of; None for one that was carried over from another run."""

    model: ModelRef
    window_id: bytes | None


def in_sum(site: SiteId, window: Window, from_round: int = 0) -> bool:
    """Whether an opened sum of this window holds the site's part, from that round on. In a strict session every sum is
    over the whole roster."""
    state = window.state
    if not isinstance(state, Ended) or state.closed is None or window.round < from_round:
        return False
    if window.purpose == "training":
        sat = state.roster is not None and any(entry.site_id == site for entry in state.roster.entries)
        return sat and state.closed.steps > 0
    return state.state == "RELEASED" and site in state.closed.survivors


def affected(
    site: SiteId, windows: Sequence[Window], made: Sequence[Made], from_round: int = 0, *, inherited: bool = False
) -> tuple[ModelRef, ...]:
    """The run's versions that learnt from the site, oldest first. `inherited`: the run began with a model that had."""
    if inherited:
        return tuple(one.model for one in made)
    touched = {window.window_id for window in _teaching(site, windows, from_round)}
    first = min((one.model.version for one in made if one.window_id in touched), default=None)
    if first is None:
        return ()
    return tuple(one.model for one in made if one.model.version >= first)


def _teaching(site: SiteId, windows: Sequence[Window], from_round: int) -> list[Window]:
    """Windows of which a model came that holds the site's part. An evaluation teaches a model nothing."""
    return [
        window
        for window in windows
        if window.purpose != "evaluation" and window.state.phase == "ENDED" and in_sum(site, window, from_round)
        if isinstance(window.state, Ended) and window.state.state in LEAVES_A_MODEL
    ]


def clean_start(
    site: SiteId,
    windows: Sequence[Window],
    made: Sequence[Made],
    from_round: int = 0,
    *,
    boosts: bool = False,
    private: bool = False,
) -> Start:
    """The last model before the site's first counted round, where going on from it leaves nothing of the site.

    What a model's inputs are scaled with, or cut into bins with, comes from the statistics: where these counted the
    site, no later model is free of it, and the run begins with nothing. So it does with LightGBM, whose sessions are
    over sites that the statistics counted; and in a private study, whose promise is for a whole run.
    """
    if private:
        return Start(None, 0, "PRIVATE_PLAN")
    touched = _teaching(site, windows, from_round)
    if boosts:
        return Start(None, 0, "TREES_SHARE_BINS")
    if any(window.purpose in ("statistics", "refinement") for window in touched):
        return Start(None, 0, "SITE_IN_STATISTICS")
    first = min((window.round for window in touched), default=None)
    rounds: Mapping[bytes, int] = {window.window_id: window.round for window in windows}
    bad = set(affected(site, windows, made, from_round))
    clean = [one for one in made if one.model not in bad and one.window_id is not None]
    if first is None or not clean:
        return Start(None, 0, "NO_EARLIER_MODEL")
    last = max(clean, key=lambda one: one.model.version)
    return Start(last.model, rounds.get(last.window_id or b"", 0), "CHECKPOINT")
