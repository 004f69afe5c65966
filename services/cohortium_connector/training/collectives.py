"""LightGBM's network, played by the sums of a session.

LightGBM calls two C functions for all of its distributed training (`LGBM_NetworkInitWithFunctions`). A C++ exception
cannot pass through Python, nor a Python one through C++: whatever goes wrong in a callback is kept, LightGBM gets
zeros, which let it end what it is doing without another split, no further question leaves, and `raise_kept` raises what
was kept.

The network belongs to the thread that opened it. The library must be able to lay out its 24-byte tuple of the root as
we read it: that is looked at before its first use.
"""

import ctypes
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from cohortium_connector.training.course import COUNT_BYTES, NUMBER_BYTES, Course, Place, UnknownCollective
from cohortium_connector.training.session import Session
from cohortium_connector.training.splits import Splits

_int32 = ctypes.c_int32
_int32s = ctypes.POINTER(_int32)
_REDUCE_SCATTER = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    _int32,
    ctypes.c_int,
    _int32s,
    _int32s,
    ctypes.c_int,
    ctypes.c_void_p,
    _int32,
    ctypes.c_void_p,
)
_ALLGATHER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, _int32, _int32s, _int32s, ctypes.c_int, ctypes.c_void_p, _int32)
_CELL_BYTES = 8

_ROOT = struct.Struct("<ddi4x")
"""std::tuple<int, double, double> as libstdc++ lays it out: Σ hessian, Σ gradient, rows."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A site as LightGBM sees it: machine `rank` (the roster index less one) of `sites`, on which `rows` train.
    `histogram_bytes` is the largest histogram."""

    sites: int
    rank: int
    rows: int
    histogram_bytes: int


class Collectives:
    """LightGBM's network in this thread, while the context is open. `library` is LightGBM's."""

    def __init__(self, library: Any, machine: Machine, session: Session, course: Course, splits: Splits) -> None:
        self._library = library
        self._machine = machine
        self._session = session
        self._course = course
        self._splits = splits
        self._layout_is_known = False
        self._fault: BaseException | None = None
        self._callbacks = _REDUCE_SCATTER(self._reduce_scatter), _ALLGATHER(self._allgather)

    def __enter__(self) -> "Collectives":
        scatter, gather = (ctypes.cast(callback, ctypes.c_void_p) for callback in self._callbacks)
        if self._library.LGBM_NetworkInitWithFunctions(self._machine.sites, self._machine.rank, scatter, gather) != 0:
            raise UnknownCollective("the library does not take functions for its network")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._library.LGBM_NetworkFree()

    def begin_round(self) -> None:
        """A call of `update` follows."""
        self._course.begin_round()

    def raise_kept(self) -> None:
        """After each call into LightGBM, whether it failed or not: raises what went wrong in a callback, if
        anything."""
        if self._fault is not None:
            raise self._fault

    def check_complete(self) -> None:
        """After a call that succeeded. Raises `UnknownCollective` if LightGBM has left something out."""
        self._course.check_complete()

    def _allgather(self, mine: int, size: int, starts: Any, _lengths: Any, _blocks: int, out: int, whole: int) -> None:
        try:
            self._stop_if_over()
            parts = self._gathered(ctypes.string_at(mine, size))
            for rank, part in enumerate(parts):
                ctypes.memmove(out + starts[rank], part, len(part))
        except BaseException as error:  # noqa: BLE001 - nothing may pass into C++; `raise_kept` raises it
            self._keep(error)
            ctypes.memset(out, 0, whole)

    def _reduce_scatter(
        self, mine: int, size: int, _type: int, starts: Any, lengths: Any, _blocks: int, out: int, _room: int, _add: int
    ) -> None:
        start, length = starts[self._machine.rank], lengths[self._machine.rank]
        try:
            self._stop_if_over()
            self._course.scattered(size, self._machine.histogram_bytes)
            cells = np.frombuffer(memoryview((ctypes.c_char * size).from_address(mine)), dtype=np.float64)
            own = slice(start // _CELL_BYTES, (start + length) // _CELL_BYTES)
            sums = self._session.histogram(cells, own)
            if sums is None:
                ctypes.memset(out, 0, length)
            else:
                ctypes.memmove(out, sums.tobytes(), length)
        except BaseException as error:  # noqa: BLE001 - nothing may pass into C++; `raise_kept` raises it
            self._keep(error)
            ctypes.memset(out, 0, length)

    def _keep(self, error: BaseException) -> None:
        if self._fault is None:
            self._fault = error

    def _stop_if_over(self) -> None:
        if self._fault is not None:
            raise self._fault
        if self._session.interrupted:
            raise KeyboardInterrupt

    def _gathered(self, mine: bytes) -> list[bytes]:
        """What each rank is said to hold, so that LightGBM comes to the total by its own addition or comparison."""
        match self._course.gathered(len(mine)):
            case Place.SAME:
                return [mine] * self._machine.sites
            case Place.COUNT:
                rows = self._session.count(struct.unpack("<i", mine)[0])
                return self._alone(struct.pack("<i", rows), bytes(COUNT_BYTES))
            case Place.ROOT:
                return self._root(mine)
            case Place.SPLITS:
                return self._alone(self._session.splits(mine, self._splits), self._splits.none)
            case place:
                total = self._session.number(place, struct.unpack("<d", mine)[0])
                return self._alone(struct.pack("<d", total), bytes(NUMBER_BYTES))

    def _alone(self, first: bytes, other: bytes) -> list[bytes]:
        return [first] + [other] * (self._machine.sites - 1)

    def _root(self, mine: bytes) -> list[bytes]:
        hessian, gradient, rows = _ROOT.unpack(mine)
        if not self._layout_is_known and rows != self._machine.rows:
            raise UnknownCollective("the rows of a tree's root are not where LightGBM 4.7 for Linux has them")
        self._layout_is_known = True
        total = self._session.root(hessian, gradient, rows)
        return self._alone(_ROOT.pack(*total), bytes(_ROOT.size))
