"""Presence on Redis: shared by all instances of a service, and lost without harm. No call waits for it longer than
`ANSWER_S`, and while it is away only one call in `AWAY_S` waits at all: a server that stands still must not slow the
scheduler's deadlines.

A module of its own, because only a service whose settings name a server needs the client, which takes a third of a
second to import.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.presence import MemoryPresence, Seen
from cohortium_messages.ids import SiteId

log = structlog.get_logger(__name__)

ANSWER_S = 2.0
AWAY_S = 5.0
"""How long a server that did not answer is not asked again."""
_KEEP_LATEST = """
local known = redis.call('HGET', KEYS[1], ARGV[1])
if not known or tonumber(ARGV[2]) > cjson.decode(known)['at'] then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
"""


class RedisPresence:
    """Presence shared by all instances through one Redis hash. Without it this process knows what it has seen itself,
    and what was there when it last looked."""

    def __init__(self, url: str, namespace: str, ttl_s: float, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or SystemClock()
        self._ttl_s = ttl_s
        self._key = f"{namespace}:presence"
        self._own = MemoryPresence(self._clock, ttl_s)
        # One repetition, at once: a connection kept in the pool may have died with its server.
        self._redis = redis.asyncio.from_url(
            url,
            socket_timeout=ANSWER_S,
            socket_connect_timeout=ANSWER_S,
            decode_responses=True,
            retry=Retry(NoBackoff(), 1),
            retry_on_error=[RedisConnectionError],
        )
        self._away = False
        self._ask_again_at = float("-inf")

    async def seen(self, site: SiteId, at: datetime, detail: Mapping[str, str]) -> None:
        await self._own.seen(site, at, detail)
        stamp = at.timestamp()
        record = json.dumps({"at": stamp, "detail": dict(detail)})
        async with self._if_there() as there:
            if not there:
                return
            life_s = str(int(self._ttl_s) + 1)
            await self._redis.eval(_KEEP_LATEST, 1, self._key, site, repr(stamp), record, life_s)

    async def last_seen(self) -> Mapping[SiteId, Seen]:
        async with self._if_there() as there:
            if there:
                await self._learn()
        return await self._own.last_seen()

    async def _learn(self) -> None:
        """What others have seen, into our own; what is too old goes."""
        oldest = self._clock.now() - timedelta(seconds=self._ttl_s)
        stale = []
        shared: Mapping[Any, Any] = await self._redis.hgetall(self._key)
        for raw_site, record in shared.items():
            site, seen = SiteId(str(raw_site)), _parse(record)
            if seen is None or seen.at < oldest:
                stale.append(site)
            else:
                await self._own.seen(site, seen.at, seen.detail)
        if stale:
            await self._redis.hdel(self._key, *stale)

    async def close(self) -> None:
        with contextlib.suppress(RedisError, OSError):
            async with asyncio.timeout(ANSWER_S):
                await self._redis.aclose()

    @contextlib.asynccontextmanager
    async def _if_there(self) -> AsyncIterator[bool]:
        """Whether the server is to be asked now. The block ends within `ANSWER_S`; what it raises of the server says
        that it is away. Logged once each, when it goes and when it comes: a lost Redis must not flood the log."""
        now = self._clock.monotonic()
        if self._away and now < self._ask_again_at:
            yield False
            return
        self._ask_again_at = now + AWAY_S  # whoever calls meanwhile does not wait with us
        try:
            async with asyncio.timeout(ANSWER_S):
                yield True
        except (RedisError, OSError) as error:
            if not self._away:
                log.warning("presence_server_lost", error=type(error).__name__)
            self._away, self._ask_again_at = True, self._clock.monotonic() + AWAY_S
        else:
            if self._away:
                log.info("presence_server_back")
            self._away = False


def _parse(record: str | bytes) -> Seen | None:
    try:
        values = json.loads(record)
        detail = {str(name): str(value) for name, value in values["detail"].items()}
        return Seen(datetime.fromtimestamp(values["at"], UTC), detail)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
