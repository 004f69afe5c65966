"""A float32 vector in a file, read and written in slices with bounded memory."""

import os

import numpy as np

from cohortium_protocol.vectors import Floats

_ITEM = 4


class FloatFile:
    """`vectors.FloatVector` over an open file descriptor: little-endian float32 from byte `offset` on.

    By positioned reads and writes, so that pages of a large vector do not stay in this process's memory as those of a
    memmap do. The caller opens, sizes, syncs and closes the file.
    """

    __slots__ = ("_fd", "_length", "_offset")

    def __init__(self, fd: int, length: int, offset: int = 0) -> None:
        self._fd = fd
        self._length = length
        self._offset = offset

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, where: slice, /) -> Floats:
        start, stop, _ = where.indices(self._length)
        wanted = max(0, stop - start) * _ITEM
        out = np.empty(wanted // _ITEM, dtype="<f4")
        view = out.view(np.uint8).data
        done = 0
        while done < wanted:
            got = os.preadv(self._fd, [view[done:]], self._offset + start * _ITEM + done)
            if got == 0:
                raise EOFError("the file is shorter than its vector")
            done += got
        return out

    def __setitem__(self, where: slice, values: Floats, /) -> None:
        start, stop, _ = where.indices(self._length)
        if len(values) != max(0, stop - start):
            raise ValueError(f"{len(values)} values for {stop - start} places")
        view = np.ascontiguousarray(values, dtype="<f4").view(np.uint8).data
        done = 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done:], self._offset + start * _ITEM + done)
