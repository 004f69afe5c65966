"""Model versions on their way here: asked for, received chunk by chunk, checked, kept.

A transfer can be broken off anywhere: chunks that are on disk are marked in the record, and only the others are asked
for again.
"""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import rfc8785
import structlog

from cohortium_connector.desk import Desk
from cohortium_connector.spool import PRIVATE, remove, write_synced
from cohortium_connector.store import models, studies
from cohortium_connector.store.models import ModelRecord
from cohortium_connector.tree_models import check_text, checked_binning
from cohortium_connector.waiting import Bell
from cohortium_kit.bus import Ack, Dead, Delivery, Disposition
from cohortium_kit.clock import pause
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import CohortiumError
from cohortium_messages.ids import RunId
from cohortium_messages.runs import ModelOffered, ModelWanted
from cohortium_messages.secure_sum import ModelRef
from cohortium_protocol.chunks import ModelKey, open_model_frame, unwrap_model_key
from cohortium_protocol.errors import BadSignature, ChunkRefused, ProtocolError
from cohortium_protocol.keys import SealKey
from cohortium_protocol.parameters import ModelRefused
from cohortium_protocol.trees.evaluation import has_trees

log = structlog.get_logger(__name__)
DIGEST_ATTEMPTS = 3
SAVED_EVERY = 16
LONGEST_SILENCE_S = 60.0
AHEAD_S = 60.0
"""How long a version is fetched that no window has named yet."""
HELD_S = 2.0
"""How long a chunk that comes before its version's description is held."""


class ModelNotObtained(CohortiumError):
    """What was received as this model version is, again and again, not what a signed window named."""


class ModelUnfit(CohortiumError):
    """What the signed window named was received as it is, and is no model that may be used here."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model version in the spool: flat little-endian float32 or LightGBM's text, and the canonical preprocessing
    document or bins."""

    parameters: Path
    preprocessing: Path


