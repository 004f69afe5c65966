"""Lets the tests here import `strict_stage` and `federation_in_memory`, which lie with the unit tests."""

import sys
from pathlib import Path

UNIT = Path(__file__).parents[2] / "unit"
sys.path[:0] = [str(UNIT / "strict"), str(UNIT / "protocol")]
