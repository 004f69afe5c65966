"""The result as it is printed when a simulation has ended: models, sites, secure sum, audit, where the files are."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cohortium_messages.result import AuditResult, MetricsResult, Result, SiteResult
from cohortium_sim.metric_words import measured
from cohortium_sim.report_sections import models_of
from cohortium_sim.report_words import (
    StateWord,
    clean,
    duration,
    headline,
    run_state,
    site_state,
    training_words,
)

STYLES = {"good": "green", "busy": "cyan", "warn": "yellow", "bad": "red", "quiet": "dim"}
"""Colours that a terminal adds to an icon and a word, by tone."""

_ASCII = str.maketrans({"±": "+/-", "–": "-", "…": "...", "·": "-", "×": "x", "²": "2", "\ufffd": "?"})


FILES = {"report": "report.html", "result": "result.json", "model": "model", "audit log": "audit"}
"""What a simulation leaves in its folder, in the order to show."""


def words(console: Console, text: str, style: str = "") -> Text:
    """Text for this terminal: never taken for markup, without control characters, in ASCII where that is all it has."""
    text = clean(text)
    if console.options.ascii_only:
        text = text.translate(_ASCII).encode("ascii", "replace").decode("ascii")
    return Text(text, style)


def state_words(console: Console, state: StateWord) -> Text:
    """Icon and word of a state, in their colour."""
    icon = state.ascii_icon if console.options.ascii_only else state.icon
    return words(console, f"{icon} {state.word}", STYLES[state.tone])


def print_result(result: Result, out: Path, surprises: Sequence[str] = (), console: Console | None = None) -> None:
    """Print the whole result: what came of it, what did not go as planned, and what lies in the folder `out`.

    On something that is no terminal there is no colour, and paths are never broken: the text can be searched and kept.
    """
    console = console or Console()
    console.print(_summary(console, result))
    for what, name in FILES.items():
        if (out / name).exists():
            line = Text.assemble((f"{what:<12}", "bold"), words(console, str(out / name)))
            console.print(line, soft_wrap=True, highlight=False)
    for surprise in surprises:
        line = Text.assemble(("not planned ", "bold red"), words(console, surprise))
        console.print(line, highlight=False)


def _summary(console: Console, result: Result) -> RenderableType:
    title = Text.assemble(words(console, result.study, "bold"), "  ", state_words(console, run_state(result.state)))
    parts: list[RenderableType] = [title, words(console, headline(result)), Text()]
    models = list(models_of(result))
    if models:
        parts += [_model_table(console, models), Text()]
    facts = Table.grid(padding=(0, 1))
    facts.add_column(style="bold", no_wrap=True, min_width=11)
    facts.add_column(overflow="fold")
    for what, fact in _facts(console, result):
        facts.add_row(what, fact)
    return Group(*parts, facts)


def _model_table(console: Console, models: list[tuple[str, MetricsResult]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("Model", overflow="fold", min_width=9)
    shown = measured(metrics for _, metrics in models)
    for word in shown:
        table.add_column(words(console, word.name), justify="right", no_wrap=True)
    for name, metrics in models:
        cells = (name, *(word.text(metrics) for word in shown))
        table.add_row(*(words(console, cell) for cell in cells), style="bold" if name == "federated" else "")
    return table


def _facts(console: Console, result: Result) -> Iterator[tuple[str, Text]]:
    sums = len(result.rounds)
    if result.training is not None:
        # A session that nobody grew a tree in has nobody's part.
        sums = max((site.updates_used for site in result.sites), default=0)
    for site in result.sites:
        if site.code is not None or site.state == "withdrawn" or site.updates_used < sums:
            yield "site", _site(console, site, sums, "sums" if result.training is None else "sessions")
    if result.training is not None:
        yield "training", words(console, training_words(result.training))
    figures = result.secure_sum
    if figures is not None:
        said = (
            f"{figures.n} sites, {figures.t} must answer, {figures.c} may collude, none below {figures.k_min}; "
            f"ring{figures.ring}, {figures.bytes_per_parameter:.2f} bytes a parameter up"
        )
        yield "secure sum", words(console, said)
    yield "audit", _audit(console, result.audit)
    took = f"set-up {duration(result.timing.setup_s)}, run {duration(result.timing.run_s)}"
    if result.timing.compare_s is not None:
        took += f", comparison {duration(result.timing.compare_s)}"
    yield "time", words(console, took)


def _site(console: Console, site: SiteResult, sums: int, called: str) -> Text:
    name = words(console, site.name, "bold")
    in_sum = words(console, f"in {site.updates_used} of {sums} {called}")
    if site.code is None and site.state != "withdrawn":
        return Text.assemble(name, " ", in_sum)
    why = words(console, site.sentence or site.code or "")
    return Text.assemble(name, " ", in_sum, "; ", state_words(console, site_state(site.state, site.code)), ". ", why)


def _audit(console: Console, audit: AuditResult | None) -> Text:
    if audit is None:
        return words(console, "no bundle was fetched", STYLES["warn"])
    verdict = StateWord("✓", "v", "verified", "good") if audit.verified else StateWord("×", "x", "NOT VERIFIED", "bad")
    facts = words(console, f", {audit.tree_size:,} entries, root {audit.root[:16]}…")
    failed = [check for check in audit.checks if check.state == "failed"]
    first = words(console, f"; {failed[0].name}: {failed[0].fact}", STYLES["bad"]) if failed else Text()
    return Text.assemble(state_words(console, verdict), facts, first)