@dataclass(slots=True)
class Transfer:
    """One version that is being received."""

    run_id: RunId
    version: int
    offer: ModelOffered
    key: ModelKey = field(repr=False)
    have: bytearray
    path: Path
    unsaved: int = 0
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    def has(self, chunk: int) -> bool:
        return bool(self.have[chunk // 8] >> (chunk % 8) & 1)

    @property
    def complete(self) -> bool:
        return all(self.has(chunk) for chunk in range(self.offer.chunks))

    def accept(self, chunk: int, content: bytes) -> None:
        """Write one chunk to its place. Again is harmless."""
        size = min(self.offer.chunk_bytes, self.offer.size - chunk * self.offer.chunk_bytes)
        if len(content) != size:
            raise ChunkRefused("the chunk has another length than its place")
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT, PRIVATE)
        try:
            done = 0
            while done < size:
                done += os.pwrite(handle, content[done:], chunk * self.offer.chunk_bytes + done)
        finally:
            os.close(handle)

    def sync(self) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT, PRIVATE)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Downloads:
    """Fetches model versions. `on_frame` is the handler of the site's bulk queue."""

    def __init__(self, desk: Desk, db: Database, bell: Bell) -> None:
        self._desk = desk
        self._db = db
        self._bell = bell
        self._transfers: dict[tuple[RunId, int], Transfer] = {}
        self._fetching: dict[tuple[RunId, int], asyncio.Lock] = {}
        self._undescribed = 0
        self._opened = Bell()
        self._ahead: tuple[RunId, ModelRef, asyncio.Task[None]] | None = None

    def expect(self, run_id: RunId, ref: ModelRef) -> None:
        """Begin to fetch a version that a window will probably name. One at a time, and not for long: if it does not
        come, `fetch` asks again."""
        self.forget_expected()
        task = asyncio.create_task(self._fetch_ahead(run_id, ref), name="model-ahead")
        self._ahead = run_id, ref, task

    @property
    def expected(self) -> RunId | None:
        """The run of which a version is expected."""
        return None if self._ahead is None else self._ahead[0]

    def forget_expected(self) -> None:
        """End what is fetched ahead: the run is over, or its window names another model."""
        if self._ahead is not None:
            self._ahead[2].cancel()
            self._ahead = None

    async def aclose(self) -> None:
        """End what is fetched ahead, and wait for that."""
        if self._ahead is not None:
            task = self._ahead[2]
            self.forget_expected()
            await asyncio.wait({task})

    async def _fetch_ahead(self, run_id: RunId, ref: ModelRef) -> None:
        try:
            async with asyncio.timeout(AHEAD_S), self._lock(run_id, ref):
                await self._fetch(run_id, ref)
        except (TimeoutError, CohortiumError, ProtocolError, OSError) as error:
            log.info("model_not_fetched_ahead", run=run_id, version=ref.version, error=type(error).__name__)

    async def fetch(self, run_id: RunId, ref: ModelRef) -> ModelFiles:
        """The files of this version, from the spool or the aggregator; waits as long as it takes.

        Raises `ModelNotObtained` if what comes does not fit the digest that the signed window named, `ModelUnfit` if
        it does, but is a text that must not be given to LightGBM.
        """
        if self._ahead is not None and self._ahead[:2] != (run_id, ref):
            self.forget_expected()  # the guess was wrong, and must not be waited for
        async with self._lock(run_id, ref):
            return await self._fetch(run_id, ref)

    @contextlib.asynccontextmanager
    async def _lock(self, run_id: RunId, ref: ModelRef) -> AsyncIterator[None]:
        """One transfer of a version at a time."""
        async with self._fetching.setdefault((run_id, ref.version), asyncio.Lock()):
            try:
                yield
            finally:
                self._transfers.pop((run_id, ref.version), None)

    async def _fetch(self, run_id: RunId, ref: ModelRef) -> ModelFiles:
        spool, usual_s = self._desk.spool, self._desk.settings.model_silence_s
        files = ModelFiles(spool.model(run_id, ref.version), spool.preprocessing(run_id, ref.version))
        mismatches, silence_s = 0, usual_s
        while True:
            record = await self._ask(run_id, ref)
            if record.state == "COMPLETE":
                return files
            before = sum(byte.bit_count() for byte in record.have)
            transfer = await self._receive(record, files, silence_s)
            if transfer is None or not transfer.complete:
                came = transfer is not None and sum(byte.bit_count() for byte in transfer.have) > before
                silence_s = usual_s if came else min(LONGEST_SILENCE_S, 2 * silence_s)
                continue
            if await self._finish(transfer, files):
                return files
            mismatches += 1
            log.error("model_digest_wrong", run=run_id, version=ref.version, attempt=mismatches)
            if mismatches == DIGEST_ATTEMPTS:
                raise ModelNotObtained(f"version {ref.version} of run {run_id} does not fit its digest")

    async def _ask(self, run_id: RunId, ref: ModelRef) -> ModelRecord:
        """The record of the version; unless it is complete, the aggregator is asked for what is missing."""
        site_id, file = self._desk.identity.site_id, self._desk.spool.model(run_id, ref.version)

        async def ask(tx: Tx) -> ModelRecord:
            fresh = SealKey.generate().to_bytes()
            record = await models.want_model(tx, run_id, ref, fresh, by="ask_model")
            lost = not file.exists() and (record.state == "COMPLETE" or any(record.have))
            if lost:
                await models.start_over(tx, run_id, ref.version, fresh, by="ask_model")
                record = await models.want_model(tx, run_id, ref, fresh, by="ask_model")
            if record.state != "COMPLETE":
                seal_pk, have = SealKey.from_bytes(record.seal_key).public, record.have or None
                wanted = ModelWanted(run_id=run_id, version=ref.version, site_id=site_id, seal_pk=seal_pk, have=have)
                await self._desk.post(tx, "aggregator", wanted)
            return record

        return await self._db.run("ask_model", ask)

    async def _receive(self, record: ModelRecord, files: ModelFiles, silence_s: float) -> Transfer | None:
        """Take in what comes, until it is complete or nothing has come for a while."""
        transfer = await self._await_description(record, files, silence_s)
        if transfer is None:
            return None
        while not transfer.complete:
            transfer.progress.clear()
            if not await pause(self._desk.clock, silence_s, transfer.progress):
                await self._save(transfer)
                break
        self._transfers.pop((transfer.run_id, transfer.version), None)
        return transfer

    async def _await_description(self, record: ModelRecord, files: ModelFiles, silence_s: float) -> Transfer | None:
        """Ready to receive, once the aggregator has said what the version is made of; None if it does not in time."""
        deadline = self._desk.clock.monotonic() + silence_s
        self._undescribed += 1
        try:
            while True:
                changed = self._bell.next()
                transfer = await self._open_transfer(record, files)
                left = deadline - self._desk.clock.monotonic()
                if transfer is not None or left <= 0:
                    return transfer
                await pause(self._desk.clock, left, changed)
        finally:
            self._undescribed -= 1

    async def _open_transfer(self, record: ModelRecord, files: ModelFiles) -> Transfer | None:
        """Ready to receive, once the aggregator has described the version."""
        async with self._db.reading("open_transfer") as tx:
            current = await models.find_model(tx, record.run_id, record.ref.version)
        if current is None or current.offer is None:
            return None
        offer = current.offer
        key = unwrap_model_key(offer.wrapped_key, offer.run_id, offer.version, SealKey.from_bytes(current.seal_key))
        files.parameters.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        transfer = Transfer(current.run_id, offer.version, offer, key, bytearray(current.have), files.parameters)
        if offer.chunks == 0:
            transfer.sync()
        self._transfers[current.run_id, offer.version] = transfer
        self._opened.ring()
        return transfer

    async def _save(self, transfer: Transfer) -> None:
        """First the bytes, then the marks that say they are there."""
        await asyncio.to_thread(transfer.sync)
        have, transfer.unsaved = bytes(transfer.have), 0
        await self._db.run(
            "save_have",
            lambda tx: models.save_have(tx, transfer.run_id, transfer.version, have, by="save_have"),
        )

    async def _finish(self, transfer: Transfer, files: ModelFiles) -> bool:
        """Check the whole against its digest; the offer's digest was checked against the window's model hash before."""
        digest, _ = await asyncio.gather(  # the disk is waited for beside the check
            asyncio.to_thread(_sha256, files.parameters), asyncio.to_thread(transfer.sync)
        )
        if digest != transfer.offer.parameters_sha256 or files.parameters.stat().st_size != transfer.offer.size:
            remove(files.parameters)  # the next question finds it lost, and starts over
            return False
        await self._check_trees(transfer, files)
        await asyncio.to_thread(write_synced, files.preprocessing, rfc8785.dumps(transfer.offer.preprocessing))
        await self._db.run(
            "model_complete",
            lambda tx: models.complete(tx, transfer.run_id, transfer.version, by="model_complete"),
        )
        log.info("model_received", run=transfer.run_id, version=transfer.version, bytes=transfer.offer.size)
        return True

    async def _check_trees(self, transfer: Transfer, files: ModelFiles) -> None:
        """A model of trees is read as hostile input before it is kept; flat numbers cannot hurt."""
        async with self._db.reading("check_trees") as tx:
            known = await studies.study_of_run(tx, transfer.run_id)
        if known is None or not has_trees(known.study):
            return
        try:
            binning = checked_binning(known.study, transfer.offer.preprocessing)
            await asyncio.to_thread(lambda: check_text(known.study, binning, files.parameters.read_bytes()))
        except ModelRefused as refused:
            log.error("model_refused", run=transfer.run_id, version=transfer.version, reason=str(refused))
            remove(files.parameters)
            raise ModelUnfit(f"version {transfer.version} of run {transfer.run_id}: {refused}") from None

    # The bulk queue

    async def on_frame(self, delivery: Delivery) -> Disposition:
        """One chunk of a model. What nobody waits for is dropped: it is asked for again when it is needed."""
        try:
            opened = self._opened.next()
            if not await self._take(delivery.body) and self._undescribed:
                await pause(self._desk.clock, HELD_S, opened)
                await self._take(delivery.body)
        except (BadSignature, ChunkRefused) as fault:
            log.warning("model_chunk_refused", code=fault.code)
            return Dead(fault.code.lower())
        return Ack()

    async def _take(self, frame: bytes) -> bool:
        """Give the frame to the transfer whose key opens it; whether there was one."""
        for transfer in list(self._transfers.values()):
            opened = await asyncio.to_thread(_try_open, frame, transfer, self._desk.identity.aggregator_pk)
            if opened is None:
                continue
            chunk, content = opened
            if not transfer.has(chunk):
                await asyncio.to_thread(transfer.accept, chunk, content)
                transfer.have[chunk // 8] |= 1 << (chunk % 8)
                transfer.unsaved += 1
            if transfer.unsaved >= SAVED_EVERY and not transfer.complete:
                await self._save(transfer)
            transfer.progress.set()
            return True
        return False


def _try_open(frame: bytes, transfer: Transfer, aggregator_pk: bytes) -> tuple[int, bytes] | None:
    """Chunk number and content, or None if the frame is of another version. A bad signature raises."""
    try:
        header, content = open_model_frame(frame, transfer.key, aggregator_pk)
    except ChunkRefused:
        return None
    place = header.place
    expected = (transfer.run_id, transfer.version, transfer.offer.chunks)
    if (place.run_id, place.version, place.chunk_count) != expected:
        return None
    return place.chunk, content


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
