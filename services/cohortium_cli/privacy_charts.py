"""Charts of the privacy pages: bars with an interval and a limit, an attacker's curve, AUC against ε."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cohortium_connector.training.privacy_report import CalibrationReport
from cohortium_sim.charts import WIDE, Area, Scale, box, level_axis, line, path, shortened, svg, text, ticks
from cohortium_sim.report_html import Attributes, Html, element


@dataclass(frozen=True, slots=True)
class BarRow:
    """A value by name. `interval`: a whisker from its low to its high end; `limit`: a dash across the row."""

    name: str
    value: float
    interval: tuple[float, float] | None
    limit: float | None


def bar_rows(name: str, rows: Sequence[BarRow], span: tuple[float, float], width: int) -> Html:
    """Bars from the beginning of `span` to the right; what is less than that has none."""
    left, pitch = (250, 32) if width >= WIDE else (10, 46)
    area = Area(width, int(8 + pitch * len(rows) + 42), left=left, right=58, top=8, bottom=42)
    across = area.across(*span)
    bottom = area.height - area.bottom
    drawn = []
    for value in ticks(*span):
        drawn += [
            line(across(value), area.top, across(value), bottom, "grid"),
            text(across(value), bottom + 17, f"{value:g}"),
        ]
    for place, row in enumerate(rows):
        y = area.top + pitch * (place + 1) - 25
        drawn += [_name(row, area, y), *_bar(row, span, across, y)]
    drawn += [
        line(across(span[0]), area.top, across(span[0]), bottom, "axis"),
        text((area.left + area.width - area.right) / 2, bottom + 34, name, "axis-name"),
    ]
    said = "; ".join(f"{row.name} {row.value:.3f}" for row in rows)
    return svg(area, f"{name}: {said}.", *drawn)


def _name(row: BarRow, area: Area, y: float) -> Html:
    if area.width >= WIDE:
        return text(area.left - 10, y + 14, shortened(row.name, area.left - 16), "name", "end")
    return text(area.left, y - 4, shortened(row.name, area.width - 20), "name", "start")


def _bar(row: BarRow, span: tuple[float, float], across: Scale, y: float) -> list[Html]:
    value = min(max(row.value, span[0]), span[1])
    wide = max(1.0, across(value) - across(span[0]))
    shape: Attributes = {"x": across(span[0]), "y": y, "width": wide, "height": 18, "class": "bar federated"}
    drawn = [box(shape, f"{row.name}: {row.value:.3f}")]
    end = across(value)
    if row.interval is not None:
        low, high = (across(min(max(edge, span[0]), span[1])) for edge in row.interval)
        drawn += [line(low, y + 9, high, y + 9, "whisker")]
        drawn += [line(edge, y + 5, edge, y + 13, "whisker") for edge in (low, high)]
        end = max(end, high)
    if row.limit is not None and span[0] <= row.limit <= span[1]:
        at = across(row.limit)
        drawn.append(line(at, y - 1, at, y + 20, "reference"))
        if at - 8 < end + 46 and at + 8 > end:
            end = at  # the number is written beyond the dash, not through it
    drawn.append(text(end + 8, y + 14, f"{row.value:.3f}", "value", "start"))
    return drawn


def curve_chart(name: str, points: Sequence[tuple[float, float]], width: int) -> Html:
    """Members found against others taken for members; the dashed line is a coin."""
    area = Area(width, 260, right=16)
    across, up = area.across(0, 1), area.up(0, 1)
    floor = area.height - area.bottom
    drawn = level_axis(area, up, ticks(0, 1), lambda value: f"{value:g}")
    drawn += [text(across(value), floor + 17, f"{value:g}") for value in ticks(0, 1)]
    drawn += [
        line(area.left, floor, area.width - area.right, floor, "axis"),
        text((area.left + area.width - area.right) / 2, floor + 34, "others taken for members", "axis-name"),
        line(across(0), up(0), across(1), up(1), "reference"),
        path([(across(x), up(y)) for x, y in points], "curve"),
    ]
    middle = max(points, key=lambda point: point[1] - point[0])
    said = f"{name}: at best {middle[1]:.0%} of the members are found with {middle[0]:.0%} of the others."
    return svg(area, said, *drawn)


def utility_chart(report: CalibrationReport, width: int) -> Html:
    """AUC against ε on a logarithmic axis, with whiskers, and the level without privacy."""
    area = Area(width, 300 if width >= WIDE else 250, right=52, top=30)
    points = sorted(report.points, key=lambda point: point.promise.epsilon)
    shown = [value for point in points for value in (point.quality.auc_least, point.quality.auc_most)]
    low, high = min([*shown, report.without.auc]), max([*shown, report.without.auc])
    air = max(0.12 * (high - low), 0.01)
    up = area.up(max(0.0, low - air), min(1.0, high + air))
    first, last = (math.log(points[place].promise.epsilon) for place in (0, -1))
    across = area.across(first - 0.2, last + 0.2)
    floor, end = area.height - area.bottom, area.width - area.right
    drawn = level_axis(area, up, ticks(up.low, up.high), lambda value: f"{value:.3g}")
    level = up(report.without.auc)
    drawn += [
        line(area.left, floor, end, floor, "axis"),
        text((area.left + end) / 2, floor + 34, "ε (logarithmic)", "axis-name"),
        line(area.left, level, end, level, "reference"),
        line(area.left, 10, area.left + 26, 10, "reference"),
        text(area.left + 33, 14, f"without privacy {report.without.auc:.3f}", "tick", "start"),
    ]
    places = [(across(math.log(point.promise.epsilon)), up(point.quality.auc)) for point in points]
    drawn.append(path(places, "curve"))
    for point, (x, y) in zip(points, places, strict=True):
        quality = point.quality
        title = f"ε = {point.promise.epsilon:g}: AUC {quality.auc:.3f}"
        drawn += [
            line(x, up(quality.auc_least), x, up(quality.auc_most), "whisker"),
            element("circle", {"cx": x, "cy": y, "r": 3.5, "class": "dot"}, element("title", None, title)),
            text(x, floor + 17, f"{point.promise.epsilon:g}"),
        ]
    drawn.append(text(places[-1][0] + 8, places[-1][1] + 4, f"{points[-1].quality.auc:.3f}", "value", "start"))
    said = "; ".join(f"{point.quality.auc:.3f} at ε = {point.promise.epsilon:g}" for point in points)
    return svg(area, f"AUC by ε: {said}; {report.without.auc:.3f} without privacy.", *drawn)
