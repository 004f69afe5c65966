"""Splits, journals and bins of a training session, whatever their contents."""

import math
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium_connector.training.course import Course, UnknownCollective
from cohortium_connector.training.journal import Beginning, Journal, JournalUnusable
from cohortium_connector.training.splits import Column, SplitRefused, Splits
from cohortium_messages.study import BinaryLabel
from cohortium_protocol.trees.bins import Binning, CategoryBins, NumberBins
from examples import examples

OWNER = bytes(32)
FORM = struct.Struct("<iiidIddddqddqBbi")
CATEGORIES = 3
SIZE = FORM.size + 4 * CATEGORIES
RULES = Splits((Column(9, False), Column(7, True), Column(4, False)), CATEGORIES)

finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, (1 << 30) - 1)


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """One that LightGBM may be given, with anything behind it."""
    feature = draw(st.sampled_from([-1, 0, 1, 2]))
    gain = draw(finite) if feature >= 0 else -math.inf
    chosen = draw(st.lists(st.integers(0, 6), min_size=1, max_size=CATEGORIES)) if feature == 1 else []
    numbers = [draw(finite) for _ in range(6)]
    threshold = draw(st.integers(0, 3))
    head = FORM.pack(
        feature, draw(counts), draw(counts), gain, threshold, *numbers[:4], 0, *numbers[4:], 0, 1, 0, len(chosen)
    )
    used = head + struct.pack(f"<{len(chosen)}I", *chosen)
    return used + draw(st.binary(min_size=SIZE - len(used), max_size=SIZE - len(used)))


pairs = st.tuples(records(), records()).map(b"".join)


def lightgbm_chooses(found: list[bytes]) -> bytes:
    """`SyncUpGlobalBestSplit`: one after the other, by `SplitInfo::operator>`."""

    def better(first: bytes, second: bytes) -> bool:
        (feature, _, _, gain), (other, _, _, other_gain) = FORM.unpack_from(first)[:4], FORM.unpack_from(second)[:4]
        if gain != other_gain:
            return bool(gain > other_gain)
        return (feature if feature >= 0 else 1 << 31) < (other if other >= 0 else 1 << 31)

    best = found[0]
    for record in found[1:]:
        if better(record, best):
            best = record
    return best


@given(st.lists(pairs, min_size=1, max_size=6))
def test_the_best_splits_are_lightgbms_choice_without_what_lies_behind_them(found: list[bytes]) -> None:
    wiped = [RULES.wiped(pair) for pair in found]
    best = RULES.best(tuple(found))
    assert best == RULES.best(tuple(wiped)) == RULES.wiped(best)
    for half in (slice(SIZE), slice(SIZE, None)):
        assert best[half] == lightgbm_chooses([pair[half] for pair in wiped])
    for pair, clean in zip(found, wiped, strict=True):
        for start in (0, SIZE):
            (categories,) = struct.unpack_from("<i", pair, start + 90)
            used = FORM.size + 4 * categories
            assert clean[start : start + used] == pair[start : start + used]
            assert not clean[start + used : start + SIZE].strip(b"\0")


@given(st.binary(min_size=2 * SIZE, max_size=2 * SIZE))
def test_whatever_passes_for_a_split_stays_inside_the_bins(pair: bytes) -> None:
    try:
        best = RULES.best((pair,))
    except SplitRefused:
        return
    for start in (0, SIZE):
        fields = FORM.unpack_from(best, start)
        assert fields[0] == -1 or fields[3] == -math.inf or 0 <= fields[0] < 3
        assert 0 <= fields[-1] <= CATEGORIES


