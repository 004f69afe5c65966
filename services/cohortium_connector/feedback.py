"""Error feedback (Karimireddy et al. 2019; `contracts/protocol.md`): what one round leaves out goes with the next.

With `compression.keep` below 1 a round sends a part of the coordinates. The site keeps what it did not send, and what
rounding took, as a residual in its own spool, and adds it to its next update. A residual never leaves by itself, and
there is none where the study promises differential privacy: there, memory would break the bound of each sum.

Crash-safe: the new residual is a file under its window's name, complete before the upload is on record; which file
counts is a row that changes with the window's end, in one transaction. All functions block.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cohortium_connector.spool import PRIVATE, remove, sync_folder
from cohortium_messages.secure_sum import WindowParams
from cohortium_protocol.floats import FloatFile
from cohortium_protocol.grid import GridEncoder
from cohortium_protocol.vectors import slices


@dataclass(frozen=True, slots=True)
class Feedback:
    """`before`: the residual that goes with this update, if there is one. `after`: where the new one is to be."""

    before: Path | None
    after: Path


def feeds_back(params: WindowParams) -> bool:
    """Whether updates of this window leave something for the next one."""
    vector = params.vector
    plain = params.purpose == "update" and params.privacy_mode == "none"
    return plain and vector.encoding == "grid" and vector.keep < 1


@contextlib.contextmanager
def scratch(path: Path, length: int) -> Iterator[FloatFile]:
    """A float32 vector of zeros in a file that is gone at the end."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, PRIVATE)
    try:
        os.ftruncate(handle, 4 * length)
        yield FloatFile(handle, length)
    finally:
        os.close(handle)
        remove(path)


@contextlib.contextmanager
def with_residual(update: FloatFile, feedback: Feedback) -> Iterator[FloatFile]:
    """The update, and what was left over before. A residual that is not there, or is not of this length, is none: a
    copy of the spool was restored."""
    before = feedback.before
    fits = before is not None and before.is_file() and before.stat().st_size == 4 * len(update)
    if before is None or not fits:
        yield update
        return
    handle = os.open(before, os.O_RDONLY)
    try:
        left = FloatFile(handle, len(update))
        with scratch(feedback.after.with_suffix(".sum.part"), len(update)) as both:
            for where in slices(len(update)):
                both[where] = np.add(update[where], left[where], dtype=np.float32)
            yield both
    finally:
        os.close(handle)


def keep_residual(encoder: GridEncoder, own: FloatFile, length: int, feedback: Feedback) -> None:
    """Write what this upload leaves over, whole or not at all."""
    unfinished = feedback.after.with_suffix(".part")
    handle = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC, PRIVATE)
    try:
        os.ftruncate(handle, 4 * length)
        encoder.write_residual(own, FloatFile(handle, length))
        os.fsync(handle)
    finally:
        os.close(handle)
    unfinished.replace(feedback.after)
    sync_folder(feedback.after.parent)
