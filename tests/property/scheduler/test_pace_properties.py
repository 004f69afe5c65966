"""How long a round waits: never longer than the study says, never shorter for a slower site, and from what is known."""

import itertools
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cohortium_messages.ids import SiteId
from cohortium_messages.preflight import PROBE_UPDATES, Capacity
from cohortium_scheduler.domain.pace import (
    CORE_S,
    LEAST_WAIT_S,
    REPORT_LEAST_S,
    REPORT_SLACK,
    SLACK,
    UPLOAD_LEAST_S,
    UPLOAD_SLACK,
    Pace,
    Work,
    pace,
    prior_of,
    ready_within,
    upload_within,
    waited_for,
)
from cohortium_scheduler.domain.selection import (
    ENOUGH,
    MOST_DOUBLINGS,
    NEW,
    REMEMBERED,
    STEADY,
    Prior,
    Standing,
    after_uploads,
    after_window,
    expected,
)

SITES = tuple(SiteId(str(UUID(int=number))) for number in range(1, 7))
SITE = SITES[0]
MOST = (3600.0, 900.0)
MEGABYTE = Work(1_000_000, 1_000_000, 0.0)

seconds = st.floats(0, 1e5)
rate = st.none() | st.floats(0, 1e5)
capacities = st.builds(
    Capacity,
    cpus=st.integers(1, 512),
    memory_mb=st.just(8000),
    up_mbit_s=rate,
    down_mbit_s=rate,
    training_s=st.none() | st.floats(0, 86_400),
)
measured_rate = st.floats(0.5, 1e3)
whole_reports = st.builds(
    Capacity,
    cpus=st.integers(1, 512),
    memory_mb=st.just(8000),
    up_mbit_s=measured_rate,
    down_mbit_s=measured_rate,
    training_s=st.floats(0, 600),
)
CARRIED = [(1e3, 0.45), (0.5, 0.1)]
"""Lines in Mbit/s, and times of uploads: a quick line with uploads that take long, and a slow line beside it."""
works = st.builds(Work, st.integers(0, 1 << 34), st.integers(0, 1 << 34), st.floats(0, 1e15))
standings = st.builds(
    Standing, seconds=st.lists(seconds, max_size=REMEMBERED).map(tuple), doublings=st.integers(0, 40), asked=st.just(40)
)


def one(standing: Standing, capacity: Capacity | None, work: Work, most: tuple[float, float] = MOST) -> Pace:
    return pace({SITE: standing}, [SITE], {} if capacity is None else {SITE: capacity}, work, most)


def slower(capacity: Capacity, factor: float) -> Capacity:
    """The same report, of a machine and a line that are `factor` times as slow. What was not measured stays so, and a
    rate that is too small to be told counts as not measured."""
    lines = {name: getattr(capacity, name) for name in ("up_mbit_s", "down_mbit_s")}
    changed: dict[str, float | int] = {name: value / factor for name, value in lines.items() if value}
    if capacity.training_s is not None:
        changed["training_s"] = capacity.training_s * factor
    changed["cpus"] = max(1, int(capacity.cpus / factor))
    return capacity.model_copy(update=changed)


@given(standings, st.none() | capacities, works, st.floats(1, 1e6), st.floats(1, 1e6))
def test_no_deadline_is_longer_than_the_studys_and_none_is_shorter_than_its_floor(
    standing: Standing, capacity: Capacity | None, work: Work, ready_s: float, upload_s: float
) -> None:
    found = one(standing, capacity, work, (ready_s, upload_s))
    assert min(ready_s, LEAST_WAIT_S) <= found.ready_s <= ready_s
    assert min(upload_s, UPLOAD_LEAST_S) <= found.upload_s <= upload_s


@given(standings, capacities, works, st.floats(1, 1e4))
def test_a_slower_report_gives_no_shorter_deadline(
    standing: Standing, capacity: Capacity, work: Work, factor: float
) -> None:
    quick, slow = one(standing, capacity, work), one(standing, slower(capacity, factor), work)
    assert slow.ready_s >= quick.ready_s
    assert slow.upload_s >= quick.upload_s


@given(st.lists(st.tuples(seconds, seconds), max_size=REMEMBERED), st.none() | capacities, works)
def test_slower_answers_give_no_shorter_deadline(
    pairs: list[tuple[float, float]], capacity: Capacity | None, work: Work
) -> None:
    quick = Standing(seconds=tuple(min(pair) for pair in pairs))
    slow = Standing(seconds=tuple(max(pair) for pair in pairs))
    assert one(slow, capacity, work).ready_s >= one(quick, capacity, work).ready_s


@given(capacities, works, works)
def test_more_work_gives_no_shorter_deadline(capacity: Capacity, work: Work, other: Work) -> None:
    larger = Work(
        max(work.down_bytes, other.down_bytes),
        max(work.up_bytes, other.up_bytes),
        max(work.updates, other.updates),
    )
    assert one(NEW, capacity, larger).ready_s >= one(NEW, capacity, work).ready_s
    assert one(NEW, capacity, larger).upload_s >= one(NEW, capacity, work).upload_s


