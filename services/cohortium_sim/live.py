"""The live view of a run: a picture that is redrawn on a terminal, a line for each finished round everywhere else.

    with LiveView(study) as view:
        view.update(status, elapsed_s)

`update` may be called whenever there is news. It draws once for each call, and nothing draws between two calls: there
is no thread and no flicker. One task at a time calls it.
"""

from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cohortium_messages.runs import EvaluationResult
from cohortium_messages.status import BoostingStatus, RoundStatus, RunStatus, SiteStatus, WindowStatus
from cohortium_messages.study import Study
from cohortium_sim.metric_words import BINARY, WORDS, main_metric
from cohortium_sim.report_words import (
    byte_count,
    duration,
    evaluated,
    listed,
    plural,
    run_state,
    site_state,
)
from cohortium_sim.table import STYLES, state_words, words

FINAL_STATES = frozenset(("FINISHED", "FAILED", "STOPPED"))

_OTHER_LINES = 16
"""Lines of the picture that are no site's."""
_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
_LEAST_SPAN = 0.02
"""A sparkline shows at least this much AUC from its lowest to its highest bar, so that noise stays small."""


class LiveView:
    """Shows a run while it goes on. A context manager; what was shown last stays after it.

    With `auto`, a terminal that can redraw gets the picture and everything else gets lines. With `--json` give `lines`
    and a console on standard error: standard output then holds nothing but the result.
    """

    def __init__(self, study: Study, console: Console | None = None, form: Literal["auto", "lines"] = "auto") -> None:
        console = console or Console()
        redraws = form == "auto" and console.is_terminal and not console.is_dumb_terminal
        self._shape: _Shape = _Picture(console, study) if redraws else _Lines(console)

    def __enter__(self) -> Self:
        self._shape.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shape.stop()

    def update(self, status: RunStatus, elapsed_s: float, *, now: datetime | None = None) -> None:
        """Show this status. `now`, by the clock that the scheduler's times come from, tells how long ago a site was
        seen; left out, it is this machine's."""
        self._shape.show(status, elapsed_s, now or datetime.now(UTC))


