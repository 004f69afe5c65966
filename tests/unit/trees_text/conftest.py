"""The process that model texts are tried in, one for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tree_text_stage import Gate


@pytest.fixture(scope="session")
def gate() -> Iterator[Gate]:
    pytest.importorskip("lightgbm", reason="the training extra is not installed")
    process = Gate()
    yield process
    process.close()
