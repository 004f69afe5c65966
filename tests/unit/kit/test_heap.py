"""The allocator's settings are taken, in a process of their own."""

import subprocess
import sys

import pytest

CODE = """
from cohortium_kit._heap import keep_freed_blocks
import resource
assert keep_freed_blocks()
def work():
    for _ in range(50):
        blocks = [bytearray(1 << 20) for _ in range(4)]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_blocks_are_used_again_without_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 500  # 50 times 4 MiB would be 51,200 faults
