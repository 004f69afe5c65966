"""Lets the tests here import `private_stage`, and `federation_in_memory` of the protocol's own tests."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "protocol")]
