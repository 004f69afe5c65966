"""The ground of all storms in a test process, made once."""

from collections.abc import Iterator

import pytest

from cohortium_sim.storm.ground import Ground


@pytest.fixture(scope="session")
def ground() -> Iterator[Ground]:
    with Ground(6) as made:
        yield made
