"""Small SVG charts for the report: axes, a line with its band, columns by round. No script, no style but classes.

Every chart is drawn for one width in pixels and scales with its box; `both` draws it twice, for wide and for narrow
screens, so that text stays readable without scrolling. To a screen reader a chart is an image with one sentence: each
has a table of the same numbers beside it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cohortium_sim.report_html import Attributes, Child, Html, element

T = TypeVar("T")

WIDE, HALF, NARROW = 860, 410, 340
"""Widths of the box in which a chart stands, in CSS pixels: over the page, half of it, on a telephone."""

_CHARACTER = 6.9
"""Widest average character of the labels (12 px), to guess a text's length."""


def both(draw: Callable[[int], Html], wide: int = WIDE) -> Html:
    """The chart for wide screens and for narrow ones; the style sheet shows one."""
    shown = (
        element("div", {"class": f"chart {name}"}, draw(width)) for name, width in (("wide", wide), ("narrow", NARROW))
    )
    return element("div", {"class": "charts"}, *shown)


def ticks(low: float, high: float, most: int = 5) -> tuple[float, ...]:
    """At most about `most` round numbers (1, 2 or 5 times a power of ten) from `low` to `high`."""
    if not high > low:
        return (low,)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(count * step, 12) for count in range(first, last + 1))


def whole_ticks(low: int, high: int, most: int) -> tuple[int, ...]:
    """Whole numbers for an axis of rounds: the first, the last, and round ones between them that do not crowd them."""
    if high - low < most:
        return tuple(range(low, high + 1))
    between = sorted({round(value) for value in ticks(low, high, most)})
    gap = (between[1] - between[0]) * 0.6 if len(between) > 1 else 1
    return (low, *(value for value in between if low + gap <= value <= high - gap), high)


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Area:
    """The plot's rectangle inside the image."""

    width: int
    height: int
    left: float = 46
    right: float = 14
    top: float = 14
    bottom: float = 40

    def across(self, low: float, high: float) -> Scale:
        """The horizontal scale."""
        return Scale(low, high, self.left, self.width - self.right)

    def up(self, low: float, high: float) -> Scale:
        """The vertical scale, upwards."""
        return Scale(low, high, self.height - self.bottom, self.top)


def svg(area: Area, label: str, *children: Child) -> Html:
    """The image; `label` is what a screen reader says of it."""
    box = f"0 0 {area.width} {area.height}"
    return element("svg", {"viewBox": box, "role": "img", "aria-label": label}, *children)


def text(x: float, y: float, words: str, kind: str = "tick", anchor: str = "middle") -> Html:
    """A label."""
    return element("text", {"x": x, "y": y, "class": kind, "text-anchor": anchor}, words)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    """A straight line."""
    return element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": kind})


def box(attributes: Attributes, title: str | None = None) -> Html:
    """A rectangle, with a text that appears under the pointer."""
    return element("rect", attributes, None if title is None else element("title", None, title))


def path(points: Sequence[tuple[float, float]], kind: str, closing: str = "") -> Html:
    """A line through points; closed with `Z`."""
    steps = " ".join(f"{'M' if place == 0 else 'L'}{x:.1f} {y:.1f}" for place, (x, y) in enumerate(points))
    return element("path", {"d": f"{steps}{closing}", "class": kind})


def shortened(words: str, pixels: float) -> str:
    """`words`, cut with an ellipsis to fit about `pixels`."""
    most = max(4, int(pixels / _CHARACTER))
    return words if len(words) <= most else f"{words[: most - 1].rstrip()}…"


def level_axis(area: Area, up: Scale, values: Sequence[float], write: Callable[[float], str]) -> list[Html]:
    """Level lines with their numbers at the left."""
    drawn = []
    for value in values:
        y = up(value)
        drawn += [
            line(area.left, y, area.width - area.right, y, "grid"),
            text(area.left - 7, y + 4, write(value), "tick", "end"),
        ]
    return drawn


def round_axis(area: Area, across: Scale, first: int, last: int) -> list[Html]:
    """Numbers of rounds below the plot."""
    y = area.height - area.bottom
    most = max(2, int((area.width - area.left - area.right) / 64))
    drawn = [line(area.left, y, area.width - area.right, y, "axis")]
    drawn += [text(across(value), y + 17, f"{value}") for value in whole_ticks(first, last, most)]
    drawn.append(text((area.left + area.width - area.right) / 2, y + 34, "round", "axis-name"))
    return drawn


@dataclass(frozen=True, slots=True)
class Point:
    """A value of one round; `low` and `high` bound what it may truly be."""

    round: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LineChart:
    """A metric by round. `reference` is a level to compare with, under the name `reference_name`."""

    name: str
    points: tuple[Point, ...]
    last_round: int
    least: float = 0.0
    most: float = 1.0
    reference: float | None = None
    reference_name: str = ""