@settings(max_examples=examples(40), deadline=None)
@given(st.data(), st.lists(st.binary(max_size=40), min_size=1, max_size=8))
def test_a_journal_cut_anywhere_is_gone_on_with_or_refused(data: st.DataObject, trees: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        journal = Journal.begin(path, OWNER, Beginning(0, bytes(32), b""))
        ends = []
        for round_, text in enumerate(trees, start=1):
            journal.note(5, text[::-1])
            journal.note_round(round_, bytes([round_]) * 32, text)
            ends.append(path.stat().st_size)
        journal.close()
        cut = data.draw(st.integers(0, ends[-1]))
        wanted = data.draw(st.integers(1, len(trees)))
        path.write_bytes(path.read_bytes()[:cut])
        if cut < ends[wanted - 1]:
            with pytest.raises(JournalUnusable):
                Journal.resume(path, OWNER, wanted, bytes([wanted]) * 32)
            return
        again = Journal.resume(path, OWNER, wanted, bytes([wanted]) * 32)
        for round_, text in enumerate(trees[:wanted], start=1):
            assert again.replaying
            assert again.take(5) == text[::-1]
            again.take_round(round_, text)
        assert not again.replaying
        again.close()


@given(st.lists(st.sampled_from([4, 8, 24, 444, -160, 0]), max_size=30))
def test_no_course_lets_a_collective_pass_at_a_place_of_another_size(sizes: list[int]) -> None:
    """0 begins a round, a negative number is a reduce-scatter of so many bytes."""
    course = Course("binary", classes=1, starts_from_average=True, starts_from_model=False, split_bytes=444)
    expected = {"COUNT": 4, "TOTAL": 8, "MEAN": 8, "SAME": 8, "ROOT": 24, "SPLITS": 444}
    for size in sizes:
        try:
            if size == 0:
                course.begin_round()
            elif size < 0:
                course.scattered(-size, 160)
            else:
                assert expected[course.gathered(size).name] == size
        except UnknownCollective:
            return


def _apart(drawn: list[float]) -> list[float]:
    """In order, without neighbours among the floating-point numbers: those are one number to LightGBM."""
    kept: list[float] = []
    for edge in sorted(drawn):
        if not kept or edge > math.nextafter(kept[-1], math.inf):
            kept.append(edge)
    return kept


edges = st.lists(
    st.one_of(
        st.floats(-1e6, 1e6),
        st.integers(-50, 50).map(float),
        st.sampled_from([0.0, -0.0, 1e-36, -1e-36, 1e-30, 0.5, -0.5]),
    ),
    max_size=40,
    unique_by=lambda edge: edge + 0.0,
).map(_apart)


@st.composite
def features(draw: st.DrawFn) -> NumberBins:
    borders = draw(edges)
    low = (borders[0] if borders else 0.0) - draw(st.sampled_from([0.0, 1.0, 1e3]))
    high = (borders[-1] if borders else 0.0) + draw(st.sampled_from([0.5, 1.0, 1e3]))
    missing = draw(st.sampled_from(["refuse", "native"]))
    return NumberBins.model_validate(
        {"name": "x", "low": low, "high": high, "whole": False, "edges": borders, "missing": missing}
    )


@settings(max_examples=examples(60), deadline=None)
@given(features(), st.integers(2, 256), st.sampled_from(["refuse", "level", "native"]))
def test_lightgbm_takes_any_bins_as_they_were_published(number: NumberBins, levels: int, missing: str) -> None:
    """Edges on both sides of zero, at zero, next to it; ranges on one side of it; no edge at all; many levels."""
    lightgbm_ = pytest.importorskip(
        "cohortium_connector.training.lightgbm_", reason="the training extra is not installed"
    )
    category = CategoryBins.model_validate(
        {"name": "c", "levels": [str(place) for place in range(levels)]} | {"missing": missing}
    )
    binning = Binning(
        study_id="s",
        study_digest=bytes(32),
        features=(number, category),
        label=BinaryLabel(name="y", type="binary"),
        training_rows=1,
        sites=3,
    )
    bins = lightgbm_.make_bins(binning)
    assert bins.columns[1].bins == category.codes + 1
    apart = [edge for edge in number.edges if abs(edge) > 1.1e-35]
    assert len(apart) <= bins.columns[0].bins or not apart
    assert bins.histogram_bytes == 16 * sum(column.bins for column in bins.columns)


def test_rows_fall_into_the_published_bins() -> None:
    """A tree of one split for each border, learnt on rows beside the borders, has these borders as thresholds."""
    lightgbm_ = pytest.importorskip(
        "cohortium_connector.training.lightgbm_", reason="the training extra is not installed"
    )
    borders = (-3.7, -1.25, 0.3, 0.3000000001, 2.0, 1e5 / 3)
    number = NumberBins(name="x", low=-10, high=1e5, whole=False, edges=borders, missing="refuse")
    binning = Binning(
        study_id="s",
        study_digest=bytes(32),
        features=(number,),
        label=BinaryLabel(name="y", type="binary"),
        training_rows=1,
        sites=3,
    )
    bins = lightgbm_.make_bins(binning)
    values = np.array([value for border in borders for value in (border, np.nextafter(border, np.inf))])
    levels = np.searchsorted(borders, values, side="left").astype(float)
    data = lightgbm_.training_set(bins, np.repeat(values, 30)[:, None], np.repeat(levels, 30))
    booster = lightgbm_.make_booster(
        bins.parameters | {"objective": "regression", "num_leaves": 31, "min_data_in_leaf": 1, "learning_rate": 1.0},
        data,
    )
    booster.update()
    nodes = booster.trees_to_dataframe()
    assert {float(value) for value in nodes["threshold"].dropna()} == set(borders)
    assert np.allclose(booster.predict(values[:, None]), levels)
