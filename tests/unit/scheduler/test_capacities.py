"""What sites declare of their machines: kept, the newest of each, and used until their times are known."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium_kit.consumer import Received
from cohortium_kit.db import Database
from cohortium_kit.envelopes import Sender, open_envelope
from cohortium_kit.errors import Poison
from cohortium_kit.migrate import migrate
from cohortium_kit.testing.clock import ManualClock
from cohortium_kit.testing.deliveries import delivered
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.preflight import Capacity, PreflightCheck, PreflightReport
from cohortium_messages.topology import UPLINK, uplink_key
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey, Keyring, site_key_id
from cohortium_scheduler.domain.selection import PATIENCE, Prior, Standing, after_choice, select
from cohortium_scheduler.handlers.capacities import capacities_of, on_preflight
from examples import examples

RUN = RunId(str(UUID(int=9)))
SITES = tuple(SiteId(str(UUID(int=number))) for number in range(1, 9))
KEY, CLOCK = IdentityKey.generate(), ManualClock()


def reported(seconds: dict[SiteId, float]) -> dict[SiteId, Prior]:
    return {site: Prior(ready_s, "report") for site, ready_s in seconds.items()}


def asked(standings: dict[SiteId, Standing], seconds: dict[SiteId, float], want: int, round_: int = 0) -> list[SiteId]:
    choices = select(standings, SITES, frozenset(SITES), want, tick=(RUN, round_), priors=reported(seconds))
    return [choice.site for choice in choices if choice.asked]


def test_while_nothing_is_known_those_whose_trial_was_quick_are_asked_first() -> None:
    declared = {site: 1.0 + 10 * number for number, site in enumerate(SITES)}
    assert asked({}, declared, 3) == list(SITES[:3])


def test_what_was_learnt_counts_more_than_what_was_declared() -> None:
    boaster, honest = SITES[0], SITES[1]
    known = {
        boaster: Standing(asked=5, answered=5, seconds=(500.0,) * 5),
        honest: Standing(asked=5, answered=5, seconds=(5.0,) * 5),
    }
    choices = select(
        known,
        (boaster, honest),
        frozenset({boaster, honest}),
        1,
        tick=(RUN, 0),
        priors=reported({boaster: 0.001, honest: 60.0}),
    )
    assert [choice.site for choice in choices if choice.asked] == [honest]
    assert {choice.site: (choice.expected_s, choice.source) for choice in choices} == {
        boaster: (500.0, "measured"),
        honest: (5.0, "measured"),
    }


@settings(max_examples=examples(40), deadline=None)
@given(st.dictionaries(st.sampled_from(SITES), st.floats(1e-3, 1e4)), st.integers(1, 8))
def test_nobody_starves_whatever_is_declared(declared: dict[SiteId, float], want: int) -> None:
    standings: dict[SiteId, Standing] = {}
    for number in range(30):
        choices = select(standings, SITES, frozenset(SITES), want, tick=(RUN, number), priors=reported(declared))
        standings = after_choice(standings, choices)
        assert max(standing.passed for standing in standings.values()) <= -(-len(SITES) // want) + PATIENCE


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'scheduler.db'}", schema="scheduler", clock=CLOCK)
    await migrate(made, "cohortium_scheduler")
    yield made
    await made.close()


def received(seconds: float | None, minutes: float = 0.0, *, about: SiteId = SITES[0]) -> Received[PreflightReport]:
    """A report that site 0 signed."""
    report = PreflightReport(
        site_id=about,
        made_at=CLOCK.now() + timedelta(minutes=minutes),
        connector="1",
        checks=(PreflightCheck(name="line", state="ok"),),
        capacity=Capacity(cpus=1, memory_mb=1, training_s=seconds),
    )
    signer = EnvelopeSigner(site_key_id(SITES[0]), KEY)
    outgoing = Sender(f"/site/{SITES[0]}", signer, CLOCK).outgoing(UPLINK.name, uplink_key(about, "scheduler"), report)
    delivery = delivered(outgoing, "scheduler.inbox")
    envelope, message, key_id = open_envelope(delivery, Keyring({site_key_id(SITES[0]): KEY.public}))
    assert isinstance(message, PreflightReport)
    return Received(envelope, message, key_id, delivery.routing_key, delivery)


async def told(db: Database, *reports: Received[PreflightReport]) -> dict[SiteId, float | None]:
    for one in reports:
        async with db.transaction("told") as tx:
            await on_preflight(tx, one)
    async with db.reading("known") as tx:
        return {site: capacity.training_s for site, capacity in (await capacities_of(tx)).items()}


async def test_the_newest_declaration_counts_and_one_without_a_time_takes_it_back(db: Database) -> None:
    assert await told(db, received(2.0), received(3.0, 1.0), received(9.0, -5.0)) == {SITES[0]: 3.0}
    assert await told(db, received(None, 2.0)) == {SITES[0]: None}


async def test_a_site_declares_for_itself_alone(db: Database) -> None:
    with pytest.raises(Poison):
        await told(db, received(0.001, about=SITES[1]))
    assert await told(db) == {}