def line_chart(chart: LineChart, width: int) -> Html:
    """The metric as a line, its band behind it, the last value written at its end."""
    area = Area(width, 280 if width >= WIDE else 230, right=52, top=14 if chart.reference is None else 30)
    low, high = _span(chart)
    across, up = area.across(1, max(2, chart.last_round)), area.up(low, high)
    drawn = level_axis(area, up, ticks(low, high), lambda value: f"{value:.3g}")
    drawn += round_axis(area, across, 1, max(2, chart.last_round))
    drawn += _reference(chart, area, up)
    drawn += _curve(chart, across, up)
    first, last = chart.points[0], chart.points[-1]
    said = f"{chart.name} by round: {first.value:.3f} in round {first.round}, {last.value:.3f} in round {last.round}."
    return svg(area, said, *drawn)


def _span(chart: LineChart) -> tuple[float, float]:
    """The vertical range: what there is to see and a little air, never narrower than 0.02."""
    values = [point.low for point in chart.points] + [point.high for point in chart.points]
    if chart.reference is not None:
        values.append(chart.reference)
    low, high = min(values), max(values)
    air = max(0.12 * (high - low), 0.01)
    return max(chart.least, low - air), min(chart.most, high + air)


def _reference(chart: LineChart, area: Area, up: Scale) -> list[Html]:
    if chart.reference is None:
        return []
    y = up(chart.reference)
    words = f"{chart.reference_name} {chart.reference:.3f}"
    return [
        line(area.left, y, area.width - area.right, y, "reference"),
        line(area.left, 10, area.left + 26, 10, "reference"),
        text(area.left + 33, 14, words, "tick", "start"),
    ]


def _curve(chart: LineChart, across: Scale, up: Scale) -> list[Html]:
    shown = thinned(chart.points, 400)
    drawn = []
    if any(point.high > point.low for point in shown):
        upper = [(across(point.round), up(point.high)) for point in shown]
        lower = [(across(point.round), up(point.low)) for point in reversed(shown)]
        drawn.append(path([*upper, *lower], "band", "Z"))
    places = [(across(point.round), up(point.value)) for point in shown]
    drawn.append(path(places, "curve"))
    if len(shown) <= 60:
        for point, (x, y) in zip(shown, places, strict=True):
            title = element("title", None, f"Round {point.round}: {chart.name} {point.value:.3f}")
            drawn.append(element("circle", {"cx": x, "cy": y, "r": 3, "class": "dot"}, title))
    x, y = places[-1]
    drawn.append(text(x + 8, y + 4, f"{shown[-1].value:.3f}", "value", "start"))
    return drawn


def thinned(values: Sequence[T], most: int) -> tuple[T, ...]:
    """At most about `most` of the values, evenly chosen, the first and the last among them."""
    if len(values) <= most:
        return tuple(values)
    return tuple(values[round(place * (len(values) - 1) / (most - 1))] for place in range(most))


@dataclass(frozen=True, slots=True)
class ColumnSeries:
    """One colour of a column chart: a value for each round. `kind` is its class: `first` or `second`."""

    name: str
    kind: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ColumnChart:
    """Amounts by round, the series stacked. `rounds` gives the number of the round of each value."""

    name: str
    rounds: tuple[int, ...]
    last_round: int
    series: tuple[ColumnSeries, ...]
    write: Callable[[float], str]


def column_chart(chart: ColumnChart, width: int) -> Html:
    """Columns from zero. More rounds than there is room for are gathered, each column then being their mean."""
    area = Area(width, 200, left=62)
    gathered = _gathered(chart, most=max(20, int((width - 76) / 3)))
    totals = [sum(parts) for _, _, parts in gathered]
    high = max([*totals, 0.0]) or 1.0
    last = max(2, chart.last_round)
    across, up = area.across(0.5, last + 0.5), area.up(0, high * 1.05)
    drawn = level_axis(area, up, ticks(0, high, 4), chart.write)
    drawn += round_axis(area, across, 1, last)
    for first, final, parts in gathered:
        drawn += _column(chart, (across, up), (first, final), parts)
    return svg(area, f"{chart.name} by round, at most {chart.write(max([*totals, 0.0]))}.", *drawn)


def _gathered(chart: ColumnChart, most: int) -> list[tuple[int, int, tuple[float, ...]]]:
    size = math.ceil(len(chart.rounds) / most)
    found = []
    for start in range(0, len(chart.rounds), max(1, size)):
        stop = min(start + size, len(chart.rounds))
        parts = tuple(sum(series.values[start:stop]) / (stop - start) for series in chart.series)
        found.append((chart.rounds[start], chart.rounds[stop - 1], parts))
    return found


def _column(
    chart: ColumnChart, scales: tuple[Scale, Scale], rounds: tuple[int, int], parts: tuple[float, ...]
) -> list[Html]:
    across, up = scales
    gap = min(2.0, 0.15 * (across(1) - across(0)))
    x, right = across(rounds[0] - 0.5) + gap, across(rounds[1] + 0.5) - gap
    named = f"Round {rounds[0]}" if rounds[0] == rounds[1] else f"Mean of rounds {rounds[0]} to {rounds[1]}"
    drawn, floor = [], 0.0
    for series, part in zip(chart.series, parts, strict=True):
        top, bottom = up(floor + part), up(floor)
        title = f"{named}: {series.name} {chart.write(part)}"
        place: Attributes = {"x": x, "y": top, "width": max(0.6, right - x), "height": max(0.0, bottom - top)}
        drawn.append(box({**place, "class": f"column {series.kind}"}, title))
        floor += part
    return drawn