@given(
    st.dictionaries(st.sampled_from(SITES), standings),
    st.dictionaries(st.sampled_from(SITES), capacities),
    works,
    st.permutations(SITES),
)
def test_one_more_site_never_shortens_it_and_no_order_counts(
    known: dict[SiteId, Standing], told: dict[SiteId, Capacity], work: Work, order: list[SiteId]
) -> None:
    whole = pace(known, SITES, told, work, MOST)
    fewer = pace(known, SITES[:-1], told, work, MOST)
    assert whole.ready_s >= fewer.ready_s
    assert whole.upload_s >= fewer.upload_s
    again = pace(dict(reversed(known.items())), order, dict(reversed(told.items())), work, MOST)
    assert (again.ready_s, again.upload_s) == (whole.ready_s, whole.upload_s)
    assert sorted(again.sites, key=lambda site: site.site) == list(whole.sites)


@given(st.tuples(*[whole_reports] * len(SITES)), st.integers(0, 1 << 30))
def test_the_slowest_of_those_who_are_asked_decides(told: tuple[Capacity, ...], size: int) -> None:
    by_site, work = dict(zip(SITES, told, strict=True)), Work(size, size, 0.0)
    found = pace({}, SITES, by_site, work, MOST)
    alone = [pace({}, [site], by_site, work, MOST) for site in SITES]
    assert found.ready_s == max(one.ready_s for one in alone)
    assert found.upload_s == max(one.upload_s for one in alone)


@given(st.lists(seconds, min_size=ENOUGH, max_size=REMEMBERED), capacities, capacities, works)
def test_from_enough_answers_on_the_report_says_nothing_about_training(
    answers: list[float], capacity: Capacity, other: Capacity, work: Work
) -> None:
    standing = Standing(seconds=tuple(answers))
    assert one(standing, capacity, work).ready_s == one(standing, other, work).ready_s
    assert one(standing, capacity, work).sites[0].source == "measured"
    usual = standing.usual_s
    assert usual is not None
    assert one(standing, None, work).ready_s == min(MOST[0], max(LEAST_WAIT_S, SLACK * usual))


def test_the_report_gives_way_answer_by_answer() -> None:
    told = Capacity(cpus=4, memory_mb=8000, up_mbit_s=8, down_mbit_s=8, training_s=59.0)
    assert prior_of(told, MEGABYTE) == Prior(60.0, "report")
    sources, deadlines, times = [], [], []
    standing = NEW
    for _ in range(ENOUGH + 1):
        found = one(standing, told, MEGABYTE).sites[0]
        sources.append(found.source)
        deadlines.append(found.ready_s)
        times.append(found.expected_s)
        standing = replace(standing, seconds=(*standing.seconds, 30.0))
    assert sources == ["report", "blended", "blended", "measured"]
    assert times == pytest.approx([60.0, 50.0, 40.0, 30.0])
    assert deadlines == pytest.approx([600.0, 440.0, 280.0, 120.0])


def test_what_is_not_known_is_the_studys_time() -> None:
    told = Capacity(cpus=4, memory_mb=8000, training_s=1.0)
    for standing, capacity in ((NEW, None), (NEW, told), (Standing(seconds=(1.0, 1.0)), None)):
        found = one(standing, capacity, MEGABYTE)
        assert (found.ready_s, found.upload_s) == MOST
        assert (found.sites[0].source, found.sites[0].expected_s) == ("unknown", None)


def test_training_is_scaled_by_the_work_and_processors_stand_for_a_probe_that_did_not_run() -> None:
    line = Capacity(cpus=4, memory_mb=8000, up_mbit_s=8, down_mbit_s=8)
    heavy = Work(1_000_000, 1_000_000, 7 * PROBE_UPDATES)
    assert prior_of(line, heavy) == Prior(1 + 7 * CORE_S / 4, "declared")
    assert prior_of(line.model_copy(update={"training_s": 2.0}), heavy) == Prior(15.0, "report")
    assert prior_of(line.model_copy(update={"training_s": 2.0}), MEGABYTE) == Prior(3.0, "report")
    assert ready_within(NEW, prior_of(line.model_copy(update={"training_s": 2.0}), MEGABYTE)) == REPORT_LEAST_S
    assert ready_within(NEW, prior_of(line, heavy)) == REPORT_SLACK * (1 + 7 * CORE_S / 4)


