"""Lets the tests here import `live`, and `aggregator_world`, which lies with the unit tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "aggregator"))
sys.path.insert(0, str(Path(__file__).parent))
