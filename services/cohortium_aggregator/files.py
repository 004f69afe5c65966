"""Where bytes lie on disk. All functions block: call them in a thread.

    uploads/<window>-<step>/<index>.vec    masked words of one site, chunks at their offsets
    models/<run>/<version>/parameters.f32  one model version, flat little-endian float32
    models/<run>/<version>/model.txt       one of trees, as LightGBM's model text; empty before the first tree
    models/<run>/<version>/state-<name>.f32  the server optimiser's state that belongs to it
    models/<run>/<version>/frames.bin      the version's encrypted chunks, one behind the other
    bundles/<run>/, bundles/<run>.zip      the finished model with its papers
    place                                  a name for this directory, made when it is first used
    instances/<n>                          locked by the aggregator process that has this seat
    locks/<n>                              locked while one of them opens a sum or makes a bundle

All aggregators of a federation share the directory: a chunk that one of them has stored is read by the one that opens
the sum. Locks are `flock`, which the kernel lets go when their process ends, however it ends; a file system under the
directory must support it (local ones do, NFS from version 4). A directory of a model version or a bundle is complete or
not there: it is written under a temporary name, flushed, then renamed. What no row of the database names may be deleted
at any time.
"""

import fcntl
import os
import secrets
import shutil
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PARAMETERS = "parameters.f32"
MODEL_TEXT = "model.txt"
FRAMES = "frames.bin"
TEMPORARY = ".tmp"
MOST_INSTANCES = 64
LOCKS = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes and where they belong in a file."""

    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class UploadKey:
    """Names one site's upload."""

    window_id: bytes
    step: int
    index: int


