"""An audit bundle as it lies on disk: the files, read and shaped, nothing verified yet.

Layout, made by the audit service (`GET /studies/{id}/bundle`):

    trust.json                      the trust document
    manifests/<version>.json        every membership manifest of the study
    entries.jsonl                   one log entry a line, in the order of the log, exactly the bytes that were hashed
    checkpoints/<size>.txt          every checkpoint the log signed, C2SP signed notes
    proofs/consistency.json         between each checkpoint and the next
    proofs/inclusion.json           of the entries that release models, in the last checkpoint
    platform/*.tlog-proof           of what the federation's own log noted of this one
    consent.json                    documents, grants and withdrawals that permissions rest on, from the consent service

A bundle is somebody else's word: every reader here refuses what does not fit, and says which file and where.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from cohortium_messages.governance import Manifest, TrustDocument
from cohortium_messages.ids import Bytes32, Wire
from cohortium_messages.papers import StudyPapers

PAPERS = "consent.json"
MAX_JSON_BYTES = 64 << 20
"""No single JSON file of a bundle is larger; the entries have no such limit."""

PARTS = (".", "manifests", "checkpoints", "proofs", "platform", "../model")
"""Where files are read: of the bundle, and of the model beside it."""

T = TypeVar("T")


class BundleError(Exception):
    """Base of what can be wrong with the files themselves."""


class BundleUnreadable(BundleError):
    """This folder is not an audit bundle, or a file of it cannot be read at all. The text says which and why."""


class PartRefused(BundleError):
    """One part of the bundle is missing or not of its form. `file` names it."""

    def __init__(self, file: str, text: str) -> None:
        super().__init__(f"{file}: {text}")
        self.file = file


class ConsistencyProof(Wire):
    """That the log of `from_size` leaves is a beginning of the log of `to_size` leaves."""

    from_size: int = Field(ge=1)
    to_size: int = Field(ge=1)
    hashes: tuple[Bytes32, ...]


class InclusionProof(Wire):
    """That the entry at `index` is in the log of `size` leaves."""

    index: int = Field(ge=0)
    size: int = Field(ge=1)
    hashes: tuple[Bytes32, ...]


_CONSISTENCY: TypeAdapter[tuple[ConsistencyProof, ...]] = TypeAdapter(tuple[ConsistencyProof, ...])
_INCLUSION: TypeAdapter[tuple[InclusionProof, ...]] = TypeAdapter(tuple[InclusionProof, ...])


@dataclass(frozen=True, slots=True)
class Bundle:
    """Where the parts are; each is read when it is asked for, so that one bad part hides no other."""

    folder: Path

    def trust(self) -> TrustDocument:
        """The trust document. Raises `PartRefused`."""
        return read_model(TrustDocument, self.folder, "trust.json")

    def manifests(self) -> tuple[Manifest, ...]:
        """The manifests in ascending version. Raises `PartRefused`."""
        names = _names(self.folder, "manifests", "json")
        found = [read_model(Manifest, self.folder, f"manifests/{name}") for name in names]
        return tuple(sorted(found, key=lambda manifest: manifest.version))

    def entries(self) -> tuple[bytes, ...]:
        """The raw entries in the file's order. Raises `PartRefused`."""
        return read_lines(self.folder, "entries.jsonl")

    def checkpoints(self) -> tuple[tuple[str, str], ...]:
        """File name and text of every checkpoint, by name. Raises `PartRefused`."""
        return tuple(_texts(self.folder, "checkpoints"))

    def consistency(self) -> tuple[ConsistencyProof, ...]:
        """The consistency proofs. Raises `PartRefused`."""
        return _adapted(_CONSISTENCY, self.folder, "proofs/consistency.json")

    def papers(self) -> StudyPapers | None:
        """What permissions rest on; None if the bundle was made without. Raises `PartRefused`."""
        return read_model(StudyPapers, self.folder, PAPERS) if (self.folder / PAPERS).exists() else None

    def platform(self) -> tuple[str, ...]:
        """The proofs of what the platform's log holds of this one, if there are any."""
        names = sorted(path.name for path in (self.folder / "platform").glob("*.tlog-proof"))
        texts = [_json_bytes(self.folder, f"platform/{name}") for name in names]
        return tuple(text.decode("utf-8", errors="replace") for text in texts)

    def inclusion(self) -> tuple[InclusionProof, ...]:
        """The inclusion proofs. Raises `PartRefused`."""
        return _adapted(_INCLUSION, self.folder, "proofs/inclusion.json")


def open_bundle(folder: Path) -> Bundle:
    """The bundle in this folder. Raises `BundleUnreadable` if it has none of a bundle's files, or what is no file."""
    if not folder.is_dir():
        raise BundleUnreadable(f"{folder} is not a folder; unpack the audit bundle and name the folder it lies in")
    if not any((folder / name).exists() for name in ("entries.jsonl", "trust.json", "checkpoints")):
        raise BundleUnreadable(f"{folder} holds no audit bundle: no entries.jsonl, trust.json or checkpoints in it")
    for path in (path for part in PARTS for path in (folder / part).glob("*")):
        if path.exists() and not path.is_file() and not path.is_dir():
            # Reading a device or a pipe, or through a link to one, would never end.
            raise BundleUnreadable(f"{path} is no plain file, as all of a bundle are; ask for the bundle anew")
    return Bundle(folder)


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise PartRefused(name, "the file is missing") from None
    except OSError as error:
        raise BundleUnreadable(f"{folder / name} cannot be read: {error.strerror}") from error


def _json_bytes(folder: Path, name: str) -> bytes:
    raw = _read(folder, name)
    if len(raw) > MAX_JSON_BYTES:
        raise PartRefused(name, f"the file has {len(raw)} bytes, more than {MAX_JSON_BYTES}")
    return raw


def read_lines(folder: Path, name: str) -> tuple[bytes, ...]:
    """The lines of a file, of which there is at least one. Raises `BundleError`."""
    raw = _read(folder, name)
    if not raw.endswith(b"\n"):
        raise PartRefused(name, "the last line is not complete")
    return tuple(raw[:-1].split(b"\n"))


def read_model(model: type[T], folder: Path, name: str) -> T:
    """A JSON file as what it must be. Raises `BundleError`."""
    return _adapted(TypeAdapter(model), folder, name)


def _adapted(adapter: TypeAdapter[T], folder: Path, name: str) -> T:
    raw = _json_bytes(folder, name)
    try:
        return adapter.validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise PartRefused(name, f"{place} is not as it must be: {first['msg']}") from None


def _names(folder: Path, part: str, suffix: str) -> list[str]:
    names = sorted(path.name for path in (folder / part).glob(f"*.{suffix}"))
    if not names:
        raise PartRefused(part, f"there is no .{suffix} file in it")
    return names


def _texts(folder: Path, part: str) -> Iterator[tuple[str, str]]:
    for name in _names(folder, part, "txt"):
        try:
            yield f"{part}/{name}", _json_bytes(folder, f"{part}/{name}").decode("utf-8")
        except UnicodeDecodeError:
            raise PartRefused(f"{part}/{name}", "the file is not UTF-8 text") from None
