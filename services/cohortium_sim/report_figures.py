"""The report's parts with charts: models, metrics by round, swim-lanes, cost, calibration. Each chart has its table."""

from collections.abc import Callable, Sequence

from cohortium_messages.result import MetricsResult, Result
from cohortium_messages.status import RunStatus
from cohortium_sim.charts import (
    HALF,
    WIDE,
    ColumnChart,
    ColumnSeries,
    LineChart,
    Point,
    both,
    column_chart,
    line_chart,
    thinned,
)
from cohortium_sim.report_bars import bar_chart, bars, calibration_chart
from cohortium_sim.report_html import Column, Html, element, facts, folded, paragraph, table
from cohortium_sim.report_lanes import Lane, Part, lane_chart, lanes
from cohortium_sim.report_page import section
from cohortium_sim.report_sections import model_table, site_table
from cohortium_sim.report_words import auc_text, byte_count, duration, number, ranges

MOST_ROWS = 500
"""A table of more rounds is thinned evenly and says so; `result.json` has them all."""

ROWS_FOR_ECE = 5000
"""Test rows below which 100 bins hold so few each that their error says more about chance than about the model."""

MOST_MODELS = 12
"""The table of more local models than these is shown on request."""

Reading = Callable[[MetricsResult], float | None]


def models(result: Result) -> Html:
    """Federated, pooled and local models beside each other."""
    if result.metrics.federated is None and result.metrics.pooled is None and not result.metrics.local:
        return section("models", "The model", paragraph("No model was evaluated."))
    found = bars(result.metrics)
    compared = (
        " Pooled and local models exist only because this is a simulation, which has all tables in one place."
        if result.metrics.pooled is not None or result.metrics.local
        else ""
    )
    return section(
        "models",
        "The model",
        paragraph(
            "Measured on the test rows of all sites. For the federated model, sites sent masked counts of rows by "
            "score and only their sum was opened; ± is the most by which the AUC of the scores themselves can differ."
            + compared
        ),
        both(lambda width: bar_chart(found, width)) if len(found) > 1 else None,
        model_table(result) if len(result.metrics.local) <= MOST_MODELS else folded("All models", model_table(result)),
    )


def course(result: Result) -> Html:
    """The metrics of each round's model."""
    measured = [(of, of.metrics) for of in result.rounds if of.metrics is not None]
    if not measured:
        return section("course", "Round by round", paragraph("No round's model was evaluated."))
    heads = ("Model version", "AUC", "Accuracy", "Brier score")
    rows = [
        [f"{of.number}", f"{of.model_version}", auc_text(found), number(found.accuracy), number(found.brier)]
        for of, found in thinned(measured, MOST_ROWS)
    ]
    columns = [Column("Round"), *(Column(head, "number") for head in heads)]
    pair = [
        _metric(result, "Accuracy", HALF, lambda found: found.accuracy),
        _metric(result, "Brier score", HALF, lambda found: found.brier),
    ]
    return section(
        "course",
        "Round by round",
        _metric(result, "AUC", WIDE, lambda found: found.auc),
        element("div", {"class": "pair"}, *pair),
        folded("Metrics by round as a table", table(_caption("Metrics by round", len(measured)), columns, rows)),
    )


_NOTES = {
    "AUC": "The band is how far the AUC of the scores themselves may lie from that of the summed histograms.",
    "Accuracy": "Share put right at a threshold of one half.",
    "Brier score": "Mean squared error of the scores: lower is better.",
}


def _metric(result: Result, name: str, wide: int, reading: Reading) -> Html | None:
    """One metric as a line, if it was measured at all."""
    points = []
    for of in result.rounds:
        value = None if of.metrics is None else reading(of.metrics)
        if value is not None and of.metrics is not None:
            bound = (of.metrics.auc_error_bound or 0.0) if name == "AUC" else 0.0
            points.append(Point(of.number, value, max(0.0, value - bound), min(1.0, value + bound)))
    if not points:
        return None
    pooled = result.metrics.pooled
    chart = LineChart(
        name=name,
        points=tuple(points),
        last_round=_last_round(result),
        reference=None if pooled is None else reading(pooled),
        reference_name="pooled",
    )
    heading = element("h3", None, f"{name} by round")
    drawn = both(lambda width: line_chart(chart, width), wide)
    return element("div", None, heading, element("p", {"class": "note"}, _NOTES[name]), drawn)


def _last_round(result: Result) -> int:
    return max([result.rounds_planned, *(of.number for of in result.rounds)])


