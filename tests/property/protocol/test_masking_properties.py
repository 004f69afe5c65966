"""A mask is one fixed stream: any range of it, in any slices or threads, is the same."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium_protocol.masking import SLICE_BYTES, MaskPlan, MaskStream, Threads, add_masks, add_masks_threaded
from examples import examples

KEYS = [bytes([i]) * 32 for i in range(1, 5)]
PLAN = MaskPlan(tuple(MaskStream(key) for key in KEYS[:2]), tuple(MaskStream(key) for key in KEYS[2:]))


def reference(count: int, dtype: str) -> np.ndarray:
    """Masks read whole, in plain numpy."""
    nbytes = count * np.dtype(dtype).itemsize
    streams = [np.frombuffer(MaskStream(key).keystream(0, nbytes), dtype=dtype) for key in KEYS]
    return streams[0] + streams[1] - streams[2] - streams[3]


@settings(max_examples=examples(60), deadline=None)
@given(start=st.integers(0, 5000), count=st.integers(1, 5000), dtype=st.sampled_from(["<u2", "<u4", "<u8"]))
def test_any_range_is_the_same_part_of_the_stream(start: int, count: int, dtype: str) -> None:
    words = np.zeros(count, dtype=dtype)
    add_masks(words, PLAN, start * words.itemsize)
    assert np.array_equal(words, reference(start + count, dtype)[start:])


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<u8"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_slices_and_threads_change_nothing(dtype: str, threads: int) -> None:
    count = 3 * SLICE_BYTES // np.dtype(dtype).itemsize + 77
    words = np.zeros(count, dtype=dtype)
    with ThreadPoolExecutor(threads) as executor:
        add_masks_threaded(words, PLAN, 0, Threads(executor, threads))
    assert np.array_equal(words, reference(count, dtype))


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**40), st.integers(0, 200))
def test_the_stream_is_readable_at_any_byte(key: bytes, start: int, length: int) -> None:
    stream = MaskStream(key)
    block = start // 16 * 16
    whole = stream.keystream(block, start - block + length)
    assert stream.keystream(start, length) == whole[start - block :]


def test_what_is_added_and_subtracted_cancels() -> None:
    both = MaskPlan(PLAN.plus, PLAN.plus)
    words = np.arange(1000, dtype=np.uint16)
    add_masks(words, both, 64)
    assert np.array_equal(words, np.arange(1000, dtype=np.uint16))
