"""What a model of trees looks at: its features by importance, as a chart and as a table."""

from cohortium_messages.result import Result
from cohortium_messages.runs import FeatureImportance
from cohortium_sim.charts import WIDE, Area, Scale, both, box, line, shortened, svg, text, ticks
from cohortium_sim.metric_words import plain
from cohortium_sim.report_html import Attributes, Column, Html, folded, paragraph, table
from cohortium_sim.report_page import section

MOST_BARS = 20
"""Features of a chart; the table has them all."""


def importance(result: Result) -> Html | None:
    """Which features the trees use, and how much; nothing for models without trees."""
    federated = result.metrics.federated
    if federated is None or not federated.importance:
        return None
    explained = any(one.shap is not None for one in federated.importance)
    ranked = sorted(federated.importance, key=lambda one: (-_length(one, explained), -one.gain, one.name))
    drawn = [one for one in ranked[:MOST_BARS] if _length(one, explained) > 0]
    words = (
        "How far a feature moves the score of a test row, up or down, in the mean of all sites' test rows: mean "
        "|SHAP|, on the scale of the raw score. Sites sent masked sums of it."
        if explained
        else "How much the splits on a feature improved the loss on summed histograms: their gain."
    )
    rows = [[one.name, plain(one.shap), plain(one.gain), f"{one.splits:,}"] for one in ranked]
    columns = [Column("Feature"), *(Column(head, "number") for head in ("Mean |SHAP|", "Gain", "Splits"))]
    return section(
        "importance",
        "What the trees look at",
        paragraph(words, f" The {MOST_BARS} that count most." if len(ranked) > MOST_BARS else ""),
        both(lambda width: importance_chart(drawn, explained, width)) if drawn else None,
        folded("All features as a table", table("Importance of the features", columns, rows)),
    )


def _length(one: FeatureImportance, explained: bool) -> float:
    return (one.shap or 0.0) if explained else one.gain


def importance_chart(drawn: list[FeatureImportance], explained: bool, width: int) -> Html:
    """A bar from zero for each feature, the longest first."""
    left, pitch = (164, 26) if width >= WIDE else (10, 40)
    area = Area(width, int(8 + pitch * len(drawn) + 42), left=left, right=66, top=8, bottom=42)
    across = area.across(0.0, _length(drawn[0], explained))
    bottom = area.height - area.bottom
    grid = []
    for value in ticks(0.0, across.high, 4):
        grid += [
            line(across(value), area.top, across(value), bottom, "grid"),
            text(across(value), bottom + 17, plain(value) if value else "0"),
        ]
    name = "mean |SHAP|" if explained else "gain"
    grid.append(text((area.left + width - area.right) / 2, bottom + 34, name, "axis-name"))
    bars = [
        part
        for place, one in enumerate(drawn)
        for part in _bar(one.name, _length(one, explained), area, across, area.top + pitch * (place + 1) - 19)
    ]
    said = "; ".join(f"{one.name} {plain(_length(one, explained))}" for one in drawn)
    return svg(area, f"Features by {name}: {said}.", *grid, *bars)


def _bar(name: str, value: float, area: Area, across: Scale, y: float) -> list[Html]:
    if area.width >= WIDE:
        label = text(area.left - 10, y + 12, shortened(name, area.left - 16), "name", "end")
    else:
        label = text(area.left, y - 4, shortened(name, area.width - 20), "name", "start")
    end = across(value)
    place: Attributes = {
        "x": area.left,
        "y": y,
        "width": max(1.0, end - area.left),
        "height": 15,
        "class": "bar federated",
    }
    return [label, box(place, f"{name}: {plain(value)}"), text(end + 8, y + 12, plain(value), "value", "start")]
