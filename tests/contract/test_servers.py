"""The servers that tests start for themselves work, and end."""

import pytest

from cohortium_kit.db import Database
from cohortium_kit.redis_presence import RedisPresence
from cohortium_kit.testing.clock import START, ManualClock
from cohortium_kit.testing.servers import PrivatePostgres, PrivateRedis, answers
from cohortium_messages.ids import SiteId

pytestmark = pytest.mark.real


async def test_private_postgres_serves_and_ends(private_postgres: PrivatePostgres) -> None:
    db = Database(private_postgres.url, schema="s")
    await db.ping()
    await db.close()
    private_postgres.remove()
    assert not answers(private_postgres.port)


async def test_private_redis_serves_and_ends(private_redis: PrivateRedis) -> None:
    presence = RedisPresence(private_redis.url, "n", 60, ManualClock())
    await presence.seen(SiteId("a"), START, {})
    await presence.close()
    private_redis.remove()
    assert not answers(private_redis.port)
