"""Chunks of uploads: from frames on the intake queues to flushed files and rows, many at a time.

A chunk is acknowledged after it is on disk and on record. One intake writes for the whole process, one batch after the
other, so that two copies of a chunk never race.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from cohortium_aggregator.context import Context
from cohortium_aggregator.domain.states import Collecting
from cohortium_aggregator.files import Piece, Seat, UploadKey
from cohortium_aggregator.handlers.course import try_complete
from cohortium_aggregator.measures import chunks_stored
from cohortium_aggregator.refusing import refuse, unheard
from cohortium_aggregator.sharing import Sharing
from cohortium_aggregator.store import windows
from cohortium_aggregator.store.windows import Session, StoredChunk, SumWindow
from cohortium_kit.bus import REASON_HANDLER_ERROR, Ack, Bus, Dead, Delivery, Disposition, Requeue, Subscription
from cohortium_kit.db import Tx
from cohortium_kit.errors import DatabaseError, Poison
from cohortium_messages.topology import CHUNK_PARTITIONS, chunk_key, chunk_queue
from cohortium_protocol.chunks import ChunkHeader, open_body, open_header, peek_header
from cohortium_protocol.errors import RemoteFault
from cohortium_protocol.signing import site_key_id

log = structlog.get_logger(__name__)

PAUSE_S = 0.5


@dataclass(slots=True)
class Arrived:
    """A frame in our hands, and the answer that its queue waits for."""

    delivery: Delivery
    answer: asyncio.Future[Disposition]

    def settle(self, disposition: Disposition) -> None:
        if not self.answer.done():
            self.answer.set_result(disposition)


@dataclass(frozen=True, slots=True)
class Placed:
    """A frame whose window, sender and place are known; its signature is not checked yet."""

    arrived: Arrived
    session: Session
    header: ChunkHeader

    @property
    def key(self) -> UploadKey:
        return UploadKey(self.session.window_id, self.session.step, self.header.place.index)


class Intake:
    """Consumes the chunk queues while it runs."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._waiting: asyncio.Queue[Arrived] = asyncio.Queue()
        self._sharing: Sharing | None = None

    @property
    def queues(self) -> int:
        """How many intake queues are this process' now."""
        return 0 if self._sharing is None else self._sharing.taken

    async def run(self, stop: asyncio.Event, bus: Bus, seat: Seat) -> None:
        """Take this seat's share of the chunks until `stop` is set; what is in hand then is finished."""
        prefetch = self._ctx.settings.intake_prefetch

        async def subscribe(partition: int) -> Subscription:
            return await bus.consume(chunk_queue(partition), self.handle, prefetch=prefetch)

        storing = asyncio.create_task(self._store_batches(), name="intake")
        self._sharing = Sharing(seat, CHUNK_PARTITIONS, subscribe, self._ctx.clock)
        sharing = asyncio.create_task(self._sharing.run(stop))
        try:
            await asyncio.wait({sharing, storing}, return_when=asyncio.FIRST_COMPLETED)
            for task in (sharing, storing):
                if task.done():
                    task.result()
        finally:
            for task in (sharing, storing):  # one after the other: what was taken is stored before we stop storing
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def handle(self, delivery: Delivery) -> Disposition:
        """One chunk; returns when it is stored for good, or its fault is on record."""
        if unheard(self._ctx, delivery):
            return Ack()
        arrived = Arrived(delivery, asyncio.get_running_loop().create_future())
        self._waiting.put_nowait(arrived)
        return await arrived.answer

    async def _store_batches(self) -> None:
        while True:
            batch = await self._gather()
            try:
                await self.store(batch)
            except (DatabaseError, OSError) as error:
                log.warning("chunks_not_stored", error=type(error).__name__, chunks=len(batch))
                await asyncio.sleep(PAUSE_S)
            except Exception as error:
                log.exception("intake_failed", error=type(error).__name__, chunks=len(batch))
                await self._store_singly(batch)
            finally:
                for arrived in batch:
                    arrived.settle(Requeue())

    async def _store_singly(self, batch: Sequence[Arrived]) -> None:
        """After an error of ours: park the frame that causes it, and store the others."""
        for arrived in batch:
            try:
                await self.store([arrived])
            except (DatabaseError, OSError) as error:
                log.warning("chunks_not_stored", error=type(error).__name__, chunks=1)
            except Exception as error:
                log.exception("intake_failed", error=type(error).__name__, chunks=1)
                arrived.settle(Dead(f"{REASON_HANDLER_ERROR}:{type(error).__name__}"))

    async def _gather(self) -> list[Arrived]:
        """What has arrived, up to a batch. Waits a moment for more: a flush costs as much for one as for all."""
        settings = self._ctx.settings
        batch = [await self._waiting.get()]
        loop = asyncio.get_running_loop()
        until = loop.time() + settings.intake_gather_ms / 1000
        while len(batch) < settings.intake_batch:
            try:
                batch.append(self._waiting.get_nowait())
            except asyncio.QueueEmpty:
                left = until - loop.time()
                if left <= 0:
                    break
                try:
                    batch.append(await asyncio.wait_for(self._waiting.get(), left))
                except TimeoutError:
                    break
        return batch

    async def store(self, batch: Sequence[Arrived]) -> None:
        """Check, write, flush, record, answer."""
        by_upload: dict[UploadKey, list[Placed]] = defaultdict(list)
        for one in await self._place(batch):
            by_upload[one.key].append(one)
        known = await self._known(by_upload)
        stored = await asyncio.gather(*[self._write(key, frames, known[key]) for key, frames in by_upload.items()])
        fresh = [
            (frames[0].session, key.index, chunks)
            for (key, frames), chunks in zip(by_upload.items(), stored, strict=True)
            if chunks
        ]
        if fresh:
            await self._ctx.db.run("chunks_stored", lambda tx: self._record(tx, fresh))
        for frames in by_upload.values():
            for one in frames:
                one.arrived.settle(Ack())

    # Where a frame belongs

    async def _place(self, batch: Sequence[Arrived]) -> list[Placed]:
        """Frames of windows that still collect. Frames that come too late are acknowledged and forgotten unread."""
        placed = []
        found = await self._windows(batch)
        for arrived in batch:
            try:
                header = peek_header(arrived.delivery.body)
                window = found[header.place.window_id, header.place.step]
                if window is None:
                    raise Poison("unknown_window")
                if not isinstance(window.state, Collecting):
                    arrived.settle(Ack())
                    continue
                if self._is_new(window.session, header):
                    await self._ctx.keys.reload()
                self._check_place(arrived.delivery, window.session, header)
                placed.append(Placed(arrived, window.session, header))
            except (Poison, RemoteFault) as fault:
                await self._refuse(arrived, fault)
        return placed

    async def _windows(self, batch: Sequence[Arrived]) -> dict[tuple[bytes, int], SumWindow | None]:
        """The windows that the frames name, each looked up once."""
        found: dict[tuple[bytes, int], SumWindow | None] = {}
        async with self._ctx.db.glance("chunk_windows") as tx:
            for arrived in batch:
                with contextlib.suppress(Poison, RemoteFault):
                    place = peek_header(arrived.delivery.body).place
                    key = place.window_id, place.step
                    if key not in found:
                        found[key] = await windows.find_window(tx, self._ctx.sessions, *key)
        return found

    def _is_new(self, session: Session, header: ChunkHeader) -> bool:
        """Whether another aggregator may have heard of this site, and we not yet."""
        index = header.place.index
        return index in session.view.indices and site_key_id(session.site(index)) not in self._ctx.keyring.keys

    def _check_place(self, delivery: Delivery, session: Session, header: ChunkHeader) -> None:
        place = header.place
        if place.index not in session.view.indices:
            raise Poison("wrong_index")
        site = session.site(place.index)
        if delivery.routing_key not in {chunk_key(site, partition) for partition in range(CHUNK_PARTITIONS)}:
            raise Poison("wrong_routing_key")
        if site_key_id(site) not in self._ctx.keyring.keys:
            raise Poison("site_revoked")
        if place.chunk_count != session.plan.chunk_count:
            raise Poison("wrong_chunk_count")
        if header.length != session.plan.chunk(place.chunk).wire_bytes:
            raise Poison("wrong_chunk_length")

    async def _known(self, uploads: dict[UploadKey, list[Placed]]) -> dict[UploadKey, dict[int, bytes]]:
        async with self._ctx.db.glance("chunks_known") as tx:
            return {
                key: await windows.chunk_digests(tx, frames[0].session, key.index) for key, frames in uploads.items()
            }

    # Bytes

    async def _write(self, key: UploadKey, frames: Sequence[Placed], known: dict[int, bytes]) -> list[StoredChunk]:
        """Open the frames of one upload and put their chunks in its file; returns those that are new."""
        opened = await asyncio.to_thread(self._open_and_write, key, frames, known)
        stored = []
        for frame, outcome in zip(frames, opened, strict=True):
            match outcome:
                case StoredChunk():
                    stored.append(outcome)
                case Poison() | RemoteFault():
                    await self._refuse(frame.arrived, outcome)
                case None:
                    pass  # here already
        return stored

    def _open_and_write(
        self, key: UploadKey, frames: Sequence[Placed], known: dict[int, bytes]
    ) -> list[StoredChunk | Poison | RemoteFault | None]:
        outcomes: list[StoredChunk | Poison | RemoteFault | None] = []
        pieces: list[Piece] = []
        seen = dict(known)
        for frame in frames:
            try:
                outcome, piece = self._open(frame, seen)
            except (Poison, RemoteFault) as fault:
                outcomes.append(fault)
                continue
            outcomes.append(outcome)
            if outcome is not None and piece is not None:
                seen[outcome.chunk] = outcome.sha256
                pieces.append(piece)
        if pieces:
            self._ctx.data.write_pieces(key, pieces)
        return outcomes

    def _open(self, frame: Placed, seen: dict[int, bytes]) -> tuple[StoredChunk | None, Piece | None]:
        """Signature first; then what was stored before decides: a chunk comes once, and never with other content."""
        session, body = frame.session, frame.arrived.delivery.body
        header = open_header(body, session.view.identity_pk(frame.header.place.index))
        chunk = header.place.chunk
        if chunk in seen:
            if seen[chunk] != header.sha256:
                raise Poison("chunk_changed")
            return None, None
        content = open_body(body, header, self._ctx.seal_key)
        offset = chunk * session.plan.chunk(0).wire_bytes
        return StoredChunk(chunk, header.sha256, len(body)), Piece(offset, content)

    # Records

    async def _record(self, tx: Tx, fresh: Sequence[tuple[Session, int, list[StoredChunk]]]) -> None:
        for session, index, chunks in fresh:
            window = await windows.find_window(tx, self._ctx.sessions, session.window_id)
            if window is None or not isinstance(window.state, Collecting):
                continue  # the window moved on while we wrote; its files are about to be wiped
            await windows.insert_chunks(tx, session, index, chunks)
            chunks_stored(tx, len(chunks), sum(chunk.frame_bytes for chunk in chunks))
            await try_complete(self._ctx, tx, window, index)

    async def _refuse(self, arrived: Arrived, fault: Poison | RemoteFault) -> None:
        arrived.settle(await refuse(self._ctx, arrived.delivery, fault))
