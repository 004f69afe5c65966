"""The small chart module: axes that read well, and nothing drawn outside of its image."""

import math
import re
from itertools import pairwise

import pytest
import sample_run
from hypothesis import given
from hypothesis import strategies as st

from cohortium_sim.charts import (
    NARROW,
    WIDE,
    ColumnChart,
    ColumnSeries,
    LineChart,
    Point,
    column_chart,
    line_chart,
    thinned,
    ticks,
    whole_ticks,
)
from cohortium_sim.report_html import element, figure
from cohortium_sim.report_lanes import Part, lane_chart, lanes
from cohortium_sim.report_words import byte_count, clean, duration, ranges

finite = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)


@given(finite, st.floats(min_value=1e-3, max_value=1e6))
def test_ticks_are_few_even_and_within(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-6 * span <= value <= low + span * (1 + 1e-6) for value in found)
    steps = [after - before for before, after in pairwise(found)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-3) for step in steps)


@given(st.integers(1, 50), st.integers(0, 5000), st.integers(2, 12))
def test_round_ticks_begin_with_the_first_and_end_with_the_last(low: int, span: int, most: int) -> None:
    found = whole_ticks(low, low + span, most)
    assert (found[0], found[-1]) == (low, low + span)
    assert list(found) == sorted(set(found))
    assert len(found) <= most + 3


@given(st.lists(st.integers(), min_size=2), st.integers(2, 50))
def test_thinning_keeps_the_first_and_the_last(values: list[int], most: int) -> None:
    found = thinned(values, most)
    assert len(found) == min(most, len(values))
    assert (found[0], found[-1]) == (values[0], values[-1])


@pytest.mark.parametrize(
    ("numbers", "shown"), [([], "–"), ([4], "4"), ([1, 2, 3, 7, 9, 10], "1–3, 7, 9–10")], ids=["none", "one", "some"]
)
def test_rounds_are_listed_as_ranges(numbers: list[int], shown: str) -> None:
    assert ranges(numbers) == shown


@pytest.mark.parametrize(("value", "shown"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB")])
def test_bytes_have_a_unit(value: float, shown: str) -> None:
    assert byte_count(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.4242, "0.42 s"), (9.999, "10.0 s"), (99.99, "1 min 40 s"), (11220, "3 h 07 min")]
)
def test_times_have_a_unit(value: float, shown: str) -> None:
    assert duration(value) == shown


@given(st.floats(min_value=-1e5, max_value=1e5))
def test_coordinates_are_short_and_true(value: float) -> None:
    shown = figure(value)
    assert abs(float(shown) - value) <= 0.0051
    assert "e" not in shown
    assert shown != "-0"


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [0.0, 1.0], [0.9, 0.1, 0.9]])
def test_a_line_stays_in_its_image(width: int, values: list[float]) -> None:
    points = tuple(
        Point(place, value, max(0.0, value - 0.3), min(1.0, value + 0.3)) for place, value in enumerate(values, start=1)
    )
    inside(line_chart(LineChart("AUC", points, last_round=30, reference=0.7, reference_name="pooled"), width), width)


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("rounds", [1, 30, 2500])
def test_columns_stay_in_their_image(width: int, rounds: int) -> None:
    values = tuple(float(number % 7) for number in range(rounds))
    series = (ColumnSeries("up", "first", values), ColumnSeries("down", "second", values))
    drawn = column_chart(ColumnChart("Bytes", tuple(range(1, rounds + 1)), rounds, series, byte_count), width)
    inside(drawn, width)
    assert drawn.count("<rect") <= 2 * width


def test_columns_of_nothing_are_flat() -> None:
    series = (ColumnSeries("time", "first", (0.0, 0.0)),)
    inside(column_chart(ColumnChart("Time", (1, 2), 2, series, duration), WIDE), WIDE)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_lanes_stay_in_their_image_and_miss_nobody(width: int) -> None:
    result = sample_run.result()
    found = lanes(result)
    assert [lane.site for lane in found] == list(sample_run.SITES)
    assert found[2].parts[6] is Part.DROPPED
    assert found[1].parts[18] is Part.REFUSED
    inside(lane_chart(found, [round_.number for round_ in result.rounds], width), width)


def inside(svg: str, width: int) -> None:
    box = re.search(r'viewBox="0 0 (\d+) (\d+)"', svg)
    assert box is not None
    assert int(box[1]) == width
    for name, most in (
        ("x", int(box[1])),
        ("x1", int(box[1])),
        ("x2", int(box[1])),
        ("y", int(box[2])),
        ("y2", int(box[2])),
    ):
        for value in re.findall(rf' {name}="([^"]+)"', svg):
            assert -0.01 <= float(value) <= most + 0.01
    for path in re.findall(r' d="([^"]+)"', svg):
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path):
            assert 0 <= float(x) <= int(box[1])
            assert 0 <= float(y) <= int(box[2])


def test_an_event_attribute_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="attribute"):
        element("p", {"onclick": "alert(1)"})


@given(st.text())
def test_cleaned_text_is_one_line_without_controls(text: str) -> None:
    shown = clean(text)
    assert shown == clean(shown)
    assert all(char.isprintable() or char == "\u00ad" or ord(char) > 0x7F for char in shown)
    assert "\x1b" not in shown
