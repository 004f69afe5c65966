"""Studies and rows of `tests/unit/trees_protocol`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "trees_protocol"))
