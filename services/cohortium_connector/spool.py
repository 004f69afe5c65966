"""The spool's files, beside its database: vectors, masked uploads, models, journals of strict sessions. Nothing here
leaves the site by itself."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cohortium_kit.errors import ConfigurationError
from cohortium_kit.settings import read_secret_file
from cohortium_messages.ids import RunId
from cohortium_protocol.signing import IdentityKey

PRIVATE = 0o600
_sync_content = getattr(os, "fdatasync", os.fsync)
"""macOS has no fdatasync."""
Candidate = tuple[Path, int]
"""A file, and when it was last written."""


class Spool:
    """Where files are. A file without a record in the database is rubbish, unless it is `pinned` while it is made."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.work = self.root / "work"
        self.products = self.root / "products"
        self.uploads = self.root / "uploads"
        self.models = self.root / "models"
        self.journals = self.root / "journals"
        self.residuals = self.root / "residuals"
        self._pinned: set[Path] = set()

    def prepare(self) -> None:
        """Make the folders and the database file, open to their owner only. Twice is once."""
        kept = (self.products, self.uploads, self.models, self.journals, self.residuals)
        for folder in (self.root, self.work, *kept):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        for name in ("spool.db", "spool.db-wal", "spool.db-shm"):
            file = self.root / name
            if name == "spool.db" or file.exists():
                file.touch(mode=PRIVATE)
                file.chmod(PRIVATE)

    def clear_work(self) -> None:
        """Delete what a run before this one was in the middle of making. Only at the start."""
        for unfinished in (*self.work.iterdir(), *self.uploads.glob("*.part"), *self.residuals.glob("*.part")):
            remove(unfinished)

    @contextlib.contextmanager
    def only_here(self) -> Iterator[None]:
        """Hold the spool for this process; raises `ConfigurationError` if another connector has it."""
        with (self.root / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigurationError(f"{self.root} is in use by another connector; give this one its own") from None
            yield

    def product(self, product_id: str) -> Path:
        """A finished vector: int64, or float32 for an update of averaging."""
        return self.products / f"{product_id}.vector"

    def upload(self, window_id: bytes) -> Path:
        """A complete masked vector: its chunks one after the other."""
        return self.uploads / f"{window_id.hex()}.bin"

    def residual(self, window_id: bytes) -> Path:
        """What this window's upload left over of its update: float32, over all coordinates."""
        return self.residuals / f"{window_id.hex()}.residual"

    def model(self, run_id: RunId, version: int) -> Path:
        """A model as it was published: flat float32 parameters, or LightGBM's text (empty while there is no tree)."""
        return self.models / run_id / f"{version}.model"

    def preprocessing(self, run_id: RunId, version: int) -> Path:
        return self.models / run_id / f"{version}.json"

    def journal(self, run_id: RunId, base_version: int) -> Path:
        """What a run's strict sessions agreed on since this version (0: since the beginning); results only, no row."""
        return self.journals / run_id / f"{base_version}.journal"

    def journals_of(self, run_id: RunId) -> tuple[Path, ...]:
        return tuple((self.journals / run_id).glob("*.journal"))

    @contextlib.contextmanager
    def pinned(self, path: Path) -> Iterator[Path]:
        """Keep the sweep away from a file whose record is about to be written."""
        self._pinned.add(path)
        try:
            yield path
        finally:
            self._pinned.discard(path)

    def sweepable(self) -> tuple[Candidate, ...]:
        """Files that may be rubbish. List them before the records are read, so that nothing newer is in the list.

        Files that are pinned, unfinished (`.part`) or hidden are not in it.
        """
        found = []
        for folder in (self.products, self.uploads, self.models, self.journals, self.residuals):
            for path in folder.rglob("*"):
                unfinished = path.suffix == ".part" or path.name.startswith(".")
                if path not in self._pinned and not unfinished and (changed := _changed_at(path)) is not None:
                    found.append((path, changed))
        return tuple(found)

    def sweep(self, candidates: tuple[Candidate, ...], keep: frozenset[Path]) -> int:
        """Delete the candidates that no record needs and nobody has written since; returns how many.

        `keep` names files without their endings.
        """
        rubbish = [
            path
            for path, changed in candidates
            if path.with_suffix("") not in keep and path not in self._pinned and _changed_at(path) == changed
        ]
        for path in rubbish:
            remove(path)
        return len(rubbish)

    @property
    def ledger_head(self) -> Path:
        """Where the privacy ledger stood: a ledger that is older is a restored copy."""
        return self.root / "ledger.head"

    @property
    def patients(self) -> Path:
        """Who may be used, and the tags that commit to who was: the hospital's own files, by study."""
        return self.root / "patients"

    @property
    def witness(self) -> Path:
        """What this hospital cosigned of its studies' logs."""
        return self.root / "witness"

    # The generation file: rule R8, restored backups

    @property
    def _generation(self) -> Path:
        return self.root / "generation"

    def read_generation(self) -> int:
        """The number of the newest promise that was saved, 0 before the first."""
        try:
            return int(self._generation.read_text("ascii"))
        except FileNotFoundError:
            return 0

    def write_generation(self, generation: int) -> None:
        """Write it down where a copy of the database alone does not reach. Several times a round, so in place: so few
        bytes of one block of the disk are written as a whole or not at all, and no new file's name has to last."""
        content = f"{generation:020}\n".encode()
        with contextlib.suppress(FileNotFoundError), self._generation.open("r+b", buffering=0) as file:
            if os.fstat(file.fileno()).st_size == len(content):
                file.write(content)
                _sync_content(file.fileno())
                return
        write_synced(self._generation, content)


def own_key(path: Path) -> IdentityKey:
    """The key in this file, which only its owner can read; made if there is none. Raises `ConfigurationError`."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = IdentityKey.generate()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
        with os.fdopen(handle, "wb") as file:
            file.write(key.to_seed().hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return key
    try:
        return IdentityKey.from_seed(bytes.fromhex(read_secret_file(path)))
    except ValueError:
        raise ConfigurationError(f"{path} must hold a 32-byte key as 64 hexadecimal digits") from None


def write_synced(path: Path, content: bytes) -> None:
    """Replace the file's content at once and for good: a crash leaves the old content or the new."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _changed_at(path: Path) -> int | None:
    """When a file was last written, in nanoseconds; None for what is no file, or is gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns if stat.S_ISREG(status.st_mode) else None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Delete a file or a folder; a missing one is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
