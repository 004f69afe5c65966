"""Archives that services hand over, unpacked."""

import io
import zipfile
from pathlib import Path

from cohortium_cli.operator import OperatorError


def unpack(archive: bytes, folder: Path) -> tuple[str, ...]:
    """Unpack into `folder`, which must be new or empty; the names of the files.

    Raises `FileExistsError` if it holds something, and `OperatorError` if a file of the archive would leave it.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; choose another folder, or delete it first")
    with zipfile.ZipFile(io.BytesIO(archive)) as bundle:
        root = folder.resolve()
        for name in bundle.namelist():
            if not (root / name).resolve().is_relative_to(root):
                raise OperatorError(f"the archive has a file {name!r} outside of its folder; nothing was unpacked")
        folder.mkdir(parents=True, exist_ok=True)
        bundle.extractall(root)
        return tuple(name for name in bundle.namelist() if not name.endswith("/"))