def _caption(words: str, rows: int) -> str:
    return words if rows <= MOST_ROWS else f"{words}: {MOST_ROWS} of {rows:,}, evenly chosen; all are in result.json"


def participation(result: Result, status: RunStatus) -> Html:
    """Who was in which sum, and how the members stood at the end."""
    found = lanes(result)
    if not result.rounds or not found:
        nothing = paragraph("No round was finished.")
        return section("sites", "Who took part", nothing, site_table(result, status) if result.sites else None)
    numbers = [of.number for of in result.rounds]
    columns = [
        Column("Site"),
        Column("In the sum", "number"),
        Column("Rounds in the sum"),
        Column("Dropped in rounds"),
        Column("Refused rounds"),
        Column("Not in the cohort"),
    ]
    rows = [
        [
            lane.site,
            f"{lane.parts.count(Part.IN_SUM)} of {len(numbers)}",
            *(_rounds_of(lane, numbers, part) for part in Part),
        ]
        for lane in found
    ]
    return section(
        "sites",
        "Who took part",
        both(lambda width: lane_chart(found, numbers, width)),
        folded("Part of each site as a table", table("Part of each site in the rounds", columns, rows)),
        element("h3", None, "Sites"),
        site_table(result, status),
    )


def _rounds_of(lane: Lane, numbers: Sequence[int], part: Part) -> str:
    return ranges(of for of, played in zip(numbers, lane.parts, strict=True) if played is part)


def cost(result: Result) -> Html | None:
    """Seconds and bytes of each round."""
    if not result.rounds:
        return None
    rounds, last = tuple(of.number for of in result.rounds), _last_round(result)
    seconds = ColumnSeries("time", "first", tuple(of.seconds for of in result.rounds))
    up = ColumnSeries("up", "first", tuple(float(of.bytes_up) for of in result.rounds))
    down = ColumnSeries("down", "second", tuple(float(of.bytes_down) for of in result.rounds))
    columns = [Column("Round"), *(Column(head, "number") for head in ("Time", "Up", "Down"))]
    rows = [
        [f"{of.number}", duration(of.seconds), byte_count(of.bytes_up), byte_count(of.bytes_down)]
        for of in thinned(result.rounds, MOST_ROWS)
    ]
    return section(
        "cost",
        "What it cost",
        element(
            "div",
            {"class": "pair"},
            _columns("Time by round", ColumnChart("Time", rounds, last, (seconds,), _seconds)),
            _columns("Bytes by round", ColumnChart("Bytes", rounds, last, (up, down), _bytes)),
        ),
        folded("Cost by round as a table", table(_caption("Cost by round", len(rounds)), columns, rows)),
    )


def _bytes(value: float) -> str:
    return byte_count(value).replace(".0 ", " ")


def _seconds(value: float) -> str:
    return f"{value:.3g} s"


def _columns(title: str, chart: ColumnChart) -> Html:
    keys = [
        element("li", None, _swatch(series.kind), f"{series.name}: {where} part of a column")
        for series, where in zip(chart.series, ("lower", "upper"), strict=False)
    ]
    key = element("ul", {"class": "key"}, *keys) if len(keys) > 1 else None
    return element("div", None, element("h3", None, title), both(lambda width: column_chart(chart, width), HALF), key)


def _swatch(kind: str) -> Html:
    shape = element("rect", {"width": 10, "height": 10, "rx": 2, "class": f"column {kind}"})
    return element("svg", {"viewBox": "0 0 10 10", "aria-hidden": "true"}, shape)


def calibration(result: Result) -> Html | None:
    """Whether scores are frequencies; only where the study asked for it."""
    federated = result.metrics.federated
    if federated is None or federated.calibration is None:
        return None
    found = federated.calibration
    known = facts(
        [
            ("Expected calibration error, 100 bins", number(found.ece)),
            ("Slope, 1 at best", number(found.slope)),
            ("Intercept, 0 at best", number(found.intercept)),
            ("Observed over expected cases, 1 at best", number(found.observed_expected)),
        ]
    )
    words = (
        "A line above the diagonal means that the outcome is more frequent than the model's score says; below it, less."
    )
    chart = both(lambda width: calibration_chart(found, width), HALF) if found.slope is not None else None
    sparse = (
        f" With {federated.rows:,} rows in 100 bins, much of the calibration error is chance."
        if federated.rows < ROWS_FOR_ECE
        else ""
    )
    left = element("div", None, paragraph(words + sparse), known)
    return section("calibration", "Calibration", element("div", {"class": "pair"}, left, chart))
