"""A model's files, from its folder or its ZIP archive: read once, so that what is verified is what is used.

An archive is hostile input. The platform writes flat names, stored and not compressed; whatever else a ZIP file can
hold is refused before a byte of it is read.
"""

import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from cohortium_verify.not_loaded import ArchiveRefused

MOST_FILES: Final = 64
MOST_BYTES: Final = 8 << 30
"""Of all files together: a model of two thousand million parameters."""
_SYSTEM_UNIX: Final = 3
_ENCRYPTED: Final = 1


def read_files(path: Path) -> Mapping[str, bytes]:
    """Every file of a model by its name. Raises `ArchiveRefused`, and `FileNotFoundError` where nothing is."""
    if path.is_symlink() and path.is_dir():
        raise ArchiveRefused(f"{path} is a link to a folder; name the folder")
    return dict(_folder_files(path) if path.is_dir() else _archive_files(path))


def _folder_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    names = sorted(os.listdir(folder))
    if len(names) > MOST_FILES:
        raise ArchiveRefused(f"{folder} holds {len(names)} files, and a model has at most {MOST_FILES}")
    total = 0
    for name in names:
        try:
            # A link could lead anywhere, and to another place after the check than before it.
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise ArchiveRefused(f"{name} in {folder} cannot be read as a file: {error.strerror}") from None
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ArchiveRefused(f"{name} in {folder} is no plain file; a model's folder holds files only")
            total += found.st_size
            _check_total(total)
            yield name, file.read(found.st_size)


def _archive_files(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(entries, path.stat().st_size)
            for entry in entries:
                yield entry.filename, archive.read(entry)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ArchiveRefused(f"{path} is no ZIP archive of a model, or a damaged one ({error})") from None


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    if len(entries) > MOST_FILES:
        raise ArchiveRefused(f"the archive has {len(entries)} files, and a model has at most {MOST_FILES}")
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        if not is_flat(name):
            raise ArchiveRefused(f"the archive has {name!r}, which lies outside of its folder or in another one")
        if name in seen:
            raise ArchiveRefused(f"the archive has {name!r} twice")
        seen.add(name)
        kind = stat.S_IFMT(entry.external_attr >> 16) if entry.create_system == _SYSTEM_UNIX else 0
        if kind not in (0, stat.S_IFREG):
            raise ArchiveRefused(f"the archive has {name!r} as a link or a device, and no plain file")
        if entry.flag_bits & _ENCRYPTED:
            raise ArchiveRefused(f"the archive has {name!r} encrypted")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ArchiveRefused(f"the archive has {name!r} compressed; a model's archive is stored as it is")
    total = sum(entry.file_size for entry in entries)
    _check_total(total)
    if total > size:
        raise ArchiveRefused("the archive's files are larger than the archive: they overlap")


def _check_total(total: int) -> None:
    if total > MOST_BYTES:
        raise ArchiveRefused(f"the files have {total} bytes or more, and a model has at most {MOST_BYTES}")


def is_flat(name: str) -> bool:
    """Whether this is the name of a file beside the others, on every system."""
    return bool(name) and name not in (".", "..") and not any(char in "/\\:\0" for char in name) and name.isprintable()
