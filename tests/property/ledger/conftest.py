"""Lets the tests here import `ledger_stage`, `course_story` and `federation_in_memory`, which are no tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "scheduler"))
sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "protocol"))
