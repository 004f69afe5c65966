"""Random-k: the public, seeded choice of coordinates that every site sends (section 1.7, step 4).

The vector is cut in blocks of 65,536 coordinates. Each block gives its proportional part, rounded so that the parts add
up to k, and which ones is the first part of a uniform random permutation: the places of the smallest of 64-bit
key-stream words. So any block's choice is known without the others, in memory for one block.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from cohortium_protocol import labels
from cohortium_protocol.encoding import H
from cohortium_protocol.masking import MaskStream

BLOCK: Final = 1 << 16


def chosen(seed: bytes, dimension: int, kept: int) -> Iterator[tuple[slice, slice, npt.NDArray[np.intp]]]:
    """For each block: its slice of the vector, its slice of the kept places, and which of its coordinates are kept
    (ascending, counted from the block's start)."""
    stream = MaskStream(H(labels.KEEP, seed))
    done = 0
    for start in range(0, dimension, BLOCK):
        stop = min(start + BLOCK, dimension)
        upto = kept * stop // dimension
        ranks = np.frombuffer(stream.keystream(8 * start, 8 * (stop - start)), dtype="<u8")
        yield slice(start, stop), slice(done, upto), _smallest(ranks, upto - done)
        done = upto


def _smallest(ranks: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.intp]:
    """Places of the `count` smallest ranks, ascending; of equal ranks the earlier place is the smaller."""
    if count == 0:
        return np.empty(0, dtype=np.intp)
    limit = np.partition(ranks, count - 1)[count - 1]
    places = np.flatnonzero(ranks <= limit)
    if len(places) != count:
        places = np.sort(np.argsort(ranks, kind="stable")[:count])
    return places
