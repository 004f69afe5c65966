"""What presence promises: in this process, and shared through Redis."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from cohortium_kit.presence import MemoryPresence, Presence, Seen
from cohortium_kit.redis_presence import ANSWER_S, AWAY_S, RedisPresence
from cohortium_kit.testing.clock import START, ManualClock
from cohortium_kit.testing.servers import PrivateRedis
from cohortium_messages.ids import SiteId

A, B = SiteId("00000000-0000-4000-8000-00000000000a"), SiteId("00000000-0000-4000-8000-00000000000b")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.real)])
async def presence(request: pytest.FixtureRequest, namespace: str, clock: ManualClock) -> AsyncIterator[Presence]:
    made: Presence = MemoryPresence(clock, 60)
    if request.param == "redis":
        made = RedisPresence(request.getfixturevalue("redis_url"), namespace, 60, clock)
    yield made
    await made.close()


async def test_latest_sign_of_life_of_each_site_is_known(presence: Presence) -> None:
    await presence.seen(A, START, {"version": "1"})
    await presence.seen(B, START, {})
    await presence.seen(A, START + timedelta(seconds=1), {"version": "2"})
    assert await presence.last_seen() == {
        A: Seen(START + timedelta(seconds=1), {"version": "2"}),
        B: Seen(START, {}),
    }


async def test_older_sign_of_life_changes_nothing(presence: Presence) -> None:
    await presence.seen(A, START, {"version": "2"})
    await presence.seen(A, START - timedelta(seconds=1), {"version": "1"})
    assert (await presence.last_seen())[A] == Seen(START, {"version": "2"})


async def test_silent_site_is_forgotten(presence: Presence, clock: ManualClock) -> None:
    await presence.seen(A, START, {})
    await clock.advance(30)
    await presence.seen(B, clock.now(), {})
    await clock.advance(31)
    assert set(await presence.last_seen()) == {B}


@pytest.mark.real
async def test_processes_see_each_others_sites(redis_url: str, namespace: str, clock: ManualClock) -> None:
    one, other = (RedisPresence(redis_url, namespace, 60, clock) for _ in range(2))
    stranger = RedisPresence(redis_url, f"{namespace}x", 60, clock)
    await one.seen(A, START, {"seen": "by one"})
    await other.seen(B, START, {})
    assert set(await one.last_seen()) == set(await other.last_seen()) == {A, B}
    assert await stranger.last_seen() == {}
    for presence in (one, other, stranger):
        await presence.close()


async def test_lost_server_leaves_what_this_process_saw_itself(namespace: str, clock: ManualClock) -> None:
    presence = RedisPresence("redis://127.0.0.1:9/0", namespace, 60, clock)
    await presence.seen(A, START, {"still": "here"})
    assert await presence.last_seen() == {A: Seen(START, {"still": "here"})}
    await presence.close()


@pytest.mark.real
async def test_server_lost_in_between_is_survived(
    private_redis: PrivateRedis, namespace: str, clock: ManualClock
) -> None:
    one, other = (RedisPresence(private_redis.url, namespace, 60, clock) for _ in range(2))
    await one.seen(A, START, {})
    await other.seen(B, START, {})
    assert set(await one.last_seen()) == {A, B}
    await asyncio.to_thread(private_redis.kill)
    assert set(await one.last_seen()) == {A, B}, "what was there when it last looked"
    await one.seen(A, START + timedelta(seconds=1), {})
    await asyncio.to_thread(private_redis.start)
    await clock.advance(AWAY_S)
    await one.seen(A, START + timedelta(seconds=2), {})
    await other.seen(B, START + timedelta(seconds=2), {})
    assert set(await one.last_seen()) == {A, B}
    for presence in (one, other):
        await presence.close()


@pytest.mark.real
async def test_server_that_stands_still_holds_up_one_call_for_a_moment_and_the_others_not_at_all(
    private_redis: PrivateRedis, namespace: str, clock: ManualClock
) -> None:
    presence, loop = RedisPresence(private_redis.url, namespace, 60, clock), asyncio.get_running_loop()
    await presence.seen(A, START, {})
    private_redis.freeze()
    try:
        begun = loop.time()
        assert set(await presence.last_seen()) == {A}
        waited = loop.time()
        for _ in range(100):
            await presence.seen(B, START, {})
            assert set(await presence.last_seen()) == {A, B}
        ended = loop.time()
    finally:
        private_redis.thaw()
    assert ANSWER_S * 0.9 < waited - begun < ANSWER_S * 5
    assert ended - waited < ANSWER_S * 5, "not 200 times as long"
    await clock.advance(AWAY_S)
    await presence.seen(B, START + timedelta(seconds=1), {})
    other = RedisPresence(private_redis.url, namespace, 60, clock)
    assert set(await other.last_seen()) == {A, B}
    for one in (presence, other):
        await one.close()
