"""The report's parts with charts: models, metrics by round, swim-lanes, cost, calibration. Each chart has its table."""

import math
from collections.abc import Sequence

from cohortium_messages.result import Result
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
from cohortium_sim.metric_words import MetricWord, compared, measured
from cohortium_sim.report_bars import bar_chart, bars, calibration_chart
from cohortium_sim.report_html import Column, Html, element, facts, folded, paragraph, table
from cohortium_sim.report_lanes import Lane, Part, lane_chart, lanes
from cohortium_sim.report_page import section
from cohortium_sim.report_sections import model_table, models_of, site_table
from cohortium_sim.report_words import byte_count, duration, number, ranges

MOST_ROWS = 500
"""A table of more rounds is thinned evenly and says so; `result.json` has them all."""

ROWS_FOR_ECE = 5000
"""Test rows below which 100 bins hold so few each that their error says more about chance than about the model."""

MOST_MODELS = 12
"""The table of more local models than these is shown on request."""


def models(result: Result) -> Html:
    """Federated, pooled and local models beside each other."""
    if result.metrics.federated is None and result.metrics.pooled is None and not result.metrics.local:
        return section("models", "The model", paragraph("No model was evaluated."))
    word = compared([of for _, of in models_of(result)])
    found = () if word is None else bars(result.metrics, word)
    simulated = (
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
            if result.metrics.federated is None or result.metrics.federated.auc is not None
            else "Measured on the test rows of all sites, which sent masked sums; only their total was opened.",
            simulated,
        ),
        both(lambda width: bar_chart(found, word, width)) if word is not None and len(found) > 1 else None,
        model_table(result) if len(result.metrics.local) <= MOST_MODELS else folded("All models", model_table(result)),
    )


def course(result: Result) -> Html | None:
    """The metrics of each round's model; nothing where one round grew all trees."""
    if result.training is not None:
        return None
    found = [(of, of.metrics) for of in result.rounds if of.metrics is not None]
    if not found:
        return section("course", "Round by round", paragraph("No round's model was evaluated."))
    words = measured(of for _, of in found)
    rows = [
        [f"{of.number}", f"{of.model_version}", *(word.text(metrics) for word in words)]
        for of, metrics in thinned(found, MOST_ROWS)
    ]
    heads = ("Model version", *(word.name for word in words))
    columns = [Column("Round"), *(Column(head, "number") for head in heads)]
    first, *others = words
    pairs = [others[place : place + 2] for place in range(0, len(others), 2)]
    return section(
        "course",
        "Round by round",
        _metric(result, first, WIDE),
        *(element("div", {"class": "pair"}, *(_metric(result, word, HALF) for word in pair)) for pair in pairs),
        folded("Metrics by round as a table", table(_caption("Metrics by round", len(found)), columns, rows)),
    )


def _metric(result: Result, word: MetricWord, wide: int) -> Html | None:
    """One metric as a line, if it was measured at all."""
    points = []
    for of in result.rounds:
        value = word.of(of.metrics)
        if value is not None and of.metrics is not None:
            bound = word.bound(of.metrics)
            points.append(Point(of.number, value, _within(word, value - bound), _within(word, value + bound)))
    if not points:
        return None
    chart = LineChart(
        name=word.name,
        points=tuple(points),
        last_round=_last_round(result),
        least=-math.inf if word.least is None else word.least,
        most=math.inf if word.most is None else word.most,
        reference=word.of(result.metrics.pooled),
        reference_name="pooled",
    )
    heading = element("h3", None, f"{word.name} by round")
    drawn = both(lambda width: line_chart(chart, width), wide)
    return element("div", None, heading, element("p", {"class": "note"}, word.note), drawn)


def _within(word: MetricWord, value: float) -> float:
    low = -math.inf if word.least is None else word.least
    return min(math.inf if word.most is None else word.most, max(low, value))


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
