"""The ground of all storms in a test process, made once."""

import gc
from collections.abc import Iterator

import pytest

from cohortium_sim.storm.ground import Ground


@pytest.fixture(scope="session")
def ground() -> Iterator[Ground]:
    with Ground(6) as made:
        yield made


@pytest.fixture(autouse=True)
def settled() -> None:
    """Each federation ends with a full collection, and whoever plays several unfreezes in the end: freeze again."""
    gc.collect()
    gc.freeze()
