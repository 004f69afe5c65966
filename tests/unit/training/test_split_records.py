"""Records of splits: what is wiped from our own, what is refused from others, and which is the best."""

import math
import struct
from typing import Any

import pytest

from cohortium_connector.training.course import UnknownCollective
from cohortium_connector.training.splits import Column, SplitRefused, Splits

RULES = Splits((Column(10, False), Column(0, False), Column(5, True)), max_categories=4)
SIZE = 94 + 4 * 4
FORM = struct.Struct("<iiidIddddqddqBbi")


def record(
    feature: int = 0, gain: float = 1.0, categories: tuple[int, ...] = (), tail: bytes = b"", **more: Any
) -> bytes:
    fields = {
        "left": 5,
        "right": 6,
        "threshold": 3,
        "outputs": (0.5, -0.5),
        "left_sums": (1.0, 2.0),
        "right_sums": (3.0, 4.0),
        "default_left": 1,
        "monotone": 0,
        "count": len(categories),
    } | more
    head = FORM.pack(
        feature,
        fields["left"],
        fields["right"],
        gain,
        fields["threshold"],
        *fields["outputs"],
        *fields["left_sums"],
        0,
        *fields["right_sums"],
        0,
        fields["default_left"],
        fields["monotone"],
        fields["count"],
    )
    data = head + struct.pack(f"<{len(categories)}I", *categories)
    return (data + tail).ljust(SIZE, b"\0")[:SIZE]


NONE = record(-1, -math.inf, left=0, right=0)


def test_sizes_are_those_of_lightgbm() -> None:
    assert FORM.size == 94
    assert RULES.pair_bytes == 2 * SIZE == len(RULES.none)
    assert RULES.best((RULES.none,)) == RULES.none


def test_what_lies_behind_a_split_is_wiped() -> None:
    secret = bytes(range(1, 17))
    pair = record(0, 2.0, tail=secret) + record(2, 3.0, (1, 4), tail=secret)
    assert RULES.wiped(pair) == record(0, 2.0) + record(2, 3.0, (1, 4))
    assert RULES.wiped(record(-1, -math.inf, tail=secret) + record(0, tail=secret))[94:SIZE] == bytes(16)


def test_the_best_of_each_leaf_is_chosen_on_its_own() -> None:
    first = record(0, 2.0) + record(2, 5.0, (1,))
    second = record(2, 3.0, (0, 2)) + NONE
    assert RULES.best((first, second)) == record(2, 3.0, (0, 2)) + record(2, 5.0, (1,))


def test_of_equal_gains_the_smaller_feature_is_taken_as_lightgbm_does() -> None:
    low, high = record(0, 3.0) + NONE, record(2, 3.0, (1,)) + NONE
    assert RULES.best((high, low)) == RULES.best((low, high)) == low
    assert RULES.best((NONE + NONE, record(0, -math.inf) + NONE))[:4] == struct.pack("<i", 0)


REFUSED = {
    "feature": record(3),
    "negative feature": record(-2),
    "feature that is not used": record(1),
    "threshold": record(0, threshold=10),
    "category": record(2, 1.0, (5,)),
    "no category": record(2, 1.0),
    "categories of a number": record(0, 1.0, (1,)),
    "too many categories": record(2, 1.0, count=5),
    "fewer categories than none": record(2, 1.0, count=-1),
    "gain that is no number": record(0, math.nan),
    "infinite gain": record(0, math.inf),
    "gain without a feature": record(-1, 1.0),
    "output": record(0, outputs=(math.inf, 0.0)),
    "sums": record(0, right_sums=(math.nan, 0.0)),
    "count": record(0, left=-1),
    "counts": record(0, left=1 << 30, right=1 << 30),
    "default": record(0, default_left=2),
    "monotone": record(0, monotone=2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_record_that_could_steer_lightgbm_wrong_is_refused(name: str) -> None:
    for pair in (REFUSED[name] + NONE, NONE + REFUSED[name]):
        with pytest.raises(SplitRefused) as caught:
            RULES.best((RULES.none, pair))
        assert caught.value.code == "SPLIT_REFUSED"
        with pytest.raises(UnknownCollective):
            RULES.wiped(pair)


@pytest.mark.parametrize("length", [0, SIZE, 2 * SIZE - 1, 2 * SIZE + 1])
def test_a_pair_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(SplitRefused):
        RULES.best((bytes(length),))
