"""The journal of a run at one site: what LightGBM was answered, and which rounds stand.

A site that drops out of a session, or whose session does, grows the same trees again from its own rows and these
answers, without one more sum: histograms are not even needed, since the splits found on them are here. All of it is
public inside the run (opened totals, splits, the agreed chain). One file, only ever appended to:

    "CHTJ1\\n", SHA-256 of what the journal belongs to
    records: u8 tag, u32 length, payload (little-endian)
        tag of a `Place`     the answer at that place
        METRIC               the opened sum that early stopping looked at
        START                u32 rounds that stood before, 32-byte chain, the model text they are (or nothing)
        ROUND                u32 round, 32-byte chain, SHA-256 of the round's trees as text

A ROUND is written before the sites are asked to agree on its trees: they may agree although this site never hears it.
It is synced beside the agreement and the round after it, so that no step waits for a disk; only a power failure within
that time can lose it, and then this site says that its journal cannot be used. What comes after the round to go on from
is cut off.
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from cohortium_connector.training.base import SiteRefusal

MAGIC: Final = b"CHTJ1\n"
METRIC: Final = 64
START: Final = 65
ROUND: Final = 66
MAX_RECORD_BYTES: Final = 64 << 20

_HEAD = struct.Struct("<BI")
_MARK = struct.Struct("<I32s")


class JournalUnusable(SiteRefusal):
    """The rounds that this session is to go on from are not in this site's journal, or did not come out of it."""

    def __init__(self, detail: str) -> None:
        super().__init__("JOURNAL_UNUSABLE", local=f"the journal of the run cannot be used: {detail}")


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the first session of a journal started from: `text` is empty unless it went on from a model."""

    rounds: int
    chain: bytes
    text: bytes


class Journal:
    """Reads back what stands, then writes on. `begin` or `resume` makes one; close it."""

    def __init__(self, file: BinaryIO, beginning: Beginning, rounds: int, end: int) -> None:
        self._file = file
        self._records = _records(file) if end else iter(())
        self._end = end
        self._syncer = ThreadPoolExecutor(1, "journal")
        self._synced: Future[None] | None = None
        self.beginning = beginning
        self.rounds = rounds
        """Rounds that stand, those before the beginning included."""

    @classmethod
    def begin(cls, path: Path, owner: bytes, beginning: Beginning) -> "Journal":
        """An empty journal in the place of any other. `owner`: 32 bytes for study, bins, roster place and data."""
        file = path.open("w+b")
        try:
            file.write(MAGIC + owner)
            _append(file, START, _MARK.pack(beginning.rounds, beginning.chain) + beginning.text)
            _sync(file)
            _sync_folder(path.parent)
        except BaseException:
            file.close()
            raise
        return cls(file, beginning, beginning.rounds, 0)

    @classmethod
    def resume(cls, path: Path, owner: bytes, rounds: int, chain: bytes) -> "Journal":
        """The journal of `owner` up to `rounds`, which ended with `chain`. Raises `JournalUnusable`."""
        try:
            file = path.open("r+b")
        except OSError:
            raise JournalUnusable("there is none") from None
        try:
            beginning, end = _find(file, owner, rounds, chain)
            file.truncate(end)
            file.seek(len(MAGIC) + len(owner))
            next(_records(file))
        except BaseException:
            file.close()
            raise
        return cls(file, beginning, rounds, end if file.tell() < end else 0)

    @property
    def replaying(self) -> bool:
        """Are there answers that stand and have not been taken yet?"""
        return bool(self._end)

    def take(self, tag: int) -> bytes:
        """The next record while replaying. Raises `JournalUnusable` if it is not of this tag."""
        found, payload = next(self._records)
        if found != tag:
            raise JournalUnusable(f"a record with tag {found} stands where one with tag {tag} belongs")
        if self._file.tell() == self._end:
            self._end = 0
        return payload

    def note(self, tag: int, payload: bytes) -> None:
        """Keep an answer. Synced with the next round."""
        _append(self._file, tag, payload)

    def take_round(self, round_: int, trees: bytes) -> None:
        """While replaying: the round's trees came out again. Raises `JournalUnusable` if they are not the same."""
        number, _ = _MARK.unpack_from(mark := self.take(ROUND))
        if number != round_ or mark[_MARK.size :] != hashlib.sha256(trees).digest():
            raise JournalUnusable(f"round {round_} grew other trees than before; did LightGBM's version change?")

    def note_round(self, round_: int, chain: bytes, trees: bytes) -> None:
        """The round stands if the sites agree; `chain` is then the chain. A killed process has it from here on, a
        failing machine when the next round is noted. Raises `OSError` if the last one could not be synced."""
        _append(self._file, ROUND, _MARK.pack(round_, chain) + hashlib.sha256(trees).digest())
        self._file.flush()
        self._wait()
        self._synced = self._syncer.submit(os.fsync, self._file.fileno())
        self.rounds = round_

    def close(self) -> None:
        """Twice does no harm."""
        try:
            self._wait()
        finally:
            self._syncer.shutdown()
            self._file.close()

    def _wait(self) -> None:
        synced, self._synced = self._synced, None
        if synced is not None:
            synced.result()


def _records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Whole records from here on: a torn one at the end is as good as none."""
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        tag, length = _HEAD.unpack(head)
        if length > MAX_RECORD_BYTES or len(payload := file.read(length)) < length:
            return
        yield tag, payload


def _find(file: BinaryIO, owner: bytes, rounds: int, chain: bytes) -> tuple[Beginning, int]:
    """The beginning, and where the file is to be cut. Raises `JournalUnusable`."""
    if file.read(len(MAGIC) + len(owner)) != MAGIC + owner:
        raise JournalUnusable("it belongs to other rows, other bins, another study or another place in the roster")
    found: Beginning | None = None
    for tag, payload in _records(file):
        if tag not in (START, ROUND) or len(payload) < _MARK.size:
            continue
        number, its_chain = _MARK.unpack_from(payload)
        if tag == START:
            found = Beginning(number, its_chain, payload[_MARK.size :])
        if number == rounds:
            if its_chain != chain or found is None:
                raise JournalUnusable(f"round {rounds} ended with another chain of results here")
            return found, file.tell()
    raise JournalUnusable(f"it ends before round {rounds}")


def _append(file: BinaryIO, tag: int, payload: bytes) -> None:
    file.write(_HEAD.pack(tag, len(payload)) + payload)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
