"""Swim-lanes: one lane for each site, one cell for each round, the state told by shape as well as by colour."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from cohortium_messages.result import Result, RoundResult
from cohortium_sim.charts import WIDE, Area, Scale, box, line, round_axis, shortened, svg, text
from cohortium_sim.report_html import Html, element
from cohortium_sim.report_words import clean

_LEAST_CELL = 8
"""Pixels below which a cell has no room for its mark: then runs of equal cells are drawn as blocks."""
_BLOCK = 18
_LEGEND = 30


class Part(StrEnum):
    """What a site had to do with a round."""

    IN_SUM = "in-sum"
    DROPPED = "dropped"
    REFUSED = "refused"
    ABSENT = "absent"


WORDS = {
    Part.IN_SUM: "in the sum",
    Part.DROPPED: "dropped: in the cohort, not in the sum",
    Part.REFUSED: "refused",
    Part.ABSENT: "not in the cohort",
}


@dataclass(frozen=True, slots=True)
class Lane:
    """A site's part in each of the run's rounds, in their order."""

    site: str
    parts: tuple[Part, ...]


def lanes(result: Result) -> tuple[Lane, ...]:
    """A lane for each member, and for each other site that a round names."""
    names = [site.name for site in result.sites]
    for round_ in result.rounds:
        names += [*round_.cohort, *round_.dropped, *round_.refused]
    return tuple(Lane(name, tuple(_part(name, round_) for round_ in result.rounds)) for name in dict.fromkeys(names))


def _part(name: str, round_: RoundResult) -> Part:
    if name in round_.cohort:
        return Part.IN_SUM
    if name in round_.dropped:
        return Part.DROPPED
    return Part.REFUSED if name in round_.refused else Part.ABSENT


def lane_chart(found: Sequence[Lane], rounds: Sequence[int], width: int) -> Html:
    """All lanes above one axis of rounds, and what the shapes mean below it."""
    wide = width >= WIDE
    left, pitch = (164, 28) if wide else (10, 42)
    legend = _LEGEND if wide else 2 * _LEGEND
    area = Area(width, int(8 + pitch * len(found) + 44 + legend), left=left, right=10, top=8, bottom=44 + legend)
    last = max(2, rounds[-1])
    across = area.across(rounds[0] - 0.5, last + 0.5)
    marked = across(1) - across(0) >= _LEAST_CELL
    drawn = []
    for place, lane in enumerate(found):
        y = area.top + pitch * (place + 1) - _BLOCK - 4
        drawn += _name(lane.site, area, y) if wide else _name_above(lane.site, area, y)
        if not marked:
            drawn.append(line(area.left, y + _BLOCK / 2, area.width - area.right, y + _BLOCK / 2, "grid"))
        drawn += _cells(lane, rounds, across, y) if marked else _blocks(lane, rounds, across, y)
    drawn += round_axis(area, across, rounds[0], last)
    drawn += _legend(area, "mark" if marked else "block")
    return svg(area, f"Part of {len(found)} sites in {len(rounds)} rounds; the table below says the same.", *drawn)


def _name(site: str, area: Area, y: float) -> list[Html]:
    words = shortened(clean(site), area.left - 16)
    return [text(area.left - 10, y + 13, words, "name", "end")]


def _name_above(site: str, area: Area, y: float) -> list[Html]:
    return [text(area.left, y - 4, shortened(clean(site), area.width - 20), "name", "start")]


def _cells(lane: Lane, rounds: Sequence[int], across: Scale, y: float) -> Iterator[Html]:
    for number, part in zip(rounds, lane.parts, strict=True):
        x, right = across(number - 0.5) + 1, across(number + 0.5) - 1
        title = f"{lane.site}, round {number}: {WORDS[part]}"
        yield element("g", None, element("title", None, title), *_mark(part, x, y, right - x))


def _mark(part: Part, x: float, y: float, width: float) -> Iterator[Html]:
    """In the sum: full. Dropped: a frame with a cross. Refused: a frame with a bar. Not in the cohort: a dot."""
    place = {"x": x, "y": y, "width": width, "height": _BLOCK, "rx": 2}
    centre, middle, arm = x + width / 2, y + _BLOCK / 2, min(4.0, width / 2 - 1.5)
    if part is Part.ABSENT:
        yield element("circle", {"cx": centre, "cy": middle, "r": 2, "class": "cell absent"})
        return
    yield box({**place, "class": f"cell {part.value}"})
    if part is Part.DROPPED:
        yield line(centre - arm, middle - arm, centre + arm, middle + arm, "stroke dropped")
        yield line(centre - arm, middle + arm, centre + arm, middle - arm, "stroke dropped")
    elif part is Part.REFUSED:
        yield line(centre - arm, middle, centre + arm, middle, "stroke refused")


def _blocks(lane: Lane, rounds: Sequence[int], across: Scale, y: float) -> Iterator[Html]:
    for part, run in groupby(zip(rounds, lane.parts, strict=True), key=lambda pair: pair[1]):
        numbers = [number for number, _ in run]
        if part is not Part.ABSENT:
            x, right = across(numbers[0] - 0.5), across(numbers[-1] + 0.5)
            title = f"{lane.site}, rounds {numbers[0]} to {numbers[-1]}: {WORDS[part]}"
            yield _block(part, x, y, max(1.0, right - x), title)


def _block(part: Part, x: float, y: float, width: float, title: str | None = None) -> Html:
    """In the sum: full height. Dropped: the lower half. Refused: the upper half."""
    top = y + _BLOCK / 2 if part is Part.DROPPED else y
    height = _BLOCK if part is Part.IN_SUM else _BLOCK / 2
    return box({"x": x, "y": top, "width": width, "height": height, "class": f"block {part.value}"}, title)


def _legend(area: Area, style: str) -> Iterator[Html]:
    """The four shapes with their words, in one row or in two."""
    columns = 4 if area.width >= WIDE else 2
    short = {**WORDS, Part.DROPPED: "dropped"}
    step = (area.width - 20) / columns
    top = area.height - (_LEGEND if columns == 4 else 2 * _LEGEND) + 8
    for place, part in enumerate(Part):
        x, y = 10 + step * (place % columns), top + (place // columns) * 26
        if style == "mark":
            yield from _mark(part, x, y, 16)
        elif part is not Part.ABSENT:
            yield _block(part, x, y, 16)
        else:
            yield line(x, y + _BLOCK / 2, x + 16, y + _BLOCK / 2, "grid")
        yield text(x + 24, y + 13, short[part], "name", "start")
