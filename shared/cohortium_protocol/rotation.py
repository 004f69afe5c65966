"""The public random rotation: signs, then a Hadamard transform over strided blocks (section 1.7, step 5).

A vector, padded to 1024·m, is read as a matrix of 1024 rows and m columns; block j is column j, so each block takes
coordinates from all over the vector. Without that, layers of different scale stay together and the error is 10^3 to
10^4 times larger. In a block, H32 ⊗ H32 / 32 is two products with a 32x32 matrix; it is its own inverse.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cohortium_protocol import labels
from cohortium_protocol.encoding import H
from cohortium_protocol.floats import FloatFile, Floats
from cohortium_protocol.masking import MaskStream
from cohortium_protocol.plan import BLOCK_WORDS
from cohortium_protocol.vectors import FloatVector

_SIDE = 32
_LANE = 16
"""Numbers beside each row of a matrix that is to be transposed, one cache line. Without them the rows would be a power
of two apart: a column falls on one place of the cache then, and each of its numbers is fetched again."""
_TURNED = 32
"""Rows of the transposed matrix that are written at a time: what is read for them stays in the cache."""


@lru_cache(maxsize=1)
def _hadamard() -> Floats:
    matrix = np.ones((1, 1), dtype=np.float32)
    while len(matrix) < _SIDE:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.setflags(write=False)
    return matrix


def transform(blocks: Floats) -> Floats:
    """32 times the orthonormal transform of each row of `blocks` (columns, 1024). Twice gives 1024 times the input."""
    squares = blocks.reshape(-1, _SIDE, _SIDE)
    # Block by block, not as one large product: so the result does not depend on the size of the chunk, and no thread
    # pool of the linear algebra library is woken for it.
    both: Floats = np.matmul(_hadamard(), np.matmul(squares, _hadamard()))
    return both.reshape(-1, BLOCK_WORDS)


def signs(seed: bytes, first: int, columns: int) -> npt.NDArray[np.uint8]:
    """Bits (columns, 1024) of the public signs of blocks `first` on: 1 is minus.

    Bit i of the key stream (low bit of a byte first) belongs to place i % 1024 of block i // 1024.
    """
    stream = MaskStream(H(labels.ROTATION, seed)).keystream(first * BLOCK_WORDS // 8, columns * BLOCK_WORDS // 8)
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), bitorder="little")
    return bits.reshape(columns, BLOCK_WORDS)


def signed_scale(bits: npt.NDArray[np.uint8], scale: float) -> Floats:
    """+scale where the bit is 0, -scale where it is 1."""
    factors: Floats = bits.astype(np.float32)
    factors *= np.float32(-2 * scale)
    factors += np.float32(scale)
    return factors


def _room(rows: int, columns: int) -> Floats:
    """A matrix, to be filled and then given to `_turn`."""
    return np.empty((rows, columns + _LANE), dtype=np.float32)[:, :columns]


def _turn(source: Floats, target: Floats) -> None:
    """Write the transpose of `source`, which `_room` made."""
    for row in range(0, len(target), _TURNED):
        target[row : row + _TURNED] = source[:, row : row + _TURNED].T


def read_blocks(vector: FloatVector, m: int, first: int, columns: int) -> Floats:
    """Blocks `first` on of the strided view, (columns, 1024), zero beyond the vector's end."""
    out = np.zeros((columns, BLOCK_WORDS), dtype=np.float32)
    whole = len(vector) // m
    rows = _room(whole, columns)
    if isinstance(vector, FloatFile):
        vector.read_strided(first, m, rows)
    else:
        rows[:] = vector[: whole * m].reshape(whole, m)[:, first : first + columns]
    _turn(rows, out[:, :whole])
    last = vector[whole * m + first : whole * m + first + columns]
    if len(last):
        out[: len(last), whole] = last
    return out


def write_blocks(vector: FloatVector, m: int, first: int, blocks: Floats) -> None:
    """The inverse of `read_blocks`; what lies beyond the vector's end is dropped."""
    columns = len(blocks)
    whole = len(vector) // m
    padded = _room(columns, whole)
    padded[:] = blocks[:, :whole]
    if isinstance(vector, FloatFile):
        rows = np.empty((whole, columns), dtype=np.float32)
        _turn(padded, rows)
        vector.write_strided(first, m, rows)
    else:
        _turn(padded, vector[: whole * m].reshape(whole, m)[:, first : first + columns])
    start = whole * m + first
    left = min(columns, len(vector) - start)
    if left > 0:
        vector[start : start + left] = np.ascontiguousarray(blocks[:left, whole])
