"""LightGBM's collectives are known by their place in the course, and anything else is refused."""

from collections.abc import Callable

import pytest

from cohortium_connector.training.base import SiteRefusal
from cohortium_connector.training.course import Course, Place, UnknownCollective
from cohortium_messages.lightgbm import Objective

SPLIT = 444
LARGEST = 16 * 100


def says(words: str) -> Callable[[SiteRefusal], bool]:
    """The reason is for the site's own log: the error's text has the code alone."""
    return lambda refusal: words in refusal.local


def course(objective: Objective, *, average: bool = True, model: bool = False, classes: int = 1) -> Course:
    return Course(objective, classes=classes, starts_from_average=average, starts_from_model=model, split_bytes=SPLIT)


def gathered(course: Course, *sizes: int) -> list[str]:
    return [course.gathered(size).name for size in sizes]


def tree(course: Course, splits: int) -> list[str]:
    names = gathered(course, 24)
    for _ in range(splits + 1):
        names += [course.scattered(LARGEST, LARGEST).name, *gathered(course, SPLIT)]
    return names


def test_binary() -> None:
    place = course("binary")
    assert gathered(place, 4, 4) == ["COUNT", "COUNT"]
    place.begin_round()
    assert gathered(place, 8, 8, 8) == ["TOTAL", "TOTAL", "SAME"]
    assert tree(place, 2) == ["ROOT", *3 * ["HISTOGRAM", "SPLITS"]]
    place.begin_round()
    assert tree(place, 1) == ["ROOT", *2 * ["HISTOGRAM", "SPLITS"]]
    place.check_complete()


def test_multiclass() -> None:
    place = course("multiclass", classes=3)
    assert gathered(place, *4 * [8]) == 4 * ["TOTAL"]
    place.begin_round()
    assert gathered(place, *3 * [8]) == 3 * ["SAME"]
    for _ in range(3):
        tree(place, 1)
    place.begin_round()


@pytest.mark.parametrize("objective", ["regression", "poisson"])
def test_regression_and_poisson(objective: Objective) -> None:
    place = course(objective)
    place.begin_round()
    assert gathered(place, 8) == ["MEAN"]
    tree(place, 1)
    place.begin_round()
    tree(place, 1)


def test_a_model_that_is_gone_on_with_has_no_first_score() -> None:
    place = course("binary", model=True)
    gathered(place, 4, 4)
    place.begin_round()
    tree(place, 1)
    with pytest.raises(UnknownCollective):
        place.gathered(8)


def test_without_the_average_the_first_score_comes_late_and_in_the_first_round_only() -> None:
    place = course("binary", average=False)
    gathered(place, 4, 4)
    place.begin_round()
    tree(place, 0)
    assert gathered(place, 8, 8, 8) == ["TOTAL", "TOTAL", "SAME"]
    with pytest.raises(UnknownCollective):
        place.gathered(8)
    place.begin_round()
    with pytest.raises(UnknownCollective):
        place.gathered(8)


def test_a_late_first_score_never_follows_a_histogram() -> None:
    place = course("regression", average=False)
    place.begin_round()
    place.gathered(24)
    place.scattered(LARGEST, LARGEST)
    with pytest.raises(UnknownCollective, check=says("SPLITS")):
        place.gathered(8)


def test_sizes_alone_say_nothing() -> None:
    """8 bytes where a count belongs, a root where a split does: refused with size and place, and nothing is sent."""
    with pytest.raises(UnknownCollective, check=says("8 bytes at COUNT in round 0")) as caught:
        course("binary").gathered(8)
    assert caught.value.code == "UNKNOWN_COLLECTIVE"
    place = course("regression")
    with pytest.raises(UnknownCollective, check=says("24 bytes at ROOT in round 0")):
        place.gathered(24)
    place.begin_round()
    with pytest.raises(UnknownCollective, check=says("4 bytes at MEAN")):
        place.gathered(4)


@pytest.mark.parametrize("size", [0, 8, LARGEST + 16, LARGEST - 8])
def test_a_histogram_has_two_numbers_for_each_bin(size: int) -> None:
    place = course("regression")
    place.begin_round()
    gathered(place, 8, 24)
    with pytest.raises(UnknownCollective, check=says("a histogram of")):
        place.scattered(size, LARGEST)


def test_a_histogram_has_its_place() -> None:
    place = course("regression")
    with pytest.raises(UnknownCollective, check=says("after COUNT in round 0")):
        place.scattered(LARGEST, LARGEST)
    place.begin_round()
    with pytest.raises(UnknownCollective):
        place.scattered(LARGEST, LARGEST)
    gathered(place, 8, 24)
    place.scattered(LARGEST, LARGEST)
    with pytest.raises(UnknownCollective):
        place.scattered(LARGEST, LARGEST)


def test_what_is_left_out_is_noticed() -> None:
    place = course("binary")
    place.gathered(4)
    with pytest.raises(UnknownCollective, check=says("COUNT did not come")):
        place.begin_round()
    place = course("regression")
    place.begin_round()
    gathered(place, 8, 24)
    place.scattered(LARGEST, LARGEST)
    with pytest.raises(UnknownCollective, check=says("no split after a histogram")):
        place.check_complete()


def test_places_have_the_numbers_that_journals_hold() -> None:
    assert [place.value for place in Place] == [1, 2, 3, 4, 5, 6, 7]