class _Shape(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...

    def show(self, status: RunStatus, elapsed_s: float, now: datetime) -> None: ...


class _Picture:
    """Redraws in place."""

    def __init__(self, console: Console, study: Study) -> None:
        self._console = console
        self._study = study
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def show(self, status: RunStatus, elapsed_s: float, now: datetime) -> None:
        self._live.update(picture(self._console, self._study, status, elapsed_s, now), refresh=True)


class _Lines:
    """Says each thing once: the run's states, each finished round, each reason that a site gives."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state = ""
        self._round = 0
        self._tenths = 0
        self._reasons: dict[str, str | None] = {}

    def start(self) -> None:
        """Nothing to open."""

    def stop(self) -> None:
        """Nothing to close."""

    def show(self, status: RunStatus, elapsed_s: float, now: datetime) -> None:  # noqa: ARG002 - as the picture needs it
        started, ended = status.state != self._state, status.state in FINAL_STATES
        self._state = status.state
        if started and not ended:
            self._say(f"{status.study_id}: {run_state(status.state).word}")
        for site in status.sites:
            if site.code is not None and site.code != self._reasons.get(site.name):
                self._say(f"{site.name}: refused. {site.sentence or site.code}")
            self._reasons[site.name] = site.code
        self._grow(status)
        for done in status.rounds_done:
            # A round's evaluation follows its sum: the newest round waits for it, so that its line is whole.
            whole = done.evaluation is not None or done is not status.rounds_done[-1] or ended
            if done.number > self._round and whole:
                self._round = done.number
                self._say(round_line(done, status.rounds))
        if started and ended:
            why = f": {status.sentence or status.reason}" if status.reason else ""
            self._say(f"{status.study_id}: {run_state(status.state).word} after {duration(elapsed_s)}{why}")

    def _grow(self, status: RunStatus) -> None:
        """A line for each tenth of the trees."""
        boosting = status.boosting
        tenths = 0 if boosting is None else 10 * boosting.trees // boosting.rounds
        if boosting is not None and tenths > self._tenths:
            self._tenths = tenths
            self._say(_grown(boosting, status.window))

    def _say(self, line: str) -> None:
        self._console.print(words(self._console, line), soft_wrap=True, highlight=False)


def round_line(done: RoundStatus, rounds: int) -> str:
    """One finished round in one line."""
    facts = [plural(len(done.cohort), "site"), duration(done.seconds)]
    facts += [f"up {byte_count(done.bytes_up)}", f"down {byte_count(done.bytes_down)}"]
    if done.trees is not None:
        facts.append(plural(done.trees, "boosting round"))
    found = evaluated(done.evaluation)
    word = main_metric(found)
    if word is not None:
        facts.append(f"{word.told} {word.text(found)}")
    dropped = f"; dropped: {listed(done.dropped)}" if done.dropped else ""
    return f"round {done.number:>{len(str(rounds))}} of {rounds}: {', '.join(facts)}{dropped}"


def picture(console: Console, study: Study, status: RunStatus, elapsed_s: float, now: datetime) -> RenderableType:
    """Everything there is to see of the run, in the width and the height of this terminal."""
    sites, left_out = _chosen(status.sites, max(3, console.height - _OTHER_LINES))
    parts: list[RenderableType] = [
        _heading(console, status, elapsed_s),
        _line(words(console, status.purpose, "dim")),
        _progress(console, status),
        Text(),
        _site_table(console, sites, now),
    ]
    if left_out:
        parts.append(words(console, f"and {plural(left_out, 'more site')}", "dim"))
    reasons = [site for site in status.sites if site.code is not None]
    parts += [_reason(console, site) for site in reasons[:2]]
    parts += [Text(), _figures(console, study, status)]
    return Group(*parts)


def _line(text: Text) -> Text:
    """One line of the picture, never wrapped: a wrapped line would make the picture jump."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _heading(console: Console, status: RunStatus, elapsed_s: float) -> Table:
    grid = Table.grid(expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    state = state_words(console, run_state(status.state))
    name = Text.assemble(
        words(console, status.study_id, "bold"), "  ", state, words(console, f", {status.mode}", "dim")
    )
    grid.add_row(name, words(console, duration(elapsed_s)))
    return grid


def _grown(boosting: BoostingStatus, window: WindowStatus | None) -> str:
    again = boosting.sessions and window is not None and window.purpose == "training"
    session = f", session {boosting.sessions + 1}" if again else ""
    return f"boosting round {boosting.trees} of {boosting.rounds}{session}"


def _progress(console: Console, status: RunStatus) -> Table:
    boosting = status.boosting
    done, planned = len(status.rounds_done), max(1, status.rounds)
    counted = words(console, f"round {done} of {status.rounds}")
    if boosting is not None:
        done, planned, counted = boosting.trees, boosting.rounds, words(console, _grown(boosting, status.window))
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(
        total=planned,
        completed=done,
        width=max(10, min(50, console.width - 12 - len(counted))),
        complete_style="cyan",
        finished_style="green",
    )
    grid.add_row(counted, bar, words(console, f"{100 * done // planned} %"))
    return grid


def _chosen(sites: tuple[SiteStatus, ...], most: int) -> tuple[list[SiteStatus], int]:
    """The sites there is room for: in their order, and those with something to say before the idle ones."""
    if len(sites) <= most:
        return list(sites), 0

    def weight(site: SiteStatus) -> int:
        tone = site_state(site.state, site.code).tone
        return ("bad", "warn", "busy", "good", "quiet").index(tone)

    kept = sorted(sites, key=weight)[:most]
    return [site for site in sites if site in kept], len(sites) - most


def _site_table(console: Console, sites: list[SiteStatus], now: datetime) -> Table:
    wide = console.width >= 76
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("Site", no_wrap=True, overflow="ellipsis", min_width=8, max_width=max(8, console.width - 44))
    table.add_column("State", no_wrap=True, min_width=12)
    if wide:
        table.add_column("Progress", no_wrap=True, min_width=16)
    table.add_column("Seen", no_wrap=True, justify="right", min_width=6)
    table.add_column("Used", no_wrap=True, justify="right")
    for site in sites:
        state = state_words(console, site_state(site.state, site.code))
        progress = [_site_progress(console, site.progress)] if wide else []
        seen = words(console, _ago(site.last_seen, now))
        table.add_row(words(console, site.name), state, *progress, seen, words(console, f"{site.updates_used}"))
    return table


def _site_progress(console: Console, progress: float | None) -> Text:
    if progress is None:
        return Text()
    full, empty = ("#", "-") if console.options.ascii_only else ("━", "─")
    filled = round(10 * min(1.0, max(0.0, progress)))
    return Text.assemble((full * filled, STYLES["busy"]), (empty * (10 - filled), "dim"), f" {100 * progress:.0f} %")


def _ago(seen: datetime | None, now: datetime) -> str:
    if seen is None:
        return "never"
    seconds = max(0.0, (now - seen).total_seconds())
    return "now" if seconds < 2 else f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _reason(console: Console, site: SiteStatus) -> Text:
    name = words(console, f"{site.name}:", STYLES["bad"])
    return Text.assemble(name, " ", words(console, site.sentence or site.code or ""))


def _figures(console: Console, study: Study, status: RunStatus) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True, min_width=7)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_row("window", words(console, _window(status.window)))
    up, down = (sum(getattr(done, way) for done in status.rounds_done) for way in ("bytes_up", "bytes_down"))
    grid.add_row("bytes", words(console, f"{byte_count(up)} up, {byte_count(down)} down"))
    if study.metrics:
        _measured(grid, console, study, [done.evaluation for done in status.rounds_done if done.evaluation is not None])
    return grid


def _measured(grid: Table, console: Console, study: Study, found: list[EvaluationResult]) -> None:
    """The study's first metric as a number and its course, the others as numbers."""
    newest = evaluated(found[-1] if found else None)
    first, *others = [word for word in WORDS if word.field in study.metrics] or BINARY
    spark = sparkline(
        [value for of in found if (value := first.of(evaluated(of))) is not None][-max(8, console.width - 32) :],
        console,
    )
    grid.add_row(first.told, Text.assemble(words(console, first.text(newest)), "  ", (spark, STYLES["busy"])))
    told = "" if newest is None else ", ".join(f"{word.told} {word.text(newest)}" for word in others)
    grid.add_row("", words(console, told))


def _window(window: WindowStatus | None) -> str:
    if window is None:
        return "none open"
    again = f", attempt {window.attempt}" if window.attempt > 1 else ""
    named = f"{window.purpose}, round {window.round}{again}"
    match window.phase:
        case "PLANNED":
            return f"{named}: asks consent"
        case "AUTHORISED":
            return f"{named}: waits until the audit log has it"
        case "OPEN":
            return f"{named}: sites work; ready: {listed(window.ready)}"
        case "ROSTER_FIXED":
            return f"{named}: sums over {listed(window.roster)}"
    return f"{named}: {window.phase.lower()}"


def sparkline(values: list[float], console: Console) -> str:
    """One bar for each value, from the least to the greatest of them."""
    if not values:
        return ""
    bars = _ASCII_BARS if console.options.ascii_only else _BARS
    low, span = min(values), max(max(values) - min(values), _LEAST_SPAN)
    return "".join(bars[min(len(bars) - 1, int((value - low) / span * len(bars)))] for value in values)
