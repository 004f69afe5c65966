"""Two charts of single models: the comparison of federated, pooled and local ones, and the calibration line."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cohortium_messages.result import CalibrationResult, MetricsResult, MetricsTable
from cohortium_sim.charts import WIDE, Area, Scale, box, level_axis, line, path, shortened, svg, text, ticks
from cohortium_sim.metric_words import MetricWord
from cohortium_sim.report_html import Attributes, Html
from cohortium_sim.report_words import clean

_MOST_LOCAL = 16
_BEGINNINGS = {"auc": "0.5 is chance", "r2": "0 is the label's mean"}


@dataclass(frozen=True, slots=True)
class Bar:
    """One model's value and how far its true one may be from it. `kind`: federated, pooled or local."""

    name: str
    kind: str
    value: float
    bound: float


def bars(table: MetricsTable, word: MetricWord) -> tuple[Bar, ...]:
    """The models that have this metric: federated, pooled, bagging, then the sites' own by value; of many the best and
    worst."""
    found = [
        *_bar("federated", "federated", table.federated, word),
        *_bar("pooled", "pooled", table.pooled, word),
        *_bar("bagging", "local", table.bagging, word),
    ]
    local = [
        bar for name, metrics in table.local.items() for bar in _bar(f"only {clean(name)}", "local", metrics, word)
    ]
    local.sort(key=lambda bar: (-bar.value, bar.name))
    if len(local) > _MOST_LOCAL:
        local = [*local[: _MOST_LOCAL // 2], *local[-_MOST_LOCAL // 2 :]]
    return (*found, *local)


def _bar(name: str, kind: str, metrics: MetricsResult | None, word: MetricWord) -> Iterable[Bar]:
    value = word.of(metrics)
    if metrics is not None and value is not None:
        yield Bar(name, kind, value, word.bound(metrics))


def bar_chart(found: tuple[Bar, ...], word: MetricWord, width: int) -> Html:
    """Bars to the right of what a model is worth that has learnt nothing, or to the left of it, with their bounds as
    whiskers."""
    begin = word.useless or 0.0
    left, pitch = (164, 30) if width >= WIDE else (10, 44)
    area = Area(width, int(8 + pitch * len(found) + 42), left=left, right=58, top=8, bottom=42)
    least = min([begin, *(max(-1.0, bar.value - bar.bound) for bar in found)])
    across = area.across(math.floor(least * 10 + 1e-9) / 10, 1.0)
    bottom = area.height - area.bottom
    drawn = []
    for value in ticks(across.low, 1.0):
        drawn += [
            line(across(value), area.top, across(value), bottom, "grid"),
            text(across(value), bottom + 17, f"{value:.1f}"),
        ]
    for place, bar in enumerate(found):
        y = area.top + pitch * (place + 1) - 23
        drawn += [*_bar_name(bar, area, y), *_bar_drawn(bar, word, across, y)]
    zero = across(begin)
    at, anchor = (4.0, "start") if zero < 60 else (zero, "middle")
    drawn += [
        line(zero, area.top, zero, bottom, "axis"),
        text(at, bottom + 34, _BEGINNINGS.get(word.field, word.name), "axis-name", anchor),
    ]
    said = "; ".join(f"{bar.name} {bar.value:.3f}" for bar in found)
    return svg(area, f"{word.name} by model: {said}.", *drawn)


def _bar_name(bar: Bar, area: Area, y: float) -> list[Html]:
    if area.width >= WIDE:
        return [text(area.left - 10, y + 13, shortened(bar.name, area.left - 16), "name", "end")]
    return [text(area.left, y - 4, shortened(bar.name, area.width - 20), "name", "start")]


def _bar_drawn(bar: Bar, word: MetricWord, across: Scale, y: float) -> list[Html]:
    """The bar; one that is far below zero, as R² can be, ends where the chart does."""
    shown = max(bar.value, across.low)
    start, end = sorted((across(word.useless or 0.0), across(shown)))
    title = f"{bar.name}: {word.name} {bar.value:.3f}"
    place: Attributes = {"x": start, "y": y, "width": max(1.0, end - start), "height": 18, "class": f"bar {bar.kind}"}
    low, high = across(shown - bar.bound), across(min(1.0, shown + bar.bound))
    drawn = [box(place, title)]
    if bar.bound:
        drawn += [
            line(low, y + 9, high, y + 9, "whisker"),
            line(low, y + 5, low, y + 13, "whisker"),
            line(high, y + 5, high, y + 13, "whisker"),
        ]
    drawn.append(text(max(end, high) + 8, y + 13, f"{bar.value:.3f}", "value", "start"))
    return drawn


def calibration_chart(calibration: CalibrationResult, width: int) -> Html:
    """The fitted line of outcome on score, against the diagonal of a model whose scores are frequencies."""
    area = Area(width, min(width, 360), right=16)
    across, up = area.across(0, 1), area.up(0, 1)
    levels = ticks(0, 1)
    bottom = area.height - area.bottom
    drawn = level_axis(area, up, levels, lambda value: f"{value:.1f}")
    drawn += [text(across(value), bottom + 17, f"{value:.1f}") for value in levels]
    drawn += [
        text((area.left + area.width - area.right) / 2, bottom + 34, "score of the model", "axis-name"),
        line(across(0), up(0), across(1), up(1), "reference"),
        text(area.left + 8, area.top + 14, "share with the outcome", "axis-name", "start"),
    ]
    if calibration.slope is not None and calibration.intercept is not None:
        scores = [place / 50 for place in range(1, 50)]
        fitted = [_fitted(score, calibration.slope, calibration.intercept) for score in scores]
        drawn.append(path([(across(score), up(share)) for score, share in zip(scores, fitted, strict=True)], "curve"))
    return svg(area, "Fitted share of rows with the outcome by score, against the diagonal.", *drawn)


def _fitted(score: float, slope: float, intercept: float) -> float:
    odds = intercept + slope * math.log(score / (1 - score))
    return 1 / (1 + math.exp(-max(-40.0, min(40.0, odds))))
