"""Presence on Redis: shared by all instances of a service, and lost without harm.

A module of its own, because only a service whose settings name a server needs the client, which takes a third of a
second to import.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
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
_KEEP_LATEST = """
local known = redis.call('HGET', KEYS[1], ARGV[1])
if not known or tonumber(ARGV[2]) > cjson.decode(known)['at'] then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
"""


class RedisPresence:
    """Presence shared by all instances through one Redis hash, with this process's own as the fallback."""

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

    async def seen(self, site: SiteId, at: datetime, detail: Mapping[str, str]) -> None:
        await self._own.seen(site, at, detail)
        stamp = at.timestamp()
        record = json.dumps({"at": stamp, "detail": dict(detail)})
        with self._losses_logged():
            life_s = str(int(self._ttl_s) + 1)
            await self._redis.eval(_KEEP_LATEST, 1, self._key, site, repr(stamp), record, life_s)

    async def last_seen(self) -> Mapping[SiteId, Seen]:
        shared: Mapping[Any, Any] = {}
        with self._losses_logged():
            shared = await self._redis.hgetall(self._key)
        oldest = self._clock.now() - timedelta(seconds=self._ttl_s)
        latest = dict(await self._own.last_seen())
        stale = []
        for raw_site, record in shared.items():
            site, seen = SiteId(str(raw_site)), _parse(record)
            if seen is None or seen.at < oldest:
                stale.append(site)
            elif (known := latest.get(site)) is None or seen.at > known.at:
                latest[site] = seen
        if stale:
            with self._losses_logged():
                await self._redis.hdel(self._key, *stale)
        return latest

    async def close(self) -> None:
        with self._losses_logged():
            await self._redis.aclose()

    @contextlib.contextmanager
    def _losses_logged(self) -> Iterator[None]:
        """Log when the server goes and comes, once each: a lost Redis must not flood the log."""
        try:
            yield
        except (RedisError, OSError) as error:
            if not self._away:
                log.warning("presence_server_lost", error=type(error).__name__)
            self._away = True
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
