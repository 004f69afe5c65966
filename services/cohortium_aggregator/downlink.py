"""Model versions on their way down: encrypted once, kept as frames on disk, sent to each site that asks."""

import asyncio
import os
import random
import secrets
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from cohortium_aggregator.context import Context, message_id
from cohortium_aggregator.files import FRAMES, opened, read_at, sync_dir, sync_file
from cohortium_aggregator.store import runs
from cohortium_aggregator.store.runs import ModelVersion
from cohortium_kit.bus import Bus, Outgoing
from cohortium_kit.db import Tx
from cohortium_kit.errors import BrokerUnavailable, BusError, DatabaseError, Refused
from cohortium_messages.envelope import CHUNK_CONTENT_TYPE
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.secure_sum import MAX_CHUNK_BYTES
from cohortium_messages.topology import BULK, bulk_queue
from cohortium_protocol.chunks import ModelPlace, seal_model_frame

log = structlog.get_logger(__name__)

CHUNK_BYTES = MAX_CHUNK_BYTES
FRAME_TYPE = "cohortium.model.chunk.v1"
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
PUBLISH_TIMEOUT_S = 20.0
_LENGTH = struct.Struct("<I")


def chunk_total(file_bytes: int) -> int:
    """Chunks of a model whose file has so many bytes."""
    return -(-file_bytes // CHUNK_BYTES)


@dataclass(frozen=True, slots=True)
class Wish:
    """A site that waits for a version."""

    site: SiteId
    run_id: RunId
    version: int


class Downlink:
    """Sends what sites ask for. Nothing of it is on record: a site that misses chunks asks again."""

    def __init__(self, ctx: Context, bus: Bus) -> None:
        self._ctx = ctx
        self._bus = bus
        self._wishes: asyncio.Queue[tuple[Wish, frozenset[int]]] = asyncio.Queue()
        self._busy: set[Wish] = set()
        self._sealing: dict[tuple[RunId, int], asyncio.Lock] = {}
        self._sent: Counter[RunId] = Counter()
        self._recording = asyncio.Lock()
        # Of all sites together: what is in hand for each would grow with their number.
        self._in_flight = asyncio.Semaphore(ctx.settings.model_frames_in_flight)

    def want(self, site: SiteId, run_id: RunId, version: int, have: frozenset[int]) -> None:
        """Send the version to this site, but for the chunks it has. A wish that is being granted is not doubled."""
        wish = Wish(site, run_id, version)
        if wish not in self._busy:
            self._busy.add(wish)
            self._wishes.put_nowait((wish, have))

    @property
    def busy(self) -> bool:
        """Whether some wish is not granted or given up yet."""
        return bool(self._busy)

    async def run(self, stop: asyncio.Event) -> None:
        """Grant wishes until `stop` is set; frames on their way then are finished, and no more are sent."""
        stopping = asyncio.create_task(stop.wait())
        getting: asyncio.Task[tuple[Wish, frozenset[int]]] | None = None
        granting: set[asyncio.Task[None]] = set()
        try:
            while not stop.is_set():
                getting = asyncio.create_task(self._wishes.get())
                await asyncio.wait({getting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    break
                task = asyncio.create_task(self._grant(*getting.result(), stop))
                granting.add(task)
                task.add_done_callback(granting.discard)
            if granting:
                await asyncio.wait(granting, timeout=PUBLISH_TIMEOUT_S)
        finally:
            left: list[asyncio.Task[Any]] = [stopping, *([getting] if getting else []), *granting]
            for one in left:
                one.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _grant(self, wish: Wish, have: frozenset[int], stop: asyncio.Event) -> None:
        sent = 0
        try:
            async with asyncio.timeout(self._ctx.settings.model_send_s):
                async with self._ctx.db.glance("model_to_send") as tx:
                    version = await runs.find_version(tx, wish.run_id, wish.version)
                if version is None or not version.stored:
                    return
                frames = await self._frames(version)
                sent = await self._send(wish, frames, have, stop)
            self._sent[wish.run_id] += sent
            await self._record_sent()
        except (TimeoutError, BusError, DatabaseError, OSError, ExceptionGroup) as error:
            first = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
            log.warning("model_not_sent", site=wish.site, run=wish.run_id, error=type(first).__name__)
        finally:
            self._busy.discard(wish)

    async def _record_sent(self) -> None:
        """Count the bytes that were sent, for all wishes granted meanwhile in one transaction."""
        async with self._recording:
            sent, self._sent = self._sent, Counter()
            if sent:
                await self._ctx.db.run("models_sent", lambda tx: self._add_sent(tx, sent))

    async def _add_sent(self, tx: Tx, sent: Mapping[RunId, int]) -> None:
        for run_id, size in sent.items():
            await runs.add_bytes_down(tx, run_id, size)

    async def _frames(self, version: ModelVersion) -> "FrameFile":
        """The version's frames; made when they are first wanted."""
        lock = self._sealing.setdefault((version.run_id, version.version), asyncio.Lock())
        async with lock:
            path = self._ctx.data.model_dir(version.run_id, version.version) / FRAMES
            if not path.exists():
                await asyncio.to_thread(self._seal, version, path)
        return FrameFile(path, chunk_total(version.file_bytes))

    def _seal(self, version: ModelVersion, path: Path) -> None:
        total = chunk_total(version.file_bytes)
        size = version.file_bytes
        source = self._ctx.data.model_file(version.run_id, version.version, version.trees)
        working = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")  # another aggregator may be at it, too
        with working.open("wb") as file, opened(source, os.O_RDONLY) as fd:
            for chunk in range(total):
                start = chunk * CHUNK_BYTES
                content = read_at(fd, start, min(CHUNK_BYTES, size - start))
                place = ModelPlace(version.run_id, version.version, chunk, total)
                frame = seal_model_frame(place, content, version.key, self._ctx.key)
                file.write(_LENGTH.pack(len(frame)))
                file.write(frame)
        sync_file(working)
        working.rename(path)
        sync_dir(path.parent)

    async def _send(self, wish: Wish, frames: "FrameFile", have: frozenset[int], stop: asyncio.Event) -> int:
        """Several confirms in flight; returns the bytes that were confirmed. Told to stop, it leaves the rest."""
        missing = iter([chunk for chunk in range(frames.total) if chunk not in have])
        sent = 0

        async def carry(chunks: Iterator[int]) -> None:
            nonlocal sent
            for chunk in chunks:
                if stop.is_set():
                    return
                confirmed = await self._publish(wish, frames, chunk, stop)
                sent += confirmed  # not in one line: what it was before would be read before the wait

        async with asyncio.TaskGroup() as group:
            for _ in range(self._ctx.settings.model_frames_in_flight):
                group.create_task(carry(missing))
        return sent

    async def _publish(self, wish: Wish, frames: "FrameFile", chunk: int, stop: asyncio.Event) -> int:
        """One frame, again after a pause where the queue is full or the broker away; the bytes that were confirmed."""
        wait_s = FIRST_WAIT_S
        while not stop.is_set():
            try:
                async with self._in_flight:  # not while we wait: a site whose queue is full holds up no other
                    frame = await asyncio.to_thread(frames.read, chunk)
                    await self._bus.publish(self._outgoing(wish, chunk, frame), timeout_s=PUBLISH_TIMEOUT_S)
                    return len(frame)
            except (Refused, BrokerUnavailable):
                await asyncio.sleep(random.uniform(wait_s / 2, wait_s))  # noqa: S311 - spreads load, no secret
                wait_s = min(LONGEST_WAIT_S, 2 * wait_s)
        return 0

    def _outgoing(self, wish: Wish, chunk: int, frame: bytes) -> Outgoing:
        return Outgoing(
            exchange=BULK.name,
            routing_key=bulk_queue(wish.site),
            body=frame,
            message_id=message_id(wish.site, wish.run_id, wish.version, chunk),
            type=FRAME_TYPE,
            content_type=CHUNK_CONTENT_TYPE,
            persistent=False,
            ttl_ms=int(self._ctx.settings.model_frame_ttl_s * 1000),
        )


@dataclass(frozen=True, slots=True)
class FrameFile:
    """Frames one behind the other, each with its length before it; all but the last are equally long."""

    path: Path
    total: int

    def read(self, chunk: int) -> bytes:
        with opened(self.path, os.O_RDONLY) as fd:
            (usual,) = _LENGTH.unpack(read_at(fd, 0, _LENGTH.size))
            start = chunk * (_LENGTH.size + usual)
            (length,) = _LENGTH.unpack(read_at(fd, start, _LENGTH.size))
            return read_at(fd, start + _LENGTH.size, length)
