"""Whatever steps a session has, however its frames arrive, and whoever is lied to: exact sums, or nothing."""

import struct
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from federation_in_memory import AGGREGATOR_SEAL
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strict_stage import AGGREGATOR, SECRET, Stage

from cohortium_protocol.errors import BadSignature, ChainMismatch, IntegrityFault, RemoteFault, ResultRefused
from cohortium_protocol.strict.collector import StepResult, Taken
from cohortium_protocol.strict.exact import from_fixed, histogram_scale, scalar_sums, scalar_words, to_fixed
from cohortium_protocol.strict.frames import ResultOpener, ResultSealer, StepOpener, peek_step
from cohortium_protocol.strict.masks import open_sum
from cohortium_protocol.strict.session import Answer
from cohortium_protocol.strict.steps import Kind, join_relay, split_relay
from examples import examples

INT64 = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def wrapped(total: int) -> int:
    """A sum in the ring, read signed."""
    return (total + 2**63) % 2**64 - 2**63


@st.composite
def courses(draw: st.DrawFn) -> tuple[int, list[tuple[Kind, list[object]]]]:
    """A number of sites, and steps with what each site gives."""
    n = draw(st.integers(3, 6))
    steps: list[tuple[Kind, list[object]]] = []
    for kind in draw(st.lists(st.sampled_from(list(Kind)), min_size=1, max_size=5)):
        match kind:
            case Kind.SUM:
                words = draw(st.integers(1, 6))
                steps.append((kind, [draw(st.lists(INT64, min_size=words, max_size=words)) for _ in range(n)]))
            case Kind.RELAY:
                steps.append((kind, [draw(st.binary(max_size=20)) for _ in range(n)]))
            case Kind.AGREE:
                steps.append((kind, [draw(st.binary(max_size=20))] * n))
    return n, steps


def asked(stage: Stage, kind: Kind, given_by: Sequence[object]) -> list[bytes]:
    payloads = [np.array(one, dtype=np.int64) if kind is Kind.SUM else one for one in given_by]
    return [frame for made in stage.ask(kind, payloads) for frame in made]  # type: ignore[arg-type]


@settings(max_examples=examples(60), deadline=None)
@given(course=courses(), data=st.data())
def test_every_course_opens_exact_sums_whatever_order_and_repeats(
    course: tuple[int, list[tuple[Kind, list[object]]]], data: st.DataObject
) -> None:
    n, steps = course
    stage = Stage(n)
    for kind, given_by in steps:
        frames = asked(stage, kind, given_by)
        repeats = data.draw(st.lists(st.sampled_from(frames), max_size=4))
        arriving = data.draw(st.permutations(frames + repeats))
        taken = stage.collect(arriving)
        results = [one for one in taken if isinstance(one, StepResult)]
        assert len(results) == 1
        assert taken.count(Taken.KEPT) == n - 1
        for site in stage.sites:
            (shown,) = stage.seal(results[0])
            answer = site.take(shown)
            assert isinstance(answer, Answer)
            assert site.take(shown) is None
            match kind:
                case Kind.SUM:
                    columns = zip(*given_by, strict=True)  # type: ignore[call-overload]
                    assert answer.values().tolist() == [wrapped(sum(column)) for column in columns]
                case Kind.RELAY:
                    assert list(split_relay(answer.payload, n)) == given_by
                case Kind.AGREE:
                    assert results[0].agreed == given_by[0]
            assert site.chain == stage.collector.chain


@settings(max_examples=30, deadline=None)
@given(n=st.integers(3, 6), data=st.data())
def test_a_site_shown_another_result_is_in_no_sum_any_more(n: int, data: st.DataObject) -> None:
    stage = Stage(n)
    values = [data.draw(st.lists(INT64, min_size=4, max_size=4)) for _ in range(n)]
    result = stage.collect(asked(stage, Kind.SUM, values))[-1]
    assert isinstance(result, StepResult)
    lie = data.draw(st.binary(min_size=32, max_size=32))
    assume(lie != result.payload)
    fooled = data.draw(st.sets(st.integers(1, n), min_size=1, max_size=n - 1))
    honest = stage.seal(result)[0]
    (lying,) = ResultSealer(stage.view, SECRET, AGGREGATOR).seal(result.step, result.kind, result.chain, lie)
    for index, site in enumerate(stage.sites, 1):
        site.take(lying if index in fooled else honest)
    frames = asked(stage, Kind.SUM, values)
    words = sum(np.frombuffer(stage.opener.open(frame).content, dtype="<u8") for frame in frames)
    with pytest.raises(IntegrityFault):
        open_sum(words, n)
    with pytest.raises(ChainMismatch):
        stage.collect(frames)


