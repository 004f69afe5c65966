"""Lets the tests here import `federation_in_memory`, which lies with the unit tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "protocol"))
