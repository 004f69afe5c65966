"""Lets the tests here import `attack_stage`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