@settings(max_examples=examples(150), deadline=None)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.integers(0, 200), noise=st.binary(max_size=300))
def test_no_bytes_from_outside_raise_anything_but_a_refusal(at: int, bit: int, cut: int, noise: bytes) -> None:
    stage = FIXED
    step, result = FRAMES
    for frame, opener in ((step, StepOpener(stage.view, AGGREGATOR_SEAL)), (result, RESULTS)):
        changed = bytearray(frame)
        changed[at % len(frame)] ^= 1 << bit
        for wrong in (bytes(changed), frame[: cut % len(frame)], noise, frame[:68] + noise):
            with pytest.raises(RemoteFault):
                opener.open(wrong)
    try:
        header = peek_step(noise)
    except RemoteFault:
        return
    assert header.part < header.parts


def _frames() -> tuple[bytes, bytes]:
    frames = asked(FIXED, Kind.SUM, [[1, 2], [3, 4], [5, 6]])
    result = FIXED.collect(frames)[-1]
    assert isinstance(result, StepResult)
    return frames[0], FIXED.seal(result)[0]


FIXED = Stage(3)
FRAMES = _frames()
RESULTS = ResultOpener(FIXED.view, SECRET, AGGREGATOR.public)


def test_the_unchanged_frames_open() -> None:
    """So that the test above refuses because of what it changed."""
    assert StepOpener(FIXED.view, AGGREGATOR_SEAL).open(FRAMES[0]).header.index == 1
    assert RESULTS.open(FRAMES[1]).header.length == 16
    with pytest.raises(BadSignature):
        RESULTS.open(FRAMES[0] + bytes(100))


@given(st.lists(st.binary(max_size=30), max_size=8))
def test_relays_come_apart_as_they_were_joined(contents: list[bytes]) -> None:
    assert list(split_relay(join_relay(contents), len(contents))) == contents


@given(st.binary(max_size=60), st.integers(0, 8))
def test_other_bytes_are_no_relay(payload: bytes, n: int) -> None:
    try:
        contents = split_relay(payload, n)
    except ResultRefused:
        return
    assert join_relay(contents) == payload


@settings(max_examples=examples(300))
@given(st.lists(FLOATS, min_size=1, max_size=200))
def test_a_sum_of_floats_is_exact_and_rounded_once(numbers: list[float]) -> None:
    exact = sum(Fraction(number) for number in numbers)
    try:
        expected = exact.numerator / exact.denominator
    except OverflowError:
        assume(False)
    (found,) = scalar_sums(sum(scalar_words([number]) for number in numbers))
    assert struct.pack("<d", found) == struct.pack("<d", expected)


@given(st.integers(1, 1 << 40), st.floats(1e-12, 1e12))
def test_the_scale_is_the_largest_that_cannot_overflow(rows: int, bound: float) -> None:
    scale, largest = histogram_scale(rows, bound), Fraction(bound) * rows
    assert largest * Fraction(2) ** scale <= 2**62
    assert scale == 60 or largest * Fraction(2) ** (scale + 1) > 2**62


@settings(max_examples=examples(200))
@given(
    sites=st.lists(st.tuples(st.integers(1, 10**6), st.floats(-1, 1)), min_size=3, max_size=8),
    bound=st.floats(1e-6, 1e6),
)
def test_a_cell_is_off_by_half_a_unit_for_each_site_and_never_overflows(
    sites: list[tuple[int, float]], bound: float
) -> None:
    scale = histogram_scale(sum(rows for rows, _ in sites), bound)
    cells = [(rows * bound * share, rows * bound) for rows, share in sites]
    words = [to_fixed(np.array([cell]), scale, limit) for cell, limit in cells]
    exact = sum(int(word[0]) for word in words)
    assert exact == int(sum(words)[0])
    unit = Fraction(2) ** -scale
    assert abs(exact * unit - sum(Fraction(cell) for cell, _ in cells)) <= len(cells) * unit / 2
    back = float(from_fixed(sum(words), scale)[0])
    assert abs(Fraction(back) - exact * unit) <= abs(Fraction(np.spacing(back))) / 2
