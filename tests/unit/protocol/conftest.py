"""Lets the tests here import `federation_in_memory`, which is no test itself."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