def test_uploads_are_waited_for_by_the_line_and_longer_after_each_miss() -> None:
    told = Capacity(cpus=4, memory_mb=8000, up_mbit_s=2.0)
    work = Work(0, 5_000_000, 0.0)
    assert upload_within(NEW, told, work) == UPLOAD_SLACK * 20.0
    known = after_uploads({}, [], [SITE])
    known = after_uploads(known, [SITES[1]], [SITE])
    assert upload_within(known[SITE], told, work) == 4 * UPLOAD_SLACK * 20.0
    assert SITES[1] not in known
    for arrivals in range(STEADY):
        assert upload_within(known[SITE], told, work) == 4 * UPLOAD_SLACK * 20.0, f"{arrivals} arrivals forgot a miss"
        known = after_uploads(known, [SITE], [])
    assert upload_within(known[SITE], told, work) == 2 * UPLOAD_SLACK * 20.0


def test_a_site_that_is_carried_by_a_slower_ones_deadline_shows_nothing_by_being_in_time() -> None:
    known = {SITE: Standing(doublings=1), SITES[1]: Standing(doublings=2), SITES[2]: Standing(doublings=2)}
    told = Capacity(cpus=4, memory_mb=8000, up_mbit_s=2.0)
    work = Work(0, 5_000_000, 0.0)
    asked = SITES[:3]
    found = pace(known, asked, dict.fromkeys(asked, told), work, (3600.0, 900.0))
    assert waited_for(found, asked) == list(SITES[1:3])
    within = pace(known, asked, dict.fromkeys(asked, told), work, (3600.0, 300.0))
    assert waited_for(within, asked) == list(asked), "each alone would be waited for as long as the study says"
    unknown = pace(known, asked, {SITE: told}, work, (3600.0, 900.0))
    assert waited_for(unknown, asked) == []


@given(
    st.lists(st.tuples(measured_rate, st.floats(0, 1)), min_size=1, max_size=4),
    st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=8),
    st.integers(0, 1 << 27),
    st.floats(1, 7 * 86_400),
)
@example(CARRIED, [{0}] * 3 + [{0, 1}] * (3 * STEADY), 4_000_000, 900.0)
def test_a_site_that_always_takes_as_long_loses_one_update_of_nine_at_most(
    sites: list[tuple[float, float]], turns: list[set[int]], size: int, upload_s: float
) -> None:
    """Sites of any line and any constant time of upload within the study's, asked in any turns. As many misses as
    its deadline needs doublings, and from then on no two within nine rounds that ask it."""
    work, most = Work(0, size, 0.0), (3600.0, upload_s)
    told = {SITES[number]: Capacity(cpus=1, memory_mb=8000, up_mbit_s=rate) for number, (rate, _) in enumerate(sites)}
    takes = {SITES[number]: share * upload_s for number, (_, share) in enumerate(sites)}
    known: dict[SiteId, Standing] = {}
    in_time: dict[SiteId, list[bool]] = {site: [] for site in told}
    for turn in itertools.islice(itertools.cycle(turns), 160):
        asked = [site for number, site in enumerate(told) if number in turn]
        found = pace(known, asked, told, work, most)
        arrived = [site for site in asked if takes[site] <= found.upload_s]
        missing = [site for site in asked if site not in arrived]
        known = after_uploads(known, waited_for(found, arrived), missing)
        for site in asked:
            in_time[site].append(site in arrived)
    for site, rounds in in_time.items():
        missed = [number for number, good in enumerate(rounds) if not good]
        alone = (upload_within(Standing(doublings=k), told[site], work) for k in range(MOST_DOUBLINGS + 1))
        needed = next(
            k for k, wait_s in enumerate(alone) if wait_s is not None and min(upload_s, wait_s) >= takes[site]
        )
        if needed == 0:
            assert missed == []
        for earlier, later in itertools.pairwise(missed[max(0, needed - 1) :]):
            assert later - earlier > STEADY, f"{needed} misses make its deadline long enough; it missed {missed}"


@given(capacities, works, st.integers(1, 12))
def test_a_deadline_that_was_too_short_grows_until_it_is_the_studys(
    capacity: Capacity, work: Work, rounds: int
) -> None:
    known = {SITE: NEW}
    waits = [pace(known, [SITE], {SITE: capacity}, work, MOST)]
    for _ in range(rounds):
        known = after_window(after_uploads(known, [], [SITE]), [SITE], {}, waits[-1].ready_s)
        waits.append(pace(known, [SITE], {SITE: capacity}, work, MOST))
    for earlier, later in itertools.pairwise(waits):
        assert later.ready_s > earlier.ready_s or later.ready_s == MOST[0]
        assert later.upload_s > earlier.upload_s or later.upload_s == MOST[1]


@given(standings, st.none() | capacities, works)
def test_the_record_names_the_numbers_that_it_used(standing: Standing, capacity: Capacity | None, work: Work) -> None:
    (told,) = one(standing, capacity, work).sites
    prior = None if capacity is None else prior_of(capacity, work)
    assert (told.expected_s, told.source) == expected(standing, prior)
    assert (told.expected_s is None) == (told.source == "unknown") == (told.ready_s is None)
    assert told.answers == len(standing.seconds)