@dataclass(frozen=True, slots=True)
class DataDir:
    """The aggregators' directory."""

    root: Path

    def prepare(self) -> None:
        """Make the directories, readable by us only. Twice is once."""
        for name in ("uploads", "models", "bundles", "instances", "locks"):
            (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def join(self) -> "Seat":
        """Take the lowest free seat. Who finds itself alone deletes what a crash left unfinished."""
        folder = self.root / "instances"
        with _gate(folder):
            for number in range(MOST_INSTANCES):
                descriptor = _locked(folder / str(number))
                if descriptor is not None:
                    if _company(folder, number) == (number,):
                        self._clear_unfinished()
                    return Seat(folder, number, f"{self._token()}.{number}", descriptor)
        raise OSError(f"{self.root} has {MOST_INSTANCES} aggregators already")

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Whether we alone do what `name` names, until the block ends: False if another one does, or something else
        under the same lock."""
        descriptor = _locked(self.root / "locks" / str(zlib.crc32(name.encode()) % LOCKS))
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _clear_unfinished(self) -> None:
        for unfinished in [*self.root.glob(f"models/*/.*{TEMPORARY}"), *self.root.glob(f"bundles/.*{TEMPORARY}")]:
            if unfinished.is_dir():
                shutil.rmtree(unfinished, ignore_errors=True)
            else:
                unfinished.unlink(missing_ok=True)

    def _token(self) -> str:
        """A name that this directory keeps over restarts, and no other has."""
        path = self.root / "place"
        if not path.exists():
            working = path.with_name(f".place{TEMPORARY}")
            working.write_text(secrets.token_hex(8))
            sync_file(working)
            working.rename(path)
            sync_dir(self.root)
        return path.read_text()

    def window_dir(self, window_id: bytes, step: int) -> Path:
        return self.root / "uploads" / f"{window_id.hex()}-{step}"

    def upload_path(self, key: UploadKey) -> Path:
        return self.window_dir(key.window_id, key.step) / f"{key.index}.vec"

    def upload_paths(self, window_id: bytes, step: int, indices: Iterable[int]) -> dict[int, Path]:
        return {index: self.upload_path(UploadKey(window_id, step, index)) for index in indices}

    def write_pieces(self, key: UploadKey, pieces: Iterable[Piece]) -> None:
        """Store pieces of one upload; when this returns they survive a power failure. Again is harmless."""
        path = self.upload_path(key)
        is_new = not path.exists()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for piece in pieces:
                write_at(fd, piece.offset, piece.content)
            os.fdatasync(fd)
        finally:
            os.close(fd)
        if is_new:
            sync_dir(path.parent)
            sync_dir(path.parent.parent)

    def wipe_window(self, window_id: bytes, step: int) -> None:
        """Delete all uploads of a window. Twice is once."""
        shutil.rmtree(self.window_dir(window_id, step), ignore_errors=True)

    def windows_on_disk(self) -> set[tuple[bytes, int]]:
        """Windows that have a directory: what is left of a window that ended just before a crash is found here."""
        found = set()
        for path in (self.root / "uploads").iterdir():
            name, _, step = path.name.partition("-")
            found.add((bytes.fromhex(name), int(step)))
        return found

    def model_dir(self, run_id: str, version: int) -> Path:
        return self.root / "models" / run_id / str(version)

    def model_file(self, run_id: str, version: int, trees: int | None) -> Path:
        """The file with a version's parameters: numbers, or the text of its `trees`."""
        return self.model_dir(run_id, version) / (PARAMETERS if trees is None else MODEL_TEXT)

    def drop_files(self, run_id: str, version: int, names: Iterable[str] | None = None) -> None:
        """Delete these files of a version, or (None) all of it. Twice is once."""
        folder = self.model_dir(run_id, version)
        if names is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for name in names:
            (folder / name).unlink(missing_ok=True)

    def bundle_dir(self, run_id: str) -> Path:
        return self.root / "bundles" / run_id

    def bundle_zip(self, run_id: str) -> Path:
        return self.root / "bundles" / f"{run_id}.zip"


@dataclass(frozen=True, slots=True)
class Seat:
    """One process' place among the aggregators of a directory, until it is left or the process ends. `place` is the
    same for the next process on this seat, and no other's."""

    folder: Path
    number: int
    place: str
    descriptor: int
    _left: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def company(self) -> tuple[int, ...]:
        """The seats that are taken now, ours among them, in order."""
        with _gate(self.folder):
            return _company(self.folder, self.number)

    def leave(self) -> None:
        """Give the place back. Twice is once: the descriptor's number may be somebody else's by then."""
        if not self._left.is_set():
            self._left.set()
            os.close(self.descriptor)


@contextmanager
def _gate(folder: Path) -> Iterator[None]:
    """Alone among those who take seats, and those who look which are taken."""
    with opened(folder / "gate", os.O_RDWR | os.O_CREAT) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _company(folder: Path, own: int) -> tuple[int, ...]:
    found = [own]
    for path in folder.iterdir():
        if not path.name.isdigit() or int(path.name) == own:
            continue
        free = _locked(path)
        if free is None:
            found.append(int(path.name))
        else:
            os.close(free)
    return tuple(sorted(found))


def _locked(path: Path) -> int | None:
    """The file, locked and open; None if another one holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def complete_directory(target: Path) -> Iterator[Path]:
    """A fresh directory to write in, which takes the place of `target` when the block ends without an error."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    working = target.with_name(f".{target.name}.{secrets.token_hex(4)}{TEMPORARY}")
    working.mkdir(mode=0o700)
    try:
        yield working
        for path in working.iterdir():
            sync_file(path)
        sync_dir(working)
        shutil.rmtree(target, ignore_errors=True)
        working.rename(target)
        sync_dir(target.parent)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def link_model(source: Path, target: Path) -> None:
    """A version's directory that shares its one model file with another version's. Files of models never change."""
    with complete_directory(target) as folder:
        (folder / source.name).hardlink_to(source)


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A file descriptor that is closed again."""
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def write_at(fd: int, offset: int, content: bytes | memoryview) -> None:
    """All of `content` at `offset`; raises `OSError` if the disk does not take it."""
    view = memoryview(content).cast("B")
    while view:
        written = os.pwrite(fd, view, offset)
        offset += written
        view = view[written:]


def read_at(fd: int, offset: int, length: int) -> bytes:
    """Exactly `length` bytes from `offset`; raises `EOFError` if the file is shorter."""
    content = os.pread(fd, length, offset)
    while len(content) < length:
        more = os.pread(fd, length - len(content), offset + len(content))
        if not more:
            raise EOFError(f"the file ends at {offset + len(content)}, {length - len(content)} bytes too early")
        content += more
    return content


def sync_file(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)


def sync_dir(path: Path) -> None:
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)
