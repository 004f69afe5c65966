"""Whom a round asks: nobody starves, equal inputs give equal choices, and nothing of the data decides in DP modes."""

import itertools
import math
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium_messages.ids import RunId, SiteId
from cohortium_scheduler.domain.selection import (
    PATIENCE,
    REMEMBERED,
    Prior,
    Standing,
    after_choice,
    after_window,
    select,
)
from examples import examples

RUN = RunId(str(UUID(int=9)))
SITES = tuple(SiteId(str(UUID(int=number))) for number in range(1, 25))


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[frozenset[int]], list[list[float]], list[frozenset[int]]]:
    """n sites of which k are asked; for each round who is there, how quick each site is, and who answers."""
    n = draw(st.integers(3, 24))
    k = draw(st.integers(3, n))
    rounds = draw(st.integers(5, 40))
    some = st.frozensets(st.integers(0, n - 1))
    away = draw(st.lists(some, min_size=rounds, max_size=rounds))
    pace = draw(st.lists(st.lists(st.floats(0.1, 1000), min_size=n, max_size=n), min_size=rounds, max_size=rounds))
    silent = draw(st.lists(some, min_size=rounds, max_size=rounds))
    return n, k, away, pace, silent


@settings(max_examples=examples(60), deadline=None)
@given(
    history=histories(),
    blind=st.booleans(),
    leaves=st.booleans(),
    reported=st.dictionaries(st.sampled_from(SITES), st.floats(0, 1e6)),
)
def test_no_site_that_is_there_waits_longer_than_the_bound(
    history: tuple[int, int, list[frozenset[int]], list[list[float]], list[frozenset[int]]],
    blind: bool,
    leaves: bool,
    reported: dict[SiteId, float],
) -> None:
    priors = {site: Prior(seconds, "report") for site, seconds in reported.items()}
    n, k, away, pace, silent = history
    sites, bound = SITES[:n], math.ceil(n / k) + PATIENCE
    standings: dict[SiteId, Standing] = {}
    for number in range(len(away)):
        gone = {sites[one] for one in away[number]} if leaves else set()
        present = frozenset(sites) - gone
        choices = select(standings, sites, present, k, tick=(RUN, number), blind=blind, priors=priors)
        asked = [one.site for one in choices if one.asked]
        assert len(asked) == min(k, n)
        assert {one.site for one in choices} == set(sites)
        if len(present) >= k:
            assert set(asked) <= present
        standings = after_choice(standings, choices)
        answers = {site: pace[number][sites.index(site)] for site in asked if sites.index(site) not in silent[number]}
        standings = after_window(standings, asked, answers, 500.0)
        assert max(one.passed for one in standings.values()) <= bound


def test_a_site_that_is_slow_and_fails_is_still_asked() -> None:
    """The worst candidate among quick and reliable ones: preferred last, and asked as often as the bound says."""
    slow, k = SITES[0], 3
    standings: dict[SiteId, Standing] = {}
    asked_in = []
    for number in range(60):
        choices = select(standings, SITES[:5], frozenset(SITES[:5]), k, tick=(RUN, number))
        standings = after_choice(standings, choices)
        asked = [one.site for one in choices if one.asked]
        if slow in asked:
            asked_in.append(number)
        standings = after_window(standings, asked, {site: 1.0 for site in asked if site != slow}, 60.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked_in)]
    assert max(gaps) <= math.ceil(5 / k) + PATIENCE + 1
    others = [site for site in SITES[1:5] if standings[site].asked > standings[slow].asked]
    assert others == list(SITES[1:5]), "the reliable ones are asked more often"


standing = st.builds(
    Standing,
    passed=st.integers(0, 6),
    asked=st.integers(5, 9),
    answered=st.integers(0, 5),
    seconds=st.lists(st.floats(0, 1e4), max_size=REMEMBERED).map(tuple),
)


@given(
    known=st.dictionaries(st.sampled_from(SITES), standing),
    present=st.frozensets(st.sampled_from(SITES)),
    want=st.integers(3, 24),
    order=st.permutations(SITES),
    blind=st.booleans(),
    reported=st.dictionaries(st.sampled_from(SITES), st.floats(0, 1e6)),
)
def test_a_choice_depends_on_nothing_but_its_inputs_and_not_on_their_order(
    known: dict[SiteId, Standing],
    present: frozenset[SiteId],
    want: int,
    order: list[SiteId],
    blind: bool,
    reported: dict[SiteId, float],
) -> None:
    priors = {site: Prior(seconds, "report") for site, seconds in reported.items()}
    turned = dict(reversed(priors.items()))
    once = select(known, SITES, present, want, tick=(RUN, 7), blind=blind, priors=priors)
    again = select(dict(reversed(known.items())), order, present, want, tick=(RUN, 7), blind=blind, priors=turned)
    assert sorted(once, key=lambda one: one.site) == sorted(again, key=lambda one: one.site)


@given(
    turns=st.dictionaries(st.sampled_from(SITES), st.integers(0, 6)),
    times=st.dictionaries(st.sampled_from(SITES), st.tuples(standing, standing)),
    present=st.frozensets(st.sampled_from(SITES)),
    want=st.integers(3, 24),
)
def test_what_sites_did_with_their_rows_changes_nothing_where_privacy_is_promised(
    turns: dict[SiteId, int],
    times: dict[SiteId, tuple[Standing, Standing]],
    present: frozenset[SiteId],
    want: int,
) -> None:
    def world(which: int) -> dict[SiteId, Standing]:
        plain = {site: Standing(passed=turns.get(site, 0)) for site in SITES}
        for site, pair in times.items():
            one = pair[which]
            plain[site] = Standing(turns.get(site, 0), one.asked, one.answered, one.seconds)
        return plain

    chosen = [select(world(which), SITES, present, want, tick=(RUN, 1), blind=True) for which in (0, 1)]
    assert chosen[0] == chosen[1]
