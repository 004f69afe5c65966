"""Masked uploads: made once, saved whole, then sent until the aggregator has them (rule R1).

An upload is complete on disk, synced, before the first byte of it leaves, and only these bytes are ever sent. After a
crash the same bytes are sent on.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from cohortium_connector.desk import Desk
from cohortium_connector.domain.commands import Declined, UploadStored
from cohortium_connector.domain.window_states import RosterOk, UploadSaved
from cohortium_connector.feedback import Feedback, feeds_back
from cohortium_connector.looking import Act
from cohortium_connector.sealing import STEP, Finished, Order, Stopped, make_upload
from cohortium_connector.spool import remove
from cohortium_connector.store import products, residuals, windows
from cohortium_connector.store.windows import Material, WindowRecord
from cohortium_connector.waiting import Bell, backoff_s
from cohortium_kit.bus import Bus, Outgoing
from cohortium_kit.clock import pause
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import BusError, Refused
from cohortium_messages.envelope import CHUNK_CONTENT_TYPE
from cohortium_messages.events import UploadSealed
from cohortium_messages.secure_sum import Receipt, ReceiptAsked
from cohortium_messages.topology import UPLINK, chunk_key, chunk_partition
from cohortium_protocol.chunks import ChunkPlace, seal_frame
from cohortium_protocol.errors import LocalFault
from cohortium_protocol.keys import WindowKeys
from cohortium_protocol.plan import ChunkPlan
from cohortium_protocol.upload import header_hash

log = structlog.get_logger(__name__)
FRAME_TYPE = "cohortium.upload.chunk.v1"
IN_FLIGHT = 8
PUBLISH_TIMEOUT_S = 20.0
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0
LONGEST_SILENCE_S = 60.0


class Uploads:
    """One task for each window that has an upload to make or to send."""

    def __init__(self, desk: Desk, db: Database, bus: Bus, bell: Bell) -> None:
        self._desk = desk
        self._db = db
        self._bus = bus
        self._bell = bell
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._halt = threading.Event()

    @property
    def sending(self) -> bool:
        return any(not task.done() for task in self._tasks.values())

    async def aclose(self) -> None:
        """End what is being made or sent: it goes on after the next start."""
        self._halt.set()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def collect(self) -> None:
        """Forget finished uploads."""
        for window_id, task in list(self._tasks.items()):
            if task.done():
                del self._tasks[window_id]
                task.result()

    async def see(self, _: Tx, opened: Sequence[WindowRecord]) -> Act:
        """Begin what the spool says is to be made or sent, and is not in hand."""
        return partial(self._act, [one for one in opened if isinstance(one.state, RosterOk | UploadSaved)])

    async def _act(self, due: Sequence[WindowRecord]) -> None:
        for window in due:
            if window.window_id not in self._tasks:
                task = asyncio.create_task(self._drive(window), name="upload")
                self._tasks[window.window_id] = task

    async def _drive(self, window: WindowRecord) -> None:
        resumed = isinstance(window.state, UploadSaved)
        if resumed and not await self._db.run("upload_resumed", lambda tx: self._may_go_on(tx, window.window_id)):
            remove(self._desk.spool.upload(window.window_id))
            return
        if not resumed and not await self._make(window):
            return
        await self._send(window.window_id, resumed=resumed)

    # Making

    async def _make(self, window: WindowRecord) -> bool:
        """Encode, mask and save; whether there is something to send now."""
        try:
            order = await self._order(window)
            if order is None:
                return False
            finished = await asyncio.to_thread(make_upload, order, self._desk.identity.key, self._halt)
        except LocalFault as fault:
            log.error("upload_not_made", study=window.study_id, window=window.window_id.hex(), code=fault.code)
            await self._db.run("decline_upload", lambda tx: self._decline(tx, window.window_id, "TRAINING_FAILED"))
            return False
        except Stopped:
            return False
        saved = await self._db.run("upload_saved", lambda tx: self._saved(tx, window.window_id, finished))
        await self._desk.note_promises(self._db)
        return saved

    async def _order(self, window: WindowRecord) -> Order | None:
        """What the upload is made of, after a last look at the grant; None if the window has moved on."""
        desk = self._desk

        async def load(tx: Tx) -> Order | None:
            current = await windows.find_window(tx, window.window_id)
            if current is None or not isinstance(current.state, RosterOk):
                return None
            held = await desk.permission(tx, current.params.study_digest, current.params.round)
            if isinstance(held, str):
                await self._decline(tx, window.window_id, held)
                return None
            material = await windows.material(tx, window.window_id)
            product = await products.product_of_window(tx, window.window_id)
            if product is None or material.keys is None:
                raise LookupError(f"window {window.window_id.hex()} has no vector")
            return Order(
                params=current.params,
                view=await desk.view(tx, current, material),
                index=current.state.place.index,
                keys=WindowKeys.from_bytes(material.keys),
                product=product,
                vector=desk.spool.product(product.product_id),
                feedback=await self._feedback(tx, current),
                target=desk.spool.upload(window.window_id),
            )

        return await self._db.run("upload_order", load)

    async def _feedback(self, tx: Tx, window: WindowRecord) -> Feedback | None:
        """The residual that goes with this window's update, which is this window's from now on."""
        if not feeds_back(window.params):
            return None
        taken = await residuals.take(tx, window.run_id, window.window_id, by="upload_order")
        if taken is None:
            return None
        spool = self._desk.spool
        before = None if taken.made_by is None else spool.residual(taken.made_by)
        return Feedback(before, spool.residual(window.window_id))

    async def _may_go_on(self, tx: Tx, window_id: bytes) -> bool:
        """Whether what was made before a restart may still be sent: the documents may have ended in the meantime."""
        window = await windows.find_window(tx, window_id)
        if window is None:
            return False
        held = await self._desk.permission(tx, window.params.study_digest, window.params.round)
        if isinstance(held, str):
            await self._decline(tx, window_id, held)
        return not isinstance(held, str)

    async def _decline(self, tx: Tx, window_id: bytes, code: str) -> None:
        window = await windows.find_window(tx, window_id)
        if window is not None and isinstance(window.state, RosterOk | UploadSaved):
            await self._desk.step(tx, window, Declined(code), by="decline_upload")
            await self._desk.refuse(tx, window.params, code)

    async def _saved(self, tx: Tx, window_id: bytes, finished: Finished) -> bool:
        """R1: the upload is on disk; from here on it counts as having left, and is charged for."""
        desk, by = self._desk, "upload_saved"
        window = await windows.find_window(tx, window_id)
        if window is None or not isinstance(window.state, RosterOk):
            return False
        code = await desk.charges.upload(tx, window.params, by=by)
        if code is not None:
            await self._decline(tx, window_id, code)
            return False
        digest = header_hash(finished.header)
        await windows.keep_secrets(tx, window_id, own_box=finished.own_box)
        await windows.keep_documents(tx, window_id, finished.header)
        await desk.promise(tx, by=by)
        sealed = UploadSealed(
            run_id=window.run_id,
            window_id=window_id,
            site_id=desk.identity.site_id,
            header_hash=digest,
            bytes=finished.size,
        )
        await desk.record(tx, sealed, window.study_id)
        await desk.step(tx, window, UploadStored(digest), by=by)
        log.info("upload_saved", study=window.study_id, window=window_id.hex(), bytes=finished.size)
        return True

    # Sending

    async def _send(self, window_id: bytes, *, resumed: bool) -> None:
        """Send what the aggregator has not, until its receipt says that it has all, or the window moves on.

        After a restart it is asked first; if it does not answer, everything is sent: chunks that come twice are known.
        While its receipts name more and more chunks, the others wait for it at the broker: to send them again would be
        to make a slow aggregator slower.
        """
        usual_s = self._desk.settings.receipt_silence_s
        silence_s, due, known, stored = usual_s, True, None, -1
        if resumed:
            await self._ask_receipt(window_id)
            await self._await_receipt(window_id, None, usual_s)
        while True:
            async with self._db.reading("upload_to_send") as tx:
                window = await windows.find_window(tx, window_id)
                material = await windows.material(tx, window_id)
            if window is None or not isinstance(window.state, UploadSaved):
                return
            if due:
                known, before = material.receipt, stored
                stored = _count(known)
                if (before < 0 or stored <= before) and await self._send_missing(window, material):
                    await self._ask_receipt(window_id)
                    known, stored = None, -1
            due = await self._await_receipt(window_id, known, silence_s)
            if due:
                silence_s = usual_s
            else:
                silence_s, known = min(LONGEST_SILENCE_S, 2 * silence_s), None
                await self._ask_receipt(window_id)

    async def _await_receipt(self, window_id: bytes, known: Receipt | None, silence_s: float) -> bool:
        """Whether another receipt came, or the window moved on, before the silence was too long."""
        clock = self._desk.clock
        deadline = clock.monotonic() + silence_s
        while True:
            changed = self._bell.next()
            async with self._db.reading("await_receipt") as tx:
                window = await windows.find_window(tx, window_id)
                receipt = await windows.receipt(tx, window_id)
            if window is None or not isinstance(window.state, UploadSaved) or receipt != known:
                return True
            left = deadline - clock.monotonic()
            if left <= 0:
                return False
            await pause(clock, left, changed)

    async def _ask_receipt(self, window_id: bytes) -> None:
        async def ask(tx: Tx) -> None:
            window = await windows.find_window(tx, window_id)
            if window is not None and isinstance(window.state, UploadSaved):
                asked = ReceiptAsked(window_id=window_id, step=STEP, index=window.state.place.index)
                await windows.forget_receipt(tx, window_id)
                await self._desk.post(tx, "aggregator", asked, window.study_id)

        await self._db.run("ask_receipt", ask)

    async def _send_missing(self, window: WindowRecord, material: Material) -> bool:
        """Send the chunks that the last receipt does not name; whether some of them may not have come meanwhile."""
        plan = ChunkPlan.of(window.params.vector)
        receipt = material.receipt
        if receipt is not None and not receipt.header_stored and material.header is not None:
            header = material.header
            await self._db.run("send_header", lambda tx: self._desk.post(tx, "aggregator", header, window.study_id))
        missing = [chunk for chunk in range(plan.chunk_count) if not _stored(receipt, chunk)]
        path = self._desk.spool.upload(window.window_id)
        waiting, broken = iter(missing), False

        async def carry() -> None:
            nonlocal broken
            for chunk in waiting:
                frame = await asyncio.to_thread(self._frame, window, plan, path, chunk)
                broken |= await self._publish(window, chunk, frame)

        with contextlib.suppress(Stopped, FileNotFoundError):
            await _side_by_side([carry() for _ in range(min(IN_FLIGHT, len(missing)))])
        return broken

    def _frame(self, window: WindowRecord, plan: ChunkPlan, path: Path, chunk: int) -> bytes:
        """One chunk of the saved upload, signed and sealed to the aggregator: all of a vector that ever leaves."""
        if not isinstance(window.state, UploadSaved):
            raise Stopped
        place = ChunkPlace(window.window_id, STEP, window.state.place.index, chunk, plan.chunk_count)
        size = plan.chunk(chunk).wire_bytes
        handle = os.open(path, os.O_RDONLY)
        try:
            content = os.pread(handle, size, chunk * plan.chunk(0).wire_bytes)
        finally:
            os.close(handle)
        if len(content) != size:
            raise OSError(f"{path} is shorter than its upload")
        return seal_frame(place, content, self._desk.identity.key, window.params.aggregator_seal_pk)

    async def _publish(self, window: WindowRecord, chunk: int, frame: bytes) -> bool:
        """Hand one frame over, again after a pause while it is refused; whether the connection broke meanwhile. A full
        queue's no breaks nothing: what it took before, it has."""
        site_id = self._desk.identity.site_id
        outgoing = Outgoing(
            exchange=UPLINK.name,
            routing_key=chunk_key(site_id, chunk_partition(window.window_id, chunk)),
            body=frame,
            message_id=f"{window.window_id.hex()}-{window.params_hash[:4].hex()}-{chunk}",
            type=FRAME_TYPE,
            content_type=CHUNK_CONTENT_TYPE,
            persistent=False,
        )
        attempt, broken = 0, False
        while True:
            try:
                await self._bus.publish(outgoing, timeout_s=PUBLISH_TIMEOUT_S)
            except BusError as error:
                broken |= not isinstance(error, Refused)
                log.info("chunk_not_taken", window=window.window_id.hex(), chunk=chunk, error=type(error).__name__)
                await self._desk.clock.sleep(backoff_s(attempt, FIRST_WAIT_S, LONGEST_WAIT_S))
                attempt += 1
                await self._check_wanted(window.window_id)
            else:
                return broken

    async def _check_wanted(self, window_id: bytes) -> None:
        async with self._db.reading("upload_wanted") as tx:
            window = await windows.find_window(tx, window_id)
        if window is None or not isinstance(window.state, UploadSaved):
            raise Stopped


async def _side_by_side(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all; the first error ends the others and is raised."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _count(receipt: Receipt | None) -> int:
    """How many chunks it names."""
    return 0 if receipt is None else int.from_bytes(receipt.chunks_stored, "little").bit_count()


def _stored(receipt: Receipt | None, chunk: int) -> bool:
    if receipt is None or chunk // 8 >= len(receipt.chunks_stored):
        return False
    return bool(receipt.chunks_stored[chunk // 8] >> (chunk % 8) & 1)
