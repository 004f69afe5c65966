"""Lets the tests here import `ledger_stage` and `federation_in_memory`, which are no tests themselves."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "protocol"))
