"""A float32 vector in a file, read and written in slices with bounded memory."""

import os

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_ITEM = 4


class FloatFile:
    """A float32 vector over an open file descriptor: little-endian, from byte `offset` on.

    Slices have a start, a stop and no step. They go by positioned reads and writes, so that pages of a large vector do
    not stay in this process's memory as those of a memmap do. The caller opens, syncs and closes the file.
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

    def read_strided(self, start: int, stride: int, out: Floats) -> None:
        """Fill row r of `out`, whose rows are contiguous, with the numbers from place `start` + r * `stride` on.

        By many small reads and not through a memory map: around each touched place a map brings in pages that nobody
        asked for, in the worst case the whole file.
        """
        rows, columns = out.shape
        for row in range(rows):
            place = start + row * stride
            if os.preadv(self._fd, [out[row].data], self._offset + place * _ITEM) != columns * _ITEM:
                out[row] = self[place : place + columns]

    def write_strided(self, start: int, stride: int, values: Floats) -> None:
        """The inverse of `read_strided`."""
        rows, columns = values.shape
        view = values.reshape(-1).view(np.uint8).data
        width = columns * _ITEM
        for row in range(rows):
            place = start + row * stride
            part = view[row * width : (row + 1) * width]
            if os.pwrite(self._fd, part, self._offset + place * _ITEM) != width:
                self[place : place + columns] = values[row]
