"""How many examples Hypothesis tries: few in `make test`, as many as a test names in `make test-long`."""

import os

QUICK = 30
ALL = os.environ.get("COHORTIUM_TEST_EXAMPLES") == "all"


def examples(most: int) -> int:
    """For `max_examples`: `most`, or `QUICK` where that is fewer and not all are wanted."""
    return most if ALL else min(most, QUICK)
