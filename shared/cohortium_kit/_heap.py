"""The C library's allocator, told what this process does: blocks of a mebibyte, taken and given back all the time.

Left alone, glibc returns such a block to the kernel at every second turn, and the next one is made of fresh pages, each
zeroed at a fault: a third of the time of opening a frame. Two arenas instead of eight for each core bound what threads
keep.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Numbers of mallopt(3)."""
KEPT_BYTES = 32 << 20
"""Free memory at the end of the heap that is kept for the next block."""
LARGE_BYTES = 16 << 20
"""Blocks above this are mapped, and returned when they are free."""


def keep_freed_blocks() -> bool:
    """Whether the allocator took the settings: not where the C library is another one. Call before the first thread."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    wanted = ((M_MMAP_THRESHOLD, LARGE_BYTES), (M_TRIM_THRESHOLD, KEPT_BYTES), (M_ARENA_MAX, 2))
    taken = [mallopt(parameter, value) for parameter, value in wanted]
    return all(taken)
