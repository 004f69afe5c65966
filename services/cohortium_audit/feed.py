"""What is recorded goes on to the stream that integrators read: each log in its order, after the commit.

The leaves are their own outbox: what counts is how far each log is in the stream, written down after the broker's
confirms. A crash in between sends some entries again, under the same log and index.
"""

import asyncio
import contextlib

import structlog

from cohortium_audit.domain import LogName
from cohortium_audit.store import logs, streamed
from cohortium_kit.bus import Bus, Outgoing
from cohortium_kit.clock import Clock, pause
from cohortium_kit.db import Database
from cohortium_kit.errors import BusError, DatabaseError
from cohortium_messages.entries import ENTRY_CONTENT_TYPE, ENTRY_TYPE, INDEX_HEADER, LEAF_HEADER, LOG_HEADER
from cohortium_messages.topology import ENTRIES, ENTRIES_STREAM
from cohortium_platform.following import Turn
from cohortium_protocol.translog import leaf_hash

log = structlog.get_logger(__name__)

PAGE = 200
LOOK_S = 1.0
"""How often it looks for what another instance has recorded; what this one records, it sees after `GATHER_S`."""
GATHER_S = 0.5
"""Between two looks at least: a look costs three questions to the database, and integrators wait for no entry."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0


class Feed:
    """Fills the stream. Of several instances one does it; two at once would repeat entries, and lose none."""

    def __init__(self, bus: Bus, db: Database, clock: Clock, grown: asyncio.Event) -> None:
        self._bus = bus
        self._db = db
        self._clock = clock
        self._grown = grown
        self._turn = Turn(db, clock, "entries")

    async def run(self, stop: asyncio.Event) -> None:
        """Feed until `stop` is set, and once more then. Survives any outage: the stream is as late as that was long."""
        failures = 0
        while True:
            stopping = stop.is_set()
            self._grown.clear()
            try:
                if await self._turn.ours():
                    await self.feed()
                failures = 0
            except (BusError, DatabaseError) as error:
                # A broker whose definitions are older than this stream refuses: `cohortium broker definitions`.
                log.warning("entries_not_streamed", error=type(error).__name__, attempt=failures)
                failures += 1
            if stopping:
                with contextlib.suppress(DatabaseError):
                    await self._turn.give_up()
                return
            if failures:
                await pause(self._clock, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**failures), stop)
            else:
                await pause(self._clock, GATHER_S, stop)
                await pause(self._clock, LOOK_S - GATHER_S, stop, self._grown)

    async def feed(self) -> None:
        """Publish all that is recorded and not in the stream. Raises `BusError` or `DatabaseError`."""
        async with self._db.reading("streamed_behind") as tx:
            behind = await streamed.behind(tx)
        for name, done, size in behind:
            for first in range(done, size, PAGE):
                await self._page(name, first, min(first + PAGE, size))

    async def _page(self, name: LogName, first: int, end: int) -> None:
        async with self._db.reading("streamed_entries") as tx:
            page = await logs.entries(tx, name, first, end)
        for index, data in enumerate(page, first):
            # One after the other: entries must be in the stream in their order, whatever fails in between.
            await self._bus.publish(outgoing(name, index, data))
        await self._db.run("streamed_save", lambda tx: streamed.save(tx, name, end))


def outgoing(name: LogName, index: int, data: bytes) -> Outgoing:
    """The message about one entry."""
    headers = {LOG_HEADER: name, INDEX_HEADER: str(index), LEAF_HEADER: leaf_hash(data).hex()}
    return Outgoing(
        ENTRIES.name,
        ENTRIES_STREAM,
        data,
        message_id=f"{name}/{index}",
        type=ENTRY_TYPE,
        headers=headers,
        content_type=ENTRY_CONTENT_TYPE,
    )
