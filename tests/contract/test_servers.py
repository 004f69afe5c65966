"""The servers that tests start for themselves work, and end."""

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cohortium_kit.db import Database
from cohortium_kit.presence import RedisPresence
from cohortium_kit.testing.clock import START, ManualClock
from cohortium_kit.testing.servers import PrivatePostgres, PrivateRedis, ServerMissing, answers
from cohortium_messages.ids import SiteId

pytestmark = pytest.mark.real


@pytest.fixture
def folder() -> Iterator[Path]:
    """Outside pytest's own folders: PostgreSQL runs as another user, to whom those are closed."""
    made = Path("/tmp") / f"cohortium-{secrets.token_hex(4)}"
    yield made
    shutil.rmtree(made, ignore_errors=True)


async def test_private_postgres_starts_serves_and_ends(folder: Path) -> None:
    server = PrivatePostgres(folder)
    try:
        server.start()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    db = Database(server.url, schema="s")
    await db.ping()
    await db.close()
    server.remove()
    assert not answers(server.port)


async def test_private_redis_starts_serves_and_ends(folder: Path) -> None:
    server = PrivateRedis(folder)
    try:
        server.start()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    presence = RedisPresence(server.url, "n", 60, ManualClock())
    await presence.seen(SiteId("a"), START, {})
    await presence.close()
    server.remove()
    assert not answers(server.port)
