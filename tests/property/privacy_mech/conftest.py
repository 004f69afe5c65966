"""Lets the tests here import `private_stage`, which lies with the unit tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "privacy_mech"))
